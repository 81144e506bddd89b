//! `JSON.parse`.
//!
//! V8 parses a text in one go and looks neither at the heap limit nor at a
//! termination meanwhile; what it makes can be many times the text. So a text
//! that could outgrow the heap by more than V8 survives is refused before.

use code_mode_protocol::Limit;

use super::display::internal_function;
use super::{Answer, CellState, thrown};

/// A text may be as long as the heap limit divided by this. Empty arrays, the
/// worst there is, take seven times their text.
const HEAP_PER_TEXT: usize = 4;

/// `JSON.parse(text, reviver?)`
pub(super) fn parse<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<v8::Local<'s, v8::Value>> {
    let limit = state.shared.limits.heap_bytes();
    if let Ok(text) = v8::Local::<v8::String>::try_from(args.get(0))
        && text.length() > limit / HEAP_PER_TEXT
    {
        return Err(Limit::Heap.exceeded(limit as u64).into());
    }
    let internals = v8::Local::new(scope, &state.internals);
    let parse = thrown(internal_function(scope, internals, "jsonParse"))?;
    let receiver = args.this().into();
    // The original, so that errors and their frames are V8's own.
    thrown(parse.call(scope, receiver, &[args.get(0), args.get(1)]))
}
