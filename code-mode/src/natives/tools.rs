//! `tools` and `ALL_TOOLS`.

use std::sync::PoisonError;

use code_mode_protocol::wire::native::{FromWorker, JsonText, ToolFailure, WireTool};
use code_mode_protocol::{
    ContentItem, Note, RuntimeToolCallId, SourcePosition, ToolAnswer, ToolKind,
};

use super::display::{self, internal_function};
use super::{Answer, CellState, FIRST_TOOL, PendingCall, Refusal, control, input, native, thrown};

use super::platform::text_argument;
use crate::module::MODULE_NAME;
use crate::shapes::Shapes;
use crate::tool_search::meant;

type Value<'s> = v8::Local<'s, v8::Value>;

/// The object `tools`, which makes its functions on first use.
pub(super) fn object<'s>(scope: &mut v8::PinScope<'s, '_>, state: &CellState) -> Option<Value<'s>> {
    let internals = v8::Local::new(scope, &state.internals);
    let make = internal_function(scope, internals, "makeTools")?;
    let receiver = v8::undefined(scope);
    let guided = v8::Boolean::new(scope, state.guided.is_some());
    make.call(scope, receiver.into(), &[guided.into()])
}

/// The array `ALL_TOOLS`.
pub(super) fn listing<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
) -> Option<Value<'s>> {
    let json = v8::String::new(scope, state.tools.listing())?;
    let list = v8::json::parse(scope, json)?;
    if !state.tools.has_details() {
        return Some(list);
    }
    let internals = v8::Local::new(scope, &state.internals);
    let declared = internal_function(scope, internals, "declared")?;
    let receiver = v8::undefined(scope);
    declared.call(scope, receiver.into(), &[list])
}

/// `(name, argument)`: the error for an unknown tool that was called with this first argument.
pub(super) fn unknown<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Value<'s>> {
    let name = text_argument(scope, args, 0);
    let argument = match args.get(1) {
        argument if argument.is_string() => text_argument(scope, args, 1),
        _ => String::new(),
    };
    let text = state.tools.unknown(&name, &argument);
    Ok(thrown(v8::String::new(scope, &text))?.into())
}

/// `(message, call)`: a tool's error, whose place is that of the call.
pub(super) fn error<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Option<Value<'s>> {
    let message = text_argument(scope, args, 0);
    let error = display::tool_error(scope, state, &message)?;
    if let Some(at) = display::site(scope, args.get(1))
        && let Ok(object) = v8::Local::<v8::Object>::try_from(error)
    {
        display::set_site(scope, object, at);
    }
    Some(error)
}

/// `(name)`: the declaration of a tool, if there is one.
pub(super) fn declaration<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Option<Value<'s>>> {
    let name = text_argument(scope, args, 0);
    let Some(text) = with_shapes(state, |shapes| state.tools.declaration(&name, shapes)) else {
        return Ok(None);
    };
    Ok(Some(thrown(v8::String::new(scope, &text))?.into()))
}

/// `(name)`: the same with its description, or an error.
pub(super) fn describe<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Option<Value<'s>>> {
    let name = text_argument(scope, args, 0);
    let name = name.strip_prefix("tools.").unwrap_or(&name);
    match with_shapes(state, |shapes| state.tools.description(name, shapes)) {
        Some(text) => Ok(Some(thrown(v8::String::new(scope, &text))?.into())),
        None => Err(Refusal::Error(state.tools.unknown(name, ""))),
    }
}

/// `(query, limit, server, detail)`: the matches, as JSON.
pub(super) fn search<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Value<'s>> {
    /// Nobody asks with more, and V8 cannot be interrupted in the search.
    const LONGEST_QUERY: usize = 10_000;
    if v8::Local::<v8::String>::try_from(args.get(0))
        .is_ok_and(|query| query.length() > LONGEST_QUERY)
    {
        return Err(Refusal::from(
            "search_tools takes 10,000 characters at most",
        ));
    }
    let query = text_argument(scope, args, 0);
    let limit = args.get(1).uint32_value(scope).unwrap_or(u32::MAX);
    let server = match args.get(2) {
        server if server.is_undefined() => None,
        server => Some(server.to_rust_string_lossy(scope)),
    };
    let detail = text_argument(scope, args, 3);
    let found = with_shapes(state, |shapes| {
        state
            .tools
            .search(&query, limit as usize, server.as_deref(), &detail, shapes)
    });
    Ok(thrown(v8::String::new(scope, &found))?.into())
}

