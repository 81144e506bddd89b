//! One session of the gRPC wire.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use code_mode_host::{CellId, Json, Session as CellSession, ToolError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::Span;
use uuid::Uuid;

use super::subscriptions::Subscriptions;
use super::wire;
use super::wire::session_event::Event;
use crate::core::{Budget, Cells, Observations, PendingCalls, TruncatedBy};

/// How much of notifications a client may leave unread, in KiB, and what the shortest counts as:
/// 64 MiB, or 1,024 of them.
const UNREAD_NOTIFICATIONS: u32 = 64 << 10;
const LEAST_NOTIFICATION: u32 = 64;

/// Other events that wait; beyond, the session is given up.
const UNREAD_EVENTS: usize = 8192;

/// Tool calls that wait for a client that does not read its subscription, in KiB; more
/// wait for their turn.
const UNREAD_CALLS: usize = 64 << 10;

/// A message on a lease, and the permit that is free when the client has taken it.
pub(super) struct LeaseEvent {
    pub(super) event: wire::SessionEvent,
    _room: Option<OwnedSemaphorePermit>,
}

/// The stream of events down to the client.
pub(super) struct Lease {
    pub(super) events: mpsc::UnboundedSender<LeaseEvent>,
    /// The session's place among those of the service.
    pub(super) _place: OwnedSemaphorePermit,
}

/// What limits the calls of a session.
pub(super) struct Capacities {
    /// Calls of the session that may be without an answer.
    pub(super) session: Arc<Semaphore>,
    /// Calls of all sessions that may be without an answer.
    pub(super) service: Arc<Semaphore>,
    /// KiB of calls that may wait for the client to take them.
    pub(super) unread_kib: Arc<Semaphore>,
}

impl Capacities {
    pub(super) fn new(session: usize, service: Arc<Semaphore>) -> Self {
        Self {
            session: Arc::new(Semaphore::new(session)),
            service,
            unread_kib: Arc::new(Semaphore::new(UNREAD_CALLS)),
        }
    }
}

/// A session, and what the wire adds to it.
pub(super) struct Session {
    pub(super) id: Uuid,
    /// The provider's session; set when the provider has opened it.
    pub(super) cells: std::sync::OnceLock<CellSession>,
    truncated_by: TruncatedBy,
    /// Taken when the session closes, which ends the stream.
    lease: Mutex<Option<Lease>>,
    notifications: Arc<Semaphore>,
    /// Events on the lease, without notifications, that the client has not taken.
    unread: AtomicUsize,
    pub(super) capacities: Capacities,
    /// Cancelled when the client is too far behind.
    pub(super) given_up: CancellationToken,
    /// Cancelled when the session closes.
    pub(super) closed: CancellationToken,
    /// The execution of each cell, until the cell is closed.
    executions: Cells<Arc<Execution>>,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) subscriptions: Subscriptions,
    pub(super) executions: Observations<String>,
    pub(super) waits: Observations<String>,
    /// What each execution is, by its id, until its cell is closed.
    running: HashMap<String, Arc<Execution>>,
    /// Calls that have no answer, with their subscriptions.
    pub(super) calls: PendingCalls<Uuid, Result<Json, ToolError>, u64>,
    /// Calls that their subscriptions' streams have not taken.
    queued: HashMap<Uuid, (wire::ToolCall, CallPermits)>,
}

/// What a call holds until it has an answer and the client has it: its place among the
/// session's calls, and its room among those that the client has not read.
pub(super) type CallPermits = Arc<[OwnedSemaphorePermit; 2]>;

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

impl Session {
    pub(super) fn new(
        truncated_by: TruncatedBy,
        lease: Lease,
        capacities: Capacities,
        closed: CancellationToken,
    ) -> Self {
        Self {
            id: Uuid::new_v4(),
            cells: std::sync::OnceLock::new(),
            truncated_by,
            lease: Mutex::new(Some(lease)),
            notifications: Arc::new(Semaphore::new(UNREAD_NOTIFICATIONS as usize)),
            unread: AtomicUsize::new(0),
            given_up: CancellationToken::new(),
            capacities,
            closed,
            executions: Cells::default(),
            state: Mutex::default(),
        }
    }

    /// The budget of a request that names so many tokens.
    pub(super) fn budget(&self, tokens: Option<u64>) -> Budget {
        Budget {
            by: self.truncated_by,
            tokens,
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self) -> MutexGuard<'_, Option<Lease>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, event: Event, room: Option<OwnedSemaphorePermit>) {
        if let Some(lease) = &*self.lease() {
            let event = wire::SessionEvent { event: Some(event) };
            // A client that is gone misses nothing.
            let _ = lease.events.send(LeaseEvent { event, _room: room });
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
        let kib = u32::try_from(notification.text.len() >> 10).unwrap_or(u32::MAX);
        let kib = kib.clamp(LEAST_NOTIFICATION, UNREAD_NOTIFICATIONS);
        let room = self.notifications.clone().acquire_many_owned(kib).await;
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
    pub(super) fn queue(&self, id: Uuid, message: wire::ToolCall, permits: CallPermits) {
        self.state().queued.insert(id, (message, permits));
    }

    /// The call that a subscription's stream takes; `None` where the session has closed.
    pub(super) fn take_queued(&self, id: Uuid) -> Option<wire::ToolCall> {
        let queued = self.state().queued.remove(&id);
        queued.map(|(message, _)| message)
    }

    /// Remembers an execution that is about to be admitted.
    pub(super) fn begin(self: &Arc<Self>, execution: Execution) -> Admission {
        let execution = Arc::new(execution);
        let id = execution.id.clone();
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
        let execution = self.executions.closed(cell, &self.closed).await?;
        self.state().running.remove(&execution.id);
        Some(execution)
    }

    /// A subscription was dropped; whether it had calls without an answer.
    pub(super) fn unsubscribed(&self, subscription: u64) -> bool {
        let mut state = self.state();
        state.subscriptions.remove(subscription);
        state.calls.waiting().any(|of| *of == subscription)
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
            // The outcome goes down another stream, so that the closing need not wait.
            drop(self.session.executions.admitted(cell, execution));
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

impl Execution {
    pub(super) fn new(
        id: String,
        tool_call_id: String,
        span: Span,
        active: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            id,
            tool_call_id,
            sequence: AtomicU64::new(0),
            span,
            _active: active,
        }
    }

    /// The sequence number of the next call that is sent out.
    pub(super) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed) + 1
    }
}
