//! The pause between the death of a worker and the start of the next, so that a
//! crash loop is not repeated at full speed.

use std::time::{Duration, Instant};

/// So many deaths in a row cause no pause.
const FREE: u32 = 2;
const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(10);

/// How often a session's workers died since a cell last completed.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    deaths: u32,
    last: Option<Instant>,
}

impl Backoff {
    /// A worker died. Returns how often in a row.
    pub(crate) fn died(&mut self, now: Instant) -> u32 {
        self.deaths = self.deaths.saturating_add(1);
        self.last = Some(now);
        self.deaths
    }

    /// A cell completed.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// How long to wait before the next start.
    pub(crate) fn delay(&self, now: Instant) -> Duration {
        let since = self
            .last
            .map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        self.pause().saturating_sub(since)
    }

    /// The pause after the last death.
    pub(crate) fn pause(&self) -> Duration {
        match self.deaths.saturating_sub(FREE) {
            0 => Duration::ZERO,
            n => MAX_DELAY.min(FIRST_DELAY.saturating_mul(1 << (n - 1).min(16))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_in_a_row_are_slowed_down_up_to_a_bound_and_success_forgives() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        let pauses: Vec<_> = (0..12)
            .map(|_| {
                backoff.died(now);
                backoff.pause().as_millis()
            })
            .collect();
        assert_eq!(
            pauses,
            [
                0, 0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000
            ]
        );
        backoff.succeeded();
        assert_eq!(backoff.delay(now), Duration::ZERO);
    }
}
