//! Changes of the tools, announced to a client that has seen others.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::tools::Tools;

/// The least time between an answer with tools and an announcement of others. Some clients list
/// and leave, and an announcement in between fails them.
const QUIET: Duration = Duration::from_secs(1);

/// The tools that a client was shown last, and when.
#[derive(Default)]
pub(super) struct Shown(Mutex<Option<(Arc<Tools>, Instant)>>);

impl Shown {
    fn last(&self) -> MutexGuard<'_, Option<(Arc<Tools>, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client gets these tools now.
    pub(super) fn set(&self, tools: Arc<Tools>) {
        *self.last() = Some((tools, Instant::now()));
    }
}

/// Changes of what a client was shown.
pub(super) struct Changes {
    now: watch::Receiver<Arc<Tools>>,
    shown: Arc<Shown>,
}

impl Changes {
    /// Changes against what the client was shown last. A client that has not listed yet will ask.
    pub(super) fn of(broker: &Broker, shown: Arc<Shown>) -> Self {
        let now = broker.tools_changes();
        Self { now, shown }
    }

    /// Changes from now on.
    pub(super) fn from_now_on(broker: &Broker) -> Self {
        let shown = Shown::default();
        shown.set(broker.tools());
        Self::of(broker, Arc::new(shown))
    }

    /// Waits for the next change; false where there will be none.
    pub(super) async fn next(&mut self) -> bool {
        loop {
            let now = self.now.borrow_and_update().clone();
            let last = self.shown.last().clone();
            match last {
                Some((shown, at)) if !now.shows_the_same_as(&shown) => {
                    let left = QUIET.saturating_sub(at.elapsed());
                    if left.is_zero() {
                        self.shown.set(now);
                        return true;
                    }
                    // The client may ask meanwhile, or the tools change again.
                    tokio::time::sleep(left).await;
                }
                _ => {
                    if self.now.changed().await.is_err() {
                        return false;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::upstream::scripted::{Script, broker};

    #[tokio::test(start_paused = true)]
    async fn only_what_a_client_has_not_seen_is_announced_and_never_right_after_an_answer() {
        let script = Script::echo(&["a"]);
        let broker = broker(vec![script.server("s")], "{}", None).await;
        let shown = Arc::new(Shown::default());
        let mut changes = Changes::of(&broker, shown.clone());
        let soon =
            |changes: &mut Changes| futures::FutureExt::now_or_never(changes.next()).is_some();
        assert!(!soon(&mut changes), "the client has asked for nothing");
        shown.set(broker.tools());
        assert!(!soon(&mut changes), "the client has seen it");
        script.set_tools(json!([{"name": "a"}, {"name": "b"}]));
        script.announce();
        let before = Instant::now();
        assert!(changes.next().await);
        assert!(before.elapsed() >= QUIET);
        assert!(!soon(&mut changes), "announced once");
        broker.end().await;
    }
}
