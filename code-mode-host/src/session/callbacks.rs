//! Tool calls, notifications and closings on their way to the delegate.
//!
//! Each runs in its own task, so that a delegate that panics or never returns
//! costs that one alone.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use code_mode_protocol::{
    CallOutcome, CellId, CellNotification, Json, NestedToolCall, SessionError, ToolAnswer,
    ToolCallFinished, ToolError, ToolSet, UnknownCall,
};
use futures::FutureExt;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::core::Invocation;
use super::driver::Shared;
use super::observers::tell;
use super::order::Place;
use super::spans;
use crate::worker::WorkerHandle;

/// Runs a method of the delegate; `None` where it panics.
async fn guarded<T>(method: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(method).catch_unwind().await.ok()
}

/// Tells an observer something. What it does beyond that is its own.
pub(super) fn observe(tell: impl FnOnce()) {
    if std::panic::catch_unwind(AssertUnwindSafe(tell)).is_err() {
        tracing::warn!("the agent's code that observes cells panicked");
    }
}

/// Runs a tool, and reports its result to the core.
pub(super) fn invoke(shared: &Arc<Shared>, invocation: Invocation<WorkerHandle>) {
    let Invocation {
        mut call,
        tools,
        answer,
        cancelled,
        worker,
        place,
        unknown_after,
    } = invocation;
    let span = shared.spans.call(&mut call);
    let told = span.clone();
    let session = shared.clone();
    let task = async move {
        let (cell_id, id) = (call.cell_id.clone(), call.runtime_tool_call_id);
        // The intent is on disk before anybody sees the call. Where the disk has failed, the cell ends.
        if session.flushed().await.is_err() {
            return;
        }
        let (call, known) = match unknown_after {
            0 => (call, None),
            attempts => resolved(&session, &tools, call, attempts).await,
        };
        observe(|| session.delegate.tool_call_started(&call));
        let mut finished = Finished {
            session: &session,
            call: call.clone(),
            span: told,
            began: Instant::now(),
            outcome: CallOutcome::Cancelled,
            is_told: false,
        };
        let started = tell(&session.told.observers, |one| one.call_started(&call));
        let mut place = place;
        {
            let mut started = std::pin::pin!(started);
            if futures::poll!(started.as_mut()).is_pending() {
                // The calls after this one do not wait for an observer of this one.
                place = None;
                tokio::select! {
                    () = started => {}
                    () = cancelled.cancelled() => {}
                }
            }
        }
        let refusal = match &session.inputs {
            Some(inputs) => tokio::select! {
                biased;
                // A long check waits for others; the call ends without it, and without its tool.
                () = cancelled.cancelled() => Some("the call was cancelled".to_owned()),
                refusal = inputs.refusal(&tools, &call) => refusal,
            },
            None => None,
        };
        let pausing = Arc::downgrade(&session);
        let call = call.pauses(move |cell| match pausing.upgrade() {
            Some(session) => session.hold(Some(cell)),
            None => Err(SessionError::ShuttingDown),
        });
        let is_refused = refusal.is_some();
        let result = match (refusal, known) {
            (_, Some(known)) => known,
            (Some(refusal), None) => Err(refusal.into()),
            (None, None) => in_order(
                guarded(session.delegate.invoke_tool(call, cancelled.clone())),
                place,
            )
            .await
            .unwrap_or_else(|| Err("the agent's code for this tool panicked".into())),
        };
        finished.outcome = match &result {
            _ if cancelled.is_cancelled() => CallOutcome::Cancelled,
            Ok(json) if answer == ToolAnswer::McpResult && is_mcp_error(json) => {
                CallOutcome::Failed
            }
            Ok(json) => CallOutcome::Succeeded {
                bytes: json.as_str().len(),
            },
            Err(_) if is_refused => CallOutcome::Refused,
            Err(error) => error.failure.into(),
        };
        let has_failed = finished.outcome.is_failure();
        let ended = finished.end();
        tokio::select! {
            () = tell(&session.told.observers, |one| one.call_finished(&ended)) => {}
            () = cancelled.cancelled() => {}
        }
        tokio::select! {
            () = worker.takes_more() => {}
            () = cancelled.cancelled() => {}
        }
        if session.journal.is_some() {
            // The answer is on disk before the cell sees it.
            let answered = (&result, cancelled.is_cancelled());
            let is_recorded =
                session.event(|core, now| core.call_answered(&cell_id, id, answered, now));
            if !is_recorded || session.flushed().await.is_err() {
                return;
            }
        }
        session.event(|core, now| core.call_finished(&cell_id, id, (result, has_failed), now));
    };
    shared.runtime.spawn(task.instrument(span));
}

