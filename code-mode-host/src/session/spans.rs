//! A session's spans: their names, their attributes and their parents.
//!
//! An exec's span descends from the one that its request names, or else from the one that was
//! current at `execute`; a cell's calls and notifications descend from its exec's. Fields are
//! ids, names, outcomes and durations: what a program says is in none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use code_mode_protocol::{
    CellEnded, CellId, CellResponse, CellStarted, ExecuteRequest, NestedToolCall, ToolKind,
    TraceContext,
};
use tracing::Span;
use tracing::field::Empty;

use crate::journal::Repeated;
use crate::propagation::Propagation;

/// The spans of one session.
pub(super) struct Spans {
    /// Tells sessions apart in every line.
    id: String,
    pub(super) session: Span,
    propagation: Arc<dyn Propagation>,
    /// Of the cells that have not been closed.
    execs: Mutex<HashMap<CellId, Exec>>,
}

/// What the spans of a cell descend from.
#[derive(Clone)]
pub(super) struct Exec {
    pub(super) span: Span,
    /// The exec's span where it is exported, and the agent's where that is known.
    context: Option<TraceContext>,
}

impl Exec {
    /// Nothing: the exec was another process's.
    pub(super) fn of_another_process() -> Self {
        Self {
            span: Span::none(),
            context: None,
        }
    }

    /// Whether anything descends from it.
    pub(super) fn is_known(&self) -> bool {
        !self.span.is_none() || self.context.is_some()
    }
}

impl Spans {
    pub(super) fn new(propagation: Arc<dyn Propagation>) -> Self {
        let id = unique();
        Self {
            session: tracing::info_span!("session", session = %id),
            id,
            propagation,
            execs: Mutex::default(),
        }
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<CellId, Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The span of an exec, below the one that is current.
    fn exec_span(&self, tool_call_id: &str) -> Span {
        tracing::info_span!(
            "exec",
            session = %self.id,
            tool_call_id,
            cell = Empty,
            is_continued = Empty,
            outcome = Empty,
            duration_ms = Empty,
            processor_ms = Empty,
            queued_ms = Empty,
            calls = Empty,
        )
    }

    /// The span of an execute, below the agent's span that the request names, or else below the
    /// one that is current. From here on the request names the span of the execute.
    pub(super) fn exec(&self, request: &mut ExecuteRequest) -> Exec {
        let span = self.exec_span(&request.tool_call_id);
        if let Some(parent) = &request.trace_context {
            self.propagation.set_parent(&span, parent);
        }
        let own = self.propagation.context(&span);
        request.trace_context = own.or(request.trace_context.take());
        let context = request.trace_context.clone();
        Exec { span, context }
    }

    /// The span of a cell that continues what an earlier process began.
    pub(super) fn continued(&self, cell: &CellStarted) -> Exec {
        let new = || self.exec_span(&cell.tool_call_id);
        let span = self.session.in_scope(new);
        span.record("is_continued", true);
        let context = self.propagation.context(&span);
        Exec { span, context }
    }

    /// The span in which a cell is made to run again: how many turns and answers it repeats from its log, and
    /// how many calls have no answer there.
    pub(super) fn resume(&self, cell: &CellId, repeated: Repeated) -> Span {
        tracing::info_span!(
            parent: &self.of_cell(cell).span,
            "resume",
            session = %self.id,
            cell = %cell,
            turns = repeated.turns,
            answers = repeated.answers,
            unanswered = repeated.unanswered,
        )
    }

    /// A cell was admitted under this span.
    pub(super) fn admitted(&self, cell: &CellId, exec: Exec) {
        if !exec.span.is_disabled() || exec.context.is_some() {
            exec.span.record("cell", tracing::field::display(cell));
            self.execs().insert(cell.clone(), exec);
        }
    }

    /// A cell has ended.
    pub(super) fn ended(&self, ended: &CellEnded) {
        if let Some(Exec { span, .. }) = self.execs().get(&ended.cell_id) {
            let stats = &ended.stats;
            span.record("outcome", ended.outcome.as_str());
            span.record("duration_ms", ms(stats.wall));
            span.record("processor_ms", ms(stats.processor));
            span.record("queued_ms", ms(stats.queued));
            span.record("calls", stats.calls);
        }
    }

    /// A cell is gone: its span ends with its closing.
    pub(super) fn close(&self, cell: &CellId) -> Span {
        let exec = self.execs().remove(cell);
        let parent = exec.map_or_else(|| self.session.clone(), |exec| exec.span);
        tracing::debug_span!(parent: &parent, "cell_closed", session = %self.id, cell = %cell)
    }

    fn of_cell(&self, cell: &CellId) -> Exec {
        let exec = self.execs().get(cell).cloned();
        exec.unwrap_or_else(|| Exec {
            span: self.session.clone(),
            context: None,
        })
    }

    /// The span of a call. The call carries it to the tool.
    pub(super) fn call(&self, call: &mut NestedToolCall) -> Span {
        let parent = self.of_cell(&call.cell_id);
        let span = tracing::info_span!(
            parent: &parent.span,
            "tool_call",
            session = %self.id,
            cell = %call.cell_id,
            call = %call.runtime_tool_call_id,
            tool_call_id = %call.tool_call_id,
            tool = %call.tool_name.name,
            attempt = Some(call.attempt).filter(|attempt| *attempt > 1),
            namespace = call.tool_name.namespace.as_deref(),
            kind = match call.tool_kind {
                ToolKind::Function => "function",
                ToolKind::Freeform => "freeform",
            },
            outcome = Empty,
            duration_ms = Empty,
        );
        call.trace_context = self.propagation.context(&span).or(parent.context);
        span
    }

    pub(super) fn notification(&self, cell: &CellId) -> Span {
        let parent = self.of_cell(cell);
        tracing::info_span!(
            parent: &parent.span,
            "notification",
            session = %self.id,
            cell = %cell,
            outcome = Empty,
        )
    }

    /// The span of a wait or a terminate, below the one that is current. `tool_call_id` is the name
    /// of the model's call.
    pub(super) fn wait(&self, cell: &CellId, tool_call_id: Option<&str>) -> Span {
        tracing::info_span!("wait", session = %self.id, tool_call_id, cell = %cell, outcome = Empty)
    }

    pub(super) fn terminate(&self, cell: &CellId, tool_call_id: Option<&str>) -> Span {
        tracing::info_span!("terminate", session = %self.id, tool_call_id, cell = %cell, outcome = Empty)
    }

    pub(super) fn shutdown(&self) -> Span {
        tracing::info_span!(parent: &self.session, "shutdown", session = %self.id)
    }

    pub(super) fn worker(&self, number: u64) -> Span {
        tracing::info_span!(
            parent: &self.session,
            "worker",
            session = %self.id,
            worker = number,
            outcome = Empty,
        )
    }
}

/// What an observation's span says of how it ended.
pub(super) fn observed(span: &Span, response: Option<&CellResponse>) {
    let outcome = match response.map(CellResponse::outcome) {
        None => "refused",
        Some(None) => "yielded",
        Some(Some(outcome)) => outcome.as_str(),
    };
    span.record("outcome", outcome);
}

pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// An id that no other session has, on this machine or another.
fn unique() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
