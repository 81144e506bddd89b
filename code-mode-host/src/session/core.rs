//! The rules of a session, without I/O.
//!
//! A [`Core`] takes one event at a time, each a method, and returns [`Effect`]s: what
//! must be done outside. It has no clock (an event says when it happens), no lock, no
//! channel and no task. Whoever runs the effects runs them in order and never looks
//! the state up for one: an effect carries all it needs.
//!
//! **Invariants**, which `session/model.rs` holds it to:
//! - every request gets exactly one answer;
//! - every admitted cell is closed once, after its last answer and its callbacks;
//! - no callback is handed to the delegate after its cell ended or had to
//!   terminate;
//! - everything held for a worker is bounded;
//! - nothing that one worker says or does changes what the next one runs;
//! - a shutdown ends, whatever the worker and the delegate do.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use code_mode_protocol::wire::native::{ToWorker, WireTool};
use code_mode_protocol::{
    CellEnded, CellId, CellNotification, CellOutcome, CellResponse, CellStarted, ExecuteRequest,
    Json, Limit, LimitExceeded, Limits, NestedToolCall, RuntimeToolCallId, SessionError,
    ToolAnswer, ToolSet, Turn,
};
use tokio_util::sync::CancellationToken;

use super::cell::{Admission, Cell, End, Observer, Phase, StopReason, Stopping};
use super::durable::{Durable, DurableCell};
use super::ended::Ended;
use super::held::Held;
use super::number::CellNumber;
use super::order::Place;
use super::spans::Exec;
use super::stored::Stored;
use crate::backoff::Backoff;
use crate::journal::{JournalError, Record};

/// What a request came to.
pub(crate) type Answer = Result<CellResponse, SessionError>;

/// Where an answer goes. Answering only leaves the answer where the asker finds it:
/// it runs nothing of the asker.
pub(crate) trait Reply {
    /// Hands the answer over, or gives it back where nobody waits for it any more.
    #[expect(
        clippy::result_large_err,
        reason = "an answer that nobody took is moved back, not lost"
    )]
    fn answer(self, answer: Answer) -> Result<(), Answer>;
}

/// What a core is used with: the program's own ends, or a test's.
pub(crate) trait Ports {
    /// A way to one worker. A message sent by it can reach no other worker.
    type Worker: Clone;
    /// Where an answer goes.
    type Reply: Reply;
}

/// A tool call for the driver to dispatch.
pub(super) struct Invocation<W> {
    pub(super) call: NestedToolCall,
    /// The tools of its cell.
    pub(super) tools: ToolSet,
    pub(super) answer: ToolAnswer,
    pub(super) cancelled: CancellationToken,
    /// Where its answer goes.
    pub(super) worker: W,
    /// Its place among the calls of its cell, in a guided session.
    pub(super) place: Option<Place>,
    /// The attempts after which nobody knows what became of it; 0 for a new call.
    pub(super) unknown_after: u32,
}

/// Something to do outside the core.
pub(crate) enum Effect<P: Ports> {
    /// Send a message to this worker.
    Send(P::Worker, ToWorker),
    /// End this worker at once.
    Kill(P::Worker),
    /// Shut this worker down in order.
    Retire(P::Worker),
    /// Cancel this token.
    Cancel(CancellationToken),
    /// Run a tool.
    ///
    /// Its answer goes to this worker, and waits while that does not read. In a guided session
    /// it begins at its place among the calls of its cell.
    Invoke(Box<Invocation<P::Worker>>),
    /// Deliver a notification.
    Notify(CellNotification, CancellationToken),
    /// Tell the delegate that a cell was admitted.
    Started(CellStarted, Exec),
    /// Load the log of a cell, so that it runs again.
    Resume(CellNumber),
    /// Report a cell's turn to the delegate.
    Turn(CellId, Turn),
    /// Tell the delegate that a cell's JavaScript has ended.
    Ended(Box<CellEnded>),
    /// Tell the delegate that a cell is gone.
    Close(CellId),
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// How long a cell may still run after a request to stop.
    pub(crate) stop_grace: Duration,
    /// A callback that was cancelled may take so long.
    pub(crate) callback_grace: Duration,
    /// An observer that asked for what there is may wait so long for a worker.
    pub(crate) collect_grace: Duration,
    /// A worker without cells is kept for so long.
    pub(crate) idle: Duration,
}

