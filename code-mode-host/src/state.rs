//! What a session knows of its cells, and what it makes of what a worker says.
//!
//! A worker is taken for an enemy: every message is checked against what the
//! session asked for, and the first that does not fit ends the worker.

use std::collections::HashMap;
use std::sync::Arc;

use code_mode_protocol::native::FromWorker;
use code_mode_protocol::{
    CellId, CellResponse, ClaimedJson, Limits, NestedToolCall, PendingOutcome, RuntimeToolCallId,
    SessionError, ToolSet, Unclaimed, WaitOutcome,
};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::backoff::Backoff;
use crate::calls::Calls;
use crate::connection::Outbound;

/// What a request came to.
pub(crate) type Answer = Result<PendingOutcome, SessionError>;

/// A worker said something that does not fit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Violation {
    #[error("it answered request {0}, which nobody asked or which had its answer")]
    UnknownRequest(u64),
    #[error("it answered for cell {0} with another cell's response")]
    WrongCell(CellId),
    #[error("it speaks of cell {0}, which it does not run")]
    UnknownCell(CellId),
    #[error("it used the name of call {0} twice")]
    RepeatedCall(u64),
    #[error("it called a tool that cell {0} does not have")]
    UnknownTool(CellId),
    #[error("it sent text for cell {0} that is not JSON")]
    NotJson(CellId),
    #[error("it exceeded a limit that it should have kept in cell {0}")]
    Limit(CellId),
    #[error("it sent a message that has no place in a session")]
    OutOfPlace,
}

/// One live cell.
pub(crate) struct HostCell {
    pub(crate) calls: Calls,
    tools: ToolSet,
    /// It completed and its values are the session's.
    committed: bool,
    /// Its end was answered; only its closing is still to come.
    ended: bool,
    /// Why it is no more, where its worker died; kept until it is observed.
    pub(crate) lost: Option<CellResponse>,
    /// Answers on their way to observers.
    pub(crate) answers: TaskTracker,
}

/// A request without an answer.
struct Pending {
    cell_id: CellId,
    reply: oneshot::Sender<Answer>,
}

/// Something to do once the state is no longer borrowed.
pub(crate) enum Effect {
    /// Hand an answer over. A final one waits for the cell's callbacks.
    Reply(oneshot::Sender<Answer>, Answer),
    /// Run a tool.
    Invoke(u64, NestedToolCall),
    /// Deliver a notification.
    Notify(u64, CellId, String),
    /// Close a cell.
    Close(CellId),
    /// The worker is done.
    ShutDown,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) cells: HashMap<CellId, HostCell>,
    /// Cells that are being closed, with their answers on their way.
    closing: HashMap<CellId, TaskTracker>,
    requests: HashMap<u64, Pending>,
    calls: HashMap<u64, CellId>,
    last_request: u64,
    last_cell: u64,
    last_tools: Option<(ToolSet, u64)>,
    pub(crate) unclaimed: Unclaimed,
    stored: HashMap<String, String>,
    stored_bytes: usize,
    pub(crate) outbound: Option<Outbound>,
    pub(crate) backoff: Backoff,
}

impl State {
    /// Names a request and remembers who wants its answer.
    pub(crate) fn request(&mut self, cell_id: CellId, reply: oneshot::Sender<Answer>) -> u64 {
        self.last_request += 1;
        self.requests
            .insert(self.last_request, Pending { cell_id, reply });
        self.last_request
    }

