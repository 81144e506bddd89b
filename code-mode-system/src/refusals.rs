//! Clients that are not let in: counted, and in the log without making it long.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines of the log about refusals for one reason.
const BETWEEN: Duration = Duration::from_secs(60);

/// Why a client is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It shows no token, or one that is not known.
    Token,
    /// Every connection that is served at once is taken.
    Connections,
    /// The TLS handshake fails: a certificate that is not known, or no TLS at all.
    Tls,
}

impl Refused {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Token, Self::Connections, Self::Tls];

    /// The reason in one word, for metrics: `token`, `connections` or `tls`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Connections => "connections",
            Self::Tls => "tls",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Token => "requests without a known token",
            Self::Connections => "requests on more connections than are served at once",
            Self::Tls => "connections whose TLS handshake failed",
        }
    }
}

/// The refusals of one listener. The first for a reason is in the log at once, at `warn`; others
/// are summed up in one line a minute.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<[Counted; Refused::ALL.len()]>);

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    all: u64,
    logged: u64,
    logged_at: Option<Instant>,
}

impl Counted {
    /// Counts one. What the log must say: how many came since it said something.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.all = self.all.saturating_add(1);
        if let Some(before) = self.logged_at
            && now.saturating_duration_since(before) < BETWEEN
        {
            return None;
        }
        let new = self.all - self.logged;
        self.logged = self.all;
        self.logged_at = Some(now);
        Some(new)
    }
}

impl Refusals {
    /// A client was refused.
    pub fn refused(&self, why: Refused) {
        let new = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.get_mut(why as usize)
                .and_then(|counted| counted.count(Instant::now()))
        };
        if let Some(new) = new {
            tracing::warn!("refused: {new} {}", why.in_words());
        }
    }

    /// How many there ever were for a reason.
    pub fn count(&self, why: Refused) -> u64 {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(why as usize).map_or(0, |counted| counted.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_gets_the_first_refusal_and_then_a_sum_each_minute() {
        let mut counted = Counted::default();
        let now = Instant::now();
        assert_eq!(counted.count(now), Some(1));
        for _ in 0..1000 {
            assert_eq!(counted.count(now + BETWEEN / 2), None);
        }
        assert_eq!(counted.count(now + BETWEEN), Some(1001));
        assert_eq!(counted.all, 1002);
    }
}
