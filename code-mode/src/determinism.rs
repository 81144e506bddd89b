//! Time and randomness that can be had again.
//!
//! A cell either reports its turns, or repeats recorded ones, or repeats them and then continues
//! live: a durable session resumes its cells that way.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use code_mode_protocol::{Determinism, Turn};

/// What a look at the clock adds, in milliseconds: a program that waits for time to pass
/// in a loop still ends.
const A_LOOK: f64 = 0.001;

/// Where a cell's time and randomness come from.
pub(crate) struct Source {
    /// Milliseconds since the cell began, as it sees them.
    clock: Cell<f64>,
    pub(crate) start_ms: f64,
    random: Cell<u64>,
    began: Cell<Instant>,
    /// The cell's time at `began`, in milliseconds.
    began_ms: Cell<f64>,
    /// The recorded turns; `None` where the cell reports them instead.
    script: Option<RefCell<VecDeque<Turn>>>,
    /// Whether the cell continues after the recorded turns.
    resumes: bool,
    is_live: Cell<bool>,
    /// The last recorded turn happens again: what it does is as late as it was then.
    is_last_repeated: Cell<bool>,
}

impl Source {
    pub(crate) fn new(determinism: Determinism, resumes: bool) -> Self {
        Self {
            is_live: Cell::new(determinism.turns.is_none()),
            is_last_repeated: Cell::new(false),
            resumes,
            began_ms: Cell::new(0.0),
            clock: Cell::new(0.0),
            start_ms: determinism.start_ms,
            // The generator stands still at nothing.
            random: Cell::new(determinism.seed | 1),
            began: Cell::new(Instant::now()),
            script: determinism.turns.map(|turns| RefCell::new(turns.into())),
        }
    }

    /// Milliseconds since the cell began.
    pub(crate) fn now(&self) -> f64 {
        let now = self.clock.get() + A_LOOK;
        self.clock.set(now);
        now
    }

    /// A turn begins now, where the cell runs by the clock; the time it begins at.
    pub(crate) fn begin_turn(&self) -> f64 {
        let elapsed = self.began_ms.get() + self.began.get().elapsed().as_secs_f64() * 1000.0;
        // It never goes backwards, and has the resolution of the trace.
        let at = (elapsed * 1000.0).round() / 1000.0;
        let at = at.max(self.clock.get());
        self.clock.set(at);
        self.is_last_repeated.set(false);
        at
    }

    /// Whether the cell repeats recorded turns.
    pub(crate) fn is_replayed(&self) -> bool {
        !self.is_live.get()
    }

    /// Whether the cell continues after the recorded turns and has not come to their end.
    pub(crate) fn is_resuming(&self) -> bool {
        self.resumes && self.is_replayed()
    }

    /// Ends the replay of a cell that continues, where its last recorded turn has begun. Its clock
    /// continues with the calendar's; where that went backwards, it stands still for so long. Returns
    /// whether the replay ended now.
    pub(crate) fn goes_live(&self) -> bool {
        let has_turns = self
            .script
            .as_ref()
            .is_some_and(|turns| !turns.borrow().is_empty());
        if !self.is_resuming() || has_turns {
            return false;
        }
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let passed = since_epoch.as_secs_f64() * 1000.0 - self.start_ms;
        self.began_ms.set(passed.max(self.clock.get()));
        self.began.set(Instant::now());
        self.is_live.set(true);
        self.is_last_repeated.set(true);
        true
    }

    /// The cell's time now, without a look at it.
    pub(crate) fn time(&self) -> f64 {
        self.clock.get()
    }

    /// When a timer is due that is set now, at the cell's time `due_ms`, in the last recorded turn: the
    /// time since that turn has passed. `None` in other turns.
    pub(crate) fn is_due_at(&self, due_ms: f64) -> Option<Instant> {
        self.is_last_repeated.get().then(|| self.instant_of(due_ms))
    }

    /// When the cell's time is `at_ms`, for a cell that is live.
    pub(crate) fn instant_of(&self, at_ms: f64) -> Instant {
        let left = (at_ms - self.began_ms.get()).max(0.0) / 1000.0;
        let began = self.began.get();
        let at = Duration::try_from_secs_f64(left)
            .ok()
            .and_then(|left| began.checked_add(left));
        at.unwrap_or(began)
    }

    /// The next recorded turn, in a replay.
    pub(crate) fn next_turn(&self) -> Option<Turn> {
        self.script.as_ref()?.borrow().front().copied()
    }

    /// That turn begins.
    pub(crate) fn take_turn(&self) {
        let turn = self
            .script
            .as_ref()
            .and_then(|script| script.borrow_mut().pop_front());
        if let Some(turn) = turn {
            self.clock.set(turn.at_ms.max(self.clock.get()));
        }
    }

    /// That turn cannot begin: the cell is not as it was.
    pub(crate) fn skip_turn(&self) {
        if let Some(script) = &self.script {
            script.borrow_mut().pop_front();
        }
    }

    /// 64 random bits: xorshift64*.
    pub(crate) fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use code_mode_protocol::TurnCause;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_time_never_goes_back() {
        let source = |turns| {
            let determinism = Determinism {
                seed: 7,
                start_ms: 0.0,
                turns,
            };
            Source::new(determinism, false)
        };
        let (a, b) = (source(None), source(Some(Vec::new())));
        for _ in 0..100 {
            assert_eq!(a.random(), b.random());
        }
        let before = a.now();
        assert!(a.begin_turn() >= before && a.now() > before);
        let replayed = source(Some(vec![
            Turn {
                at_ms: 5.0,
                cause: TurnCause::Timer(1),
            },
            Turn {
                at_ms: 3.0,
                cause: TurnCause::Timer(2),
            },
        ]));
        replayed.take_turn();
        replayed.take_turn();
        assert!(replayed.now() > 5.0);
        assert_eq!(replayed.next_turn(), None);
    }

    #[test]
    fn a_cell_that_resumes_is_live_from_its_last_recorded_turn_on_and_its_clock_jumps_forwards_only()
     {
        let turn = Turn {
            at_ms: 5.0,
            cause: TurnCause::Timer(1),
        };
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).expect("later");
        let now = since_epoch.as_secs_f64() * 1000.0;
        for (start_ms, least) in [(now - 60_000.0, 60_000.0), (now + 60_000.0, 5.0)] {
            let determinism = Determinism {
                seed: 7,
                start_ms,
                turns: Some(vec![turn]),
            };
            let source = Source::new(determinism, true);
            assert!(source.is_resuming() && !source.goes_live());
            source.take_turn();
            assert!(source.is_replayed());
            assert!(source.goes_live() && !source.goes_live());
            assert_eq!(source.time(), 5.0, "the turn keeps its time");
            assert!(!source.is_replayed() && !source.is_resuming());
            let due = source.is_due_at(5.0).expect("set in that turn");
            assert!(due <= Instant::now(), "its time has passed");
            let next = source.begin_turn();
            assert_eq!(source.is_due_at(next), None);
            assert!((least..least + 30_000.0).contains(&next), "{next}");
        }
    }
}
