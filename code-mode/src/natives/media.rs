//! `image`, `audio`, `content` and `generatedImage`.

use code_mode_protocol::{ContentItem, ImageDetail};

use super::display::property;
use super::{Answer, CellState, Refusal, thrown};

const IMAGE_EXPECTS: &str = "image expects a non-empty image URL string, an object with image_url and optional detail, or a raw MCP image block";
const AUDIO_EXPECTS: &str = "audio expects a non-empty audio URL string, an object with audio_url, or a raw MCP audio block";
const CONTENT_EXPECTS: &str = "content expects one MCP ContentBlock";
const GENERATED_EXPECTS: &str = "generatedImage expects an image generation result object";
const DETAIL_STRING: &str = "image detail must be a string when provided";
const DETAIL_NAMES: &str = "image detail must be one of: auto, low, high, original";
const REMOTE_IMAGE: &str = "Tool call failed: remote image URLs are not supported in tool outputs. Pass a base64 data URI instead";
const INVALID_IMAGE: &str =
    "Tool call failed: invalid image output. Pass a base64 data URI instead";
const INVALID_AUDIO: &str =
    "Tool call failed: invalid audio output. Pass a base64 data URI instead";
const DETAIL_META: &str = "codex/imageDetail";

type Value<'s> = v8::Local<'s, v8::Value>;
type Object<'s> = v8::Local<'s, v8::Object>;

/// `image(value, detail?)`
pub(super) fn image(
    scope: &mut v8::PinScope,
    state: &CellState,
    args: &v8::FunctionCallbackArguments,
) -> Answer {
    let item = image_item(scope, args.get(0), args.get(1))?;
    Ok(state.shared.put_out(vec![item])?)
}

/// `audio(value)`
pub(super) fn audio(
    scope: &mut v8::PinScope,
    state: &CellState,
    args: &v8::FunctionCallbackArguments,
) -> Answer {
    let item = audio_item(scope, args.get(0))?;
    Ok(state.shared.put_out(vec![item])?)
}

/// `content(value)`: one block, or an array of them, all or none of which are
/// put out.
pub(super) fn content(
    scope: &mut v8::PinScope,
    state: &CellState,
    args: &v8::FunctionCallbackArguments,
) -> Answer {
    let mut items = Vec::new();
    if let Ok(blocks) = v8::Local::<v8::Array>::try_from(args.get(0)) {
        for i in 0..blocks.length() {
            let block = thrown(blocks.get_index(scope, i))?;
            items.push(block_item(scope, block)?);
            state
                .shared
                .may_put_out(items.iter().map(ContentItem::bytes).sum())?;
        }
    } else {
        items.push(block_item(scope, args.get(0))?);
    }
    Ok(state.shared.put_out(items)?)
}

/// `generatedImage(result)`
pub(super) fn generated_image(
    scope: &mut v8::PinScope,
    state: &CellState,
    args: &v8::FunctionCallbackArguments,
) -> Answer {
    let result = object(args.get(0)).ok_or(GENERATED_EXPECTS)?;
    let url = thrown(property(scope, result, "image_url"))?;
    let url = non_empty_string(scope, url).ok_or(GENERATED_EXPECTS)?;
    let mut items = vec![image_of(url, ImageDetail::High)?];
    let hint = thrown(property(scope, result, "output_hint"))?;
    if !hint.is_null_or_undefined() {
        if !hint.is_string() {
            return Err(GENERATED_EXPECTS.into());
        }
        items.push(ContentItem::text(hint.to_rust_string_lossy(scope)));
    }
    Ok(state.shared.put_out(items)?)
}

fn block_item(scope: &mut v8::PinScope, block: Value) -> Answer<ContentItem> {
    let object = object(block).ok_or(CONTENT_EXPECTS)?;
    let kind = thrown(property(scope, object, "type"))?;
    match non_empty_string(scope, kind).as_deref() {
        Some("text") => {
            let text = thrown(property(scope, object, "text"))?;
            if !text.is_string() {
                return Err(CONTENT_EXPECTS.into());
            }
            Ok(ContentItem::text(text.to_rust_string_lossy(scope)))
        }
        Some("image") => {
            let undefined = v8::undefined(scope).into();
            image_item(scope, block, undefined)
        }
        Some("audio") => audio_item(scope, block),
        _ => Err(CONTENT_EXPECTS.into()),
    }
}

