//! What the globals of guided sessions need of the platform: clones, randomness, time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use v8::{ValueDeserializerHelper, ValueSerializerHelper};

use super::{Answer, CellState, Refusal, thrown};
use crate::determinism::Source;

type Value<'s> = v8::Local<'s, v8::Value>;

/// An argument as text; halves of characters become U+FFFD.
pub(super) fn text_argument(
    scope: &mut v8::PinScope,
    args: &v8::FunctionCallbackArguments,
    index: i32,
) -> String {
    args.get(index).to_rust_string_lossy(scope)
}

/// An array of texts.
pub(super) fn array_of_texts<'s, 'a>(
    scope: &mut v8::PinScope<'s, '_>,
    texts: impl Iterator<Item = &'a str>,
) -> Answer<Value<'s>> {
    let mut values: Vec<Value> = Vec::new();
    for text in texts {
        values.push(thrown(v8::String::new(scope, text))?.into());
    }
    Ok(v8::Array::new_with_elements(scope, &values).into())
}

/// A copy of a view's bytes.
pub(super) fn bytes_of(value: v8::Local<v8::Value>) -> Vec<u8> {
    let Ok(view) = v8::Local::<v8::ArrayBufferView>::try_from(value) else {
        return Vec::new();
    };
    let mut bytes = vec![0; view.byte_length()];
    let copied = view.copy_contents(&mut bytes);
    bytes.truncate(copied);
    bytes
}

/// When a cell began, by both clocks.
pub(crate) struct Began {
    at: Instant,
    wall: SystemTime,
}

impl Began {
    pub(crate) fn now() -> Self {
        Self {
            at: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    fn in_ms(duration: Duration) -> f64 {
        /// No finer, as browsers have it: a fine clock helps to read memory through the
        /// processor's caches.
        const STEP_MICROS: u128 = 100;
        let steps = duration.as_micros() / STEP_MICROS;
        steps as f64 * STEP_MICROS as f64 / 1000.0
    }
}

/// `()`: milliseconds since the cell began.
pub(super) fn now<'s>(scope: &mut v8::PinScope<'s, '_>, state: &CellState) -> Value<'s> {
    let ms = match &state.source {
        Some(source) => source.now(),
        None => Began::in_ms(state.began.at.elapsed()),
    };
    v8::Number::new(scope, ms).into()
}

/// `()`: when the cell began.
pub(super) fn time_origin<'s>(scope: &mut v8::PinScope<'s, '_>, state: &CellState) -> Value<'s> {
    let since = state.began.wall.duration_since(UNIX_EPOCH);
    let ms = match &state.source {
        Some(source) => source.start_ms,
        None => Began::in_ms(since.unwrap_or_default()),
    };
    v8::Number::new(scope, ms).into()
}

fn random(state: &CellState, bytes: &mut [u8]) -> Answer {
    if let Some(source) = &state.source {
        for chunk in bytes.chunks_mut(8) {
            let random = source.random().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
        return Ok(());
    }
    getrandom::fill(bytes).map_err(|_| Refusal::from("no random numbers can be had"))
}

/// `(view)`: fills it.
pub(super) fn fill_random(state: &CellState, args: &v8::FunctionCallbackArguments) -> Answer {
    let Ok(view) = v8::Local::<v8::ArrayBufferView>::try_from(args.get(0)) else {
        return Ok(());
    };
    let mut bytes = vec![0; view.byte_length()];
    random(state, &mut bytes)?;
    if let Some(store) = view.get_backing_store() {
        let cells = store.iter().skip(view.byte_offset());
        for (cell, byte) in cells.zip(bytes) {
            cell.set(byte);
        }
    }
    Ok(())
}

/// `()`: a random number from 0 up to 1, where randomness is the cell's own.
pub(super) fn random_unit<'s>(scope: &mut v8::PinScope<'s, '_>, state: &CellState) -> Value<'s> {
    /// The bits that a number has.
    const BITS: u32 = 53;
    let bits = state.source.as_ref().map_or(0, Source::random) >> (64 - BITS);
    v8::Number::new(scope, bits as f64 / (1_u64 << BITS) as f64).into()
}

/// `()`: a random UUID.
pub(super) fn uuid<'s>(scope: &mut v8::PinScope<'s, '_>, state: &CellState) -> Answer<Value<'s>> {
    let mut bytes = [0; 16];
    random(state, &mut bytes)?;
    // Version 4, and the variant of RFC 9562.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(thrown(v8::String::new(scope, &text))?.into())
}

/// Tells the caller what cannot be cloned.
struct Refuser(v8::Global<v8::Function>);

impl v8::ValueSerializerImpl for Refuser {
    fn throw_data_clone_error<'s>(
        &self,
        scope: &mut v8::PinScope<'s, '_>,
        message: v8::Local<'s, v8::String>,
    ) {
        let refuse = v8::Local::new(scope, &self.0);
        let receiver = v8::undefined(scope);
        // It throws.
        let _ = refuse.call(scope, receiver.into(), &[message.into()]);
    }
}

/// Reads the clone written just before: it holds no host objects.
struct Reader;
impl v8::ValueDeserializerImpl for Reader {}

/// `(value, transfer, refuse)`: a structured clone, by V8's own serialisation.
pub(super) fn clone<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Option<Value<'s>>> {
    let refuse = v8::Local::<v8::Function>::try_from(args.get(2))
        .map_err(|_| Refusal::from("structuredClone has lost its helper"))?;
    let refuser = Refuser(v8::Global::new(scope, refuse));
    let context = scope.get_current_context();
    let mut moved: Vec<v8::Local<v8::ArrayBuffer>> = Vec::new();
    if let Ok(transfer) = v8::Local::<v8::Array>::try_from(args.get(1)) {
        /// V8 cannot be interrupted while this looks at them.
        const MAX_MOVED: u32 = 1_000;
        if transfer.length() > MAX_MOVED {
            return Err(Refusal::from("transfer has 1,000 buffers at most"));
        }
        for index in 0..transfer.length() {
            let value = thrown(transfer.get_index(scope, index))?;
            match v8::Local::<v8::ArrayBuffer>::try_from(value) {
                Ok(buffer)
                    if buffer.is_detachable()
                        && !buffer.was_detached()
                        && !moved.contains(&buffer) =>
                {
                    moved.push(buffer);
                }
                _ => {
                    let message = v8::String::new(scope, "a value of transfer cannot be moved");
                    let receiver = v8::undefined(scope);
                    let message = thrown(message)?;
                    thrown(refuse.call(scope, receiver.into(), &[message.into()]))?;
                    return Ok(None);
                }
            }
        }
    }
    let serializer = v8::ValueSerializer::new(scope, Box::new(refuser));
    serializer.write_header();
    for (number, buffer) in (0u32..).zip(&moved) {
        serializer.transfer_array_buffer(number, *buffer);
    }
    thrown(serializer.write_value(context, args.get(0)))?;
    let bytes = serializer.release();
    drop(serializer);
    let deserializer = v8::ValueDeserializer::new(scope, Box::new(Reader), &bytes);
    thrown(deserializer.read_header(context))?;
    for (number, buffer) in (0u32..).zip(&moved) {
        let store = buffer.get_backing_store();
        buffer.detach(None);
        let buffer = v8::ArrayBuffer::with_backing_store(scope, &store);
        deserializer.transfer_array_buffer(number, buffer);
    }
    thrown(deserializer.read_value(context)).map(Some)
}
