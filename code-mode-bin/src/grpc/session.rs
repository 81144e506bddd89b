//! One session of the gRPC wire.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use code_mode_host::{CellId, CodeModeSession, Json};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Span;
use uuid::Uuid;

use super::observations::Observations;
use super::subscriptions::Subscriptions;
use super::wire;
use super::wire::session_event::Event;
use crate::bounded::Bounding;

/// How many completed calls are remembered, whose second completion is no error.
const REMEMBERED_CALLS: usize = 4096;

/// Notifications that wait for a client that does not read its lease; more wait in the
/// cell.
const UNREAD_NOTIFICATIONS: usize = 1024;

/// Other events that wait; beyond, the session is given up.
const UNREAD_EVENTS: usize = 8192;

/// Tool calls that wait for a client that does not read its subscription, in KiB; more
/// wait for their turn.
const UNREAD_CALLS: usize = 64 << 10;

/// What goes down a lease, and what is free again when the client has taken it.
pub(super) struct LeaseEvent {
    pub(super) event: wire::SessionEvent,
    _room: Option<OwnedSemaphorePermit>,
}

/// The way down to the client, and the session's place among those of the host.
pub(super) type Lease = (mpsc::UnboundedSender<LeaseEvent>, OwnedSemaphorePermit);

/// A session, and what the wire adds to it.
pub(super) struct Session {
    pub(super) id: Uuid,
    /// Set when the provider has opened it.
    pub(super) host: std::sync::OnceLock<Arc<dyn CodeModeSession>>,
    pub(super) bounding: Bounding,
    /// The lease, and the session's place among those of the host. It is taken when the
    /// session closes, which ends the stream.
    lease: Mutex<Option<Lease>>,
    notifications: Arc<Semaphore>,
    /// Events on the lease, without notifications, that the client has not taken.
    unread: AtomicUsize,
    /// Calls that may be without an answer: of this session, and of the host.
    pub(super) capacity: Arc<Semaphore>,
    pub(super) host_capacity: Arc<Semaphore>,
    /// KiB of calls that may wait for the client to take them.
    pub(super) call_room: Arc<Semaphore>,
    /// Cancelled when the client is too far behind.
    pub(super) given_up: CancellationToken,
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
    /// Calls that their subscriptions' streams have not taken.
    queued: HashMap<Uuid, (wire::ToolCall, Turn)>,
    completed: VecDeque<Uuid>,
}

/// What a call takes up until it has an answer and the client has it.
pub(super) type Turn = Arc<[OwnedSemaphorePermit; 2]>;

/// One execution.
#[derive(Debug)]
pub(super) struct Execution {
    pub(super) id: String,
    /// The client's name for the model's call.
    pub(super) tool_call_id: String,
    /// Tool calls that were sent out.
    pub(super) sequence: AtomicU64,
    /// The request's, which its calls descend from.
    pub(super) span: Span,
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
        lease: Lease,
        capacity: usize,
        host_capacity: Arc<Semaphore>,
        closed: CancellationToken,
    ) -> Self {
        Self {
            id: Uuid::new_v4(),
            host: std::sync::OnceLock::new(),
            bounding,
            lease: Mutex::new(Some(lease)),
            notifications: Arc::new(Semaphore::new(UNREAD_NOTIFICATIONS)),
            unread: AtomicUsize::new(0),
            call_room: Arc::new(Semaphore::new(UNREAD_CALLS)),
            given_up: CancellationToken::new(),
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

    fn lease(&self) -> MutexGuard<'_, Option<Lease>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, event: Event, room: Option<OwnedSemaphorePermit>) {
        if let Some((lease, _)) = &*self.lease() {
            let event = wire::SessionEvent { event: Some(event) };
            // A client that is gone misses nothing.
            let _ = lease.send(LeaseEvent { event, _room: room });
        }
    }

    /// Sends an event down the lease. A client that leaves thousands unread is given up.
    pub(super) fn event(&self, event: Event) {
        if self.unread.fetch_add(1, Ordering::Relaxed) >= UNREAD_EVENTS {
            self.given_up.cancel();
        }
        self.send(event, None);
    }

    /// Sends a notification down the lease, when the client has read enough of those
    /// before.
    pub(super) async fn notification(&self, notification: wire::Notification) {
        let room = self.notifications.clone().acquire_owned().await;
        self.send(Event::Notification(notification), room.ok());
    }

    /// The client takes an event of the lease.
    pub(super) fn taken(&self, event: LeaseEvent) -> wire::SessionEvent {
        if event._room.is_none() {
            self.unread.fetch_sub(1, Ordering::Relaxed);
        }
        event.event
    }

    /// Ends the streams of the session. What they have not sent is dropped: a client that
    /// does not read them would keep it.
    pub(super) fn end_streams(&self) {
        self.lease().take();
        let mut state = self.state();
        state.subscriptions.clear();
        state.queued.clear();
    }

    /// Keeps a call until its subscription's stream takes it.
    pub(super) fn queue(&self, id: Uuid, message: wire::ToolCall, room: Turn) {
        self.state().queued.insert(id, (message, room));
    }

    /// The call that a subscription's stream takes; `None` where the session has closed.
    pub(super) fn take_queued(&self, id: Uuid) -> Option<wire::ToolCall> {
        let queued = self.state().queued.remove(&id);
        queued.map(|(message, _)| message)
    }

    /// Remembers an execution that is about to be admitted.
    pub(super) fn begin(
        self: &Arc<Self>,
        id: String,
        tool_call_id: String,
        (span, active): (Span, OwnedSemaphorePermit),
    ) -> Admission {
        let execution = Arc::new(Execution {
            id: id.clone(),
            tool_call_id,
            sequence: AtomicU64::new(0),
            span,
            _active: active,
        });
        self.state().running.insert(id, execution.clone());
        Admission {
            session: self.clone(),
            execution: Some(execution),
        }
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

/// An execution that waits to be admitted. Dropped before it has a cell, because it was
/// refused or because its client is gone, it is forgotten.
pub(super) struct Admission {
    session: Arc<Session>,
    execution: Option<Arc<Execution>>,
}

impl Admission {
    /// The execution got its cell.
    pub(super) fn started(mut self, cell: CellId) {
        if let Some(execution) = self.execution.take() {
            self.session.state().of_cell.insert(cell, execution);
            self.session.started.notify_waiters();
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(execution) = &self.execution {
            self.session.state().running.remove(&execution.id);
        }
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