    /// Takes a cell off the list, with the answers still owed for it: requests
    /// whose observer went away, or that came when its end had been told.
    pub(crate) fn remove_cell(
        &mut self,
        cell_id: &CellId,
    ) -> (Option<HostCell>, Vec<oneshot::Sender<Answer>>) {
        let owed: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, pending)| pending.cell_id == *cell_id)
            .map(|(request, _)| *request)
            .collect();
        let owed = owed
            .into_iter()
            .filter_map(|request| self.requests.remove(&request))
            .map(|pending| pending.reply)
            .collect();
        let cell = self.cells.remove(cell_id);
        if let Some(cell) = &cell
            && !cell.answers.is_empty()
        {
            self.closing.insert(cell_id.clone(), cell.answers.clone());
        }
        (cell, owed)
    }

    /// A cell is closed.
    pub(crate) fn closed(&mut self, cell_id: &CellId) {
        self.closing.remove(cell_id);
    }

    /// The answers on their way to observers of a cell that has ended.
    pub(crate) fn last_answers(&self, cell_id: &CellId) -> Option<TaskTracker> {
        match self.cells.get(cell_id) {
            Some(cell) => Some(&cell.answers),
            None => self.closing.get(cell_id),
        }
        .filter(|answers| !answers.is_empty())
        .cloned()
    }

    /// Whether a request still has no answer.
    pub(crate) fn is_open(&self, request: u64) -> bool {
        self.requests.contains_key(&request)
    }

    /// The next cell's name.
    pub(crate) fn next_cell(&self) -> CellId {
        CellId::nth(self.last_cell + 1)
    }

    /// Admits the next cell.
    pub(crate) fn admit(&mut self, calls: Calls, tools: ToolSet) {
        let cell_id = self.next_cell();
        self.last_cell += 1;
        self.cells.insert(
            cell_id,
            HostCell {
                calls,
                tools,
                committed: false,
                ended: false,
                lost: None,
                answers: TaskTracker::new(),
            },
        );
    }

    /// The name of a set of tools at the worker, and whether the worker has to be
    /// told of it first.
    pub(crate) fn tools(&mut self, tools: &ToolSet) -> (u64, bool) {
        match &self.last_tools {
            Some((known, id)) if Arc::ptr_eq(known, tools) || known == tools => (*id, false),
            last => {
                let id = last.as_ref().map_or(0, |(_, id)| *id) + 1;
                self.last_tools = Some((tools.clone(), id));
                (id, true)
            }
        }
    }

    /// The values a new worker starts with.
    pub(crate) fn stored(&self) -> Vec<(String, String)> {
        self.stored
            .iter()
            .map(|(key, json)| (key.clone(), json.clone()))
            .collect()
    }

    /// Sets a stored value; returns all bytes.
    pub(crate) fn store(&mut self, key: String, json: String) -> usize {
        self.stored_bytes += key.len() + json.len();
        let key_bytes = key.len();
        if let Some(old) = self.stored.insert(key, json) {
            self.stored_bytes -= key_bytes + old.len();
        }
        self.stored_bytes
    }

    /// Takes in a message of the worker.
    pub(crate) fn receive(
        &mut self,
        message: FromWorker,
        limits: &Limits,
    ) -> Result<Option<Effect>, Violation> {
        match message {
            FromWorker::Answer { request, outcome } => self.answer(request, outcome).map(Some),
            FromWorker::ToolCall {
                call,
                cell_id,
                runtime_tool_call_id,
                tool,
                input,
            } => {
                let input = input
                    .map(ClaimedJson::check)
                    .transpose()
                    .map_err(|_| Violation::NotJson(cell_id.clone()))?;
                let cell = self.cell(&cell_id)?;
                let Some(definition) = cell.tools.get(tool as usize) else {
                    return Err(Violation::UnknownTool(cell_id));
                };
                if cell.calls.open() >= limits.max_pending_tool_calls {
                    return Err(Violation::Limit(cell_id));
                }
                let invocation = NestedToolCall {
                    cell_id: cell_id.clone(),
                    runtime_tool_call_id: RuntimeToolCallId(runtime_tool_call_id),
                    tool_name: definition.tool_name.clone(),
                    tool_kind: definition.kind,
                    input,
                };
                self.name_call(call, cell_id)?;
                Ok(Some(Effect::Invoke(call, invocation)))
            }
            FromWorker::Notify {
                call,
                cell_id,
                text,
            } => {
                self.cell(&cell_id)?;
                Ok(Some(Effect::Notify(call, cell_id, text)))
            }
            FromWorker::CallCancelled { call } => {
                // An answer may have crossed this on its way.
                if let Some(cell_id) = self.calls.remove(&call)
                    && let Some(cell) = self.cells.get_mut(&cell_id)
                    && let Some(cancelled) = cell.calls.forget(call)
                {
                    cancelled.cancel();
                }
                Ok(None)
            }
            FromWorker::Committed { cell_id, writes } => {
                self.commit(cell_id, writes, limits)?;
                Ok(None)
            }
            FromWorker::CellClosed { cell_id } => {
                self.cell(&cell_id)?;
                Ok(Some(Effect::Close(cell_id)))
            }
            FromWorker::ShutDown => Ok(Some(Effect::ShutDown)),
            FromWorker::Ready(_) | FromWorker::Rejected { .. } | FromWorker::Probed { .. } => {
                Err(Violation::OutOfPlace)
            }
        }
    }

    fn cell(&mut self, cell_id: &CellId) -> Result<&mut HostCell, Violation> {
        self.cells
            .get_mut(cell_id)
            .filter(|cell| cell.lost.is_none())
            .ok_or_else(|| Violation::UnknownCell(cell_id.clone()))
    }

    fn name_call(&mut self, call: u64, cell_id: CellId) -> Result<(), Violation> {
        match self.calls.insert(call, cell_id) {
            None => Ok(()),
            Some(_) => Err(Violation::RepeatedCall(call)),
        }
    }

    /// A tool call has its answer.
    pub(crate) fn call_answered(&mut self, call: u64) {
        if let Some(cell_id) = self.calls.remove(&call)
            && let Some(cell) = self.cells.get_mut(&cell_id)
        {
            cell.calls.forget(call);
        }
    }

    fn answer(&mut self, request: u64, outcome: Answer) -> Result<Effect, Violation> {
        let cell_id = match self.requests.get(&request) {
            Some(pending) => &pending.cell_id,
            None => return Err(Violation::UnknownRequest(request)),
        };
        // One that is refused stays, so that it is answered with its worker's end.
        if let Ok(outcome) = &outcome
            && cell_of(outcome) != cell_id
        {
            return Err(Violation::WrongCell(cell_id.clone()));
        }
        let Some(pending) = self.requests.remove(&request) else {
            return Err(Violation::UnknownRequest(request));
        };
        if is_final(&outcome)
            && let Some(cell) = self.cells.get_mut(&pending.cell_id)
        {
            cell.ended = true;
        }
        let outcome = outcome.map(|outcome| {
            if is_completion(&outcome) {
                self.backoff.succeeded();
            }
            self.unclaimed.join(outcome)
        });
        Ok(Effect::Reply(pending.reply, outcome))
    }

    fn commit(
        &mut self,
        cell_id: CellId,
        writes: Vec<(String, ClaimedJson)>,
        limits: &Limits,
    ) -> Result<(), Violation> {
        let cell = self.cell(&cell_id)?;
        if std::mem::replace(&mut cell.committed, true) {
            return Err(Violation::UnknownCell(cell_id));
        }
        for (key, json) in writes {
            let json = json
                .check()
                .map_err(|_| Violation::NotJson(cell_id.clone()))?;
            if self.store(key, json.into_string()) > limits.max_stored_bytes {
                return Err(Violation::Limit(cell_id));
            }
        }
        Ok(())
    }

    /// The worker is no more: every request has its answer, and every cell is
    /// lost. Returns the answers, and the cells that somebody was told of.
    pub(crate) fn lose_worker(
        &mut self,
        error_of: impl Fn(&CellId) -> String,
    ) -> (Vec<(oneshot::Sender<Answer>, Answer)>, Vec<CellId>) {
        self.outbound = None;
        self.last_tools = None;
        self.calls.clear();
        let mut told = Vec::new();
        for (cell_id, cell) in &mut self.cells {
            if cell.ended {
                told.push(cell_id.clone());
            } else if cell.lost.is_none() {
                cell.lost = Some(CellResponse::failed(cell_id.clone(), error_of(cell_id)));
            }
        }
        let mut replies = Vec::new();
        for (_, pending) in std::mem::take(&mut self.requests) {
            let lost = self
                .cells
                .get(&pending.cell_id)
                .and_then(|cell| cell.lost.clone());
            let outcome = match lost {
                Some(response) => {
                    told.push(pending.cell_id);
                    PendingOutcome::live(response)
                }
                None => PendingOutcome::missing(&pending.cell_id),
            };
            replies.push((pending.reply, Ok(self.unclaimed.join(outcome))));
        }
        told.sort();
        told.dedup();
        (replies, told)
    }
}

/// The cell an outcome is of.
pub(crate) fn cell_of(outcome: &PendingOutcome) -> &CellId {
    match outcome {
        PendingOutcome::Pending { cell_id, .. } => cell_id,
        PendingOutcome::Observed(
            WaitOutcome::LiveCell(response) | WaitOutcome::MissingCell(response),
        ) => response.cell_id(),
    }
}

fn is_completion(outcome: &PendingOutcome) -> bool {
    matches!(
        outcome,
        PendingOutcome::Observed(WaitOutcome::LiveCell(CellResponse::Result { .. }))
    )
}

/// Whether an outcome is the last of its cell.
pub(crate) fn is_final(outcome: &Answer) -> bool {
    matches!(
        outcome,
        Ok(PendingOutcome::Observed(WaitOutcome::LiveCell(response))) if response.is_final()
    )
}
