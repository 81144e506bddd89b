//! One lock for one event: how a session's core is driven.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use code_mode_protocol::wire::native::{FromWorker, ToWorker};
use code_mode_protocol::{
    CellId, CodeModeSessionDelegate, LimitExceeded, Limits, NestedToolCall, Pause, SessionError,
    SessionOptions,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::callbacks;
use super::core::{Answer, Attached, Core, Effect, Ports, Reply, Settings};
use super::inputs::Inputs;
use super::messages::{Received, Violation};
use super::number::CellNumber;
use super::observers::{Told, tell};
use super::spans::Spans;
use crate::journal::{JournalOptions, OpenSession, Restored};
use crate::propagation::Propagation;
use crate::spares::Workers;
use crate::trace::Recorder;
use crate::worker::{Worker, WorkerHandle, supervise};

/// The program's own ends of a core.
pub(super) struct HostPorts;

impl Ports for HostPorts {
    type Worker = WorkerHandle;
    type Reply = oneshot::Sender<Answer>;
}

impl Reply for oneshot::Sender<Answer> {
    fn answer(self, answer: Answer) -> Result<(), Answer> {
        self.send(answer)
    }
}

/// What a session's handle, its supervisors, its callbacks and its alarm share.
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(super) delegate: Arc<dyn CodeModeSessionDelegate>,
    workers: Arc<Workers>,
    /// Set where inputs must be checked.
    pub(super) inputs: Option<Inputs>,
    /// Cancelled when shutdown begins.
    pub(super) token: CancellationToken,
    alarm: Arc<Alarm>,
    /// Supervisors and closings; a shutdown waits for them.
    pub(super) tasks: TaskTracker,
    /// Held while a worker is started.
    starting: tokio::sync::Mutex<()>,
    pub(super) runtime: Handle,
    pub(super) callback_grace: Duration,
    pub(super) spans: Spans,
    pub(super) told: Told,
    /// Records the session, where its provider does.
    pub(super) recorder: Option<Arc<Recorder>>,
    /// Where a durable session is recorded.
    pub(super) journal: Option<OpenSession>,
}

/// What a session is opened with.
pub(crate) struct Opening {
    pub(crate) workers: Arc<Workers>,
    pub(crate) delegate: Arc<dyn CodeModeSessionDelegate>,
    /// Records the session; `delegate` is then this one.
    pub(crate) recorder: Option<Arc<Recorder>>,
    pub(crate) limits: Limits,
    pub(crate) settings: Settings,
    /// The other options; the limits in them are `limits` already.
    pub(crate) options: SessionOptions,
    /// The checks that the options ask for.
    pub(crate) inputs: Option<Inputs>,
    /// Shuts the session down when it is cancelled.
    pub(crate) token: CancellationToken,
    pub(crate) propagation: Arc<dyn Propagation>,
    /// Its first worker, where that is there already.
    pub(crate) worker: Option<Worker>,
    /// The place of a durable session in its journal, its state there, and what the journal keeps.
    pub(crate) durable: Option<(OpenSession, Restored, JournalOptions)>,
}

struct State {
    core: Core<HostPorts>,
    /// A caller runs effects; other callers append theirs.
    is_draining: bool,
    /// When the alarm goes off.
    alarm_at: Option<Instant>,
}

/// Wakes the session when something is due.
struct Alarm {
    /// Rung when the alarm must go off earlier than it was set to.
    earlier: Notify,
    /// Cancelled when the session has shut down.
    done: CancellationToken,
}

