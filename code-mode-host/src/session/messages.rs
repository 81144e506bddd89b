//! What a session makes of what a worker says.
//!
//! A worker is taken for an enemy: every message is checked against what the session
//! asked for, and the first that does not fit ends the worker.

use std::time::Instant;

use code_mode_protocol::wire::native::{CellEnd, FromWorker, JsonText, ToWorker, Used};
use code_mode_protocol::{
    CellOutcome, ContentItem, Json, Limit, Limits, NestedToolCall, RuntimeToolCallId,
    SourcePosition, ToolError,
};

use super::cell::{Cell, End, StopReason, bytes_of};
use super::core::{Core, Effect, Invocation, Ports};
use super::number::CellNumber;
use super::replay::Called;

/// What the output of one observation may have beyond its limit: the item that passes
/// it is counted differently by the worker.
const SLACK: usize = 4096;

/// A worker said something that does not fit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Violation {
    #[error("it speaks of cell {0}, which it does not run")]
    UnknownCell(u64),
    #[error("it ended observation {observation} of cell {cell}, which nobody asked for")]
    UnknownObservation { cell: u64, observation: u64 },
    #[error("it gave a call of cell {0} a name that is not the next")]
    WrongCallName(u64),
    #[error("it called a tool that cell {0} does not have")]
    UnknownTool(u64),
    #[error("it sent text for cell {0} that is not JSON")]
    NotJson(u64),
    #[error("it exceeded a limit that it should have kept in cell {0}")]
    Limit(u64),
    #[error("it sent a message that has no place in a session")]
    OutOfPlace,
}

/// What the supervisor must know of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Nothing.
    Message,
    /// The worker has shut down.
    ShutDown,
}

impl<P: Ports> Core<P> {
    /// Takes in a message of a worker. What a worker says that is not the session's
    /// any more is for nobody.
    pub(crate) fn received(
        &mut self,
        worker: u64,
        message: FromWorker,
        now: Instant,
    ) -> Result<Received, Violation> {
        let is_farewell = matches!(message, FromWorker::ShutDown);
        if !is_farewell && !self.is_current(worker) {
            return Ok(Received::Message);
        }
        let known = |cell| CellNumber::of_wire(cell).ok_or(Violation::UnknownCell(cell));
        match message {
            FromWorker::ShutDown => return Ok(Received::ShutDown),
            FromWorker::ToolCall {
                cell,
                call,
                tool,
                input,
                site,
            } => self.tool_call(known(cell)?, call, tool, (input, site), now)?,
            FromWorker::Notify { cell, text } => self.notification(known(cell)?, text, now)?,
            FromWorker::Output { cell, items } => self.output(known(cell)?, items.into_vec())?,
            FromWorker::Observed {
                cell,
                observation,
                items,
                frozen,
            } => {
                let frozen = frozen.map(|calls| calls.into_vec());
                self.observed(known(cell)?, observation, items.into_vec(), frozen)?;
            }
            FromWorker::Stored { cell, writes } => self.stored(known(cell)?, writes.into_vec())?,
            FromWorker::Ended {
                cell,
                items,
                end,
                used,
            } => {
                self.ended(known(cell)?, items.into_vec(), (end, used), now)?;
            }
            FromWorker::Turn { cell, turn } => {
                let number = known(cell)?;
                let known = self.running(number)?;
                if !known.tells_turns {
                    return Err(Violation::OutOfPlace);
                }
                let cell_id = known.id.clone();
                self.record_turn(number, turn, now);
                self.push(Effect::Turn(cell_id, turn));
            }
            FromWorker::Idle { cell, wakes_in } => self.idle(known(cell)?, wakes_in, now)?,
            FromWorker::Live { cell } => {
                let number = known(cell)?;
                self.running(number)?;
                self.goes_live(number);
            }
            FromWorker::Stuck { cell, limit } => {
                let number = known(cell)?;
                self.running(number)?;
                self.is_stuck(number, StopReason::Limit(limit), now);
            }
            FromWorker::Ready(_) | FromWorker::Rejected { .. } | FromWorker::Probed { .. } => {
                return Err(Violation::OutOfPlace);
            }
        }
        Ok(Received::Message)
    }

    pub(super) fn running(&mut self, number: CellNumber) -> Result<&mut Cell<P::Reply>, Violation> {
        let current = self.worker.as_ref().map(|worker| worker.number);
        self.cells
            .get_mut(&number)
            .filter(|cell| cell.is_running() && current == Some(cell.worker))
            .ok_or(Violation::UnknownCell(number.get()))
    }

