//! Values as text: `text(value)`, and errors both thrown and uncaught.

use std::rc::Rc;

use code_mode_protocol::{ContentItem, Note, SourcePosition};

use super::{Answer, CellState, Refusal, strings, thrown, tools};
use crate::cell::ScriptError;
use crate::module::MODULE_NAME;

/// `text(value)`; in guided sessions `text(...values)`, with a space between them.
pub(super) fn text(
    scope: &mut v8::PinScope,
    state: &CellState,
    args: &v8::FunctionCallbackArguments,
) -> Answer {
    let mut text = display(scope, state, args.get(0))?;
    if state.guided.is_some() && !is_of_iteration(args) {
        for index in 1..args.length() {
            let more = display(scope, state, args.get(index))?;
            state.shared.may_put_out(text.len() + more.len())?;
            text.push(' ');
            text.push_str(&more);
        }
    }
    state.shared.put_out(vec![ContentItem::text(text)])?;
    Ok(())
}

/// Puts out what the program wrote to its console.
pub(super) fn log(
    scope: &mut v8::PinScope,
    state: &CellState,
    args: &v8::FunctionCallbackArguments,
) -> Answer {
    let text = display(scope, state, args.get(0))?;
    state
        .shared
        .put_out(vec![ContentItem::note(Note::Log, text)])?;
    Ok(())
}

/// Whether `forEach` and its like called: they give the place and the array beside the element.
fn is_of_iteration(args: &v8::FunctionCallbackArguments) -> bool {
    args.length() == 3 && args.get(1).is_uint32() && args.get(2).is_array()
}

/// A value as `text` and `notify` show it.
pub(super) fn display(
    scope: &mut v8::PinScope,
    state: &CellState,
    value: v8::Local<v8::Value>,
) -> Answer<String> {
    if state.guided.is_some() && value.is_promise() {
        return Err(
            "a promise was given where its value was meant: write `await` before it".into(),
        );
    }
    if value.is_native_error()
        && let Ok(error) = v8::Local::<v8::Object>::try_from(value)
    {
        return display_error(scope, state, error);
    }
    if state.guided.is_some() && has_no_json(value) {
        let text = shown(scope, state, value).ok_or(Refusal::Thrown)?;
        state.shared.may_put_out(text.len())?;
        return Ok(text);
    }
    let is_scalar = value.is_null_or_undefined()
        || value.is_boolean()
        || value.is_number()
        || value.is_big_int()
        || value.is_string();
    let text = if is_scalar {
        thrown(value.to_string(scope))?
    } else {
        thrown(v8::json::stringify(scope, value))?
    };
    // Asked before the copy: a string of half a gigabyte need not be copied to
    // be refused.
    state.shared.may_put_out(text.length())?;
    Ok(strings::text(scope, text))
}

/// Whether JSON says nothing of a value that a console would show.
fn has_no_json(value: v8::Local<v8::Value>) -> bool {
    value.is_map()
        || value.is_set()
        || value.is_function()
        || value.is_symbol()
        || value.is_array_buffer_view()
        || value.is_array_buffer()
}

/// A value as `console.log` shows it.
fn shown(
    scope: &mut v8::PinScope,
    state: &CellState,
    value: v8::Local<v8::Value>,
) -> Option<String> {
    let internals = v8::Local::new(scope, &state.internals);
    let show = internal_function(scope, internals, "show")?;
    let receiver = v8::undefined(scope);
    let text = show.call(scope, receiver.into(), &[value])?;
    Some(text.to_rust_string_lossy(scope))
}

fn display_error(
    scope: &mut v8::PinScope,
    state: &CellState,
    error: v8::Local<v8::Object>,
) -> Answer<String> {
    if let Some(Bare::Tool(message)) = bare(scope, error) {
        return Ok(message);
    }
    let stack = thrown(property(scope, error, "stack"))?;
    let text = if stack.is_string() {
        stack
    } else {
        error.into()
    };
    let text = thrown(text.to_string(scope))?;
    state.shared.may_put_out(text.length())?;
    Ok(strings::text(scope, text))
}

