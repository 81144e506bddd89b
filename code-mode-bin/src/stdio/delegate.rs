//! Callbacks of cells, as messages to the client.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use code_mode_host::{CellId, CellNotification, CodeModeSessionDelegate, Json, NestedToolCall};
use code_mode_protocol::wire::stdio::{DelegateAnswer, DelegateRequest, HostMessage, Invocation};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::outbound::{ToClient, TooLarge};
use crate::turn::{CANCELLED, at_once_or_wanted};

/// The callbacks of all sessions of a connection.
pub(super) struct Callbacks {
    outbound: ToClient,
    /// Callbacks that may be without an answer; more wait their turn.
    capacity: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<DelegateAnswer>>,
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
        let waiting = self.state().waiting.remove(&id);
        if let Some(waiting) = waiting {
            let _ = waiting.send(answer);
        }
    }

    /// Asks the client; `None` where the answer is no longer wanted.
    async fn ask(
        &self,
        session_id: &str,
        request: DelegateRequest<'_>,
        cancelled: CancellationToken,
    ) -> Option<DelegateAnswer> {
        let turn = async {
            let permit = self.capacity.acquire().await;
            self.outbound.ready().await;
            permit
        };
        let _permit = at_once_or_wanted(turn, &cancelled).await?.ok()?;
        let (sender, answer) = oneshot::channel();
        let id = {
            let mut state = self.state();
            state.last += 1;
            let id = state.last;
            state.waiting.insert(id, sender);
            id
        };
        let message = HostMessage::DelegateRequest {
            id,
            session_id,
            request,
        };
        if let Err(TooLarge) = self.outbound.try_send(message) {
            self.state().waiting.remove(&id);
            return Some(DelegateAnswer::Error(
                "the call does not fit a frame of the stdio wire".to_owned(),
            ));
        }
        tokio::select! {
            biased;
            answer = answer => answer.ok(),
            () = cancelled.cancelled() => {
                self.state().waiting.remove(&id);
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
    /// Requests about each cell whose answers are not on their way yet; its
    /// closing comes after them.
    pub(super) operations: Operations,
}

/// See [`SessionDelegate::operations`].
#[derive(Clone, Default)]
pub(super) struct Operations(Arc<Mutex<HashMap<CellId, TaskTracker>>>);

impl Operations {
    /// The requests about a cell that was admitted.
    pub(super) fn of(&self, cell_id: &CellId) -> TaskTracker {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cells.entry(cell_id.clone()).or_default().clone()
    }

    /// A request about a cell that may not be there.
    pub(super) fn about(&self, cell_id: &CellId) -> Option<TaskTrackerToken> {
        let cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cells.get(cell_id).map(TaskTracker::token)
    }

    fn take(&self, cell_id: &CellId) -> Option<TaskTracker> {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cells.remove(cell_id)
    }
}

#[async_trait]
impl CodeModeSessionDelegate for SessionDelegate {
    async fn invoke_tool(
        &self,
        mut call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, String> {
        let request = DelegateRequest::InvokeTool {
            invocation: Invocation::new(&mut call),
        };
        match self
            .callbacks
            .ask(&self.session_id, request, cancelled)
            .await
        {
            Some(DelegateAnswer::ToolResult(result)) => Ok(result),
            Some(DelegateAnswer::Error(message)) => Err(message),
            Some(DelegateAnswer::NotificationDelivered) => {
                Err("the client answered a tool call as if it were a notification".to_owned())
            }
            None => Err(CANCELLED.to_owned()),
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
        if let Some(DelegateAnswer::Error(message)) = answer {
            tracing::warn!("the client did not take a notification: {message}");
        }
    }

    async fn cell_closed(&self, cell_id: CellId) {
        if let Some(operations) = self.operations.take(&cell_id) {
            operations.close();
            operations.wait().await;
        }
        self.callbacks.outbound.send(HostMessage::CellClosed {
            session_id: &self.session_id,
            cell_id: cell_id.as_str(),
        });
    }
}
