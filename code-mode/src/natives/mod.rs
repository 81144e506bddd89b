//! The native half of a cell's globals.
//!
//! One callback serves them all: the data of each JavaScript function is its
//! [`Native`] number, or that of a tool. So the startup snapshot refers to one
//! address for functions and one for lazy globals.

mod control;
mod display;
mod encoding;
mod input;
mod json;
mod media;
mod platform;
mod storage;
mod strings;
mod timers;
mod tools;
mod url;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use code_mode_protocol::{LimitExceeded, RuntimeToolCallId, SourcePosition};

pub(crate) use display::{error_text, helper_error, message_position};
pub(crate) use input::LeftOut;
pub(crate) use platform::Began;
pub(crate) use timers::Timers;
pub(crate) use tools::{answer, call_site};

use crate::StoredValues;
use crate::bootstrap::{FIRST_TOOL, LAZY_GLOBALS, Native};
use crate::cell::{CellShared, Stop};
use crate::determinism::Source;
use crate::shapes::Shapes;
use crate::tools::ToolTable;

/// What the native functions of one cell work on; in a slot of its isolate.
pub(crate) struct CellState {
    pub(crate) shared: Arc<CellShared>,
    pub(crate) tools: Arc<ToolTable>,
    pub(crate) internals: v8::Global<v8::Object>,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) calls: RefCell<HashMap<RuntimeToolCallId, PendingCall>>,
    pub(crate) last_call: Cell<u32>,
    /// The session's values when the cell started, and what it wrote since.
    pub(crate) stored: RefCell<StoredValues>,
    /// The keys it wrote, in the order of their first writing.
    pub(crate) written: RefCell<Written>,
    /// In a guided session: what its tools' results looked like.
    pub(crate) guided: Option<Arc<Mutex<Shapes>>>,
    /// Promises that were rejected while nobody looked, with the reasons.
    pub(crate) rejected: RefCell<Vec<(v8::Global<v8::Promise>, v8::Global<v8::Value>)>>,
    /// What a task or a listener threw: the cell fails with it.
    pub(crate) failed: RefCell<Option<v8::Global<v8::Value>>>,
    /// Where time and randomness come from, if not from the machine.
    pub(crate) source: Option<Source>,
    /// What a cell that runs again did differently.
    pub(crate) diverged: RefCell<Option<String>>,
    pub(crate) began: Began,
    /// Decoders that wait for the rest of a character.
    pub(crate) decoders: RefCell<BTreeMap<u32, encoding_rs::Decoder>>,
    /// Warnings about inputs, once each.
    pub(crate) warned: RefCell<HashSet<String>>,
    /// While a tool's input is made JSON: the texts it has stand-ins for.
    pub(crate) left_out: RefCell<Option<LeftOut>>,
}

/// A tool call without an answer.
pub(crate) struct PendingCall {
    pub(crate) resolver: v8::Global<v8::PromiseResolver>,
    /// Of its input, counted against the cell until the answer.
    pub(crate) bytes: usize,
    /// The tool's place in the table.
    pub(crate) tool: u32,
    /// Where it was called, in a guided session.
    pub(crate) site: Option<SourcePosition>,
}

/// See [`CellState::written`].
#[derive(Default)]
pub(crate) struct Written {
    keys: Vec<Arc<str>>,
    known: HashSet<Arc<str>>,
}

impl Written {
    fn add(&mut self, key: Arc<str>) {
        if self.known.insert(key.clone()) {
            self.keys.push(key);
        }
    }
}

impl CellState {
    pub(crate) fn new(
        shared: Arc<CellShared>,
        tools: Arc<ToolTable>,
        internals: v8::Global<v8::Object>,
        stored: StoredValues,
        guided: Option<Arc<Mutex<Shapes>>>,
        source: Option<Source>,
    ) -> Self {
        Self {
            shared,
            tools,
            internals,
            timers: RefCell::default(),
            calls: RefCell::default(),
            last_call: Cell::new(0),
            stored: RefCell::new(stored),
            written: RefCell::default(),
            guided,
            rejected: RefCell::default(),
            failed: RefCell::default(),
            source,
            diverged: RefCell::default(),
            began: Began::now(),
            decoders: RefCell::default(),
            warned: RefCell::default(),
            left_out: RefCell::default(),
        }
    }

