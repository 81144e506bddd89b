//! `tools` and `ALL_TOOLS`.

use code_mode_protocol::RuntimeToolCallId;
use code_mode_protocol::wire::native::{FromWorker, JsonText};

use super::display::{self, internal_function};
use super::{Answer, CellState, FIRST_TOOL, PendingCall, Refusal, control, input, native, thrown};

type Value<'s> = v8::Local<'s, v8::Value>;

/// The object `tools`, which makes its functions when they are asked for.
pub(super) fn object<'s>(scope: &mut v8::PinScope<'s, '_>, state: &CellState) -> Option<Value<'s>> {
    let internals = v8::Local::new(scope, &state.internals);
    let make = internal_function(scope, internals, "makeTools")?;
    let receiver = v8::undefined(scope);
    make.call(scope, receiver.into(), &[])
}

/// The array `ALL_TOOLS`.
pub(super) fn listing<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
) -> Option<Value<'s>> {
    let json = v8::String::new(scope, state.tools.listing())?;
    v8::json::parse(scope, json)
}

/// Every tool's name.
pub(super) fn names<'s>(scope: &mut v8::PinScope<'s, '_>, state: &CellState) -> Answer<Value<'s>> {
    let mut names: Vec<Value> = Vec::new();
    for name in state.tools.names() {
        names.push(thrown(v8::String::new(scope, name))?.into());
    }
    Ok(v8::Array::new_with_elements(scope, &names).into())
}

/// Whether there is a tool of this name.
pub(super) fn has<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Value<'s> {
    let name = args.get(0).to_rust_string_lossy(scope);
    v8::Boolean::new(scope, state.tools.index_of(&name).is_some()).into()
}

/// The function of the tool of this name, if there is one.
pub(super) fn function<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Option<Value<'s>>> {
    let name = args.get(0).to_rust_string_lossy(scope);
    let Some(index) = state.tools.index_of(&name) else {
        return Ok(None);
    };
    let number = v8::Integer::new_from_unsigned(scope, FIRST_TOOL.saturating_add(index));
    let function = v8::Function::builder(native)
        .data(number.into())
        .length(1)
        .constructor_behavior(v8::ConstructorBehavior::Throw)
        .build(scope);
    let function = thrown(function)?;
    function.set_name(thrown(v8::String::new(scope, &name))?);
    Ok(Some(function.into()))
}

/// `tools.NAME(input?)`
pub(super) fn invoke<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    tool: u32,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Value<'s>> {
    let input = match args.get(0) {
        value if value.is_undefined() => None,
        value => {
            let Some(json) = input::json(scope, state, value)? else {
                let name = state.tools.get(tool).map_or("", |t| t.name.as_str());
                return Err(Refusal::Error(format!(
                    "the input of tools.{name} cannot be serialized as JSON"
                )));
            };
            input::check(&json)?;
            Some(json)
        }
    };
    let bytes = input.as_ref().map_or(0, String::len);
    control::pending_call(state, bytes)?;
    let resolver = thrown(v8::PromiseResolver::new(scope))?;
    let id = RuntimeToolCallId(state.last_call.get() + 1);
    state.last_call.set(id.0);
    let call = PendingCall {
        resolver: v8::Global::new(scope, resolver),
        bytes,
    };
    state.calls.borrow_mut().insert(id, call);
    state.shared.send(FromWorker::ToolCall {
        cell: state.shared.number,
        call: id,
        tool,
        input: input.map(JsonText::Unchecked),
    });
    Ok(resolver.get_promise(scope).into())
}

/// Settles a call with what the delegate answered.
pub(crate) fn answer(
    scope: &mut v8::PinScope,
    state: &CellState,
    id: RuntimeToolCallId,
    result: Result<String, String>,
) {
    let Some(call) = state.calls.borrow_mut().remove(&id) else {
        return;
    };
    state.shared.bytes_arrived(call.bytes);
    let resolver = v8::Local::new(scope, call.resolver);
    let settled = match result {
        Ok(json) => parse(scope, &json),
        Err(message) => Err(message),
    };
    match settled {
        Ok(value) => resolver.resolve(scope, value),
        Err(message) => match display::tool_error(scope, state, &message) {
            Some(error) => resolver.reject(scope, error),
            None => None,
        },
    };
}

fn parse<'s>(scope: &mut v8::PinScope<'s, '_>, json: &str) -> Result<Value<'s>, String> {
    v8::tc_scope!(let scope, scope);
    let value = v8::String::new(scope, json).and_then(|json| v8::json::parse(scope, json));
    value.ok_or_else(|| "the tool's result is not valid JSON, or too large".to_owned())
}
