//! A cell of a durable session that waits leaves its worker, and runs again when it need not wait.

use std::time::{Duration, Instant};

use code_mode_protocol::wire::native::{ToWorker, least_rest};

use super::cell::{Cell, StopReason, Stopping};
use super::core::{Core, Due, Effect, Ports};
use super::messages::Violation;
use super::number::CellNumber;

/// What a cell without a worker waits for, beside answers.
#[derive(Clone, Copy)]
pub(super) struct Parked {
    /// Its next timer.
    wakes_at: Option<Instant>,
    /// It lets no answer in before it is observed.
    is_frozen: bool,
}

impl<P: Ports> Core<P> {
    /// After how long without work a cell is parked, in a durable session.
    pub(super) fn park_after(&self) -> Option<Duration> {
        self.durable.as_ref().map(|durable| durable.park_after)
    }

    /// A cell has had nothing to do for a while: it is parked, where nothing is on its way to it.
    pub(super) fn idle(
        &mut self,
        number: CellNumber,
        wakes_in: Option<Duration>,
        now: Instant,
    ) -> Result<(), Violation> {
        let park_after = self.park_after();
        let by = now + self.settings.stop_grace;
        let cell = self.running(number)?;
        let Some((durable, park_after)) = cell.durable.as_mut().zip(park_after) else {
            return Err(Violation::OutOfPlace);
        };
        if wakes_in.is_some_and(|wakes_in| wakes_in < least_rest(park_after)) {
            return Err(Violation::OutOfPlace);
        }
        let is_live = durable.replay.as_ref().is_none_or(|replay| replay.is_live);
        let has_all = durable.to_pending || durable.unseen.is_empty();
        let may = cell.stopping.is_none() && !cell.cancelled && is_live && has_all;
        if !may {
            // It says so again.
            return Ok(());
        }
        durable.leaving = Some(Parked {
            wakes_at: wakes_in.and_then(|wakes_in| now.checked_add(wakes_in)),
            is_frozen: durable.to_pending,
        });
        let reason = StopReason::Parked;
        cell.stopping = Some(Stopping { by, reason });
        let worker = cell.worker;
        self.send(worker, ToWorker::Terminate { cell: number.get() });
        self.due_at(by, Due::Cell(number));
        Ok(())
    }

    /// A cell that was to be parked has left its worker.
    pub(super) fn parked(&mut self, number: CellNumber, now: Instant) {
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        let Some(durable) = &mut cell.durable else {
            return;
        };
        cell.stopping = None;
        cell.worker = 0;
        cell.observation.disarm();
        durable.replay = None;
        durable.parked = durable.leaving.take();
        tracing::debug!(cell = %number, "a cell that waits has left its worker");
        let parked = durable.parked;
        let has_answers = !durable.late.is_empty();
        // Its worker kept the wall time; the host gave it some grace, which is over.
        let grace = self.settings.collect_grace;
        cell.wall_by = cell.wall_by.and_then(|by| by.checked_sub(grace));
        let wall_by = cell.wall_by;
        if durable.thaws || (has_answers && parked.is_some_and(|it| !it.is_frozen)) {
            // It came while the cell was leaving.
            self.wake(number);
        } else {
            let wakes_at = parked.and_then(|parked| parked.wakes_at);
            for at in wakes_at.into_iter().chain(wall_by) {
                self.due_at(at, Due::Cell(number));
            }
        }
        self.worker_may_be_idle(now);
    }

    /// An answer came for a cell without a worker.
    pub(super) fn answer_came(&mut self, number: CellNumber) {
        if self.parked_cell(number).is_some_and(|it| !it.is_frozen) {
            self.wake(number);
        }
    }

    /// The timer may be due for which a cell waits without a worker.
    pub(super) fn wake_in_time(&mut self, number: CellNumber, now: Instant) {
        let wakes_at = self.parked_cell(number).and_then(|it| it.wakes_at);
        if wakes_at.is_some_and(|at| at <= now) {
            self.wake(number);
        }
    }

    /// A cell is observed once more, to pending or plainly: a frozen one continues.
    pub(super) fn observed_again(&mut self, number: CellNumber) {
        let cell = self.cells.get_mut(&number).filter(|cell| cell.is_running());
        let Some(durable) = cell.and_then(|cell| cell.durable.as_mut()) else {
            return;
        };
        let waits = durable.parked.or(durable.leaving);
        if waits.is_none_or(|it| !it.is_frozen) {
            return;
        }
        durable.thaws = true;
        if durable.parked.is_some() {
            self.wake(number);
        }
    }

    fn parked_cell(&self, number: CellNumber) -> Option<Parked> {
        self.cells.get(&number)?.durable.as_ref()?.parked
    }

    /// Runs a parked cell again.
    fn wake(&mut self, number: CellNumber) {
        let cell = self.cells.get_mut(&number);
        if let Some(durable) = cell.and_then(|cell| cell.durable.as_mut()) {
            durable.parked = None;
            // What woke it comes in before it freezes.
            durable.thaws = true;
            tracing::debug!(cell = %number, "a cell that waited runs again");
            self.push(Effect::Resume(number));
        }
    }
}

impl<R> Cell<R> {
    /// Whether it waits without a worker.
    pub(super) fn is_parked(&self) -> bool {
        let durable = self.durable.as_ref();
        durable.is_some_and(|durable| durable.parked.is_some())
    }
}