/// A named property.
pub(super) fn property<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    object: v8::Local<v8::Object>,
    name: &str,
) -> Option<v8::Local<'s, v8::Value>> {
    let key = v8::String::new(scope, name)?;
    object.get(scope, key.into())
}

/// A function that `bootstrap.js` returned.
pub(super) fn internal_function<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    internals: v8::Local<v8::Object>,
    name: &str,
) -> Option<v8::Local<'s, v8::Function>> {
    v8::Local::try_from(property(scope, internals, name)?).ok()
}

/// A global of guided sessions.
pub(super) fn made<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    name: &str,
) -> Option<v8::Local<'s, v8::Value>> {
    let internals = v8::Local::new(scope, &state.internals);
    let make = internal_function(scope, internals, "makeGlobal")?;
    let receiver = v8::undefined(scope);
    let name = v8::String::new(scope, name)?;
    make.call(scope, receiver.into(), &[name.into()])
}

/// An error whose text is its bare message.
enum Bare {
    Helper(String),
    Tool(String),
}

const HELPER: &str = "code-mode:helper-error";
const TOOL: &str = "code-mode:tool-error";

fn mark<'s>(scope: &mut v8::PinScope<'s, '_>, name: &str) -> Option<v8::Local<'s, v8::Private>> {
    let name = v8::String::new(scope, name)?;
    Some(v8::Private::for_api(scope, Some(name)))
}

fn bare(scope: &mut v8::PinScope, error: v8::Local<v8::Object>) -> Option<Bare> {
    let mut marked = |name: &str| {
        let key = mark(scope, name)?;
        let message = error.get_private(scope, key)?;
        let message = v8::Local::<v8::String>::try_from(message).ok()?;
        Some(message.to_rust_string_lossy(scope))
    };
    marked(TOOL)
        .map(Bare::Tool)
        .or_else(|| marked(HELPER).map(Bare::Helper))
}

/// An error with the prototype that `bootstrap.js` made for its kind. Its text
/// cannot be changed by the cell: it is kept under a private name too.
fn bare_error<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    name: &str,
    prototype: &str,
    message: &str,
) -> Option<v8::Local<'s, v8::Object>> {
    let text = v8::String::new(scope, message)?;
    let error = v8::Exception::error(scope, text).to_object(scope)?;
    let internals = v8::Local::new(scope, &state.internals);
    let prototype = property(scope, internals, prototype)?;
    error.set_prototype(scope, prototype)?;
    let key = mark(scope, name)?;
    error.set_private(scope, key, text.into())?;
    Some(error)
}

/// Throws what a helper that refuses its input throws.
pub(super) fn throw_helper_error(scope: &mut v8::PinScope, state: &CellState, message: &str) {
    if let Some(error) = bare_error(scope, state, HELPER, "helperErrorPrototype", message) {
        if state.guided.is_some()
            && let Some(at) = tools::call_site(scope)
        {
            set_site(scope, error, at);
        }
        scope.throw_exception(error.into());
    }
}

/// The error of a helper, not thrown.
pub(crate) fn helper_error<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    message: &str,
) -> Option<v8::Local<'s, v8::Value>> {
    let error = bare_error(scope, state, HELPER, "helperErrorPrototype", message)?;
    Some(error.into())
}

/// What a tool call rejects with. It is made between two turns of the cell, so
/// it has no frames to show: its stack is its message.
pub(super) fn tool_error<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    message: &str,
) -> Option<v8::Local<'s, v8::Value>> {
    let error = bare_error(scope, state, TOOL, "toolErrorPrototype", message)?;
    let stack = v8::String::new(scope, "stack")?;
    let text = v8::String::new(scope, message)?;
    error.define_own_property(
        scope,
        stack.into(),
        text.into(),
        v8::PropertyAttribute::DONT_ENUM,
    )?;
    Some(error.into())
}