/// What becomes of a call that may have run before a restart: the call to make again, or its answer.
async fn resolved(
    session: &Arc<Shared>,
    tools: &ToolSet,
    call: NestedToolCall,
    attempts: u32,
) -> (NestedToolCall, Option<Result<Json, ToolError>>) {
    let is_idempotent = tools
        .iter()
        .any(|tool| tool.tool_name == call.tool_name && tool.idempotent);
    let may_repeat = is_idempotent || session.has_not_run(&call).await;
    let decision = match may_repeat {
        true => UnknownCall::Repeat,
        false => guarded(session.delegate.resolve_unknown(&call))
            .await
            .unwrap_or_default(),
    };
    match decision {
        UnknownCall::Repeat => {
            let attempt = attempts.saturating_add(1);
            let (cell_id, id) = (call.cell_id.clone(), call.runtime_tool_call_id);
            session.event(|core, now| core.call_repeated(&cell_id, id, attempt, now));
            match session.flushed().await {
                Ok(()) => (call.attempt(attempt), None),
                Err(error) => (call, Some(Err(ToolError::new(error.to_string())))),
            }
        }
        UnknownCall::Answer(answer) => (call, Some(answer)),
        UnknownCall::Fail => {
            let error = ToolError::unknown("it may have run before the restart");
            (call, Some(Err(error)))
        }
    }
}

/// Whether the result of a call to an MCP server is that of a tool that failed.
fn is_mcp_error(result: &Json) -> bool {
    #[derive(Deserialize)]
    struct Result {
        #[serde(default, rename = "isError")]
        is_error: bool,
    }

    result.as_str().contains("\"isError\"") && result.to::<Result>().is_ok_and(|it| it.is_error)
}

/// Runs a call that begins when the one before it has: what it does before its first wait happens
/// in the order of calls.
async fn in_order<T>(call: impl Future<Output = T>, place: Option<Place>) -> T {
    let Some(mut place) = place else {
        return call.await;
    };
    place.comes().await;
    let mut call = std::pin::pin!(call);
    let begun = futures::poll!(call.as_mut());
    drop(place);
    match begun {
        Poll::Ready(ended) => ended,
        Poll::Pending => call.await,
    }
}

/// Tells of a call's end; also where its task is dropped with its runtime.
struct Finished<'a> {
    session: &'a Shared,
    call: NestedToolCall,
    span: tracing::Span,
    began: Instant,
    outcome: CallOutcome,
    is_told: bool,
}

impl Finished<'_> {
    /// Tells of the end; returns it.
    fn end(mut self) -> ToolCallFinished {
        self.tell()
    }

    fn tell(&mut self) -> ToolCallFinished {
        let finished = ToolCallFinished::new(&self.call, self.outcome, self.began.elapsed());
        self.span.record("outcome", self.outcome.as_str());
        self.span
            .record("duration_ms", spans::ms(finished.duration));
        observe(|| self.session.delegate.tool_call_finished(&finished));
        self.is_told = true;
        finished
    }
}

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        if !self.is_told {
            self.tell();
        }
    }
}

/// Delivers a notification, and reports that to the core.
pub(super) fn notify(
    shared: &Arc<Shared>,
    notification: CellNotification,
    cancelled: CancellationToken,
) {
    let session = shared.clone();
    let span = shared.spans.notification(&notification.cell_id);
    let told = span.clone();
    let task = async move {
        let cell_id = notification.cell_id.clone();
        // The turns that led to it are on disk before the delegate gets it. Where the disk has failed, the
        // cell ends.
        if session.flushed().await.is_err() {
            return;
        }
        if session.journal.is_some() && cancelled.is_cancelled() {
            // Whoever opens the session next delivers it.
            return session.event(|core, now| core.not_notified(&cell_id, now));
        }
        let delivered = guarded(session.delegate.notify(notification, cancelled)).await;
        let outcome = match delivered {
            Some(()) => "delivered",
            None => "panicked",
        };
        told.record("outcome", outcome);
        if delivered.is_none() {
            tracing::warn!(cell = %cell_id, "the agent's code for notifications panicked");
        }
        session.event(|core, now| core.notified(&cell_id, now));
    };
    shared.runtime.spawn(task.instrument(span));
}

/// Tells the delegate that a cell is gone. A shutdown waits for this, for a while.
pub(super) fn close(shared: &Arc<Shared>, cell_id: CellId) {
    let session = shared.clone();
    let span = shared.spans.close(&cell_id);
    let task = async move {
        let closing = async {
            session.told.end_was_told(&cell_id).await;
            guarded(session.delegate.cell_closed(cell_id)).await
        };
        tokio::select! {
            closed = closing => {
                if closed.is_none() {
                    tracing::warn!("the agent's code for a closed cell panicked");
                }
            }
            () = session.too_late() => {
                tracing::warn!("the agent's code for a closed cell does not return");
            }
        }
    };
    shared
        .tasks
        .spawn_on(task.instrument(span), &shared.runtime);
}
