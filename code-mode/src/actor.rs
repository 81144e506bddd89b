//! The actor of one cell: the only writer of its state.
//!
//! It serialises what the isolate's thread reports and what callers ask for,
//! with the observation's own timer, and decides what each observation returns.
//! A cell goes through three phases: its JavaScript runs; it has ended and its
//! callbacks are settled; its end is known and waits for an observer.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use code_mode_protocol::{
    BoxFuture, CellId, CellResponse, Limit, PendingOutcome, RuntimeToolCallId, SessionError,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::cell::{CellShared, Command, End, Event, ScriptError, Stop};
use crate::runtime;
use crate::session::Callbacks;

/// How long a callback that was cancelled may take to return before the cell's
/// end is reported without it.
const CALLBACK_GRACE: Duration = Duration::from_millis(500);

/// How much longer an observation lasts that would end within the first turn of its
/// cell: what a program puts out at once is seen at once, however busy the machine.
const FIRST_TURN_GRACE: Duration = Duration::from_millis(50);

/// What to do with the outcome of a request; called exactly once.
pub type Reply = Box<dyn FnOnce(Result<PendingOutcome, SessionError>) + Send>;

/// A request to observe a cell.
pub struct Observe {
    /// How long at most.
    pub yield_time: Duration,
    /// Whether to freeze the cell when it has no work, and return then.
    pub to_pending: bool,
    /// Ends the observation with what there is.
    pub yield_now: CancellationToken,
    /// The observer went away: drop the observation, keep the output.
    pub dropped: CancellationToken,
    /// Takes the outcome. After `dropped` it may still be called once, and must
    /// then give the outcome back to the session's unclaimed ones.
    pub reply: Reply,
}

/// From a session to an actor.
pub(crate) enum Request {
    Observe(Observe),
    Terminate(Reply),
}

/// The observation that runs.
struct Observer {
    yield_now: CancellationToken,
    dropped: CancellationToken,
    to_pending: bool,
    yield_time: Duration,
    /// Its time was over in the cell's first turn, and it lasts a little longer.
    overdue: bool,
    /// Known once the cell runs: what an observer asked for is time of the cell,
    /// not of the queue before it.
    deadline: Option<tokio::time::Instant>,
    reply: Reply,
}

/// How a cell's end is told.
struct Final {
    terminated: bool,
    error: Option<ScriptError>,
    at: Instant,
}

/// What an actor is made of.
pub(crate) struct Parts {
    pub(crate) cell_id: CellId,
    pub(crate) callbacks: Arc<dyn Callbacks>,
    pub(crate) shared: Arc<CellShared>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) events: UnboundedReceiver<Event>,
    pub(crate) requests: UnboundedReceiver<Request>,
    /// Cancelled when the session shuts down.
    pub(crate) cancelled: CancellationToken,
    pub(crate) first: Observe,
    /// Merges what the cell stored into the session; says why it cannot be.
    pub(crate) commit: Commit,
}

/// See [`Parts::commit`].
pub(crate) type Commit = Box<dyn FnOnce(Vec<(String, Arc<str>)>) -> Result<(), ScriptError> + Send>;

pub(crate) struct Actor {
    cell_id: CellId,
    callbacks: Arc<dyn Callbacks>,
    shared: Arc<CellShared>,
    commands: mpsc::Sender<Command>,
    started: bool,
    in_first_turn: bool,
    observer: Option<Observer>,
    terminators: Vec<Reply>,
    /// Cancelled when answers to callbacks are no longer wanted.
    callbacks_cancelled: CancellationToken,
    calls: TaskTracker,
    /// Feeds the task that delivers notifications one after the other.
    notifications: Option<UnboundedSender<Notification>>,
    notifier: TaskTracker,
    /// When to look at the cell's processor time again.
    cpu_check: Option<tokio::time::Instant>,
    wall_deadline: Option<tokio::time::Instant>,
}