fn image_item(scope: &mut v8::PinScope, value: Value, detail: Value) -> Answer<ContentItem> {
    let asked = explicit_detail(scope, detail)?;
    if value.is_string() {
        let url = non_empty_string(scope, value).ok_or(IMAGE_EXPECTS)?;
        return image_of(url, asked.unwrap_or_default());
    }
    let object = object(value).ok_or(IMAGE_EXPECTS)?;
    let url = thrown(property(scope, object, "image_url"))?;
    if !url.is_undefined() {
        let url = non_empty_string(scope, url).ok_or(IMAGE_EXPECTS)?;
        let own = thrown(property(scope, object, "detail"))?;
        let own = explicit_detail(scope, own)?;
        return image_of(url, asked.or(own).unwrap_or_default());
    }
    let block = mcp_block(scope, object, "image", IMAGE_EXPECTS)?;
    let meta = meta_detail(scope, object)?;
    image_of(block, asked.or(meta).unwrap_or_default())
}

fn audio_item(scope: &mut v8::PinScope, value: Value) -> Answer<ContentItem> {
    if value.is_string() {
        return audio_of(non_empty_string(scope, value).ok_or(AUDIO_EXPECTS)?);
    }
    let object = object(value).ok_or(AUDIO_EXPECTS)?;
    let url = thrown(property(scope, object, "audio_url"))?;
    if !url.is_undefined() {
        return audio_of(non_empty_string(scope, url).ok_or(AUDIO_EXPECTS)?);
    }
    audio_of(mcp_block(scope, object, "audio", AUDIO_EXPECTS)?)
}

/// The data URL of an MCP block of `kind`.
fn mcp_block(
    scope: &mut v8::PinScope,
    block: Object,
    kind: &'static str,
    expects: &'static str,
) -> Answer<String> {
    let found = thrown(property(scope, block, "type"))?;
    let found = non_empty_string(scope, found).ok_or(expects)?;
    if found != kind {
        return Err(Refusal::Error(format!(
            "{kind} only accepts MCP {kind} blocks, got \"{found}\""
        )));
    }
    let data = thrown(property(scope, block, "data"))?;
    let data = non_empty_string(scope, data).ok_or(expects)?;
    if has_scheme(&data, "data:") {
        return Ok(data);
    }
    let mime = thrown(property(scope, block, "mimeType"))?;
    let mime = match non_empty_string(scope, mime) {
        Some(mime) => mime,
        None => {
            let mime = thrown(property(scope, block, "mime_type"))?;
            non_empty_string(scope, mime).unwrap_or_else(|| "application/octet-stream".to_owned())
        }
    };
    Ok(format!("data:{mime};base64,{data}"))
}

/// A detail that the cell gave as such: absent, or the name of one.
fn explicit_detail(scope: &mut v8::PinScope, detail: Value) -> Answer<Option<ImageDetail>> {
    if detail.is_null_or_undefined() {
        return Ok(None);
    }
    if !detail.is_string() {
        return Err(DETAIL_STRING.into());
    }
    let name = detail.to_rust_string_lossy(scope);
    ImageDetail::from_name(&name)
        .map(Some)
        .ok_or(DETAIL_NAMES.into())
}

/// A detail that an MCP server hints at; anything but the name of one says
/// nothing.
fn meta_detail(scope: &mut v8::PinScope, block: Object) -> Answer<Option<ImageDetail>> {
    let meta = thrown(property(scope, block, "_meta"))?;
    let Some(meta) = object(meta) else {
        return Ok(None);
    };
    let detail = thrown(property(scope, meta, DETAIL_META))?;
    Ok(non_empty_string(scope, detail).and_then(|name| ImageDetail::from_name(&name)))
}

fn image_of(image_url: String, detail: ImageDetail) -> Answer<ContentItem> {
    if has_scheme(&image_url, "data:") {
        Ok(ContentItem::Image { image_url, detail })
    } else if has_scheme(&image_url, "http:") || has_scheme(&image_url, "https:") {
        Err(REMOTE_IMAGE.into())
    } else {
        Err(INVALID_IMAGE.into())
    }
}

fn audio_of(audio_url: String) -> Answer<ContentItem> {
    if has_scheme(&audio_url, "data:") {
        Ok(ContentItem::Audio { audio_url })
    } else {
        Err(INVALID_AUDIO.into())
    }
}

fn has_scheme(url: &str, scheme: &str) -> bool {
    url.get(..scheme.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
}

fn object<'s>(value: Value<'s>) -> Option<Object<'s>> {
    v8::Local::try_from(value).ok()
}

fn non_empty_string(scope: &mut v8::PinScope, value: Value) -> Option<String> {
    if !value.is_string() {
        return None;
    }
    Some(value.to_rust_string_lossy(scope)).filter(|text| !text.is_empty())
}
