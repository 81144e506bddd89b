//! Durable sessions: the records that the core makes, and the state that it takes up again.
//!
//! The records of an event are in the journal's queue before any of its effects runs. Whoever
//! runs the effects waits for the disk where something leaves the session: a call on its way to the
//! delegate, an answer on its way to its cell, a response on its way to an observer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use code_mode_protocol::{
    CellEnded, CellId, CellStarted, ContentItem, Determinism, Json, Limit, RuntimeToolCallId,
    SessionError, ToolError,
};

use super::cell::{Admission, Cell, End, Final, Phase, StopReason};
use super::core::{Core, Effect, Ports, Reply};
use super::number::CellNumber;
use super::parking::Parked;
use super::replay::Replay;
use super::settling::within;
use super::spans::Exec;
use crate::journal::{
    EndRecord, JournalError, JournalOptions, Program, Record, Restored, RestoredCell, Step,
};

/// The shortest time after which a cell is parked: it says that it waits each time that as much has passed.
const LEAST_PARKING: Duration = Duration::from_millis(10);

/// How often in a row a cell may lose its worker: then it may be the cell that ends its workers.
const MAX_LOSSES: u32 = 3;

/// A loss this long after the one before is the first of a new row.
const ROW_OF_LOSSES: Duration = Duration::from_secs(60);

/// What a durable session knows beside its cells.
pub(super) struct Durable {
    /// The version of the stored values: one more with each cell that stores some.
    version: u64,
    /// How many bytes the log of one cell may have.
    max_log_bytes: usize,
    /// As [`JournalOptions::park_after`](field@crate::JournalOptions::park_after).
    pub(super) park_after: Duration,
    /// Of each cell that is not closed.
    taken: BTreeMap<CellNumber, Taken>,
}

/// The part of a cell's output and notifications that its caller has.
#[derive(Default)]
struct Taken {
    /// Items that the caller has confirmed.
    confirmed: u64,
    /// Items that were handed over since.
    handed: u64,
    /// Its end was handed over too.
    has_end: bool,
    notified: u64,
}

/// What a durable session knows of a cell.
#[derive(Default)]
pub(super) struct DurableCell {
    /// Output that was handed to observers, and that they have not confirmed.
    pub(super) given: Vec<ContentItem>,
    /// Items that came from its workers.
    pub(super) received: u64,
    /// Notifications that came from its workers.
    pub(super) notifications: u64,
    /// Whether it is frozen when it has no work.
    pub(super) to_pending: bool,
    log_bytes: usize,
    /// How often in a row it lost its worker, and when it last did.
    losses: u32,
    lost_at: Option<Instant>,
    pub(super) replay: Option<Replay>,
    /// Answers that came while it had no worker.
    pub(super) late: BTreeMap<RuntimeToolCallId, Result<Json, ToolError>>,
    /// Calls in flight whose recorded answer it has already.
    pub(super) delivered: BTreeSet<RuntimeToolCallId>,
    /// Calls whose answers its worker has, and it has not let in.
    pub(super) unseen: BTreeSet<RuntimeToolCallId>,
    /// It leaves its worker, to wait without one.
    pub(super) leaving: Option<Parked>,
    /// It waits without a worker.
    pub(super) parked: Option<Parked>,
    /// It takes the answers that came before it freezes again.
    pub(super) thaws: bool,
    pub(super) diverged: Option<String>,
}

impl DurableCell {
    pub(super) fn new(to_pending: bool) -> Self {
        Self {
            to_pending,
            ..Self::default()
        }
    }

    /// An observer did not take these items after all.
    pub(super) fn not_taken(&mut self, items: &[ContentItem]) {
        let at = self
            .given
            .windows(items.len().max(1))
            .position(|given| given == items);
        if let Some(at) = at {
            self.given.drain(at..at + items.len());
        }
    }

    /// Counts a loss; whether it is not one too many.
    pub(super) fn may_lose_another(&mut self, now: Instant) -> bool {
        let before = self.lost_at.replace(now);
        let is_in_row = before.is_some_and(|before| now.duration_since(before) < ROW_OF_LOSSES);
        self.losses = if is_in_row { self.losses + 1 } else { 1 };
        self.losses <= MAX_LOSSES
    }

