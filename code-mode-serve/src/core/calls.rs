//! Callbacks on their way to a client.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::pin::pin;

use futures::FutureExt;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// How many answered calls are remembered, so that a second answer does not count as an error.
const REMEMBERED: usize = 4096;

/// Waits for the capacity that a call needs; `None` where the call is cancelled meanwhile.
///
/// A call whose cell has ended before is sent all the same where there is room for it at
/// once: the client sees what the cell did, and that the call is cancelled. A call that had
/// to wait is dropped.
pub(crate) async fn at_once_or_wanted<T>(
    capacity: impl Future<Output = T>,
    cancelled: &CancellationToken,
) -> Option<T> {
    let mut capacity = pin!(capacity);
    if let Some(capacity) = capacity.as_mut().now_or_never() {
        return Some(capacity);
    }
    tokio::select! {
        biased;
        () = cancelled.cancelled() => None,
        capacity = capacity => Some(capacity),
    }
}

/// Calls that a client has and has not answered, by their ids. `D` is what a wire keeps of
/// each.
#[derive(Debug)]
pub(crate) struct PendingCalls<K, A, D = ()> {
    waiting: HashMap<K, (D, oneshot::Sender<A>)>,
    answered: VecDeque<K>,
}

impl<K, A, D> Default for PendingCalls<K, A, D> {
    fn default() -> Self {
        Self {
            waiting: HashMap::new(),
            answered: VecDeque::new(),
        }
    }
}

impl<K: Copy + Eq + Hash, A, D> PendingCalls<K, A, D> {
    /// A call is about to be sent; returns where its answer comes.
    pub(crate) fn begin(&mut self, id: K, data: D) -> oneshot::Receiver<A> {
        let (sender, answer) = oneshot::channel();
        self.waiting.insert(id, (data, sender));
        answer
    }

    /// The client answered. An answer that no call waits for is ignored.
    pub(crate) fn answer(&mut self, id: K, answer: A) {
        if let Some((_, waiting)) = self.waiting.remove(&id) {
            self.remember(id);
            let _ = waiting.send(answer);
        }
    }

    /// The answer is no longer wanted; whether the call was still without one.
    pub(crate) fn forget(&mut self, id: K) -> bool {
        let was_waiting = self.waiting.remove(&id).is_some();
        if was_waiting {
            self.remember(id);
        }
        was_waiting
    }

    /// Whether there is such a call, or was one not long ago.
    pub(crate) fn knows(&self, id: K) -> bool {
        self.waiting.contains_key(&id) || self.answered.contains(&id)
    }

    /// The calls that wait for an answer.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &D> {
        self.waiting.values().map(|(data, _)| data)
    }

    fn remember(&mut self, id: K) {
        if self.answered.len() >= REMEMBERED {
            self.answered.pop_front();
        }
        self.answered.push_back(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_answered_once_and_known_for_thousands_of_others() {
        let mut calls = PendingCalls::<u32, &str>::default();
        let mut answer = calls.begin(1, ());
        calls.answer(1, "first");
        calls.answer(1, "second");
        assert_eq!(answer.try_recv(), Ok("first"));
        assert!(calls.knows(1) && !calls.knows(2));
        assert!(!calls.forget(1), "it was answered");
        for id in 2..2 + REMEMBERED as u32 {
            drop(calls.begin(id, ()));
            assert!(calls.forget(id));
        }
        assert!(!calls.knows(1));
        assert_eq!(calls.waiting().count(), 0);
    }

    #[tokio::test]
    async fn a_call_with_room_is_sent_although_it_is_cancelled() {
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        assert_eq!(at_once_or_wanted(async { 1 }, &cancelled).await, Some(1));
        let never = std::future::pending::<u8>();
        assert_eq!(at_once_or_wanted(never, &cancelled).await, None);
    }
}