    /// What the cell stored: key and JSON text.
    pub(crate) fn take_writes(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let stored = self.stored.borrow();
        let keys = std::mem::take(&mut *self.written.borrow_mut()).keys;
        keys.into_iter()
            .filter_map(|key| {
                let json = stored.get(&key)?.clone();
                Some((key, json))
            })
            .collect()
    }
}

/// Why a native function did not return a value.
pub(crate) enum Refusal {
    /// An exception is on its way already.
    Thrown,
    /// Throw a helper's error with this text.
    Error(String),
    /// The cell is over.
    Stop(Stop),
}

impl From<&str> for Refusal {
    fn from(message: &str) -> Self {
        Self::Error(message.to_owned())
    }
}

impl From<LimitExceeded> for Refusal {
    fn from(limit: LimitExceeded) -> Self {
        Self::Stop(Stop::Limit(limit))
    }
}

/// A value, or the error in its place.
type Answer<T = ()> = Result<T, Refusal>;

/// A step of V8's API that failed because JavaScript threw.
fn thrown<T>(value: Option<T>) -> Answer<T> {
    value.ok_or(Refusal::Thrown)
}

/// The callback behind every native function and tool.
pub(crate) fn native<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    args: v8::FunctionCallbackArguments<'s>,
    mut returned: v8::ReturnValue<v8::Value>,
) {
    let Some(state) = scope.get_slot::<Rc<CellState>>().cloned() else {
        return;
    };
    // A termination is noticed by JavaScript at its next check, which may come
    // after another call of a helper; that one must do nothing.
    let answer = match state.shared.stopped() {
        Some(reason) => Err(Refusal::Stop(reason)),
        None => call(scope, &state, &args),
    };
    match answer {
        Ok(Some(value)) => returned.set(value),
        Ok(None) | Err(Refusal::Thrown) => {}
        Err(Refusal::Error(message)) => display::throw_helper_error(scope, &state, &message),
        Err(Refusal::Stop(reason)) => {
            if matches!(reason, Stop::Limit(_))
                && state.guided.is_some()
                && let Some(at) = call_site(scope)
            {
                state.shared.set_stopped_at(at);
            }
            state.shared.stop(reason);
            scope.terminate_execution();
            notice_termination(scope, &state);
        }
    }
}

/// Runs a function that does nothing: on entering JavaScript V8 notices that it
/// must terminate, and the exception that nothing catches is on its way.
fn notice_termination(scope: &mut v8::PinScope, state: &CellState) {
    let internals = v8::Local::new(scope, &state.internals);
    if let Some(noop) = display::internal_function(scope, internals, "noop") {
        let receiver = v8::undefined(scope);
        let _ = noop.call(scope, receiver.into(), &[]);
    }
}

