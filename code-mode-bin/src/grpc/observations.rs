//! How the observations of a session can be ended by their ids.

use std::collections::{HashMap, VecDeque};

use tokio_util::sync::CancellationToken;

/// How many ids of each kind are remembered.
const REMEMBERED: usize = 4096;

/// Ids that a client has used, each with the tokens of its observation. An id that is
/// asked about before it is used is remembered too.
#[derive(Debug, Default)]
pub(super) struct Observations {
    known: HashMap<String, Known>,
    order: VecDeque<String>,
}

/// What is known of one id.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) tokens: Tokens,
    is_used: bool,
}

/// The tokens of one observation.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens {
    /// Ends the observation with what there is.
    pub(super) yield_now: CancellationToken,
    /// Drops the observation.
    pub(super) cancel: CancellationToken,
    /// Cancelled when the observation is over.
    pub(super) is_over: CancellationToken,
}

impl Observations {
    /// The tokens for a new observation; `None` where its id was used before.
    pub(super) fn begin(&mut self, id: &str) -> Option<Tokens> {
        let known = self.entry(id);
        if std::mem::replace(&mut known.is_used, true) {
            return None;
        }
        Some(known.tokens.clone())
    }

    /// The tokens of an observation that is there or may come, and whether it has
    /// begun.
    pub(super) fn of(&mut self, id: &str) -> (Tokens, bool) {
        let known = self.entry(id);
        (known.tokens.clone(), known.is_used)
    }

    /// Forgets the oldest id whose observation does not run.
    fn forget_one(&mut self) {
        for _ in 0..self.order.len() {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            let runs = self
                .known
                .get(&oldest)
                .is_some_and(|known| known.is_used && !known.tokens.is_over.is_cancelled());
            if !runs {
                self.known.remove(&oldest);
                return;
            }
            self.order.push_back(oldest);
        }
    }

    fn entry(&mut self, id: &str) -> &mut Known {
        if !self.known.contains_key(id) {
            if self.order.len() >= REMEMBERED {
                self.forget_one();
            }
            self.order.push_back(id.to_owned());
        }
        self.known.entry(id.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_used_once_and_remembered_for_thousands_of_others() {
        let mut observations = Observations::default();
        let (asked, has_begun) = observations.of("a");
        asked.yield_now.cancel();
        assert!(!has_begun);
        let tokens = observations.begin("a").expect("new");
        assert!(tokens.yield_now.is_cancelled());
        let flood = |observations: &mut Observations| {
            for n in 0..2 * REMEMBERED {
                observations.of(&n.to_string());
            }
        };
        flood(&mut observations);
        // It runs.
        assert!(observations.begin("a").is_none());
        tokens.is_over.cancel();
        flood(&mut observations);
        assert!(observations.begin("a").is_some());
        assert!(observations.known.len() <= REMEMBERED);
    }
}
