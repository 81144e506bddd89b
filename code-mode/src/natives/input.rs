//! A tool call's input as JSON.
//!
//! V8 makes it. But of a large text it makes two copies in its heap, part by part
//! and then whole, before there is one outside. So where an input has such a text,
//! V8 writes a stand-in, and the text comes straight from the cell's own string.

use code_mode_protocol::{check_portable, push_escaped};

use super::display::internal_function;
use super::{Answer, CellState, Refusal, control, native, strings, thrown};
use crate::bootstrap::Native;

/// A text from this length on is large.
const LARGE: usize = 64 << 10;

/// How many of an input's properties are looked at for a large text.
const LOOKED_AT: u32 = 32;

/// The texts that one input has stand-ins for.
pub(crate) struct LeftOut {
    /// The cell never sees it and cannot guess it, so that none of its texts can be
    /// taken for it.
    stand_in: String,
    texts: Vec<v8::Global<v8::String>>,
}

/// The JSON of a value; `None` where it has none.
pub(super) fn json(
    scope: &mut v8::PinScope,
    state: &CellState,
    value: v8::Local<v8::Value>,
) -> Answer<Option<String>> {
    if has_large_text(scope, value) {
        return json_with_texts(scope, state, value);
    }
    let json = thrown(v8::json::stringify(scope, value))?;
    let json = json.to_rust_string_lossy(scope);
    // A value that JSON cannot express gives this word, which JSON does not know.
    Ok((json != "undefined").then_some(json))
}

/// Refuses JSON of V8 that strict parsers do not take: a client that cannot parse one
/// input would lose every session of its connection.
pub(super) fn check(json: &str) -> Answer {
    check_portable(json)
        .map_err(|error| Refusal::Error(format!("failed to serialize JavaScript value: {error}")))
}

/// Whether a value is a large text, or has one as an own property. Nothing of
/// the cell runs for it.
fn has_large_text(scope: &mut v8::PinScope, value: v8::Local<v8::Value>) -> bool {
    if large_text(value).is_some() {
        return true;
    }
    let Ok(object) = v8::Local::<v8::Object>::try_from(value) else {
        return false;
    };
    // Code of the cell answers for a proxy; a module's exports may not be ready.
    if object.is_proxy() || object.is_module_namespace_object() {
        return false;
    }
    first_properties_have_large_text(scope, object).unwrap_or(false)
}

fn first_properties_have_large_text(
    scope: &mut v8::PinScope,
    object: v8::Local<v8::Object>,
) -> Option<bool> {
    let enumerable = v8::PropertyFilter::ONLY_ENUMERABLE | v8::PropertyFilter::SKIP_SYMBOLS;
    let named = v8::GetPropertyNamesArgsBuilder::new()
        .mode(v8::KeyCollectionMode::OwnOnly)
        .property_filter(enumerable)
        .index_filter(v8::IndexFilter::SkipIndices)
        .build();
    let names = object.get_own_property_names(scope, named)?;
    let key = v8::String::new(scope, "value")?;
    for index in 0..names.length().min(LOOKED_AT) {
        let name = v8::Local::<v8::Name>::try_from(names.get_index(scope, index)?).ok()?;
        let descriptor = object.get_own_property_descriptor(scope, name)?;
        let descriptor = v8::Local::<v8::Object>::try_from(descriptor).ok()?;
        // A getter does not hold its value.
        if !descriptor.has_own_property(scope, key.into())? {
            continue;
        }
        let value = descriptor.get(scope, key.into())?;
        if large_text(value).is_some() {
            return Some(true);
        }
    }
    Some(false)
}

/// The value as a text that can be left out. One whose characters have two bytes
/// may have halves of characters, for which JSON has a form that Rust has not.
fn large_text(value: v8::Local<v8::Value>) -> Option<v8::Local<v8::String>> {
    let text = v8::Local::<v8::String>::try_from(value).ok()?;
    (text.length() >= LARGE && text.is_onebyte()).then_some(text)
}

fn json_with_texts(
    scope: &mut v8::PinScope,
    state: &CellState,
    value: v8::Local<v8::Value>,
) -> Answer<Option<String>> {
    // The cell must not be able to guess it.
    let random = getrandom::u64().map_err(|error| Refusal::Error(error.to_string()))?;
    let left_out = LeftOut {
        stand_in: format!("{random:016x}"),
        texts: Vec::new(),
    };
    // A `toJSON` of the cell may call a tool, whose input is another one.
    let outer = state.left_out.replace(Some(left_out));
    let json = stringify(scope, state, value);
    let left_out = state.left_out.replace(outer);
    let (Some(skeleton), Some(LeftOut { stand_in, texts })) = (json?, left_out) else {
        return Ok(None);
    };
    let texts: Vec<_> = texts
        .into_iter()
        .map(|text| v8::Local::new(scope, text))
        .collect();
    let room: usize = texts.iter().map(|text| text.length()).sum();
    control::may_send(state, room)?;
    let mut json = String::with_capacity(skeleton.len() + room);
    // The quotes around a stand-in are those of its text.
    let mut between = skeleton.split(&stand_in);
    json.extend(between.next());
    for (text, after) in texts.into_iter().zip(between) {
        strings::for_each_piece(scope, text, |piece| push_escaped(&mut json, piece));
        json.push_str(after);
    }
    Ok(Some(json))
}

/// `JSON.stringify` of the value with stand-ins.
fn stringify(
    scope: &mut v8::PinScope,
    state: &CellState,
    value: v8::Local<v8::Value>,
) -> Answer<Option<String>> {
    let internals = v8::Local::new(scope, &state.internals);
    let stringify = thrown(internal_function(scope, internals, "jsonStringify"))?;
    let number = v8::Integer::new_from_unsigned(scope, Native::LeaveOut as u32);
    let replacer = v8::Function::builder(native)
        .data(number.into())
        .build(scope);
    let replacer = thrown(replacer)?;
    let receiver = v8::undefined(scope);
    let json = thrown(stringify.call(scope, receiver.into(), &[value, replacer.into()]))?;
    let json = v8::Local::<v8::String>::try_from(json).ok();
    Ok(json.map(|json| json.to_rust_string_lossy(scope)))
}

/// The replacer of [`stringify()`]: the JSON for this value.
pub(super) fn leave_out<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<v8::Local<'s, v8::Value>> {
    let value = args.get(1);
    let mut left_out = state.left_out.borrow_mut();
    if let Some(text) = large_text(value)
        && let Some(LeftOut { stand_in, texts }) = &mut *left_out
    {
        let stand_in = thrown(v8::String::new(scope, stand_in))?;
        texts.push(v8::Global::new(scope, text));
        return Ok(stand_in.into());
    }
    Ok(value)
}