    /// Its next notification is this one.
    pub(super) fn notification_came(&mut self) {
        self.notifications += 1;
    }
}

impl<P: Ports> Core<P> {
    /// The same session, recorded with these options.
    pub(crate) fn durable(mut self, options: &JournalOptions) -> Self {
        self.durable = Some(Durable {
            version: 0,
            max_log_bytes: options.max_cell_bytes,
            park_after: options.park_after.max(LEAST_PARKING),
            taken: BTreeMap::new(),
        });
        self
    }

    /// Records something, in a durable session.
    pub(super) fn record(&mut self, record: impl FnOnce() -> Record) {
        if self.durable.is_some() {
            self.records.push(record());
        }
    }

    /// Records a step of a cell, in a durable session.
    pub(super) fn step(&mut self, number: CellNumber, step: Step, now: Instant) {
        let Some(most) = self.durable.as_ref().map(|durable| durable.max_log_bytes) else {
            return;
        };
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        let Some(durable) = &mut cell.durable else {
            return;
        };
        durable.log_bytes = durable.log_bytes.saturating_add(step.bytes());
        let is_too_long = durable.log_bytes > most && cell.is_running() && cell.stopping.is_none();
        let cell = number.get();
        self.records.push(Record::Step { cell, step });
        if is_too_long {
            let limit = Limit::Journal.exceeded(most as u64);
            self.stop(number, StopReason::Limit(limit), now);
        }
    }

    /// Records a new cell.
    pub(super) fn record_cell(
        &mut self,
        number: CellNumber,
        request: &code_mode_protocol::ExecuteRequest,
        to_pending: bool,
    ) {
        let Some(version) = self.durable.as_ref().map(|durable| durable.version) else {
            return;
        };
        let determinism = request.determinism.clone();
        let Determinism { seed, start_ms, .. } = determinism.unwrap_or(Determinism {
            seed: 0,
            start_ms: 0.0,
            turns: None,
        });
        let program = Program {
            tool_call_id: request.tool_call_id.clone(),
            source: request.source.clone(),
            tools: request.enabled_tools.clone(),
            constants: request.constants.clone(),
            seed,
            start_ms,
            to_pending,
            view: version,
        };
        self.records.push(Record::Began {
            cell: number.get(),
            program: Box::new(program),
        });
    }

    /// Records the end of a cell's JavaScript, with what it stored.
    pub(super) fn record_end(
        &mut self,
        number: CellNumber,
        end: &End,
        writes: Vec<(String, Json)>,
    ) {
        let Some(durable) = &mut self.durable else {
            return;
        };
        if !writes.is_empty() {
            durable.version += 1;
        }
        let version = durable.version;
        let Some(cell) = self.cells.get(&number) else {
            return;
        };
        let Some(of_cell) = &cell.durable else {
            return;
        };
        let items = of_cell.given.iter().chain(&cell.output).cloned().collect();
        let confirmed = durable
            .taken
            .get(&number)
            .map_or(0, |taken| taken.confirmed);
        let end = EndRecord {
            before: confirmed,
            outcome: (&end.outcome).into(),
            error: end.error.clone(),
            items,
            notifications: cell.callbacks.notifications(),
        };
        self.records.push(Record::Ended {
            cell: number.get(),
            end: Box::new(end),
            writes,
            version,
        });
    }

    /// An observer gets so many items of a cell, and its end where that comes with them. They count as
    /// taken once the caller has confirmed them: after a crash before that they are given again.
    pub(crate) fn handed_over(&mut self, cell_id: &CellId, items: usize, is_final: bool) {
        let number = CellNumber::of(cell_id);
        if let Some((number, durable)) = number.zip(self.durable.as_mut()) {
            let taken = durable.taken.entry(number).or_default();
            taken.handed += items as u64;
            taken.has_end |= is_final;
        }
    }

