//! Observations that a client can end by an id.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use tokio_util::sync::CancellationToken;

/// How many ids of each kind are remembered.
const REMEMBERED: usize = 4096;

/// Ids that a client has used, each with the tokens of its observation. An id that is
/// asked about before it is used is remembered too.
#[derive(Debug)]
pub(crate) struct Observations<K> {
    known: HashMap<K, Known>,
    order: VecDeque<K>,
}

impl<K> Default for Observations<K> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            order: VecDeque::new(),
        }
    }
}

/// The state of one id.
#[derive(Clone, Debug, Default)]
struct Known {
    tokens: Tokens,
    is_used: bool,
}

/// The tokens of one observation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens {
    /// Ends the observation with what there is.
    pub(crate) yield_now: CancellationToken,
    /// Drops the observation.
    pub(crate) cancel: CancellationToken,
    /// Cancelled when the observation is over.
    pub(crate) is_over: CancellationToken,
}

/// Marks an observation as over when its request ends, however it ends.
#[derive(Debug)]
pub(crate) struct Over(pub(crate) Tokens);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.is_over.cancel();
    }
}

impl<K: Clone + Eq + Hash> Observations<K> {
    /// The tokens for a new observation; `None` where its id was used before.
    pub(crate) fn begin(&mut self, id: &K) -> Option<Tokens> {
        let known = self.entry(id);
        if std::mem::replace(&mut known.is_used, true) {
            return None;
        }
        Some(known.tokens.clone())
    }

    /// The tokens of an observation that is there or may come, and whether it has
    /// begun.
    pub(crate) fn of(&mut self, id: &K) -> (Tokens, bool) {
        let known = self.entry(id);
        (known.tokens.clone(), known.is_used)
    }

    /// The tokens of an observation that has begun.
    pub(crate) fn begun(&self, id: &K) -> Option<Tokens> {
        let known = self.known.get(id).filter(|known| known.is_used)?;
        Some(known.tokens.clone())
    }

    /// Forgets an observation that is over, where its id cannot be used again.
    pub(crate) fn forget(&mut self, id: &K) {
        self.known.remove(id);
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

    fn entry(&mut self, id: &K) -> &mut Known {
        if !self.known.contains_key(id) {
            if self.order.len() >= REMEMBERED {
                self.forget_one();
            }
            self.order.push_back(id.clone());
        }
        self.known.entry(id.clone()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_used_once_and_remembered_for_thousands_of_others() {
        let mut observations = Observations::<String>::default();
        let a = "a".to_owned();
        let (asked, has_begun) = observations.of(&a);
        asked.yield_now.cancel();
        assert!(!has_begun);
        let tokens = observations.begin(&a).expect("new");
        assert!(tokens.yield_now.is_cancelled());
        let flood = |observations: &mut Observations<String>| {
            for n in 0..2 * REMEMBERED {
                observations.of(&n.to_string());
            }
        };
        flood(&mut observations);
        // It runs.
        assert!(observations.begin(&a).is_none());
        tokens.is_over.cancel();
        flood(&mut observations);
        assert!(observations.begin(&a).is_some());
        assert!(observations.known.len() <= REMEMBERED);
    }
}