fn call<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Option<v8::Local<'s, v8::Value>>> {
    let number = args.data().uint32_value(scope).unwrap_or(u32::MAX);
    if let Some(tool) = number.checked_sub(FIRST_TOOL) {
        return tools::invoke(scope, state, tool, args).map(Some);
    }
    let Some(native) = Native::ALL.get(number as usize) else {
        return Ok(None);
    };
    match native {
        Native::Text => display::text(scope, state, args)?,
        Native::Log => display::log(scope, state, args)?,
        Native::Fail => {
            let error = v8::Global::new(scope, args.get(0));
            state.failed.borrow_mut().get_or_insert(error);
        }
        Native::Image => media::image(scope, state, args)?,
        Native::Audio => media::audio(scope, state, args)?,
        Native::Content => media::content(scope, state, args)?,
        Native::GeneratedImage => media::generated_image(scope, state, args)?,
        Native::Store => storage::store(scope, state, args)?,
        Native::Load => return storage::load(scope, state, args),
        Native::Notify => control::notify(scope, state, args)?,
        Native::YieldControl => state.shared.yield_control(),
        Native::Exit => control::exit(scope, state, args)?,
        Native::SetTimeout => return timers::set_timeout(scope, state, args).map(Some),
        Native::ClearTimeout => timers::clear_timeout(state, args),
        Native::Refuse => {
            let message = args.get(0).to_rust_string_lossy(scope);
            return Err(Refusal::Error(message));
        }
        Native::ToolNames => return tools::names(scope, state).map(Some),
        Native::HasTool => return Ok(Some(tools::has(scope, state, args))),
        Native::ToolFunction => return tools::function(scope, state, args),
        Native::JsonParse => return json::parse(scope, state, args).map(Some),
        Native::LeaveOut => return input::leave_out(scope, state, args).map(Some),
        Native::UnknownTool => return tools::unknown(scope, state, args).map(Some),
        Native::ServerTools => return tools::of_server(scope, state, args),
        Native::ToolError => return Ok(tools::error(scope, state, args)),
        Native::Declaration => return tools::declaration(scope, state, args),
        Native::DescribeTool => return tools::describe(scope, state, args),
        Native::SearchTools => return tools::search(scope, state, args).map(Some),
        Native::SetRepeating => return timers::set_repeating(scope, state, args).map(Some),
        Native::Clone => return platform::clone(scope, args),
        Native::FillRandom => platform::fill_random(state, args)?,
        Native::Uuid => return platform::uuid(scope, state).map(Some),
        Native::RandomUnit => return Ok(Some(platform::random_unit(scope, state))),
        Native::NowMs => return Ok(Some(platform::now(scope, state))),
        Native::TimeOrigin => return Ok(Some(platform::time_origin(scope, state))),
        Native::EncodeUtf8 => return encoding::encode_utf8(scope, state, args).map(Some),
        Native::EncodingName => return encoding::encoding_name(scope, args),
        Native::DecodeText => return encoding::decode(scope, state, args),
        Native::Base64Decode => return encoding::base64_decode(scope, state, args),
        Native::Base64Encode => return encoding::base64_encode(scope, state, args),
        Native::ParseUrl => return url::parse(scope, args),
        Native::SetUrl => return url::set(scope, args),
        Native::ParseForm => return url::parse_form(scope, args).map(Some),
        Native::FormText => return url::form_text(scope, args).map(Some),
    }
    Ok(None)
}

/// Calls a function that `bootstrap.js` returned, for what it does to the context.
pub(crate) fn call_internal(scope: &mut v8::PinScope, name: &str) {
    let Some(state) = scope.get_slot::<Rc<CellState>>().cloned() else {
        return;
    };
    let internals = v8::Local::new(scope, &state.internals);
    if let Some(function) = display::internal_function(scope, internals, name) {
        let receiver = v8::undefined(scope);
        let _ = function.call(scope, receiver.into(), &[]);
    }
}

/// The getter of the globals that are made when first read.
pub(crate) fn lazy_global<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    name: v8::Local<'s, v8::Name>,
    _: v8::PropertyCallbackArguments<'s>,
    mut returned: v8::ReturnValue<v8::Value>,
) {
    let Some(state) = scope.get_slot::<Rc<CellState>>().cloned() else {
        return;
    };
    let name = name.to_rust_string_lossy(scope);
    let value = if name == LAZY_GLOBALS[0] {
        tools::object(scope, &state)
    } else if name == LAZY_GLOBALS[1] {
        tools::listing(scope, &state)
    } else {
        display::made(scope, &state, &name)
    };
    if let Some(value) = value {
        returned.set(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_native_function_stands_at_its_number() {
        for (number, native) in (0u32..).zip(Native::ALL) {
            assert_eq!(native as u32, number);
        }
    }
}