fn with_shapes<T>(state: &CellState, f: impl FnOnce(&Shapes) -> T) -> T {
    match &state.guided {
        Some(shapes) => f(&shapes.lock().unwrap_or_else(PoisonError::into_inner)),
        None => f(&Shapes::default()),
    }
}

/// Where the cell's own code is, of what runs.
pub(crate) fn call_site(scope: &mut v8::PinScope) -> Option<SourcePosition> {
    // A wrapper of ours may be above it.
    const FRAMES: usize = 8;
    let stack = v8::StackTrace::current_stack_trace(scope, FRAMES)?;
    (0..stack.get_frame_count()).find_map(|index| {
        let frame = stack.get_frame(scope, index)?;
        let script = frame.get_script_name(scope)?.to_rust_string_lossy(scope);
        (script == MODULE_NAME).then_some(SourcePosition {
            line: u32::try_from(frame.get_line_number()).ok()?,
            column: u32::try_from(frame.get_column()).ok()?,
        })
    })
}

/// Every tool's name.
pub(super) fn names<'s>(scope: &mut v8::PinScope<'s, '_>, state: &CellState) -> Answer<Value<'s>> {
    let mut names: Vec<Value> = Vec::new();
    for name in state.tools.names() {
        names.push(thrown(v8::String::new(scope, name))?.into());
    }
    Ok(v8::Array::new_with_elements(scope, &names).into())
}

/// `(server)`: each tool of a server, as its own name and the name it is called by, one behind the
/// other; nothing where no server is called so.
pub(super) fn of_server<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Option<Value<'s>>> {
    let server = text_argument(scope, args, 0);
    let mut names: Vec<Value> = Vec::new();
    for (own, name) in state.tools.of_server(&server) {
        names.push(thrown(v8::String::new(scope, &own))?.into());
        names.push(thrown(v8::String::new(scope, name))?.into());
    }
    Ok((!names.is_empty()).then(|| v8::Array::new_with_elements(scope, &names).into()))
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
    let name = thrown(v8::String::new(scope, &name))?;
    function.set_name(name);
    let answer = state.tools.get(index).map(|tool| tool.answer);
    if state.guided.is_some() && answer == Some(ToolAnswer::McpResult) {
        let internals = v8::Local::new(scope, &state.internals);
        let wrap = thrown(internal_function(scope, internals, "mcpTool"))?;
        let receiver = v8::undefined(scope);
        let wrapped = wrap.call(scope, receiver.into(), &[name.into(), function.into()]);
        return thrown(wrapped).map(Some);
    }
    Ok(Some(function.into()))
}

fn has_input_schema(tool: &WireTool) -> bool {
    let details = tool.details.as_ref();
    tool.kind == ToolKind::Function && details.is_some_and(|d| d.input_schema.is_some())
}

/// Says that an input has a property that its tool does not list, beside one that was meant and is
/// not given. Servers take such inputs and leave the property out.
fn say_what_was_meant<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    tool: u32,
    input: Value<'s>,
) -> Option<()> {
    const LOOKED_AT: u32 = 32;
    let object = v8::Local::<v8::Object>::try_from(input).ok()?;
    if object.is_proxy() || object.is_array() {
        return None;
    }
    let listed = state.tools.parameters(tool);
    if listed.is_empty() {
        return None;
    }
    let names = object.get_own_property_names(scope, Default::default())?;
    let mut given = Vec::new();
    for index in 0..names.length().min(LOOKED_AT) {
        given.push(names.get_index(scope, index)?.to_rust_string_lossy(scope));
    }
    let unknown = given.iter().filter(|name| !listed.contains(name));
    let name = &state.tools.get(tool)?.name;
    for unknown in unknown {
        let Some(meant) = meant(unknown, &listed).filter(|meant| !given.iter().any(|g| g == meant))
        else {
            continue;
        };
        let text = format!("[warning] tools.{name} lists no `{unknown}`: it takes `{meant}`");
        if state.warned.borrow_mut().insert(text.clone()) {
            let _ = state
                .shared
                .put_out(vec![ContentItem::note(Note::Warning, text)]);
        }
    }
    Some(())
}

