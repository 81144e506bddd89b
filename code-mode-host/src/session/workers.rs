//! What a session makes of its worker's coming and going.

use std::time::Instant;

use code_mode_protocol::CellId;
use code_mode_protocol::wire::native::ToWorker;

use super::cell::{End, StopReason, Stopping};
use super::core::{Attached, Core, Due, Effect, Ports, Worker};
use super::number::CellNumber;

impl<P: Ports> Core<P> {
    /// A worker is ready for the session; `None` where it is not
    /// wanted any more.
    pub(crate) fn attach(&mut self, way: P::Worker, now: Instant) -> Option<Attached> {
        if self.shutting_down || self.worker.is_some() {
            return None;
        }
        self.last_worker += 1;
        let number = self.last_worker;
        let limits = self.limits.clone();
        let guided = self.guided;
        self.push(Effect::Send(way.clone(), ToWorker::Open { limits, guided }));
        for message in self.stored.messages() {
            self.push(Effect::Send(way.clone(), message));
        }
        let idle_by = now.checked_add(self.settings.idle);
        self.worker = Some(Worker {
            number,
            way,
            tools: None,
            idle_by,
        });
        if let Some(at) = idle_by {
            self.idle_due_at(at);
        }
        Some(Attached {
            number,
            replaces: self.lost.take(),
        })
    }

    /// Whether this is the worker that runs the session's cells.
    pub(super) fn is_current(&self, worker: u64) -> bool {
        self.worker.as_ref().is_some_and(|w| w.number == worker)
    }

    /// Starts the time after which the worker is given back, if it has no cell left.
    pub(super) fn worker_may_be_idle(&mut self, now: Instant) {
        let is_busy = (self.cells.values()).any(|cell| cell.is_running() && !cell.is_parked());
        let Some(worker) = self.worker.as_mut().filter(|_| !is_busy) else {
            return;
        };
        worker.idle_by = now.checked_add(self.settings.idle);
        if let Some(at) = worker.idle_by {
            self.idle_due_at(at);
        }
    }

    /// One entry is enough: when it is due, the time is looked at again.
    fn idle_due_at(&mut self, at: Instant) {
        if !std::mem::replace(&mut self.idle_is_due, true) {
            self.due_at(at, Due::Worker);
        }
    }

    pub(super) fn give_worker_back(&mut self, now: Instant) {
        match self.worker.as_ref().and_then(|worker| worker.idle_by) {
            Some(at) if at <= now => {
                if let Some(worker) = self.worker.take() {
                    self.push(Effect::Retire(worker.way));
                }
            }
            Some(at) => self.idle_due_at(at),
            None => {}
        }
    }

    /// A worker has ended. `why` says how; `None` after a shutdown.
    pub(crate) fn worker_lost(&mut self, worker: u64, why: Option<String>, now: Instant) {
        if !self.is_current(worker) {
            return;
        }
        let why = why.map(|why| {
            let deaths = self.backoff.died(now);
            let pause = self.backoff.pause();
            tracing::warn!(deaths, "worker lost: {why}");
            self.lost = Some(why.clone());
            if pause.is_zero() {
                why
            } else {
                format!(
                    "{why} ({deaths} processes in a row died; the next starts in {} ms)",
                    pause.as_millis()
                )
            }
        });
        self.lose(
            |cell_id| match &why {
                Some(why) => format!("exec cell {cell_id} was lost: {why}"),
                None => format!("exec cell {cell_id} was lost in a shutdown"),
            },
            now,
        );
    }

    /// A cell does not stop: it is answered for, and its worker is ended.
    pub(super) fn is_stuck(&mut self, number: CellNumber, reason: StopReason, now: Instant) {
        let Some(way) = self.worker.as_ref().map(|worker| worker.way.clone()) else {
            return;
        };
        let Some(cell) = self.cells.get(&number) else {
            return;
        };
        let culprit = cell.id.clone();
        let kind = self.end_because(number, reason);
        let what = match reason {
            StopReason::Terminated => "it was terminated".to_owned(),
            StopReason::Limit(limit) => format!("its {limit}"),
            StopReason::Diverged => "it ran again and differed".to_owned(),
            StopReason::Parked => "it said that it waits".to_owned(),
        };
        tracing::warn!(cell = %culprit, "a cell does not stop; its worker is ended");
        self.backoff.died(now);
        self.lost = Some(format!("exec cell {culprit} did not stop after {what}"));
        self.push(Effect::Kill(way));
        if reason != StopReason::Parked {
            self.js_ended(number, kind, now);
        }
        self.lose(
            |cell_id| {
                format!(
                    "exec cell {cell_id} was lost: its process was ended, because exec cell {culprit} did not stop after {what}"
                )
            },
            now,
        );
    }

    /// The worker is gone: each of its cells ends with this error.
    fn lose(&mut self, error: impl Fn(&CellId) -> String, now: Instant) {
        let Some(lost) = self.worker.take().map(|worker| worker.number) else {
            return;
        };
        // A cell without a worker, parked or about to run again, has lost nothing.
        let running: Vec<CellNumber> = self
            .cells
            .iter()
            .filter(|(_, cell)| cell.is_running() && cell.worker == lost)
            .map(|(number, _)| *number)
            .collect();
        for number in running {
            if self.may_resume(number, now) {
                continue;
            }
            self.cancel_callbacks(number);
            let Some(cell) = self.cells.get(&number) else {
                continue;
            };
            let kind = match cell.stopping {
                // The cell has stopped, as it was ordered to.
                Some(Stopping { reason, .. }) => self.end_because(number, reason),
                None => End::lost(error(&cell.id)),
            };
            self.js_ended(number, kind, now);
        }
    }
}