/// Completes at a deadline, or never.
async fn at(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Completes when a token of the observer is cancelled; never without one.
async fn cancelled(token: Option<&CancellationToken>) {
    match token {
        Some(token) => token.cancelled().await,
        None => pending().await,
    }
}

impl Actor {
    /// Runs until the cell's end was observed or its session shuts down. Returns
    /// once nothing of the cell is left but its name.
    pub(crate) async fn run(parts: Parts) {
        let Parts {
            cell_id,
            callbacks,
            shared,
            commands,
            mut events,
            mut requests,
            cancelled,
            first,
            commit,
        } = parts;
        let mut actor = Self {
            cell_id,
            callbacks,
            shared,
            commands,
            started: false,
            in_first_turn: true,
            observer: None,
            terminators: Vec::new(),
            callbacks_cancelled: CancellationToken::new(),
            calls: TaskTracker::new(),
            notifications: None,
            notifier: TaskTracker::new(),
            cpu_check: None,
            wall_deadline: None,
        };
        let at_once = first.yield_time.is_zero();
        actor.observe(first);
        if at_once {
            // No time at all: nothing of the cell was seen, however fast it is.
            actor.give(Some(0));
        }
        let end = actor
            .while_running(&mut events, &mut requests, &cancelled)
            .await;
        let mut last = actor
            .while_settling(end, commit, &mut requests, &cancelled)
            .await;
        actor
            .until_observed(&mut last, &mut requests, &cancelled)
            .await;
        requests.close();
        while let Some(request) = requests.recv().await {
            // Asked for while the end was being told: the cell is missing.
            let reply = match request {
                Request::Observe(observe) => observe.reply,
                Request::Terminate(reply) => reply,
            };
            reply(Ok(PendingOutcome::missing(&actor.cell_id)));
        }
    }

    /// The first phase: until the cell's JavaScript has ended.
    async fn while_running(
        &mut self,
        events: &mut UnboundedReceiver<Event>,
        requests: &mut UnboundedReceiver<Request>,
        shutdown: &CancellationToken,
    ) -> End {
        loop {
            let observer = self.observer.as_ref();
            tokio::select! {
                biased;
                () = cancelled(observer.map(|o| &o.dropped)) => self.observer = None,
                () = shutdown.cancelled(), if self.shared.stopped() != Some(Stop::Terminated) => {
                    self.stop(Stop::Terminated);
                }
                request = requests.recv() => self.request(request),
                event = events.recv() => match event {
                    Some(Event::Ended(end)) => return end,
                    Some(event) => self.event(event),
                    // The isolate's thread is gone without a word, which only a
                    // bug makes possible; the cell's observers are told.
                    None => return End {
                        error: Some(ScriptError {
                            text: "the cell's thread ended unexpectedly".to_owned(),
                            position: None,
                        }),
                        writes: Vec::new(),
                    },
                },
                () = cancelled(observer.map(|o| &o.yield_now)) => self.give(None),
                () = at(observer.and_then(|o| o.deadline)) => self.time_is_up(),
                () = at(self.cpu_check) => self.check_cpu(),
                () = at(self.wall_deadline) => self.wall_time_is_over(),
            }
        }
    }

    /// The second phase: callbacks are delivered or cancelled, and what the cell
    /// stored becomes the session's.
    async fn while_settling(
        &mut self,
        end: End,
        commit: Commit,
        requests: &mut UnboundedReceiver<Request>,
        shutdown: &CancellationToken,
    ) -> Final {
        let at_ = Instant::now();
        // Dropping the sender lets the notifier end once it has delivered all.
        self.notifications = None;
        self.notifier.close();
        self.calls.close();
        let terminated = self.shared.stopped() == Some(Stop::Terminated);
        if terminated {
            self.callbacks_cancelled.cancel();
        }
        let settled = {
            let (notifier, calls) = (self.notifier.clone(), self.calls.clone());
            let cancel = self.callbacks_cancelled.clone();
            async move {
                tokio::select! {
                    () = notifier.wait() => cancel.cancel(),
                    () = cancel.cancelled() => {}
                }
                let callbacks_end = async {
                    notifier.wait().await;
                    calls.wait().await;
                };
                if timeout(CALLBACK_GRACE, callbacks_end).await.is_err() {
                    tracing::warn!("a callback ignores its cancellation and is left behind");
                }
            }
        };
        tokio::pin!(settled);
        loop {
            let observer = self.observer.as_ref();
            tokio::select! {
                biased;
                () = &mut settled => break,
                () = cancelled(observer.map(|o| &o.dropped)) => self.observer = None,
                () = shutdown.cancelled() , if !self.callbacks_cancelled.is_cancelled() => {
                    self.callbacks_cancelled.cancel();
                }
                request = requests.recv() => {
                    if let Some(Request::Terminate(_)) = &request {
                        self.callbacks_cancelled.cancel();
                    }
                    self.request(request);
                }
                () = cancelled(observer.map(|o| &o.yield_now)) => self.give(None),
                () = at(observer.and_then(|o| o.deadline)) => self.give(None),
            }
        }
        let mut error = end.error;
        if !terminated && let Err(refused) = commit(end.writes) {
            error.get_or_insert(refused);
        }
        Final {
            terminated,
            error,
            at: at_,
        }
    }

    /// The third phase: until somebody was told of the end, or nobody can ask.
    async fn until_observed(
        &mut self,
        last: &mut Final,
        requests: &mut UnboundedReceiver<Request>,
        shutdown: &CancellationToken,
    ) {
        loop {
            let observer = self.observer.take().filter(|o| !o.dropped.is_cancelled());
            let mut replies: Vec<Reply> = observer.into_iter().map(|o| o.reply).collect();
            replies.append(&mut self.terminators);
            if let Some(only_or_last) = replies.pop() {
                let response = self.final_response(last);
                for reply in replies {
                    reply(Ok(PendingOutcome::live(response.clone())));
                }
                only_or_last(Ok(PendingOutcome::live(response)));
                return;
            }
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(Request::Observe(observe)) => self.observe(observe),
                    Some(Request::Terminate(reply)) => self.terminators.push(reply),
                    None => return,
                },
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn final_response(&self, last: &mut Final) -> CellResponse {
        let cell_id = self.cell_id.clone();
        let content_items = self.shared.take_output(None);
        if last.terminated {
            return CellResponse::Terminated {
                cell_id,
                content_items,
            };
        }
        let error = last.error.take();
        CellResponse::Result {
            cell_id,
            content_items,
            error_position: error.as_ref().and_then(|e| e.position),
            error_text: error.map(|e| e.text),
            buffered_for: last.at.elapsed(),
        }
    }

    fn request(&mut self, request: Option<Request>) {
        match request {
            Some(Request::Observe(observe)) => self.observe(observe),
            Some(Request::Terminate(reply)) => {
                self.terminators.push(reply);
                self.stop(Stop::Terminated);
            }
            // The session itself is gone.
            None => self.stop(Stop::Terminated),
        }
    }

    /// Makes the cell stop. Its end comes as an event.
    fn stop(&self, reason: Stop) {
        self.shared.stop(reason);
        let _ = self.commands.send(Command::Stop);
    }

    fn observe(&mut self, observe: Observe) {
        if self
            .observer
            .as_ref()
            .is_some_and(|o| !o.dropped.is_cancelled())
        {
            let busy = SessionError::ObserverBusy(self.cell_id.clone());
            return (observe.reply)(Err(busy));
        }
        let Observe {
            yield_time,
            to_pending,
            yield_now,
            dropped,
            reply,
        } = observe;
        if self.started {
            let command = if to_pending {
                Command::Resume
            } else {
                Command::RunFreely
            };
            let _ = self.commands.send(command);
        }
        self.observer = Some(Observer {
            yield_now,
            dropped,
            to_pending,
            yield_time,
            overdue: false,
            deadline: None,
            reply,
        });
        self.set_deadline();
    }

    fn set_deadline(&mut self) {
        if self.started
            && let Some(observer) = &mut self.observer
        {
            observer.deadline = tokio::time::Instant::now().checked_add(observer.yield_time);
        }
    }

    /// Ends the observation, if one runs, with the output before `mark`, or all.
    fn give(&mut self, mark: Option<u64>) {
        if let Some(observer) = self.observer.take() {
            let content_items = self.shared.take_output(mark);
            (observer.reply)(Ok(PendingOutcome::live(CellResponse::Yielded {
                cell_id: self.cell_id.clone(),
                content_items,
            })));
        }
    }

    /// The observation's time is over.
    fn time_is_up(&mut self) {
        match &mut self.observer {
            Some(observer) if self.in_first_turn && !observer.overdue => {
                observer.overdue = true;
                observer.deadline = tokio::time::Instant::now().checked_add(FIRST_TURN_GRACE);
            }
            _ => self.give(None),
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Started => self.started(),
            Event::Waiting => {
                self.in_first_turn = false;
                if self.observer.as_ref().is_some_and(|o| o.overdue) {
                    self.give(None);
                }
            }
            Event::ToolCall { id, tool, input } => self.call_tool(id, tool, input),
            Event::Notify(text) => self.notify(text),
            Event::Yield(mark) => {
                self.shared.yield_in_flight.store(false, Ordering::Release);
                self.give(Some(mark));
            }
            Event::Frozen(ids) => self.frozen(&ids),
            // Taken by `while_running` itself.
            Event::Ended(_) => {}
        }
    }

    fn started(&mut self) {
        self.started = true;
        self.set_deadline();
        let now = tokio::time::Instant::now();
        let limits = &self.shared.limits;
        self.cpu_check = limits.max_cpu_time.and_then(|limit| now.checked_add(limit));
        self.wall_deadline = limits
            .max_wall_time
            .and_then(|limit| now.checked_add(limit));
    }

    /// The cell may have used up its processor time by now, if it never waited.
    fn check_cpu(&mut self) {
        runtime::check_cpu_time(&self.shared);
        // What it has left is known to its own thread only; looking again after
        // a fraction of the limit bounds the overshoot by that fraction.
        let limit = self.shared.limits.max_cpu_time.unwrap_or_default();
        let again = (limit / 8).max(Duration::from_millis(1));
        self.cpu_check = tokio::time::Instant::now().checked_add(again);
    }

    fn wall_time_is_over(&mut self) {
        self.wall_deadline = None;
        let limit = self.shared.limits.max_wall_time.unwrap_or_default();
        let exceeded = Limit::WallTime.exceeded(limit.as_millis() as u64);
        self.stop(Stop::Limit(exceeded));
    }

    fn frozen(&mut self, ids: &[RuntimeToolCallId]) {
        let Some(observer) = self.observer.take_if(|o| o.to_pending) else {
            // Nobody waits for this; a plain observer sets the cell free.
            if self.observer.is_some() {
                let _ = self.commands.send(Command::RunFreely);
            }
            return;
        };
        (observer.reply)(Ok(PendingOutcome::Pending {
            cell_id: self.cell_id.clone(),
            content_items: self.shared.take_output(None),
            pending_tool_call_ids: runtime::names(ids),
        }));
    }

    fn call_tool(&mut self, id: RuntimeToolCallId, tool: u32, input: Option<String>) {
        let span = tracing::debug_span!("tool_call", tool_call = %id);
        let cancelled = self.callbacks_cancelled.clone();
        let answer = self
            .callbacks
            .call_tool(&self.cell_id, id, tool, input, cancelled.clone());
        let commands = self.commands.clone();
        self.calls.spawn(
            async move {
                let result = answer.await;
                if !cancelled.is_cancelled() {
                    let _ = commands.send(Command::ToolAnswer { id, result });
                }
            }
            .instrument(span),
        );
    }

    fn notify(&mut self, text: String) {
        let notification = Notification {
            bytes: text.len(),
            delivered: self
                .callbacks
                .notify(&self.cell_id, text, self.callbacks_cancelled.clone()),
        };
        let sender = self.notifications.get_or_insert_with(|| {
            let (sender, receiver) = unbounded_channel();
            self.notifier.spawn(deliver(
                receiver,
                self.shared.clone(),
                self.callbacks_cancelled.clone(),
            ));
            sender
        });
        let _ = sender.send(notification);
    }
}

/// A notification on its way.
struct Notification {
    bytes: usize,
    delivered: BoxFuture<()>,
}

/// Delivers a cell's notifications in order, until they end or are cancelled.
async fn deliver(
    mut notifications: UnboundedReceiver<Notification>,
    shared: Arc<CellShared>,
    cancelled: CancellationToken,
) {
    while let Some(notification) = notifications.recv().await {
        if cancelled.is_cancelled() {
            return;
        }
        notification.delivered.await;
        shared.bytes_arrived(notification.bytes);
        shared.pending_notifications.fetch_sub(1, Ordering::Relaxed);
    }
}
