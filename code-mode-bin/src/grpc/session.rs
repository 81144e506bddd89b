//! One session of the gRPC wire.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use code_mode_host::{CellId, CodeModeSession, Json};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use uuid::Uuid;

use super::observations::Observations;
use super::subscriptions::Subscriptions;
use super::wire;
use super::wire::session_event::Event;
use crate::bounded::Bounding;

/// How many completed calls are remembered, whose second completion is no error.
const REMEMBERED_CALLS: usize = 4096;

/// Events that wait for a client that does not read its lease; callbacks wait then.
pub(super) const LEASE_EVENTS: usize = 1024;

/// A session, and what the wire adds to it.
pub(super) struct Session {
    pub(super) id: Uuid,
    /// Set when the provider has opened it.
    pub(super) host: std::sync::OnceLock<Arc<dyn CodeModeSession>>,
    pub(super) bounding: Bounding,
    /// The lease. It is taken when the session closes, which ends the stream.
    lease: Mutex<Option<mpsc::Sender<Result<wire::SessionEvent, Status>>>>,
    /// Callbacks that may be without an answer: of this session, and of the host.
    pub(super) capacity: Arc<Semaphore>,
    pub(super) host_capacity: Arc<Semaphore>,
    /// Cancelled when the session closes.
    pub(super) closed: CancellationToken,
    state: Mutex<State>,
    /// Rung when an execution got its cell.
    started: Notify,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) subscriptions: Subscriptions,
    pub(super) executions: Observations,
    pub(super) waits: Observations,
    /// What each execution is, by its id, until its cell is closed.
    running: HashMap<String, Arc<Execution>>,
    /// The execution of each cell.
    of_cell: HashMap<CellId, Arc<Execution>>,
    calls: HashMap<Uuid, Call>,
    completed: VecDeque<Uuid>,
}

/// One execution.
#[derive(Debug)]
pub(super) struct Execution {
    pub(super) id: String,
    /// The client's name for the model's call.
    pub(super) tool_call_id: String,
    /// Tool calls that were sent out.
    pub(super) sequence: AtomicU64,
    /// Its place among the host's cells, until its cell is closed.
    _active: OwnedSemaphorePermit,
}

/// A tool call without an answer.
struct Call {
    subscription: u64,
    answer: oneshot::Sender<Result<Json, String>>,
}

impl Session {
    pub(super) fn new(
        bounding: Bounding,
        lease: mpsc::Sender<Result<wire::SessionEvent, Status>>,
        capacity: usize,
        host_capacity: Arc<Semaphore>,
        closed: CancellationToken,
    ) -> Self {
        Self {
            id: Uuid::new_v4(),
            host: std::sync::OnceLock::new(),
            bounding,
            lease: Mutex::new(Some(lease)),
            capacity: Arc::new(Semaphore::new(capacity)),
            host_capacity,
            closed,
            state: Mutex::default(),
            started: Notify::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self) -> MutexGuard<'_, Option<mpsc::Sender<Result<wire::SessionEvent, Status>>>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an event down the lease, when the client has read enough of those before.
    pub(super) async fn event(&self, event: Event) {
        let lease = self.lease().clone();
        if let Some(lease) = lease {
            let event = wire::SessionEvent { event: Some(event) };
            let _ = lease.send(Ok(event)).await;
        }
    }

    /// Ends the streams of the session.
    pub(super) fn end_streams(&self) {
        self.lease().take();
        self.state().subscriptions.clear();
    }

    /// Remembers an execution that is about to be admitted.
    pub(super) fn begin(&self, id: String, tool_call_id: String, active: OwnedSemaphorePermit) {
        let execution = Arc::new(Execution {
            id: id.clone(),
            tool_call_id,
            sequence: AtomicU64::new(0),
            _active: active,
        });
        self.state().running.insert(id, execution);
    }

    /// An execution was refused.
    pub(super) fn refused(&self, id: &str) {
        self.state().running.remove(id);
    }

    /// An execution got its cell.
    pub(super) fn started(&self, id: &str, cell: CellId) {
        {
            let mut state = self.state();
            if let Some(execution) = state.running.get(id).cloned() {
                state.of_cell.insert(cell, execution);
            }
        }
        self.started.notify_waiters();
    }

    /// The execution that a callback names.
    pub(super) fn execution(&self, id: &str) -> Option<Arc<Execution>> {
        self.state().running.get(id).cloned()
    }

    /// Takes the execution of a cell that is gone. The cell may be gone before its
    /// execution is known to have it.
    pub(super) async fn close_execution(&self, cell: &CellId) -> Option<Arc<Execution>> {
        loop {
            let started = self.started.notified();
            tokio::pin!(started);
            started.as_mut().enable();
            {
                let mut state = self.state();
                if let Some(execution) = state.of_cell.remove(cell) {
                    state.running.remove(&execution.id);
                    return Some(execution);
                }
            }
            tokio::select! {
                () = started => {}
                () = self.closed.cancelled() => return None,
            }
        }
    }

    /// Remembers a call that is about to be sent out.
    pub(super) fn call(
        &self,
        subscription: u64,
    ) -> (Uuid, oneshot::Receiver<Result<Json, String>>) {
        let (answer, answered) = oneshot::channel();
        let id = Uuid::new_v4();
        let call = Call {
            subscription,
            answer,
        };
        self.state().calls.insert(id, call);
        (id, answered)
    }

    /// Takes a call away; whether it was without an answer.
    pub(super) fn forget_call(&self, id: Uuid) -> bool {
        let mut state = self.state();
        let was_open = state.calls.remove(&id).is_some();
        if was_open {
            state.remember(id);
        }
        was_open
    }

    /// Whether there is or was such a call.
    pub(super) fn knows_call(&self, id: Uuid) -> bool {
        let state = self.state();
        state.calls.contains_key(&id) || state.completed.contains(&id)
    }

    /// Completes a call. A second completion does nothing.
    pub(super) fn complete(&self, id: Uuid, result: Result<Json, String>) {
        let mut state = self.state();
        if let Some(call) = state.calls.remove(&id) {
            state.remember(id);
            let _ = call.answer.send(result);
        }
    }

    /// A subscription was dropped; whether it had calls without an answer.
    pub(super) fn unsubscribed(&self, subscription: u64) -> bool {
        let mut state = self.state();
        state.subscriptions.remove(subscription);
        let mut calls = state.calls.values();
        calls.any(|call| call.subscription == subscription)
    }
}

impl State {
    fn remember(&mut self, call: Uuid) {
        if self.completed.len() >= REMEMBERED_CALLS {
            self.completed.pop_front();
        }
        self.completed.push_back(call);
    }
}

impl Execution {
    /// The sequence number of the next call that is sent out.
    pub(super) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed) + 1
    }
}