/// `tools.NAME(input?)`
pub(super) fn invoke<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    tool: u32,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Value<'s>> {
    let input = match args.get(0) {
        // A call without an argument gives none of those that the schema lists.
        value if value.is_undefined() => {
            let takes_object = state.tools.get(tool).is_some_and(has_input_schema);
            (state.guided.is_some() && takes_object).then(|| "{}".to_owned())
        }
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
    if state.guided.is_some() && input.is_some() {
        say_what_was_meant(scope, state, tool, args.get(0));
    }
    let bytes = input.as_ref().map_or(0, String::len);
    control::pending_call(state, bytes)?;
    let resolver = thrown(v8::PromiseResolver::new(scope))?;
    let id = RuntimeToolCallId(state.last_call.get() + 1);
    state.last_call.set(id.0);
    let site = match state.guided {
        Some(_) => call_site(scope),
        None => None,
    };
    let promise = resolver.get_promise(scope);
    if let Some(at) = site {
        display::set_site(scope, promise.into(), at);
    }
    let call = PendingCall {
        resolver: v8::Global::new(scope, resolver),
        bytes,
        tool,
        site,
    };
    state.calls.borrow_mut().insert(id, call);
    state.shared.send(FromWorker::ToolCall {
        cell: state.shared.number,
        call: id,
        tool,
        input: input.map(JsonText::Unchecked),
        site,
    });
    Ok(promise.into())
}

/// Settles a call with what the delegate answered.
pub(crate) fn answer(
    scope: &mut v8::PinScope,
    state: &CellState,
    id: RuntimeToolCallId,
    result: Result<String, ToolFailure>,
) {
    let Some(call) = state.calls.borrow_mut().remove(&id) else {
        return;
    };
    state.shared.bytes_arrived(call.bytes);
    let resolver = v8::Local::new(scope, call.resolver);
    let settled = match result {
        Ok(json) => {
            if let (Some(shapes), Some(tool)) = (&state.guided, state.tools.get(call.tool)) {
                let mut shapes = shapes.lock().unwrap_or_else(PoisonError::into_inner);
                shapes.see(tool, &json);
            }
            parse(scope, &json).map_err(|message| ToolFailure {
                message,
                code: None,
                data: None,
            })
        }
        Err(failure) => Err(failure),
    };
    match settled {
        Ok(value) => resolver.resolve(scope, value),
        Err(failure) => match failed(scope, state, &failure) {
            Some(error) => {
                if let Some(at) = call.site
                    && let Ok(object) = v8::Local::<v8::Object>::try_from(error)
                {
                    display::set_site(scope, object, at);
                }
                resolver.reject(scope, error)
            }
            None => None,
        },
    };
}

/// The error of a call, with the code and the data that its tool gave.
fn failed<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    failure: &ToolFailure,
) -> Option<Value<'s>> {
    let error = display::tool_error(scope, state, &failure.message)?;
    let Ok(object) = v8::Local::<v8::Object>::try_from(error) else {
        return Some(error);
    };
    let define = |scope: &mut v8::PinScope<'s, '_>, name: &str, value: Value<'s>| {
        let name = v8::String::new(scope, name)?;
        object.define_own_property(scope, name.into(), value, v8::PropertyAttribute::DONT_ENUM)
    };
    if let Some(code) = failure.code {
        let code = v8::Number::new(scope, code as f64);
        define(scope, "code", code.into())?;
    }
    if let Some(data) = &failure.data
        && let Ok(data) = parse(scope, data)
    {
        define(scope, "data", data)?;
    }
    Some(error)
}

fn parse<'s>(scope: &mut v8::PinScope<'s, '_>, json: &str) -> Result<Value<'s>, String> {
    v8::tc_scope!(let scope, scope);
    let value = v8::String::new(scope, json).and_then(|json| v8::json::parse(scope, json));
    value.ok_or_else(|| "the tool's result is not valid JSON, or too large".to_owned())
}
