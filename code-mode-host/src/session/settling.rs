//! From the end of a cell's JavaScript to its closing: its callbacks are settled, then its
//! end is reported.

use std::time::Instant;

use code_mode_protocol::wire::native::ToWorker;
use code_mode_protocol::{
    CellEnded, CellId, CellNotification, CellOutcome, Json, Limit, RuntimeToolCallId, ToolError,
};

use super::cell::{End, Final, Phase};
use super::core::{Core, Due, Effect, Ports, Reply};
use super::number::CellNumber;

impl<P: Ports> Core<P> {
    /// A cell's JavaScript will not run again.
    pub(super) fn js_ended(&mut self, number: CellNumber, mut end: End, now: Instant) {
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
        stats.calls_cancelled = u32::try_from(cell.callbacks.calls()).unwrap_or(u32::MAX);
        let ended = CellEnded::new(
            cell.id.clone(),
            cell.tool_call_id.clone(),
            end.outcome.clone(),
            *stats,
        );
        let writes = std::mem::take(&mut cell.committed);
        self.record_end(number, &end, writes);
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        cell.phase = Phase::Settling {
            end: Final { end, at: now },
            by: None,
        };
        cell.stopping = None;
        cell.wall_by = None;
        cell.observation.disarm();
        self.push(Effect::Ended(Box::new(ended)));
        self.settle(number, now);
    }

    /// Goes on with the end of a cell whose JavaScript has ended: its notifications
    /// are delivered, then its calls are cancelled, then it is reported.
    pub(super) fn settle(&mut self, number: CellNumber, now: Instant) {
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        let grace = self.settings.callback_grace;
        let is_waiting = cell.callbacks.is_busy();
        let Phase::Settling { by, .. } = &mut cell.phase else {
            return;
        };
        if !cell.cancelled && cell.callbacks.has_notifications() {
            return;
        }
        if is_waiting {
            let until = *by.get_or_insert(now + grace);
            if now < until {
                self.due_at(until, Due::Cell(number));
                return self.cancel_callbacks(number);
            }
            tracing::warn!("a callback ignores its cancellation and is left behind");
        }
        self.finish(number, now);
    }

    fn finish(&mut self, number: CellNumber, now: Instant) {
        self.cancel_callbacks(number);
        let Some(mut cell) = self.cells.remove(&number) else {
            return;
        };
        self.held.release(cell.callbacks.held());
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
            is_taken |= reply.answer(Ok(response.clone())).is_ok();
        }
        let left = match last {
            None => Some(response),
            Some(last) => match last.answer(Ok(response)) {
                Ok(()) | Err(Err(_)) => None,
                Err(Ok(response)) => Some(response),
            },
        };
        match left {
            Some(response) if !is_taken && !self.shutting_down => {
                self.keep_result(number, response, (at, false));
            }
            _ => self.push(Effect::Close(cell.id)),
        }
    }

    /// The delegate has finished a tool call, with its result and whether its tool failed: the
    /// result of an MCP server may say so.
    pub(crate) fn call_finished(
        &mut self,
        cell_id: &CellId,
        call: RuntimeToolCallId,
        (result, has_failed): (Result<Json, ToolError>, bool),
        now: Instant,
    ) {
        let max_bytes = self.limits.max_frame_bytes;
        let Some(number) = CellNumber::of(cell_id) else {
            return;
        };
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        let Some(finished) = cell.callbacks.finish_call(call) else {
            return;
        };
        self.held.release(finished);
        if cell.is_running() && !cell.cancelled {
            cell.stats.calls_failed += u32::from(has_failed);
            let result = within(result, max_bytes);
            if let Some(result) = self.keep_answer_of(number, call, result) {
                self.send_answer(number, call, result);
            }
        }
        self.settle(number, now);
    }

    /// Sends a call's answer to the cell.
    pub(super) fn send_answer(
        &mut self,
        number: CellNumber,
        call: RuntimeToolCallId,
        result: Result<Json, ToolError>,
    ) {
        let Some(worker) = self.cells.get(&number).map(|cell| cell.worker) else {
            return;
        };
        let message = ToWorker::ToolResult {
            cell: number.get(),
            call,
            result: result.map(Json::into_string).map_err(Into::into),
        };
        self.send(worker, message);
    }

    /// The delegate has taken a cell's oldest notification.
    pub(crate) fn notified(&mut self, cell_id: &CellId, now: Instant) {
        let Some(number) = CellNumber::of(cell_id) else {
            return;
        };
        let is_open = self.cells.contains_key(&number);
        if is_open || self.shutting_down {
            self.record_notified(number);
        }
        if let Some(cell) = self.cells.get_mut(&number) {
            cell.notified += 1;
        }
        self.notification_is_over(number, now);
    }

    /// A cell's oldest notification was cancelled before the delegate had it.
    pub(crate) fn not_notified(&mut self, cell_id: &CellId, now: Instant) {
        if let Some(number) = CellNumber::of(cell_id) {
            self.notification_is_over(number, now);
        }
    }

    fn notification_is_over(&mut self, number: CellNumber, now: Instant) {
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        let Some(delivered) = cell.callbacks.delivered() else {
            return;
        };
        let worker = cell.worker;
        let is_running = cell.is_running();
        self.held.release(delivered);
        if is_running {
            self.send(worker, ToWorker::Notified { cell: number.get() });
        }
        self.deliver_next(number);
        self.settle(number, now);
    }

    /// Hands the cell's oldest notification to the delegate, if that has none of it.
    pub(super) fn deliver_next(&mut self, number: CellNumber) {
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        if cell.cancelled {
            return;
        }
        let Some(text) = cell.callbacks.deliver() else {
            return;
        };
        let notification = CellNotification::new(cell.id.clone(), cell.tool_call_id.clone(), text)
            .number(cell.notified + 1);
        let token = cell.token.child_token();
        self.push(Effect::Notify(notification, token));
    }
}

/// A call's result that fits a frame: an error instead of a result that is too large, and an error
/// without its data, and with the beginning of its message, where it must be.
pub(super) fn within(result: Result<Json, ToolError>, max_bytes: usize) -> Result<Json, ToolError> {
    let mut error = match result {
        Ok(json) if json.as_str().len() > max_bytes => {
            let bytes = json.as_str().len();
            let exceeded = Limit::Frame.exceeded(max_bytes as u64);
            ToolError::new(format!("the tool's result has {bytes} bytes: {exceeded}"))
        }
        Ok(json) => return Ok(json),
        Err(error) => error,
    };
    error
        .message
        .truncate(error.message.floor_char_boundary(max_bytes));
    let room = max_bytes - error.message.len();
    error.data = error.data.filter(|data| data.as_str().len() <= room);
    Err(error)
}