    /// The caller has all that it was handed of a cell.
    pub(super) fn confirm(&mut self, number: CellNumber) {
        let Some(durable) = &mut self.durable else {
            return;
        };
        let Some(taken) = durable.taken.get_mut(&number) else {
            return;
        };
        let handed = std::mem::take(&mut taken.handed);
        taken.confirmed += handed;
        let items = taken.confirmed;
        if taken.has_end {
            return self.record_closed(number);
        }
        let cell = self.cells.get_mut(&number);
        if let Some(cell) = cell.and_then(|cell| cell.durable.as_mut()) {
            let handed = usize::try_from(handed).unwrap_or(usize::MAX);
            cell.given.drain(..handed.min(cell.given.len()));
        }
        let cell = number.get();
        if handed > 0 {
            self.record(|| Record::Taken { cell, items });
        }
    }

    /// The caller has all that it was handed.
    pub(crate) fn confirm_all(&mut self) {
        let Some(durable) = &self.durable else {
            return;
        };
        let is_open = |(_, taken): &(&CellNumber, &Taken)| taken.handed > 0 || taken.has_end;
        let handed: Vec<CellNumber> = (durable.taken.iter().filter(is_open))
            .map(|(number, _)| *number)
            .collect();
        for number in handed {
            self.confirm(number);
        }
    }

    /// Records that nothing of a cell is needed any more.
    pub(super) fn record_closed(&mut self, number: CellNumber) {
        if let Some(durable) = &mut self.durable {
            durable.taken.remove(&number);
        }
        let cell = number.get();
        self.record(|| Record::Closed { cell });
    }

    /// The delegate has finished one more notification, also of a cell that was left to the next
    /// process meanwhile.
    pub(super) fn record_notified(&mut self, number: CellNumber) {
        let Some(durable) = &mut self.durable else {
            return;
        };
        let taken = durable.taken.entry(number).or_default();
        taken.notified += 1;
        let (cell, notifications) = (number.get(), taken.notified);
        self.record(|| Record::Notified {
            cell,
            notifications,
        });
    }

    /// Records that a cell is observed to pending, or plainly.
    pub(super) fn record_mode(&mut self, number: CellNumber, to_pending: bool, now: Instant) {
        let durable = self
            .cells
            .get_mut(&number)
            .and_then(|cell| cell.durable.as_mut());
        if let Some(durable) = durable.filter(|durable| durable.to_pending != to_pending) {
            durable.to_pending = to_pending;
            self.step(number, Step::Mode { to_pending }, now);
        }
    }

    /// The delegate has answered a call: its answer is recorded. It is handed to the cell by
    /// `call_finished`, once it is on disk.
    ///
    /// `false` where it must not be handed over: the call was cancelled, and its cell was not. The
    /// session is being closed, and whoever opens it next takes the call as one without an answer.
    pub(crate) fn call_answered(
        &mut self,
        cell_id: &CellId,
        call: RuntimeToolCallId,
        (result, was_cancelled): (&Result<Json, ToolError>, bool),
        now: Instant,
    ) -> bool {
        let max_bytes = self.limits.max_frame_bytes;
        let Some(number) = CellNumber::of(cell_id) else {
            return false;
        };
        let Some(cell) = self.cells.get(&number) else {
            return false;
        };
        let may_see_it = cell.is_running() && !cell.cancelled;
        if may_see_it && !was_cancelled && cell.callbacks.has_call(call) {
            let result = within(result.clone(), max_bytes).map_err(Into::into);
            self.step(number, Step::Answer { call, result }, now);
        }
        !(may_see_it && was_cancelled)
    }

    /// The delegate gets a call again, as this attempt.
    pub(crate) fn call_repeated(
        &mut self,
        cell_id: &CellId,
        call: RuntimeToolCallId,
        attempt: u32,
        now: Instant,
    ) {
        if let Some(number) = CellNumber::of(cell_id) {
            self.step(number, Step::Attempt { call, attempt }, now);
        }
    }

    /// A cell cannot run again.
    pub(crate) fn not_resumed(&mut self, number: CellNumber, why: &str, now: Instant) {
        let is_running = self.cells.get(&number).is_some_and(Cell::is_running);
        if is_running {
            let end = End::lost(format!("exec cell {number} cannot continue: {why}"));
            self.cancel_callbacks(number);
            self.js_ended(number, end, now);
        }
    }

