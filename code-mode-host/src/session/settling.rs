//! From the end of a cell's JavaScript to its closing: its callbacks are settled, then its
//! end is told.

use std::time::Instant;

use code_mode_protocol::wire::native::ToWorker;
use code_mode_protocol::{
    CellEnded, CellId, CellNotification, CellOutcome, Json, Limit, PendingOutcome,
    RuntimeToolCallId, WaitOutcome,
};

use super::cell::{End, Final, Phase};
use super::core::{Core, Effect, MAX_HELD_BYTES, MAX_HELD_CALLS, Ports, Reply};

impl<P: Ports> Core<P> {
    /// A cell's JavaScript will not run again.
    pub(super) fn js_ended(&mut self, number: u64, mut end: End, now: Instant) {
        let is_shutdown = self.shutting_down;
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        if end.outcome == CellOutcome::Terminated && is_shutdown {
            end.outcome = CellOutcome::ShutDown;
        }
        let stats = &mut cell.stats;
        stats.wall = now.saturating_duration_since(cell.admitted);
        stats.calls = cell.last_call;
        stats.calls_cancelled = u32::try_from(cell.calls.len()).unwrap_or(u32::MAX);
        let ended = CellEnded::new(
            (cell.id.clone(), cell.tool_call_id.clone()),
            end.outcome.clone(),
            *stats,
        );
        cell.phase = Phase::Settling {
            end: Final { end, at: now },
            by: None,
        };
        cell.stopping = None;
        cell.wall_by = None;
        cell.observation.armed = false;
        self.push(Effect::Ended(Box::new(ended)));
        self.settle(number, now);
    }

    /// Goes on with the end of a cell whose JavaScript has ended: its notifications
    /// are delivered, then its calls are cancelled, then it is told.
    pub(super) fn settle(&mut self, number: u64, now: Instant) {
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        let grace = self.settings.callback_grace;
        let is_waiting = cell.has_callbacks();
        let Phase::Settling { by, .. } = &mut cell.phase else {
            return;
        };
        if !cell.cancelled && (cell.delivering || !cell.notifications.is_empty()) {
            return;
        }
        if is_waiting {
            let until = *by.get_or_insert(now + grace);
            if now < until {
                self.due_at(until, number);
                return self.cancel_callbacks(number);
            }
            tracing::warn!("a callback ignores its cancellation and is left behind");
        }
        self.finish(number, now);
    }

    fn finish(&mut self, number: u64, now: Instant) {
        self.cancel_callbacks(number);
        let Some(mut cell) = self.cells.remove(&number) else {
            return;
        };
        self.held_bytes -= cell.held;
        self.held_calls -= cell.calls.len() + cell.notifications.len();
        let Phase::Settling { end, .. } = std::mem::replace(&mut cell.phase, Phase::Running) else {
            return;
        };
        let at = end.at;
        let response = cell.final_response(end, now);
        let observer = cell.observer.take().map(|observer| observer.reply);
        let mut replies: Vec<P::Reply> = observer.into_iter().collect();
        replies.append(&mut cell.terminators);
        let last = replies.pop();
        let mut is_taken = false;
        for reply in replies {
            let answer = Ok(PendingOutcome::live(response.clone()));
            is_taken |= reply.answer(answer).is_ok();
        }
        let left = match last {
            None => Some(response),
            Some(last) => match last.answer(Ok(PendingOutcome::live(response))) {
                Ok(()) => None,
                Err(Ok(PendingOutcome::Observed(WaitOutcome::LiveCell(response)))) => {
                    Some(response)
                }
                Err(_) => None,
            },
        };
        match left {
            Some(response) if !is_taken && !self.shutting_down => {
                self.keep_result(number, response, (at, false));
            }
            _ => self.push(Effect::Close(cell.id)),
        }
    }

    /// The delegate has finished a tool call.
    pub(crate) fn call_finished(
        &mut self,
        cell_id: &CellId,
        call: RuntimeToolCallId,
        result: Result<Json, String>,
        now: Instant,
    ) {
        let number = cell_id.number().unwrap_or_default();
        let max_bytes = self.limits.max_frame_bytes;
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        let Some((_, bytes)) = cell.calls.remove(&call) else {
            return;
        };
        cell.held -= bytes;
        self.held_bytes -= bytes;
        self.held_calls -= 1;
        if cell.is_running() && !cell.cancelled {
            cell.stats.calls_failed += u32::from(result.is_err());
            let result = match result {
                Ok(json) if json.as_str().len() > max_bytes => {
                    let bytes = json.as_str().len();
                    let exceeded = Limit::Frame.exceeded(max_bytes as u64);
                    Err(format!("the tool's result has {bytes} bytes: {exceeded}"))
                }
                result => result.map(Json::into_string),
            };
            let worker = cell.worker;
            self.send(
                worker,
                ToWorker::ToolResult {
                    cell: number,
                    call,
                    result,
                },
            );
        }
        self.settle(number, now);
    }

    /// The delegate has taken a cell's oldest notification.
    pub(crate) fn notified(&mut self, cell_id: &CellId, now: Instant) {
        let number = cell_id.number().unwrap_or_default();
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        if !std::mem::replace(&mut cell.delivering, false) {
            return;
        }
        let bytes = cell.notifications.pop_front().map_or(0, |text| text.len());
        cell.held -= bytes;
        let worker = cell.worker;
        let is_running = cell.is_running();
        self.held_bytes -= bytes;
        self.held_calls -= 1;
        if is_running {
            self.send(worker, ToWorker::Notified { cell: number });
        }
        self.deliver_next(number);
        self.settle(number, now);
    }

    /// Hands the cell's oldest notification to the delegate, if that has none of it.
    pub(super) fn deliver_next(&mut self, number: u64) {
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        if cell.delivering || cell.cancelled {
            return;
        }
        let Some(text) = cell.notifications.front() else {
            return;
        };
        let notification =
            CellNotification::new(cell.id.clone(), cell.tool_call_id.clone(), text.clone());
        cell.delivering = true;
        let token = cell.token.child_token();
        self.push(Effect::Notify(notification, token));
    }

    /// Whether one more call or notification of `bytes` may be held.
    pub(super) fn may_hold(&self, bytes: usize) -> bool {
        self.held_calls < MAX_HELD_CALLS && self.held_bytes.saturating_add(bytes) <= MAX_HELD_BYTES
    }
}