/// The text and the place of an uncaught error, for the observer.
///
/// This runs the cell's code where the error has getters or a `toString` of its
/// own; should that throw too, a fixed text replaces it.
pub(crate) fn error_text(scope: &mut v8::PinScope, error: v8::Local<v8::Value>) -> ScriptError {
    v8::tc_scope!(let scope, scope);
    let position = site(scope, error).or_else(|| position(scope, error));
    let text = describe(scope, error)
        .unwrap_or_else(|| "the cell threw a value that cannot be shown".to_owned());
    ScriptError { text, position }
}

fn describe(scope: &mut v8::PinScope, error: v8::Local<v8::Value>) -> Option<String> {
    let state = scope.get_slot::<Rc<CellState>>().cloned();
    let guided = state.filter(|state| state.guided.is_some());
    if let Ok(object) = v8::Local::<v8::Object>::try_from(error) {
        if let Some(Bare::Helper(message) | Bare::Tool(message)) = bare(scope, object) {
            return Some(message);
        }
        if let Some(state) = &guided {
            return thrown_in_full(scope, state, error);
        }
        let stack = property(scope, object, "stack")?;
        if stack.is_string() {
            return Some(stack.to_rust_string_lossy(scope));
        }
    }
    if let Some(state) = &guided {
        return thrown_in_full(scope, state, error);
    }
    if error.is_symbol() {
        return Some(error.to_rust_string_lossy(scope));
    }
    Some(error.to_string(scope)?.to_rust_string_lossy(scope))
}

const SITE: &str = "code-mode:site";

/// Says of an object where what it is about was called.
pub(super) fn set_site(
    scope: &mut v8::PinScope,
    object: v8::Local<v8::Object>,
    at: SourcePosition,
) {
    let Some(key) = mark(scope, SITE) else {
        return;
    };
    let packed = f64::from(at.line) * SITE_COLUMNS + f64::from(at.column);
    let packed = v8::Number::new(scope, packed);
    object.set_private(scope, key, packed.into());
}

/// A line and a column are one number.
const SITE_COLUMNS: f64 = 1_048_576.0;

/// What [`set_site`] said.
pub(super) fn site(
    scope: &mut v8::PinScope,
    value: v8::Local<v8::Value>,
) -> Option<SourcePosition> {
    let object = v8::Local::<v8::Object>::try_from(value).ok()?;
    let key = mark(scope, SITE)?;
    let packed = v8::Local::<v8::Number>::try_from(object.get_private(scope, key)?).ok()?;
    let line = (packed.value() / SITE_COLUMNS).floor();
    Some(SourcePosition {
        line: line as u32,
        column: (packed.value() - line * SITE_COLUMNS) as u32,
    })
}

/// An error with its causes and properties, or another value that was thrown; without
/// frames that are not the author's.
fn thrown_in_full(
    scope: &mut v8::PinScope,
    state: &CellState,
    error: v8::Local<v8::Value>,
) -> Option<String> {
    let text = shown(scope, state, error)?;
    if !error.is_native_error() {
        return Some(format!("Uncaught {text}"));
    }
    let lines = text.lines().filter(|line| {
        let is_frame = line.starts_with("    at ");
        !is_frame || !line.contains("code-mode:")
    });
    Some(lines.collect::<Vec<_>>().join("\n"))
}

/// Where an error was thrown.
fn position(scope: &mut v8::PinScope, error: v8::Local<v8::Value>) -> Option<SourcePosition> {
    let message = v8::Exception::create_message(scope, error);
    message_position(scope, message)
}

/// Where a message points to.
pub(crate) fn message_position(
    scope: &mut v8::PinScope,
    message: v8::Local<v8::Message>,
) -> Option<SourcePosition> {
    // Of a text that was parsed, or of a script of ours, the place says nothing.
    let script = message.get_script_resource_name(scope)?;
    if script.to_rust_string_lossy(scope) != MODULE_NAME {
        return None;
    }
    let line = u32::try_from(message.get_line_number(scope)?).ok()?;
    let column = u32::try_from(message.get_start_column()).ok()? + 1;
    (line > 0).then_some(SourcePosition { line, column })
}

impl From<ScriptError> for Refusal {
    fn from(error: ScriptError) -> Self {
        Self::Error(error.text)
    }
}
