//! `notify` and `exit`, and what leaves a cell.

use code_mode_protocol::Limit;
use code_mode_protocol::wire::native::FromWorker;

use super::{Answer, CellState, Refusal, display};
use crate::cell::Stop;

/// `notify(value)`
pub(super) fn notify(
    scope: &mut v8::PinScope,
    state: &CellState,
    args: &v8::FunctionCallbackArguments,
) -> Answer {
    let text = display::display(scope, state, args.get(0))?;
    if text.trim().is_empty() {
        return Err("notify expects non-empty text".into());
    }
    if state.shared.is_notified_already() {
        return Ok(());
    }
    pending_call(state, text.len())?;
    state.shared.notification_sent(text.len());
    state.shared.send(FromWorker::Notify {
        cell: state.shared.number,
        text,
    });
    Ok(())
}

/// Whether `bytes` fit a frame; asked before they are copied.
pub(super) fn may_send(state: &CellState, bytes: usize) -> Answer {
    let limits = &state.shared.limits;
    if bytes > limits.max_frame_bytes {
        let limit = Limit::Frame.exceeded(limits.max_frame_bytes as u64);
        return Err(Refusal::Error(format!(
            "cannot send {bytes} bytes: {limit}"
        )));
    }
    Ok(())
}

/// Admits one more tool call or notification of `bytes`.
pub(super) fn pending_call(state: &CellState, bytes: usize) -> Answer {
    may_send(state, bytes)?;
    let limits = &state.shared.limits;
    let pending = state.calls.borrow().len() + state.shared.pending_notifications();
    if pending >= limits.max_pending_tool_calls {
        return Err(Limit::PendingToolCalls
            .exceeded(limits.max_pending_tool_calls as u64)
            .into());
    }
    state.shared.send_bytes(bytes)?;
    Ok(())
}

/// `exit()`; in guided sessions `exit(status?)`, as shells have it.
pub(super) fn exit(
    scope: &mut v8::PinScope,
    state: &CellState,
    args: &v8::FunctionCallbackArguments,
) -> Answer {
    let given = args.get(0);
    if state.guided.is_none() || given.is_null_or_undefined() {
        return Err(Refusal::Stop(Stop::Exit(0)));
    }
    // A status that a shell cannot have would pass for another one, or for success.
    let status = given
        .is_uint32()
        .then(|| given.uint32_value(scope))
        .flatten()
        .and_then(|number| u8::try_from(number).ok())
        .ok_or("exit expects a whole number from 0 to 255, or nothing")?;
    Err(Refusal::Stop(Stop::Exit(status)))
}
