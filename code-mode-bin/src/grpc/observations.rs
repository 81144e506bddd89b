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

    fn entry(&mut self, id: &str) -> &mut Known {
        if !self.known.contains_key(id) {
            if self.order.len() >= REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
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
        assert!(observations.begin("a").is_none());
        for n in 0..REMEMBERED {
            observations.begin(&n.to_string());
        }
        assert!(observations.begin("a").is_some());
    }
}
