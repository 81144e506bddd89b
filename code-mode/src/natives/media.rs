//! `image`, `audio`, `content` and `generatedImage`.

use code_mode_protocol::{ContentItem, ImageDetail};

use super::display::property;
use super::{Answer, CellState, Refusal, thrown};

const IMAGE_EXPECTS: &str = "image expects a non-empty image URL string, an object with image_url and optional detail, or a raw MCP image block";
const AUDIO_EXPECTS: &str = "audio expects a non-empty audio URL string, an object with audio_url, or a raw MCP audio block";
const CONTENT_EXPECTS: &str = "content expects one MCP ContentBlock";
const GUIDED_CONTENT_EXPECTS: &str = "content expects an MCP content block (text, image, audio, resource or resource_link), an array of them, or the whole result of a call";
const NO_IMAGE: &str = "image found no image block in what it was given: put out its texts with content(...) or text(...)";
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

/// `image(value, detail?)`; in guided sessions also a result with images in it: an array of blocks,
/// or the whole result of a call.
pub(super) fn image<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer {
    let (value, detail) = (args.get(0), args.get(1));
    if state.guided.is_some()
        && let Some(blocks) = blocks_of(scope, value)?
    {
        let mut images = Items::new(state);
        for i in 0..blocks.length() {
            let block = images.next_block(scope, blocks, i)?;
            if block.is_string() || is_image(scope, block)? {
                images.add(image_item(scope, block, detail)?)?;
            }
        }
        if images.items.is_empty() {
            return Err(NO_IMAGE.into());
        }
        return Ok(state.shared.put_out(images.items)?);
    }
    let item = image_item(scope, value, detail)?;
    Ok(state.shared.put_out(vec![item])?)
}

/// The blocks of an array, or of the whole result of a call.
fn blocks_of<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    value: Value<'s>,
) -> Answer<Option<v8::Local<'s, v8::Array>>> {
    if let Ok(blocks) = v8::Local::<v8::Array>::try_from(value) {
        return Ok(Some(blocks));
    }
    let Some(object) = object(value) else {
        return Ok(None);
    };
    let kind = thrown(property(scope, object, "type"))?;
    if !kind.is_undefined() {
        return Ok(None);
    }
    let content = thrown(property(scope, object, "content"))?;
    Ok(v8::Local::<v8::Array>::try_from(content).ok())
}

fn is_image(scope: &mut v8::PinScope, block: Value) -> Answer<bool> {
    let Some(object) = object(block) else {
        return Ok(false);
    };
    let kind = thrown(property(scope, object, "type"))?;
    if kind.is_string() {
        return Ok(kind.to_rust_string_lossy(scope) == "image");
    }
    Ok(!thrown(property(scope, object, "image_url"))?.is_undefined())
}

/// Items that are put out together.
struct Items<'a> {
    state: &'a CellState,
    items: Vec<ContentItem>,
    bytes: usize,
}

impl<'a> Items<'a> {
    fn new(state: &'a CellState) -> Self {
        Self {
            state,
            items: Vec::new(),
            bytes: 0,
        }
    }

    /// The block at a place. V8 cannot interrupt a loop over blocks that runs nothing of the cell,
    /// so this sees that the cell was stopped.
    fn next_block<'s>(
        &self,
        scope: &mut v8::PinScope<'s, '_>,
        blocks: v8::Local<'s, v8::Array>,
        index: u32,
    ) -> Answer<Value<'s>> {
        if let Some(stop) = self.state.shared.stopped() {
            return Err(Refusal::Stop(stop));
        }
        thrown(blocks.get_index(scope, index))
    }

    fn add(&mut self, item: ContentItem) -> Answer {
        self.bytes += item.bytes();
        self.items.push(item);
        Ok(self.state.shared.may_put_out(self.bytes)?)
    }
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
/// put out; in guided sessions also the whole result of a call, and every block of MCP.
pub(super) fn content<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer {
    let mut items = Items::new(state);
    let value = args.get(0);
    let is_guided = state.guided.is_some();
    let blocks = match v8::Local::<v8::Array>::try_from(value) {
        Ok(blocks) => Some(blocks),
        Err(_) if is_guided => blocks_of(scope, value)?,
        Err(_) => None,
    };
    match blocks {
        Some(blocks) => {
            for i in 0..blocks.length() {
                let block = items.next_block(scope, blocks, i)?;
                items.add(block_item(scope, block, is_guided)?)?;
            }
        }
        None => items.add(block_item(scope, value, is_guided)?)?,
    }
    Ok(state.shared.put_out(items.items)?)
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

fn block_item(scope: &mut v8::PinScope, block: Value, is_guided: bool) -> Answer<ContentItem> {
    let expects = match is_guided {
        true => GUIDED_CONTENT_EXPECTS,
        false => CONTENT_EXPECTS,
    };
    if is_guided && block.is_string() {
        return Ok(ContentItem::text(block.to_rust_string_lossy(scope)));
    }
    let object = object(block).ok_or(expects)?;
    let kind = thrown(property(scope, object, "type"))?;
    match non_empty_string(scope, kind).as_deref() {
        Some("text") => {
            let text = thrown(property(scope, object, "text"))?;
            if !text.is_string() {
                return Err(expects.into());
            }
            Ok(ContentItem::text(text.to_rust_string_lossy(scope)))
        }
        Some("image") => {
            let undefined = v8::undefined(scope).into();
            image_item(scope, block, undefined)
        }
        Some("audio") => audio_item(scope, block),
        Some("resource") if is_guided => resource_item(scope, object),
        Some("resource_link") if is_guided => {
            let uri = string_of(scope, object, "uri")?.ok_or(expects)?;
            let name = string_of(scope, object, "name")?;
            let name = name.map(|name| format!("{name}: ")).unwrap_or_default();
            Ok(ContentItem::text(format!("[resource {name}{uri}]")))
        }
        _ => Err(expects.into()),
    }
}

/// An embedded resource: its text, its image or sound, or a line that says what it is.
fn resource_item(scope: &mut v8::PinScope, block: Object) -> Answer<ContentItem> {
    let resource = thrown(property(scope, block, "resource"))?;
    let resource = object(resource).ok_or(GUIDED_CONTENT_EXPECTS)?;
    if let Some(text) = string_of(scope, resource, "text")? {
        return Ok(ContentItem::text(text));
    }
    let mime = string_of(scope, resource, "mimeType")?.unwrap_or_default();
    let blob = thrown(property(scope, resource, "blob"))?;
    let (is_image, is_audio) = (mime.starts_with("image/"), mime.starts_with("audio/"));
    if (is_image || is_audio)
        && let Some(data) = non_empty_string(scope, blob)
    {
        let url = format!("data:{mime};base64,{data}");
        return match is_image {
            true => image_of(url, ImageDetail::default()),
            false => audio_of(url),
        };
    }
    // Any other blob is only measured, and may be long.
    let length = v8::Local::<v8::String>::try_from(blob).map_or(0, |blob| blob.length());
    let bytes = length / 4 * 3;
    let uri = string_of(scope, resource, "uri")?.unwrap_or_default();
    Ok(ContentItem::text(format!(
        "[resource {uri} {mime}, about {bytes} bytes]"
    )))
}

/// A property that is a text and not empty.
fn string_of(scope: &mut v8::PinScope, object: Object, name: &str) -> Answer<Option<String>> {
    let value = thrown(property(scope, object, name))?;
    Ok(non_empty_string(scope, value))
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