/// A request that was not admitted, and what came of it.
pub(crate) enum NotAdmitted<R> {
    /// The session has no worker: start one, and repeat the request.
    NeedsWorker(Box<Execute<R>>),
    /// Refused.
    Refused(SessionError),
}

/// A cell to admit.
pub(crate) struct Execute<R> {
    pub(crate) request: ExecuteRequest,
    pub(crate) to_pending: bool,
    pub(crate) reply: R,
    /// What the cell's spans descend from.
    pub(crate) exec: Exec,
}

/// How a cell is observed.
#[derive(Clone, Copy, Debug)]
struct ObserveFor {
    yield_time: Duration,
    to_pending: bool,
}

/// A cell that was admitted.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) cell_id: CellId,
    /// Its first observer.
    pub(crate) observer: u64,
    /// Cancelled at the cell's end at the latest.
    pub(crate) token: CancellationToken,
}

/// The state of the session's worker.
pub(crate) struct Attached {
    pub(crate) number: u64,
    /// Why the worker was lost whose place it takes, if there was one.
    pub(crate) replaces: Option<String>,
}

/// The worker that runs the session's cells.
pub(super) struct Worker<W> {
    pub(super) number: u64,
    pub(super) way: W,
    /// The tools it was last told of.
    pub(super) tools: Option<(ToolSet, u64)>,
    /// When it is given back, if no cell comes before.
    pub(super) idle_by: Option<Instant>,
}

/// A deadline's subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// The worker may have been idle for long enough.
    Worker,
    /// A deadline of this cell.
    Cell(CellNumber),
}

pub(crate) struct Core<P: Ports> {
    pub(super) limits: Limits,
    /// As `SessionOptions::guided`.
    pub(super) guided: bool,
    pub(super) settings: Settings,
    token: CancellationToken,
    pub(super) worker: Option<Worker<P::Worker>>,
    pub(super) last_worker: u64,
    /// Why the last worker was lost, until another takes its place.
    pub(super) lost: Option<String>,
    pub(super) last_cell: Option<CellNumber>,
    last_observer: u64,
    pub(super) cells: BTreeMap<CellNumber, Cell<P::Reply>>,
    ended: Ended,
    pub(super) stored: Stored,
    pub(super) backoff: Backoff,
    /// Calls and notifications held for all cells together.
    pub(super) held: Held,
    pub(super) shutting_down: bool,
    /// Pauses of the whole session that are held.
    pub(super) pauses: u32,
    /// When something is due. An entry may be stale: it says only when to look.
    due: BinaryHeap<Reverse<(Instant, Due)>>,
    /// Whether there is an entry for the worker.
    pub(super) idle_is_due: bool,
    /// In a durable session.
    pub(super) durable: Option<Durable>,
    /// The journal of a durable session has failed.
    pub(super) no_journal: Option<Arc<JournalError>>,
    effects: VecDeque<Effect<P>>,
    /// For the journal of a durable session.
    pub(super) records: Vec<Record>,
}

impl<P: Ports> Core<P> {
    /// A session whose cells' tokens are children of `token`.
    pub(crate) fn new(limits: Limits, settings: Settings, token: CancellationToken) -> Self {
        Self {
            limits,
            guided: false,
            settings,
            token,
            worker: None,
            last_worker: 0,
            lost: None,
            last_cell: None,
            last_observer: 0,
            cells: BTreeMap::new(),
            ended: Ended::default(),
            stored: Stored::default(),
            backoff: Backoff::default(),
            held: Held::default(),
            shutting_down: false,
            pauses: 0,
            due: BinaryHeap::new(),
            idle_is_due: false,
            durable: None,
            no_journal: None,
            effects: VecDeque::new(),
            records: Vec::new(),
        }
    }

