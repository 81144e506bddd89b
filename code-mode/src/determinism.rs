//! Time and randomness that can be had again.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Instant;

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
    began: Instant,
    /// The recorded turns; `None` where the cell reports them instead.
    script: Option<RefCell<VecDeque<Turn>>>,
}

impl Source {
    pub(crate) fn new(determinism: Determinism) -> Self {
        Self {
            clock: Cell::new(0.0),
            start_ms: determinism.start_ms,
            // The generator stands still at nothing.
            random: Cell::new(determinism.seed | 1),
            began: Instant::now(),
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
        let elapsed = self.began.elapsed().as_secs_f64() * 1000.0;
        // It never goes backwards, and has the resolution of the trace.
        let at = (elapsed * 1000.0).round() / 1000.0;
        let at = at.max(self.clock.get());
        self.clock.set(at);
        at
    }

    /// Whether the cell is run again.
    pub(crate) fn is_replayed(&self) -> bool {
        self.script.is_some()
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
            Source::new(Determinism {
                seed: 7,
                start_ms: 0.0,
                turns,
            })
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
}
