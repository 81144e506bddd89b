//! Bytes and texts: `TextEncoder`, `TextDecoder`, `atob` and `btoa`.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use code_mode_protocol::Limit;
use encoding_rs::{CoderResult, Decoder, DecoderResult, Encoding};

use super::platform::{bytes_of, text_argument};
use super::{Answer, CellState, Refusal, thrown};

type Value<'s> = v8::Local<'s, v8::Value>;

/// The most decoders of one cell that wait for the rest of a character.
const MAX_DECODERS: usize = 4096;

/// V8 cannot be interrupted in what native code does: text that is too large for it to be
/// quick, and for the heap to hold both sides, ends the cell.
fn check_size(state: &CellState, bytes: usize) -> Answer {
    const HEAP_PER_INPUT: usize = 8;
    let limit = state.shared.limits.heap_bytes();
    match bytes > limit / HEAP_PER_INPUT {
        true => Err(Limit::Heap.exceeded(limit as u64).into()),
        false => Ok(()),
    }
}

fn sized_text(
    scope: &mut v8::PinScope,
    state: &CellState,
    args: &v8::FunctionCallbackArguments,
) -> Answer<String> {
    if let Ok(text) = v8::Local::<v8::String>::try_from(args.get(0)) {
        check_size(state, text.length())?;
    }
    Ok(text_argument(scope, args, 0))
}

/// `(text)`: its UTF-8.
pub(super) fn encode_utf8<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Value<'s>> {
    let text = sized_text(scope, state, args)?;
    let buffer = v8::ArrayBuffer::new(scope, text.len());
    for (cell, byte) in buffer.get_backing_store().iter().zip(text.bytes()) {
        cell.set(byte);
    }
    let bytes = v8::Uint8Array::new(scope, buffer, 0, text.len());
    Ok(thrown(bytes)?.into())
}

/// `(label)`: the encoding's name.
pub(super) fn encoding_name<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Option<Value<'s>>> {
    let label = text_argument(scope, args, 0);
    let Some(encoding) = Encoding::for_label_no_replacement(label.as_bytes()) else {
        return Ok(None);
    };
    let name = encoding.name().to_ascii_lowercase();
    Ok(Some(thrown(v8::String::new(scope, &name))?.into()))
}

/// `(encoding, bytes, state, stream, fatal, ignoreBOM)`: `[text, state]`.
pub(super) fn decode<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Option<Value<'s>>> {
    let number = args.get(2).uint32_value(scope).unwrap_or_default();
    let stream = args.get(3).is_true();
    let fatal = args.get(4).is_true();
    if let Ok(view) = v8::Local::<v8::ArrayBufferView>::try_from(args.get(1)) {
        check_size(state, view.byte_length())?;
    }
    let bytes = bytes_of(args.get(1));
    let known = state.decoders.borrow_mut().remove(&number);
    let mut decoder = match known {
        Some(decoder) => decoder,
        None => {
            let label = text_argument(scope, args, 0);
            let encoding = Encoding::for_label(label.as_bytes()).unwrap_or(encoding_rs::UTF_8);
            match args.get(5).is_true() {
                true => encoding.new_decoder_without_bom_handling(),
                false => encoding.new_decoder_with_bom_removal(),
            }
        }
    };
    let Some(text) = decoded(&mut decoder, &bytes, !stream, fatal) else {
        return Ok(None);
    };
    let mut kept = 0;
    if stream {
        let mut decoders = state.decoders.borrow_mut();
        if decoders.len() >= MAX_DECODERS {
            return Err(Refusal::from(
                "too many TextDecoders have unfinished streams",
            ));
        }
        kept = decoders.keys().next_back().map_or(1, |last| last + 1);
        decoders.insert(kept, decoder);
    }
    let text = thrown(v8::String::new(scope, &text))?;
    let kept = v8::Integer::new_from_unsigned(scope, kept);
    let both = [text.into(), kept.into()];
    Ok(Some(v8::Array::new_with_elements(scope, &both).into()))
}

/// The text of some bytes; `None` where they are malformed and must not be.
fn decoded(decoder: &mut Decoder, mut bytes: &[u8], last: bool, fatal: bool) -> Option<String> {
    let mut text = String::new();
    loop {
        if fatal {
            let room = decoder.max_utf8_buffer_length_without_replacement(bytes.len())?;
            text.reserve(room);
            let (result, read) =
                decoder.decode_to_string_without_replacement(bytes, &mut text, last);
            bytes = bytes.get(read..)?;
            match result {
                DecoderResult::InputEmpty => return Some(text),
                DecoderResult::OutputFull => {}
                DecoderResult::Malformed(..) => return None,
            }
        } else {
            text.reserve(decoder.max_utf8_buffer_length(bytes.len())?);
            let (result, read, _) = decoder.decode_to_string(bytes, &mut text, last);
            bytes = bytes.get(read..)?;
            match result {
                CoderResult::InputEmpty => return Some(text),
                CoderResult::OutputFull => {}
            }
        }
    }
}

/// The alphabet of `atob`: padding may be there or not, and bits left over are dropped.
const FORGIVING: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// The forgiving decoding of the WHATWG's Infra standard.
fn forgiving(text: &str) -> Option<Vec<u8>> {
    let is_space = |c: char| matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ');
    let mut text: String = text.chars().filter(|c| !is_space(*c)).collect();
    if text.len().is_multiple_of(4) {
        for _ in 0..2 {
            if text.ends_with('=') {
                text.pop();
            }
        }
    }
    FORGIVING.decode(text).ok()
}

/// `(text)`: a text whose characters are the bytes.
pub(super) fn base64_decode<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Option<Value<'s>>> {
    let text = sized_text(scope, state, args)?;
    let Some(bytes) = forgiving(&text) else {
        return Ok(None);
    };
    let text = v8::String::new_from_one_byte(scope, &bytes, v8::NewStringType::Normal);
    Ok(Some(thrown(text)?.into()))
}

/// `(text)`: the base64 of its characters, where each is a byte.
pub(super) fn base64_encode<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Option<Value<'s>>> {
    let text = sized_text(scope, state, args)?;
    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
    let Some(bytes) = bytes else {
        return Ok(None);
    };
    let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
    Ok(Some(thrown(v8::String::new(scope, &encoded))?.into()))
}