    /// The same session, guided or not.
    pub(crate) fn guided(mut self, guided: bool) -> Self {
        self.guided = guided;
        self
    }

    /// The next thing to do.
    pub(crate) fn next_effect(&mut self) -> Option<Effect<P>> {
        self.effects.pop_front()
    }

    /// Takes the records that the events made.
    pub(crate) fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }

    pub(super) fn push(&mut self, effect: Effect<P>) {
        self.effects.push_back(effect);
    }

    // What can be read.

    /// The cells that have not ended.
    pub(crate) fn live_cells(&self) -> Vec<CellId> {
        let live = self.cells.values().filter(|cell| cell.is_running());
        live.map(|cell| cell.id.clone()).collect()
    }

    /// The cells that an observer can still observe: those that have not ended, and those with a result that
    /// nobody has taken.
    pub(crate) fn cells_to_observe(&self) -> Vec<CellId> {
        let all: BTreeSet<CellNumber> = self
            .cells
            .keys()
            .copied()
            .chain(self.ended.cells())
            .collect();
        all.into_iter().map(CellNumber::id).collect()
    }

    /// What the session's cells may use.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The stored values.
    pub(crate) fn stored_values(&self) -> Vec<(String, Json)> {
        self.stored.to_vec()
    }

    /// Whether there is a worker for the next cell.
    pub(crate) fn has_worker(&self) -> bool {
        self.worker.is_some()
    }

    /// Whether shutdown has begun.
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.shutting_down
    }

    /// Whether shutdown has begun and every cell has ended.
    pub(crate) fn is_shut_down(&self) -> bool {
        self.shutting_down && self.cells.is_empty()
    }

    /// Sets a value that cells find stored.
    ///
    /// # Errors
    /// The limit, where the values are more than may be stored.
    pub(crate) fn store(&mut self, key: String, json: Json) -> Result<(), LimitExceeded> {
        self.stored.set(key, json);
        let limit = self.limits.max_stored_bytes;
        match self.stored.bytes() > limit {
            true => Err(Limit::StoredBytes.exceeded(limit as u64)),
            false => Ok(()),
        }
    }

    /// How long the next worker's start must wait.
    pub(crate) fn backoff_delay(&self, now: Instant) -> Duration {
        self.backoff.delay(now)
    }

    // Time.

    /// When [`tick`](Self::tick) is due at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn due_at(&mut self, at: Instant, what: Due) {
        const SPARE: usize = 1024;
        if self.due.len() > 4 * self.cells.len() + SPARE {
            let cells = &self.cells;
            self.due.retain(|Reverse((_, what))| match what {
                Due::Worker => true,
                Due::Cell(number) => cells.contains_key(number),
            });
        }
        self.due.push(Reverse((at, what)));
    }

    /// Handles the deadlines that have passed.
    pub(crate) fn tick(&mut self, now: Instant) {
        while let Some(Reverse((at, what))) = self.due.peek().copied()
            && at <= now
        {
            self.due.pop();
            match what {
                Due::Worker => {
                    self.idle_is_due = false;
                    self.give_worker_back(now);
                }
                Due::Cell(number) => self.cell_is_due(number, now),
            }
        }
    }

    fn cell_is_due(&mut self, number: CellNumber, now: Instant) {
        let is_over = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        if let Some(stopping) = cell.stopping
            && stopping.by <= now
            && cell.is_running()
        {
            return self.is_stuck(number, stopping.reason, now);
        }
        let is_paused = cell.paused_at.is_some();
        if !is_paused && is_over(cell.wall_by.take_if(|at| *at <= now)) && cell.is_running() {
            let limit = self.limits.max_wall_time.unwrap_or_default();
            let exceeded = Limit::WallTime.exceeded(limit.as_millis() as u64);
            self.stop(number, StopReason::Limit(exceeded), now);
        }
        let Some(cell) = self.cells.get(&number) else {
            return;
        };
        // An observation that requested a yield waits only for the worker.
        let observer = cell
            .observer
            .as_ref()
            .filter(|observer| !is_paused || observer.collecting);
        if is_over(observer.and_then(|observer| observer.deadline)) {
            self.end_observation(number, false, now);
        }
        self.wake_in_time(number, now);
        self.settle(number, now);
    }

    // Requests.

    /// Admits a cell.
    pub(crate) fn execute(
        &mut self,
        execute: Execute<P::Reply>,
        now: Instant,
    ) -> Result<Admitted, NotAdmitted<P::Reply>> {
        let refused = |error: SessionError| Err(NotAdmitted::Refused(error));
        if self.shutting_down {
            return refused(SessionError::ShuttingDown);
        }
        if let Some(failed) = &self.no_journal {
            return refused(SessionError::Journal(failed.clone()));
        }
        self.confirm_all();
        let limits = &self.limits;
        if execute.request.source.len() > limits.max_frame_bytes {
            return refused(Limit::Frame.exceeded(limits.max_frame_bytes as u64).into());
        }
        if self.cells.len() >= limits.max_live_cells {
            return refused(
                Limit::LiveCells
                    .exceeded(limits.max_live_cells as u64)
                    .into(),
            );
        }
        let Some((worker, tools)) = self.tools_at_worker(&execute.request.enabled_tools) else {
            return Err(NotAdmitted::NeedsWorker(Box::new(execute)));
        };
        let Execute {
            request,
            to_pending,
            reply,
            exec,
        } = execute;
        let tells_turns = request
            .determinism
            .as_ref()
            .is_some_and(|determinism| determinism.turns.is_none());
        self.last_observer += 1;
        let (number, observer) = (CellNumber::after(self.last_cell), self.last_observer);
        self.last_cell = Some(number);
        self.record_cell(number, &request, to_pending);
        self.send(
            worker,
            ToWorker::Execute {
                cell: number.get(),
                tools,
                source: request.source,
                to_pending,
                constants: request
                    .constants
                    .into_iter()
                    .map(|(name, json)| (name, json.into_string()))
                    .collect(),
                determinism: request.determinism,
                resumed: None,
                idle_after: self.park_after(),
                traceparent: request.trace_context.map(|context| context.traceparent),
            },
        );
        let cell_id = number.id();
        let started = CellStarted::new(cell_id.clone(), request.tool_call_id.clone());
        self.effects.push_back(Effect::Started(started, exec));
        let token = self.cell_token();
        let is_durable = self.durable.is_some();
        // The worker keeps the limit; the host looks in case it does not.
        let wall_by = self.limits.max_wall_time.and_then(|limit| {
            now.checked_add(limit)?
                .checked_add(self.settings.collect_grace)
        });
        let admission = Admission {
            id: cell_id.clone(),
            tool_call_id: request.tool_call_id,
            tools: request.enabled_tools,
            worker,
            token: token.clone(),
            to_pending,
            tells_turns,
            wall_by,
            durable: is_durable.then(|| DurableCell::new(to_pending)),
            now,
        };
        self.cells.insert(number, Cell::new(admission));
        if let Some(at) = wall_by {
            self.due_at(at, Due::Cell(number));
        }
        self.stop_clocks(number, now);
        let yield_time = self.limits.yield_time(request.yield_time);
        if yield_time.is_zero() {
            // No time at all: nothing of the cell was seen, however fast it is.
            let nothing = CellResponse::Yielded {
                cell_id: cell_id.clone(),
                content_items: Vec::new(),
            };
            let _ = reply.answer(Ok(nothing));
        } else {
            self.attach_observer(
                number,
                observer,
                reply,
                ObserveFor {
                    yield_time,
                    to_pending,
                },
                now,
            );
        }
        Ok(Admitted {
            cell_id,
            observer,
            token,
        })
    }

    /// The token of a new cell.
    pub(super) fn cell_token(&self) -> CancellationToken {
        self.token.child_token()
    }

    /// Sees to it that the worker knows these tools; returns its number and theirs. `None` where the
    /// session has no worker.
    pub(super) fn tools_at_worker(&mut self, wanted: &ToolSet) -> Option<(u64, u64)> {
        let worker = self.worker.as_mut()?;
        worker.idle_by = None;
        let number = worker.number;
        let last = match &worker.tools {
            Some((known, id)) if Arc::ptr_eq(known, wanted) || known == wanted => {
                return Some((number, *id));
            }
            known => known.as_ref().map_or(0, |(_, id)| *id),
        };
        let id = last + 1;
        worker.tools = Some((wanted.clone(), id));
        let tools = wanted.iter();
        let tools = tools.map(|tool| WireTool::new(tool, self.guided)).collect();
        let message = Effect::Send(worker.way.clone(), ToWorker::Tools { id, tools });
        self.push(message);
        Some((number, id))
    }

    /// Observes a cell. Returns the observer's number where it waits.
    pub(crate) fn observe(
        &mut self,
        cell_id: &CellId,
        (yield_time, to_pending): (Option<Duration>, bool),
        reply: P::Reply,
        now: Instant,
    ) -> Option<u64> {
        if let Some(number) = CellNumber::of(cell_id) {
            self.confirm(number);
        }
        let (number, reply) = self.answer_if_ended(cell_id, reply, now)?;
        let yield_time = self.limits.yield_time(yield_time);
        let cell = self.cells.get_mut(&number)?;
        if cell.observer.is_some() {
            let _ = reply.answer(Err(SessionError::ObserverBusy(cell_id.clone())));
            return None;
        }
        if cell.is_running() && cell.output_bytes >= self.limits.max_output_bytes {
            // Observers that went away have left as much as a cell may have: the worker
            // is not asked for more before somebody takes it.
            cell.give_output(reply, None);
            return None;
        }
        self.observed_again(number);
        self.record_mode(number, to_pending, now);
        self.last_observer += 1;
        let observer = self.last_observer;
        self.attach_observer(
            number,
            observer,
            reply,
            ObserveFor {
                yield_time,
                to_pending,
            },
            now,
        );
        if yield_time.is_zero() {
            self.end_observation(number, true, now);
        }
        Some(observer)
    }

    /// Answers a request about a nonexistent cell, or one that has ended; gives the reply
    /// back, and the cell's number, where the cell has not ended.
    fn answer_if_ended(
        &mut self,
        cell_id: &CellId,
        reply: P::Reply,
        now: Instant,
    ) -> Option<(CellNumber, P::Reply)> {
        let number = CellNumber::of(cell_id);
        if let Some(number) = number.filter(|number| self.cells.contains_key(number)) {
            return Some((number, reply));
        }
        match number.and_then(|number| Some((number, self.ended.take(number, now)?))) {
            None => {
                let missing = self.ended.missing(cell_id, &self.limits);
                let _ = reply.answer(Ok(missing));
            }
            Some((number, (response, closed))) => match reply.answer(Ok(response)) {
                Ok(()) if closed => {}
                Ok(()) => self.push(Effect::Close(cell_id.clone())),
                Err(back) => self.keep_answer(number, back, (now, closed)),
            },
        }
        None
    }

    fn attach_observer(
        &mut self,
        number: CellNumber,
        observer: u64,
        reply: P::Reply,
        how: ObserveFor,
        now: Instant,
    ) {
        let ObserveFor {
            yield_time,
            to_pending,
        } = how;
        let deadline = now.checked_add(yield_time);
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        cell.observer = Some(Observer {
            number: observer,
            reply,
            to_pending,
            yield_time,
            since: now,
            deadline,
            collecting: false,
        });
        if matches!(cell.phase, Phase::Running)
            && let Some(observation) = cell.observation.arm(to_pending)
        {
            let message = ToWorker::Observe {
                cell: number.get(),
                observation,
                to_pending,
            };
            let worker = cell.worker;
            self.send(worker, message);
        }
        if let Some(at) = deadline {
            self.due_at(at, Due::Cell(number));
        }
    }

    /// Ends an observation with what there is, because its caller asks for it.
    pub(crate) fn yield_now(&mut self, cell_id: &CellId, observer: u64, now: Instant) {
        if let Some(number) = CellNumber::of(cell_id)
            && self.is_observed_by(number, observer)
        {
            self.end_observation(number, true, now);
        }
    }

    /// An observer does not wait any more.
    pub(crate) fn observer_gone(&mut self, cell_id: &CellId, observer: u64) {
        if let Some(number) = CellNumber::of(cell_id)
            && self.is_observed_by(number, observer)
            && let Some(cell) = self.cells.get_mut(&number)
        {
            cell.observer = None;
        }
    }

    fn is_observed_by(&self, cell: CellNumber, observer: u64) -> bool {
        let cell = self.cells.get(&cell);
        cell.and_then(|cell| cell.observer.as_ref())
            .is_some_and(|known| known.number == observer)
    }

    /// An answer was handed over, and its asker went away without looking at it.
    pub(crate) fn unclaimed(&mut self, response: CellResponse, now: Instant) {
        if let Some(number) = CellNumber::of(response.cell_id()) {
            // The cell's closing went out with the answer.
            self.keep_answer(number, Ok(response), (now, true));
        }
    }

    /// Keeps what an asker did not take for the next one.
    fn keep_answer(&mut self, number: CellNumber, answer: Answer, (at, closed): (Instant, bool)) {
        let Ok(mut response) = answer else {
            return;
        };
        if let Some(cell) = self.cells.get_mut(&number) {
            cell.put_back(std::mem::take(response.content_items_mut()));
        } else if !self.ended.put_back(number, &mut response)
            && response.is_final()
            && !response.is_missing()
            && !self.shutting_down
        {
            self.keep_result(number, response, (at, closed));
        }
    }

    pub(super) fn keep_result(
        &mut self,
        number: CellNumber,
        response: CellResponse,
        how: (Instant, bool),
    ) {
        for dropped in self.ended.keep(number, response, how, &self.limits) {
            self.record_closed(dropped);
            self.push(Effect::Close(dropped.id()));
        }
    }

    /// Ends the observation of a cell that has an observer: at once where its
    /// JavaScript has ended, else by asking the worker for what there is. `now_please`
    /// where the caller asked, not the clock.
    pub(super) fn end_observation(&mut self, number: CellNumber, now_please: bool, now: Instant) {
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        let has_worker = !cell.is_parked();
        let Some(observer) = &mut cell.observer else {
            return;
        };
        let is_running = has_worker && matches!(cell.phase, Phase::Running);
        let may_ask = is_running && (!observer.collecting || now_please);
        if may_ask && let Some(observation) = cell.observation.collect() {
            observer.collecting = true;
            let message = ToWorker::Collect {
                cell: number.get(),
                observation,
                after: match now_please {
                    true => Duration::ZERO,
                    false => observer.yield_time,
                },
            };
            let by = now + self.settings.collect_grace;
            observer.deadline = Some(by);
            let worker = cell.worker;
            self.send(worker, message);
            self.due_at(by, Due::Cell(number));
        } else {
            // The worker did not report about the cell in time: only the
            // host's own data is left.
            self.give(number, None);
        }
    }

    /// Answers the observer, if one waits, that the cell still runs.
    pub(super) fn give(&mut self, number: CellNumber, frozen: Option<Vec<RuntimeToolCallId>>) {
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        let Some(observer) = cell.observer.take() else {
            return;
        };
        let frozen = frozen.filter(|_| observer.to_pending);
        cell.give_output(observer.reply, frozen);
    }

    /// Stops a cell. `reply` gets the end.
    pub(crate) fn terminate(&mut self, cell_id: &CellId, reply: Option<P::Reply>, now: Instant) {
        if let Some(number) = CellNumber::of(cell_id) {
            self.confirm(number);
        }
        let (number, reply) = match reply {
            None => (CellNumber::of(cell_id), None),
            Some(reply) => match self.answer_if_ended(cell_id, reply, now) {
                None => return,
                Some((number, reply)) => (Some(number), Some(reply)),
            },
        };
        let Some(number) = number else {
            return;
        };
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        cell.terminators.extend(reply);
        self.cancel_callbacks(number);
        let Some(cell) = self.cells.get(&number) else {
            return;
        };
        if !cell.is_running() {
            self.settle(number, now);
        } else if cell
            .stopping
            .is_none_or(|stopping| stopping.reason == StopReason::Parked)
        {
            self.stop(number, StopReason::Terminated, now);
        }
    }

    /// Tells the worker to stop a cell, and sees to it that it is stopped.
    pub(super) fn stop(&mut self, number: CellNumber, reason: StopReason, now: Instant) {
        self.cancel_callbacks(number);
        let by = now + self.settings.stop_grace;
        let Some(cell) = self.cells.get(&number) else {
            return;
        };
        let worker = cell.worker;
        if cell.durable.is_some() && !self.is_current(worker) {
            // Nothing of it runs.
            let end = self.end_because(number, reason);
            return self.js_ended(number, end, now);
        }
        if let Some(cell) = self.cells.get_mut(&number) {
            cell.stopping = Some(Stopping { by, reason });
        }
        self.send(worker, ToWorker::Terminate { cell: number.get() });
        self.due_at(by, Due::Cell(number));
    }

    /// The end of a cell that was stopped for this reason.
    pub(super) fn end_because(&self, number: CellNumber, reason: StopReason) -> End {
        match reason {
            StopReason::Terminated => End::of(CellOutcome::Terminated),
            StopReason::Limit(limit) => End::limit(limit),
            StopReason::Diverged => self.diverged(number, None),
            StopReason::Parked => End::lost(format!("exec cell {number} does not stop to wait")),
        }
    }

    /// Cancels a cell's callbacks. Notifications that were not handed over are dropped.
    pub(super) fn cancel_callbacks(&mut self, number: CellNumber) {
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        if std::mem::replace(&mut cell.cancelled, true) {
            return;
        }
        let dropped = cell.callbacks.drop_undelivered();
        let token = cell.token.clone();
        self.held.release(dropped);
        self.push(Effect::Cancel(token));
    }

    pub(super) fn send(&mut self, worker: u64, message: ToWorker) {
        if let Some(way) = self.way(worker) {
            self.push(Effect::Send(way, message));
        }
    }

    /// The way to the worker with this number, if it is still the session's.
    pub(super) fn way(&self, worker: u64) -> Option<P::Worker> {
        let worker = self.worker.as_ref().filter(|known| known.number == worker);
        worker.map(|worker| worker.way.clone())
    }

    // Shutdown.

    /// Stops every cell and admits none. The worker is shut down.
    pub(crate) fn shut_down(&mut self, now: Instant) {
        if std::mem::replace(&mut self.shutting_down, true) {
            return;
        }
        self.push(Effect::Cancel(self.token.clone()));
        for cell in self.ended.clear() {
            self.push(Effect::Close(cell.id()));
        }
        if self.durable.is_some() {
            return self.suspend();
        }
        let cells: Vec<CellNumber> = self.cells.keys().copied().collect();
        for number in cells {
            self.terminate(&number.id(), None, now);
        }
        if let Some(worker) = &self.worker {
            let way = worker.way.clone();
            self.push(Effect::Retire(way));
        }
    }
}