    fn tool_call(
        &mut self,
        number: CellNumber,
        call: RuntimeToolCallId,
        tool: u32,
        (input, site): (Option<JsonText>, Option<SourcePosition>),
        now: Instant,
    ) -> Result<(), Violation> {
        let input = input.map(JsonText::into_json).transpose();
        let input = input.map_err(|_| Violation::NotJson(number.get()))?;
        let bytes = input.as_ref().map_or(0, |json| json.as_str().len());
        self.count_call(number, bytes)?;
        let may_hold = self.held.has_room(bytes);
        let is_guided = self.guided;
        let cell = self.running(number)?;
        if call.0 != cell.last_call + 1 {
            return Err(Violation::WrongCallName(number.get()));
        }
        cell.last_call = call.0;
        if cell.tools.get(tool as usize).is_none() {
            return Err(Violation::UnknownTool(number.get()));
        }
        if cell.cancelled {
            // It crossed the cell's termination on its way.
            return Ok(());
        }
        if !may_hold && cell.durable.is_some() {
            // The answer depends on other cells, so the cell could not repeat it.
            let max = self.limits.max_pending_tool_calls as u64;
            let reason = StopReason::Limit(Limit::PendingToolCalls.exceeded(max));
            self.stop(number, reason, now);
            return Ok(());
        }
        if !may_hold {
            let worker = cell.worker;
            let error = "the session has too many tool calls without an answer".to_owned();
            let result = Err(ToolError::new(error).into());
            self.send(
                worker,
                ToWorker::ToolResult {
                    cell: number.get(),
                    call,
                    result,
                },
            );
            return Ok(());
        }
        let unknown_after = match self.called(number, call, tool, input.as_ref(), now) {
            Called::New => 0,
            Called::Before => return Ok(()),
            Called::Unknown { attempt } => attempt,
        };
        let cell = self.running(number)?;
        let Some(definition) = cell.tools.get(tool as usize) else {
            return Err(Violation::UnknownTool(number.get()));
        };
        let nested = NestedToolCall::new(
            cell.id.clone(),
            cell.tool_call_id.clone(),
            call,
            definition.tool_name.clone(),
        )
        .kind(definition.kind)
        .input(input)
        .site(site);
        let token = cell.token.child_token();
        let answer = definition.answer;
        let tools = cell.tools.clone();
        let worker = cell.worker;
        let place = is_guided.then(|| cell.order.next());
        let more = cell.callbacks.call(call, bytes);
        self.held.add(more);
        if let Some(way) = self.way(worker) {
            self.push(Effect::Invoke(Box::new(Invocation {
                call: nested,
                tools,
                answer,
                cancelled: token,
                worker: way,
                place,
                unknown_after,
            })));
        }
        Ok(())
    }

    /// Checks the limits that a cell's worker keeps for one more callback.
    fn count_call(&mut self, number: CellNumber, bytes: usize) -> Result<(), Violation> {
        let limits = &self.limits;
        let (max_calls, max_bytes) = (limits.max_pending_tool_calls, limits.heap_bytes());
        let cell = self.running(number)?;
        let held = cell.callbacks.held();
        if held.calls >= max_calls || held.bytes.saturating_add(bytes) > max_bytes {
            return Err(Violation::Limit(number.get()));
        }
        Ok(())
    }

    fn notification(
        &mut self,
        number: CellNumber,
        text: String,
        now: Instant,
    ) -> Result<(), Violation> {
        let bytes = text.len();
        self.count_call(number, bytes)?;
        let may_hold = self.held.has_room(bytes);
        let cell = self.running(number)?;
        if cell.cancelled {
            return Ok(());
        }
        if !may_hold {
            // Nothing is dropped in silence: the cell ends with the limit's name.
            let max = self.limits.max_pending_tool_calls as u64;
            let reason = StopReason::Limit(Limit::PendingToolCalls.exceeded(max));
            self.stop(number, reason, now);
            return Ok(());
        }
        if let Some(durable) = &mut cell.durable {
            durable.notification_came();
        }
        let more = cell.callbacks.notify(text);
        self.held.add(more);
        self.deliver_next(number);
        Ok(())
    }

    fn output(&mut self, number: CellNumber, items: Vec<ContentItem>) -> Result<(), Violation> {
        // The worker is not at fault for output that absent observers left: only
        // what it says for one observation counts against it.
        let max = self.limits.max_output_bytes.saturating_add(SLACK);
        let cell = self.running(number)?;
        cell.said_bytes = cell.said_bytes.saturating_add(bytes_of(&items));
        if cell.said_bytes > max {
            return Err(Violation::Limit(number.get()));
        }
        if let Some(durable) = &mut cell.durable {
            durable.received += items.len() as u64;
        }
        let bytes: usize = items.iter().map(ContentItem::bytes).sum();
        cell.stats.output_bytes = cell.stats.output_bytes.saturating_add(bytes as u64);
        cell.put_out(items);
        Ok(())
    }

