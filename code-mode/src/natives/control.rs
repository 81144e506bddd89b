//! `notify`, `yield_control` and `exit`.

use std::sync::atomic::Ordering;

use code_mode_protocol::Limit;

use super::{Answer, CellState, Refusal, display};
use crate::cell::{Event, Stop};

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
    pending_call(state, text.len())?;
    state
        .shared
        .pending_notifications
        .fetch_add(1, Ordering::Relaxed);
    state.send(Event::Notify(text));
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
    let pending =
        state.calls.borrow().len() + state.shared.pending_notifications.load(Ordering::Relaxed);
    if pending >= limits.max_pending_tool_calls {
        return Err(Limit::PendingToolCalls
            .exceeded(limits.max_pending_tool_calls as u64)
            .into());
    }
    state.shared.send_bytes(bytes)?;
    Ok(())
}

/// `yield_control()`
pub(super) fn yield_control(state: &CellState) {
    let mark = state.shared.output_mark();
    let in_flight = state.shared.yield_in_flight.swap(true, Ordering::AcqRel);
    // One that is on its way with the same output says all there is to say, so
    // a loop of yields does not fill the queue.
    if state.last_yield.replace(mark) != mark || !in_flight {
        state.send(Event::Yield(mark));
    }
}

/// `exit()`
pub(super) fn exit() -> Answer {
    Err(Refusal::Stop(Stop::Exit))
}