    /// The journal cannot be written any more: no cell can continue, because nothing of it would
    /// last.
    pub(crate) fn journal_failed(&mut self, failed: Arc<JournalError>, now: Instant) {
        let why = failed.to_string();
        self.no_journal = Some(failed);
        let running = self.cells.iter().filter(|(_, cell)| cell.is_running());
        let running: Vec<CellNumber> = running.map(|(number, _)| *number).collect();
        if !running.is_empty()
            && let Some(worker) = self.worker.take()
        {
            self.push(Effect::Kill(worker.way));
        }
        for number in running {
            self.not_resumed(number, &why, now);
        }
    }

    /// Gives a session the stored values of its journal, before it has a worker.
    pub(crate) fn restore_values(&mut self, restored: &mut Restored) {
        for (key, json) in std::mem::take(&mut restored.stored) {
            self.stored.set(key, json);
        }
    }

    /// Continues the cells of a session as its journal has them.
    pub(crate) fn restore(&mut self, restored: Restored, now: Instant) {
        if let Some(durable) = &mut self.durable {
            durable.version = restored.version;
        }
        self.last_cell = CellNumber::of_wire(restored.last_cell);
        for cell in restored.cells {
            if let Some(number) = CellNumber::of_wire(cell.cell) {
                self.restore_cell(number, cell, now);
            }
        }
    }

    fn restore_cell(&mut self, number: CellNumber, restored: RestoredCell, now: Instant) {
        let id = number.id();
        let started = CellStarted::new(id.clone(), restored.tool_call_id.clone());
        self.push(Effect::Started(started, Exec::of_another_process()));
        let durable = DurableCell {
            received: restored.taken,
            notifications: restored.notified,
            log_bytes: restored.log_bytes,
            ..DurableCell::new(restored.to_pending)
        };
        let mut cell = Cell::new(Admission {
            id: id.clone(),
            tool_call_id: restored.tool_call_id,
            tools: restored.tools,
            worker: 0,
            token: self.cell_token(),
            to_pending: restored.to_pending,
            tells_turns: true,
            wall_by: None,
            durable: Some(durable),
            now,
        });
        cell.notified = restored.notified;
        if let Some(durable) = &mut self.durable {
            let taken = Taken {
                confirmed: restored.taken,
                notified: restored.notified,
                ..Taken::default()
            };
            durable.taken.insert(number, taken);
        }
        let Some(mut end) = restored.end else {
            self.cells.insert(number, cell);
            self.stop_clocks(number, now);
            return self.push(Effect::Resume(number));
        };
        let confirmed = restored.taken.saturating_sub(end.before);
        let confirmed = usize::try_from(confirmed).unwrap_or(usize::MAX);
        end.items.drain(..confirmed.min(end.items.len()));
        cell.put_out(end.items);
        let mut held = super::held::Held::default();
        for text in end.notifications {
            held.add(cell.callbacks.notify(text));
        }
        self.held.add(held);
        let outcome = end.outcome.into();
        let ended = CellEnded::new(id, cell.tool_call_id.clone(), outcome, cell.stats);
        let outcome = ended.outcome.clone();
        cell.observation.disarm();
        cell.phase = Phase::Settling {
            end: Final {
                end: End {
                    outcome,
                    error: end.error,
                },
                at: now,
            },
            by: None,
        };
        self.cells.insert(number, cell);
        self.push(Effect::Ended(Box::new(ended)));
        self.deliver_next(number);
        self.settle(number, now);
    }

    /// Leaves the cells of a durable session to whoever opens it next.
    pub(super) fn suspend(&mut self) {
        let cells: Vec<CellNumber> = self.cells.keys().copied().collect();
        for number in cells {
            self.cancel_callbacks(number);
            let Some(mut cell) = self.cells.remove(&number) else {
                continue;
            };
            self.held.release(cell.callbacks.held());
            let observer = cell.observer.take().map(|observer| observer.reply);
            for reply in observer.into_iter().chain(cell.terminators.drain(..)) {
                let _ = reply.answer(Err(SessionError::ShuttingDown));
            }
            self.push(Effect::Close(cell.id));
        }
        if let Some(worker) = self.worker.take() {
            self.push(Effect::Retire(worker.way));
        }
    }
}
