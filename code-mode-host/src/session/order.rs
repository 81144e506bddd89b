//! The order in which the calls of a cell reach the delegate.

use tokio::sync::oneshot;

/// The latest call of a cell, which the next one follows.
#[derive(Debug, Default)]
pub(super) struct CallOrder(Option<oneshot::Receiver<()>>);

impl CallOrder {
    /// The place of the next call.
    pub(super) fn next(&mut self) -> Place {
        let (begun, next) = oneshot::channel();
        Place {
            before: self.0.replace(next),
            _begun: begun,
        }
    }
}

/// A call's place among the calls of its cell. Dropped when the call has begun, or never will.
#[derive(Debug)]
pub(super) struct Place {
    before: Option<oneshot::Receiver<()>>,
    /// Tells the next call when it is dropped.
    _begun: oneshot::Sender<()>,
}

impl Place {
    /// Waits until the call before has begun.
    pub(super) async fn comes(&mut self) {
        if let Some(before) = self.before.take() {
            let _ = before.await;
        }
    }
}