    fn observed(
        &mut self,
        number: CellNumber,
        observation: u64,
        items: Vec<ContentItem>,
        frozen: Option<Vec<RuntimeToolCallId>>,
    ) -> Result<(), Violation> {
        let max_calls = self.limits.max_pending_tool_calls;
        self.output(number, items)?;
        let cell = self.running(number)?;
        let ended = cell.observation.ended(observation);
        let is_present = ended.map_err(|_| Violation::UnknownObservation {
            cell: number.get(),
            observation,
        })?;
        if frozen.as_ref().is_some_and(|calls| calls.len() > max_calls) {
            return Err(Violation::Limit(number.get()));
        }
        cell.said_bytes = 0;
        if is_present {
            self.give(number, frozen);
        }
        Ok(())
    }

    fn stored(
        &mut self,
        number: CellNumber,
        writes: Vec<(String, JsonText)>,
    ) -> Result<(), Violation> {
        let max = self.limits.max_stored_bytes;
        let cell = self.running(number)?;
        for (key, json) in writes {
            let json = json
                .into_json()
                .map_err(|_| Violation::NotJson(number.get()))?;
            cell.writes_bytes += Limits::stored_value_bytes(&key, json.as_str());
            if cell.writes_bytes > max {
                return Err(Violation::Limit(number.get()));
            }
            cell.writes.push((key, json));
        }
        Ok(())
    }

    fn ended(
        &mut self,
        number: CellNumber,
        items: Vec<ContentItem>,
        (end, used): (CellEnd, Used),
        now: Instant,
    ) -> Result<(), Violation> {
        self.output(number, items)?;
        let cell = self.running(number)?;
        cell.stats.processor = used.processor;
        cell.stats.queued = used.queued;
        cell.stats.peak_heap_bytes = used.peak_heap_bytes;
        let writes: Vec<(String, Json)> = std::mem::take(&mut cell.writes);
        let stopping = cell.stopping.map(|stopping| stopping.reason);
        let is_durable = cell.durable.is_some();
        let end = match (end, self.left_out(number)) {
            (CellEnd::Completed | CellEnd::Exited { .. } | CellEnd::Failed { .. }, Some(text)) => {
                CellEnd::Diverged { text }
            }
            (end, _) => end,
        };
        if matches!(
            (stopping, &end),
            (Some(StopReason::Parked), CellEnd::Terminated)
        ) {
            self.parked(number, now);
            return Ok(());
        }
        let stopping = stopping.filter(|reason| *reason != StopReason::Parked);
        let (end, commits) = match (stopping, end) {
            (Some(StopReason::Limit(limit)), _) => (End::limit(limit), false),
            (Some(StopReason::Diverged), _) => (self.diverged(number, None), false),
            (_, CellEnd::Diverged { text }) => {
                if !is_durable || text.len() > Limits::MAX_ERROR_BYTES {
                    return Err(Violation::OutOfPlace);
                }
                (self.diverged(number, Some(text)), false)
            }
            (None, CellEnd::Terminated) => return Err(Violation::OutOfPlace),
            (_, CellEnd::Terminated) => (End::of(CellOutcome::Terminated), false),
            (_, CellEnd::Completed) => (End::of(CellOutcome::Completed), true),
            (_, CellEnd::Exited { status }) => (End::exited(status), true),
            (_, CellEnd::Limit { limit, position }) => (End::limit_at(limit, position), true),
            (_, CellEnd::Failed { text, position }) => {
                if text.len() > Limits::MAX_ERROR_BYTES {
                    return Err(Violation::Limit(number.get()));
                }
                (End::script_error(text, position), true)
            }
        };
        if commits {
            if self.stored.bytes_with(&writes) > self.limits.max_stored_bytes {
                return Err(Violation::Limit(number.get()));
            }
            if is_durable && let Some(cell) = self.cells.get_mut(&number) {
                cell.committed.clone_from(&writes);
            }
            for (key, json) in writes {
                self.stored.set(key, json);
            }
        }
        if !end.is_terminated() {
            // The worker works.
            self.backoff.succeeded();
        }
        self.js_ended(number, end, now);
        self.worker_may_be_idle(now);
        Ok(())
    }
}
