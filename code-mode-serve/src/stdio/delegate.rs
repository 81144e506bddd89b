//! Callbacks of cells, as messages to the client.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use code_mode_host::{
    CellEnded, CellId, CellNotification, CellResponse, CellStarted, CellStats,
    CodeModeSessionDelegate, Json, NestedToolCall, ToolCallFinished, ToolError,
};
use code_mode_protocol::wire::stdio::{
    DelegateAnswer, DelegateRequest, GuidedEnd, HostMessage, Invocation, SessionEvent,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::durable::Durable;
use super::outbound::{ToClient, TooLarge};
use crate::core::{Cells, PendingCalls, at_once_or_wanted};

/// The callbacks of all sessions of a connection.
pub(super) struct Callbacks {
    outbound: ToClient,
    /// Callbacks that may be without an answer; more wait.
    capacity: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    pending: PendingCalls<u64, DelegateAnswer>,
}

impl Callbacks {
    pub(super) fn new(outbound: ToClient, capacity: usize) -> Self {
        Self {
            outbound,
            capacity: Semaphore::new(capacity),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client answered. An answer that no call waits for is ignored.
    pub(super) fn answered(&self, id: u64, answer: DelegateAnswer) {
        self.state().pending.answer(id, answer);
    }

    /// Asks the client; `None` where the answer is no longer wanted.
    async fn ask(
        &self,
        session_id: &str,
        request: DelegateRequest<'_>,
        cancelled: CancellationToken,
    ) -> Option<DelegateAnswer> {
        let capacity = async {
            let permit = self.capacity.acquire().await;
            self.outbound.ready().await;
            permit
        };
        let _permit = at_once_or_wanted(capacity, &cancelled).await?.ok()?;
        let (id, answer) = {
            let mut state = self.state();
            state.last += 1;
            let id = state.last;
            (id, state.pending.begin(id, ()))
        };
        let message = HostMessage::DelegateRequest {
            id,
            session_id,
            request,
        };
        if let Err(TooLarge) = self.outbound.try_send(message) {
            self.state().pending.forget(id);
            return Some(DelegateAnswer::Error(
                "the call does not fit a frame of the stdio wire".into(),
            ));
        }
        tokio::select! {
            biased;
            answer = answer => answer.ok(),
            () = cancelled.cancelled() => {
                self.state().pending.forget(id);
                self.outbound.send(HostMessage::DelegateCancel { id });
                None
            }
        }
    }
}

/// The delegate of one session.
pub(super) struct SessionDelegate {
    pub(super) session_id: String,
    pub(super) callbacks: Arc<Callbacks>,
    /// A cell's closing comes after the answers to the requests about it.
    pub(super) cells: Cells<()>,
    /// Cancelled when the session is gone.
    pub(super) gone: CancellationToken,
    /// Of a guided session.
    pub(super) guided: Option<Arc<Guided>>,
    /// Of a session that is kept.
    pub(super) durable: Option<Arc<Durable>>,
}

impl SessionDelegate {
    /// Sends an event of the session, where the client asked for events.
    fn event(&self, event: SessionEvent<'_>) {
        if self
            .guided
            .as_ref()
            .is_some_and(|guided| guided.sends_events)
        {
            self.callbacks.outbound.send(HostMessage::SessionEvent {
                session_id: &self.session_id,
                event,
            });
        }
    }
}

/// What a guided session knows of its cells.
pub(super) struct Guided {
    sends_events: bool,
    /// What cells used that have ended, until their results were sent or they were closed.
    stats: Mutex<HashMap<CellId, CellStats>>,
}

impl Guided {
    pub(super) fn new(sends_events: bool) -> Self {
        Self {
            sends_events,
            stats: Mutex::default(),
        }
    }

    fn stats(&self) -> MutexGuard<'_, HashMap<CellId, CellStats>> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a cell ended, as a final response says.
    pub(super) fn end(&self, response: &CellResponse) -> Option<GuidedEnd> {
        let outcome = response.outcome()?;
        let position = match response {
            CellResponse::Result { error_position, .. } => *error_position,
            _ => None,
        };
        let stats = self.stats().get(response.cell_id()).copied();
        Some(GuidedEnd::new(&outcome, position, stats.as_ref()))
    }
}

#[async_trait]
impl CodeModeSessionDelegate for SessionDelegate {
    async fn invoke_tool(
        &self,
        mut call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        let request = DelegateRequest::InvokeTool {
            invocation: Invocation::new(&mut call, self.guided.is_some()),
        };
        match self
            .callbacks
            .ask(&self.session_id, request, cancelled)
            .await
        {
            Some(DelegateAnswer::ToolResult(result)) => Ok(result),
            Some(DelegateAnswer::Error(error)) => Err(error),
            Some(DelegateAnswer::NotificationDelivered) => {
                Err("the client answered a tool call as if it were a notification".into())
            }
            None => Err(ToolError::cancelled()),
        }
    }

    async fn notify(&self, notification: CellNotification, cancelled: CancellationToken) {
        let request = DelegateRequest::Notify {
            call_id: &notification.tool_call_id,
            cell_id: notification.cell_id.as_str(),
            text: notification.text,
        };
        let answer = self
            .callbacks
            .ask(&self.session_id, request, cancelled)
            .await;
        if let Some(DelegateAnswer::Error(error)) = answer {
            tracing::warn!("the client did not take a notification: {error}");
        }
    }

    fn cell_started(&self, cell: &CellStarted) {
        self.event(SessionEvent::CellStarted {
            cell_id: cell.cell_id.as_str(),
            call_id: &cell.tool_call_id,
        });
    }

    fn cell_ended(&self, cell: &CellEnded) {
        if let Some(guided) = &self.guided {
            guided.stats().insert(cell.cell_id.clone(), cell.stats);
        }
        self.event(SessionEvent::cell_ended(cell));
    }

    fn tool_call_started(&self, call: &NestedToolCall) {
        self.event(SessionEvent::CallStarted {
            cell_id: call.cell_id.as_str(),
            runtime_tool_call_id: call.runtime_tool_call_id.to_string(),
            tool_name: &call.tool_name,
        });
    }

    fn tool_call_finished(&self, call: &ToolCallFinished) {
        self.event(SessionEvent::call_finished(call));
    }

    async fn cell_closed(&self, cell_id: CellId) {
        self.cells.closed(&cell_id, &self.gone).await;
        if let Some(guided) = &self.guided {
            guided.stats().remove(&cell_id);
        }
        if let Some(durable) = &self.durable {
            durable.closed(&cell_id);
        }
        self.callbacks.outbound.send(HostMessage::CellClosed {
            session_id: &self.session_id,
            cell_id: cell_id.as_str(),
        });
    }
}