impl Shared {
    /// Opens a session.
    ///
    /// # Errors
    /// The limit, where the stored values are more than may be stored.
    pub(crate) fn open(opening: Opening) -> Result<Arc<Self>, LimitExceeded> {
        let Opening {
            workers,
            delegate,
            limits,
            settings,
            options,
            token,
            recorder,
            propagation,
            inputs,
            worker,
            durable,
        } = opening;
        let mut core = Core::new(limits, settings, token.clone()).guided(options.guided);
        let (journal, restored) = match durable {
            None => (None, None),
            Some((journal, mut restored, options)) => {
                core = core.durable(&options);
                core.restore_values(&mut restored);
                (Some(journal), Some(restored))
            }
        };
        for (key, json) in options.stored {
            core.store(key, json)?;
        }
        let shared = Arc::new(Self {
            state: Mutex::new(State {
                core,
                is_draining: false,
                alarm_at: None,
            }),
            delegate,
            workers,
            inputs,
            token,
            alarm: Arc::new(Alarm {
                earlier: Notify::new(),
                done: CancellationToken::new(),
            }),
            tasks: TaskTracker::new(),
            starting: tokio::sync::Mutex::new(()),
            runtime: Handle::current(),
            callback_grace: settings.callback_grace,
            spans: Spans::new(propagation),
            told: Told::new(options.observers),
            recorder,
            journal,
        });
        if let Some(worker) = worker {
            shared.attach(worker);
        }
        if let Some(restored) = restored {
            // With the worker there, cells that continue start no other.
            shared.event(|core, now| core.restore(restored, now));
            shared.end_with_journal();
        }
        let (observers, done) = (shared.told.observers.clone(), shared.alarm.done.clone());
        if !observers.is_empty() {
            shared.runtime.spawn(async move {
                done.cancelled().await;
                tell(&observers, |one| one.session_closed()).await;
            });
        }
        tokio::spawn(ring(
            Arc::downgrade(&shared),
            shared.alarm.clone(),
            shared.token.clone(),
        ));
        Ok(shared)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the core without changing it.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Core<HostPorts>) -> T) -> T {
        look(&self.state().core)
    }

    /// Gives the core one event, and runs the effects.
    ///
    /// The lock is free while an effect runs. Effects of events that come meanwhile,
    /// from other threads too, run after it: in the order of the events.
    pub(super) fn event<T>(
        self: &Arc<Self>,
        event: impl FnOnce(&mut Core<HostPorts>, Instant) -> T,
    ) -> T {
        let mut state = self.state();
        let result = event(&mut state.core, Instant::now());
        if let Some(journal) = &self.journal {
            // Before the lock is free: what the event set off finds its records in the queue.
            for record in state.core.take_records() {
                journal.append(record);
            }
        }
        if !state.is_draining {
            state.is_draining = true;
            while let Some(effect) = state.core.next_effect() {
                drop(state);
                self.run(effect);
                state = self.state();
            }
            state.is_draining = false;
            if state.core.is_shut_down() {
                self.alarm.done.cancel();
            }
        }
        let due = state.core.next_deadline();
        if let Some(at) = due
            && state.alarm_at.is_none_or(|set| at < set)
        {
            state.alarm_at = Some(at);
            drop(state);
            self.alarm.earlier.notify_one();
        }
        result
    }

    /// Runs one effect. It only hands things on, so it neither waits nor panics.
    fn run(self: &Arc<Self>, effect: Effect<HostPorts>) {
        match effect {
            Effect::Send(worker, message) => worker.send(message),
            Effect::Kill(worker) => worker.kill(),
            Effect::Retire(worker) => worker.retire(),
            Effect::Cancel(token) => token.cancel(),
            Effect::Invoke(invocation) => callbacks::invoke(self, *invocation),
            Effect::Notify(notification, token) => callbacks::notify(self, notification, token),
            Effect::Started(cell, exec) => {
                let exec = match exec.is_known() {
                    true => exec,
                    false => self.spans.continued(&cell),
                };
                self.spans.admitted(&cell.cell_id, exec);
                callbacks::observe(|| self.delegate.cell_started(&cell));
            }
            Effect::Resume(number) => {
                let resuming = self.clone().resume(number);
                self.runtime.spawn(resuming);
            }
            Effect::Turn(cell_id, turn) => {
                callbacks::observe(|| self.delegate.turn(&cell_id, turn));
            }
            Effect::Ended(cell) => {
                self.spans.ended(&cell);
                callbacks::observe(|| self.delegate.cell_ended(&cell));
                self.told.cell_ended(&cell, &self.runtime);
            }
            Effect::Close(cell_id) => callbacks::close(self, cell_id),
        }
    }

    /// Stops the deadlines of the session, or of one cell, until the pause is dropped.
    pub(super) fn hold(self: &Arc<Self>, cell: Option<&CellId>) -> Result<Pause, SessionError> {
        self.event(|core, now| core.pause(cell, now))?;
        let (session, cell) = (Arc::downgrade(self), cell.cloned());
        Ok(Pause::held(move || {
            if let Some(session) = session.upgrade() {
                // A cell that has ended meanwhile needs no resuming.
                let _ = session.event(|core, now| core.resume(cell.as_ref(), now));
            }
        }))
    }

    // Durable sessions.

    /// Waits until everything that has happened so far is on disk, in a durable session.
    ///
    /// # Errors
    /// [`SessionError::Journal`] where it never will be.
    pub(super) async fn flushed(&self) -> Result<(), SessionError> {
        let Some(journal) = &self.journal else {
            return Ok(());
        };
        // An event that is not over may have given its answer already.
        self.look(|_| ());
        let flushed = journal.flushed().await;
        flushed.map_err(|error| SessionError::Journal(error))
    }

    /// Whether a call without an answer waited for a person, so that it has not run.
    pub(super) async fn has_not_run(&self, call: &NestedToolCall) -> bool {
        match (&self.journal, call.cell_id.number()) {
            (Some(journal), Some(cell)) => {
                let call = call.runtime_tool_call_id;
                journal.waits_for_person(cell, call).await.unwrap_or(false)
            }
            _ => false,
        }
    }

    /// Loads a cell and runs it again.
    async fn resume(self: Arc<Self>, number: CellNumber) {
        let Some(journal) = &self.journal else {
            return;
        };
        let loaded = async {
            journal.flushed().await.map_err(|error| error.to_string())?;
            let loaded = journal.load(number.get()).await;
            loaded.map_err(|error| error.to_string())
        };
        let mut loaded = match loaded.await {
            Ok(loaded) => Box::new(loaded),
            Err(why) => return self.event(|core, now| core.not_resumed(number, &why, now)),
        };
        let repeated = loaded.repeated();
        loop {
            match self.event(|core, now| core.resumed(number, loaded, now)) {
                Ok(()) => {
                    self.spans.resume(&number.id(), repeated);
                    return;
                }
                Err(again) => loaded = again,
            }
            if let Err(error) = self.start_worker().await {
                let is_closing = matches!(error, SessionError::ShuttingDown);
                if !is_closing && self.event(|core, now| core.may_try_again(number, now)) {
                    continue;
                }
                if !is_closing {
                    let why = error.to_string();
                    self.event(|core, now| core.not_resumed(number, &why, now));
                }
                return;
            }
        }
    }

    /// Ends the cells when their journal fails.
    fn end_with_journal(self: &Arc<Self>) {
        let Some(failing) = self.journal.as_ref().map(|journal| journal.failing()) else {
            return;
        };
        let (session, done) = (Arc::downgrade(self), self.alarm.done.clone());
        let token = self.token.clone();
        self.runtime.spawn(async move {
            let why = tokio::select! {
                () = done.cancelled() => return,
                () = token.cancelled() => return,
                why = failing => why,
            };
            if let Some(session) = session.upgrade() {
                session.event(|core, now| core.journal_failed(why, now));
            }
        });
    }

    // What a supervisor reports.

    /// A worker sent a message.
    pub(crate) fn received(
        self: &Arc<Self>,
        worker: u64,
        message: FromWorker,
    ) -> Result<Received, Violation> {
        self.event(|core, now| core.received(worker, message, now))
    }

    /// A worker has ended.
    pub(crate) fn worker_lost(self: &Arc<Self>, worker: u64, why: Option<String>) {
        self.event(|core, now| core.worker_lost(worker, why, now));
    }

    // Starting workers.

    /// Sees to it that the session has a worker.
    ///
    /// # Errors
    /// [`SessionError::ShuttingDown`] and [`SessionError::Unavailable`].
    pub(super) async fn start_worker(self: &Arc<Self>) -> Result<(), SessionError> {
        let _starting = tokio::select! {
            () = self.token.cancelled() => return Err(SessionError::ShuttingDown),
            starting = self.starting.lock() => starting,
        };
        let (has_worker, delay) =
            self.look(|core| (core.has_worker(), core.backoff_delay(Instant::now())));
        if has_worker {
            return Ok(());
        }
        let start = async {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            self.workers.take().await
        };
        let worker = tokio::select! {
            () = self.token.cancelled() => return Err(SessionError::ShuttingDown),
            worker = start => worker,
        };
        let worker = worker.map_err(|error| SessionError::Unavailable(Arc::new(error)))?;
        self.attach(worker);
        Ok(())
    }

    /// Gives the session a worker. One that it has no use for is dropped, and so ends.
    pub(crate) fn attach(self: &Arc<Self>, mut worker: Worker) {
        let way = worker.handle.clone();
        let limits = self.look(|core| core.limits().clone());
        worker.expect_messages_within(&limits);
        let attached = self.event(|core, now| core.attach(way, now));
        if let Some(Attached { number, replaces }) = attached {
            worker.counted.serves(replaces.is_some());
            let span = self.spans.worker(number);
            match replaces {
                None => tracing::info!(parent: &span, "a worker serves the session"),
                Some(why) => {
                    tracing::info!(parent: &span, "a worker takes the place of one that was lost: {why}");
                }
            }
            let supervisor = supervise(self.clone(), number, worker, span.clone());
            let supervisor = supervisor.instrument(span);
            self.tasks.spawn_on(supervisor, &self.runtime);
        }
    }

    // Shutting down.

    /// Begins the shutdown.
    pub(crate) fn shut_down(self: &Arc<Self>) {
        self.event(|core, now| core.shut_down(now));
    }

    /// Shuts down; returns when no cell runs and every process has ended.
    ///
    /// `confirms` where the caller has taken all responses: those of a durable session are not given again.
    pub(crate) async fn shut_down_and_wait(self: &Arc<Self>, confirms: bool) {
        self.shut_down();
        // A worker that is being started sees the token.
        drop(self.starting.lock().await);
        self.alarm.done.cancelled().await;
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(journal) = &self.journal {
            // As late as can be: a process that is killed before has its responses again.
            if confirms {
                self.event(|core, _| core.confirm_all());
            }
            // Whoever opens the session next finds all of it; where the file failed, what there is.
            let _ = journal.flushed().await;
            journal.release();
        }
    }

    /// Completes when the session has shut down.
    pub(crate) async fn closed(&self) {
        self.alarm.done.cancelled().await;
    }

    /// Tells the observers that the session was opened.
    pub(crate) async fn tell_opened(&self) {
        tell(&self.told.observers, |one| one.session_opened()).await;
    }

    /// Completes a while after shutdown has begun: what runs until then is left
    /// behind.
    pub(super) async fn too_late(&self) {
        self.token.cancelled().await;
        tokio::time::sleep(self.callback_grace).await;
    }
}

impl WorkerHandle {
    fn send(&self, message: ToWorker) {
        // A cell that has called many tools gets their answers in one go.
        let is_answer = matches!(message, ToWorker::ToolResult { .. });
        // Every text was measured against the frame limit before.
        match message.encode() {
            Ok(frame) if is_answer => self.outbound.send_soon(frame),
            Ok(frame) => self.outbound.send(frame),
            Err(_) => {}
        }
    }
}

/// Tells the session when something is due, until it has shut down or is gone.
async fn ring(session: Weak<Shared>, alarm: Arc<Alarm>, token: CancellationToken) {
    let mut is_cancelled = false;
    loop {
        let Some(shared) = session.upgrade() else {
            return;
        };
        let at = shared.state().alarm_at;
        drop(shared);
        let off = async {
            match at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = alarm.done.cancelled() => return,
            () = alarm.earlier.notified() => {}
            () = token.cancelled(), if !is_cancelled => {
                is_cancelled = true;
                match session.upgrade() {
                    Some(shared) => shared.shut_down(),
                    None => return,
                }
            }
            () = off => {
                let Some(shared) = session.upgrade() else {
                    return;
                };
                shared.state().alarm_at = None;
                shared.event(|core, now| core.tick(now));
            }
        }
    }
}
