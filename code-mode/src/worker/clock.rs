//! When something is due for a cell that its own thread cannot do, because it is
//! busy: limits of time, and observations that end.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use code_mode_protocol::{Limit, LimitExceeded};
use tokio::sync::Notify;

use crate::cell::{CellShared, Stop};
use crate::cpu;

/// A deadline's action.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Due {
    /// The cell may have used up its processor time, if it never waited.
    CpuTime,
    /// Its wall time is over.
    WallTime,
    /// An observation ends.
    Collect(u64),
    /// A cell that hit a limit must be terminated, whether or not its line is known.
    Terminate,
    /// A cell that hit this limit should have stopped by now.
    Stuck(LimitExceeded),
    /// A cell that had to stop, for whatever reason, should have ended long ago.
    Gone,
}

/// One entry; the earliest is the greatest.
struct Entry {
    at: Instant,
    cell: Weak<CellShared>,
    due: Due,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.cmp(&self.at)
    }
}

/// The deadlines of all cells of a session. One task waits for the earliest.
#[derive(Default)]
pub(crate) struct Clock {
    state: Mutex<State>,
    /// Rung when an entry came that is earlier than all others.
    earlier: Notify,
}

#[derive(Default)]
struct State {
    entries: BinaryHeap<Entry>,
    /// Past this many entries, those of cells that are gone are thrown away.
    clean_at: usize,
}

impl Clock {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is due for a cell at `at`.
    pub(crate) fn at(&self, at: Instant, cell: Weak<CellShared>, due: Due) {
        const CLEAN_AT_LEAST: usize = 256;
        let mut state = self.state();
        if state.entries.len() >= state.clean_at.max(CLEAN_AT_LEAST) {
            state.entries.retain(|entry| entry.cell.strong_count() > 0);
            state.clean_at = 2 * state.entries.len();
        }
        let is_earliest = state.entries.peek().is_none_or(|first| at < first.at);
        state.entries.push(Entry { at, cell, due });
        drop(state);
        if is_earliest {
            self.earlier.notify_one();
        }
    }

    /// Handles deadlines, until a cell that had to stop is found running long after.
    pub(crate) async fn run(&self) {
        loop {
            let next = self.state().entries.peek().map(|entry| entry.at);
            let earlier = self.earlier.notified();
            match next {
                None => earlier.await,
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => {
                        if !self.do_due() {
                            return;
                        }
                    }
                    () = earlier => {}
                },
            }
        }
    }

    /// False where a cell does not stop.
    fn do_due(&self) -> bool {
        let now = Instant::now();
        loop {
            let entry = {
                let mut state = self.state();
                match state.entries.peek() {
                    Some(entry) if entry.at <= now => state.entries.pop(),
                    _ => None,
                }
            };
            let Some(entry) = entry else {
                return true;
            };
            if let Some(cell) = entry.cell.upgrade()
                && !self.due(&cell, entry.due)
            {
                return false;
            }
        }
    }

    fn due(&self, cell: &Arc<CellShared>, due: Due) -> bool {
        match due {
            Due::Gone => return cell.has_ended(),
            Due::Collect(observation) => cell.collect_due(observation),
            Due::Terminate => {
                if let Some(isolate) = cell.isolate() {
                    isolate.terminate_execution();
                }
            }
            Due::Stuck(limit) => cell.report_stuck(limit),
            Due::WallTime => {
                if cell.wall_time_is_over() {
                    let limit = cell.limits.max_wall_time.unwrap_or_default();
                    let exceeded = Limit::WallTime.exceeded(limit.as_millis() as u64);
                    cell.stop(Stop::Limit(exceeded));
                }
            }
            Due::CpuTime => {
                cpu::check_cpu_time(cell);
                if cell.stopped().is_none() {
                    // What the cell has left is known only now; looking again after a
                    // fraction of the limit bounds the overshoot by that fraction.
                    let limit = cell.limits.max_cpu_time.unwrap_or_default();
                    let again = (limit / 8).max(Duration::from_millis(1));
                    self.at(Instant::now() + again, Arc::downgrade(cell), Due::CpuTime);
                }
            }
        }
        true
    }
}
