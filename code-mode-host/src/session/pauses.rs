//! Pauses: while one is held, no deadline of the session or of its cell runs out.

use std::time::Instant;

use code_mode_protocol::wire::native::ToWorker;
use code_mode_protocol::{CellId, SessionError};

use super::cell::Cell;
use super::core::{Core, Due, Ports};
use super::number::CellNumber;
use crate::journal::Step;

impl<P: Ports> Core<P> {
    /// Holds one more pause, of the session or of one cell. Returns how many are held.
    ///
    /// # Errors
    /// [`SessionError::MissingCell`] and [`SessionError::TooManyPauses`].
    pub(crate) fn pause(
        &mut self,
        cell: Option<&CellId>,
        now: Instant,
    ) -> Result<u32, SessionError> {
        let more = |held: u32| held.checked_add(1).ok_or(SessionError::TooManyPauses);
        let held = match cell {
            None => {
                self.pauses = more(self.pauses)?;
                let numbers: Vec<CellNumber> = self.cells.keys().copied().collect();
                for number in numbers {
                    self.stop_clocks(number, now);
                }
                self.pauses
            }
            Some(id) => {
                let (number, cell) = self.cell_to_pause(id)?;
                cell.pauses = more(cell.pauses)?;
                let held = cell.pauses;
                self.stop_clocks(number, now);
                held
            }
        };
        Ok(held)
    }

    /// Lets one pause go. Returns how many are still held.
    ///
    /// # Errors
    /// [`SessionError::MissingCell`] and [`SessionError::NotPaused`].
    pub(crate) fn resume(
        &mut self,
        cell: Option<&CellId>,
        now: Instant,
    ) -> Result<u32, SessionError> {
        let less = |held: u32| held.checked_sub(1).ok_or(SessionError::NotPaused);
        let (held, numbers): (u32, Vec<CellNumber>) = match cell {
            None => {
                self.pauses = less(self.pauses)?;
                (self.pauses, self.cells.keys().copied().collect())
            }
            Some(id) => {
                let (number, cell) = self.cell_to_pause(id)?;
                cell.pauses = less(cell.pauses)?;
                (cell.pauses, vec![number])
            }
        };
        for number in numbers {
            self.start_clocks(number, now);
        }
        Ok(held)
    }

    fn cell_to_pause(
        &mut self,
        id: &CellId,
    ) -> Result<(CellNumber, &mut Cell<P::Reply>), SessionError> {
        let found =
            CellNumber::of(id).and_then(|number| Some((number, self.cells.get_mut(&number)?)));
        found.ok_or_else(|| SessionError::MissingCell(id.clone()))
    }

    /// The cell's deadlines stand still from now on.
    pub(super) fn stop_clocks(&mut self, number: CellNumber, now: Instant) {
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        if cell.paused_at.is_some() || (self.pauses == 0 && cell.pauses == 0) {
            return;
        }
        cell.paused_at = Some(now);
        let worker = cell.worker;
        let paused = true;
        self.step(number, Step::Paused { paused, at_ms: 0.0 }, now);
        self.send(
            worker,
            ToWorker::Pause {
                cell: number.get(),
                paused: true,
            },
        );
    }

    /// Restarts the cell's deadlines, where no pause holds them.
    fn start_clocks(&mut self, number: CellNumber, now: Instant) {
        let held = self.pauses > 0;
        let Some(cell) = self.cells.get_mut(&number) else {
            return;
        };
        if held || cell.pauses > 0 {
            return;
        }
        let Some(paused_at) = cell.paused_at.take() else {
            return;
        };
        let later =
            |at: Instant, since: Instant| at.checked_add(now.saturating_duration_since(since));
        cell.wall_by = cell.wall_by.and_then(|at| later(at, paused_at));
        let mut due = vec![cell.wall_by];
        if let Some(observer) = &mut cell.observer
            && !observer.collecting
        {
            // One that came during the pause has lost only the time since.
            let since = paused_at.max(observer.since);
            observer.deadline = observer.deadline.and_then(|at| later(at, since));
            due.push(observer.deadline);
        }
        let worker = cell.worker;
        let paused = false;
        self.step(number, Step::Paused { paused, at_ms: 0.0 }, now);
        for at in due.into_iter().flatten() {
            self.due_at(at, Due::Cell(number));
        }
        self.send(
            worker,
            ToWorker::Pause {
                cell: number.get(),
                paused: false,
            },
        );
    }
}
