//! Clients that are not let in: counted, and in the log without making it long.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

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
/// are summed up in one line a minute, and the last when this is dropped.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<[Counted; Refused::ALL.len()]>);

/// What becomes of a refusal.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The log gets this many.
    Log(u64),
    /// Somebody must come back at this time to log it.
    LogAt(Instant),
    /// Somebody will.
    Nothing,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    all: u64,
    logged: u64,
    logged_at: Option<Instant>,
    /// Somebody comes back to log the sum.
    is_awaited: bool,
}

impl Counted {
    /// Counts one.
    fn count(&mut self, now: Instant) -> Next {
        self.all = self.all.saturating_add(1);
        match self.logged_at.map(|before| before + BETWEEN) {
            Some(_) if self.is_awaited => Next::Nothing,
            Some(next) if now < next => {
                self.is_awaited = true;
                Next::LogAt(next)
            }
            _ => Next::Log(self.log(now)),
        }
    }

    /// How many came since the log said something, which it does now.
    fn log(&mut self, now: Instant) -> u64 {
        let new = self.all - self.logged;
        self.logged = self.all;
        self.logged_at = Some(now);
        self.is_awaited = false;
        new
    }
}

impl Refusals {
    fn counted(&self) -> MutexGuard<'_, [Counted; Refused::ALL.len()]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client was refused. Called within a Tokio runtime, which logs the sum later.
    pub fn refused(self: &Arc<Self>, why: Refused) {
        let next = self
            .counted()
            .get_mut(why as usize)
            .map(|counted| counted.count(Instant::now()));
        match next {
            Some(Next::Log(new)) => log(new, why),
            Some(Next::LogAt(time)) => {
                let refusals = Arc::downgrade(self);
                tokio::spawn(async move {
                    tokio::time::sleep_until(time).await;
                    if let Some(refusals) = refusals.upgrade() {
                        refusals.log(why);
                    }
                });
            }
            Some(Next::Nothing) | None => {}
        }
    }

    /// Logs those for a reason that the log does not have.
    fn log(&self, why: Refused) {
        let new = self
            .counted()
            .get_mut(why as usize)
            .map_or(0, |counted| counted.log(Instant::now()));
        if new > 0 {
            log(new, why);
        }
    }

    /// How many there ever were for a reason.
    pub fn count(&self, why: Refused) -> u64 {
        self.counted()
            .get(why as usize)
            .map_or(0, |counted| counted.all)
    }
}

impl Drop for Refusals {
    fn drop(&mut self) {
        for why in Refused::ALL {
            self.log(why);
        }
    }
}

fn log(new: u64, why: Refused) {
    tracing::warn!("refused: {new} {}", why.in_words());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_gets_the_first_refusal_and_then_a_sum_each_minute() {
        let mut counted = Counted::default();
        let now = Instant::now();
        assert_eq!(counted.count(now), Next::Log(1));
        let later = now + BETWEEN / 2;
        assert_eq!(counted.count(later), Next::LogAt(now + BETWEEN));
        for _ in 1..1000 {
            assert_eq!(counted.count(later), Next::Nothing);
        }
        assert_eq!(counted.log(now + BETWEEN), 1000);
        assert_eq!(counted.count(now + 3 * BETWEEN), Next::Log(1));
        assert_eq!(counted.all, 1002);
    }

    #[tokio::test(start_paused = true)]
    async fn the_sum_comes_without_another_refusal() {
        let refusals = Arc::new(Refusals::default());
        for _ in 0..3 {
            refusals.refused(Refused::Token);
        }
        assert_eq!(refusals.counted()[Refused::Token as usize].logged, 1);
        tokio::time::sleep(2 * BETWEEN).await;
        assert_eq!(refusals.counted()[Refused::Token as usize].logged, 3);
    }
}
