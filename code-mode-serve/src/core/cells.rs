//! Cells that a client knows, and the requests about each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use code_mode_host::CellId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The cells of a session that are not closed. `D` is what a wire keeps of each.
#[derive(Debug)]
pub(crate) struct Cells<D>(Arc<Shared<D>>);

#[derive(Debug)]
struct Shared<D> {
    known: Mutex<HashMap<CellId, Cell<D>>>,
    /// Rung when a cell was added.
    added: Notify,
}

#[derive(Debug)]
struct Cell<D> {
    data: D,
    /// Requests whose answers are not on their way yet.
    requests: TaskTracker,
}

impl<D> Clone for Cells<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D> Default for Cells<D> {
    fn default() -> Self {
        Self(Arc::new(Shared {
            known: Mutex::default(),
            added: Notify::new(),
        }))
    }
}

impl<D> Cells<D> {
    fn known(&self) -> MutexGuard<'_, HashMap<CellId, Cell<D>>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cell was admitted. The request that started it holds the returned token until its
    /// answer is on its way.
    pub(crate) fn admitted(&self, id: CellId, data: D) -> TaskTrackerToken {
        let requests = TaskTracker::new();
        let token = requests.token();
        self.known().insert(id, Cell { data, requests });
        self.0.added.notify_waiters();
        token
    }

    /// A request about a cell, which holds the returned token until its answer is on its
    /// way; `None` where the cell does not exist.
    pub(crate) fn request(&self, id: &CellId) -> Option<TaskTrackerToken> {
        Some(self.known().get(id)?.requests.token())
    }

    /// Takes a cell that is closed, once every request about it is answered. The cell may be
    /// closed before it is known here; `gone` ends the wait for that.
    pub(crate) async fn closed(&self, id: &CellId, gone: &CancellationToken) -> Option<D> {
        let cell = loop {
            let added = self.0.added.notified();
            tokio::pin!(added);
            added.as_mut().enable();
            if let Some(cell) = self.known().remove(id) {
                break cell;
            }
            tokio::select! {
                () = added => {}
                () = gone.cancelled() => return None,
            }
        };
        cell.requests.close();
        cell.requests.wait().await;
        Some(cell.data)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_cell_is_closed_after_its_last_answer() {
        let (cells, gone) = (Cells::default(), CancellationToken::new());
        let id = CellId::nth(1);
        assert!(cells.request(&id).is_none());
        let first = cells.admitted(id.clone(), "data");
        let second = cells.request(&id).expect("known");
        let mut closed = Box::pin(cells.closed(&id, &gone));
        assert!(closed.as_mut().now_or_never().is_none());
        drop(first);
        assert!(closed.as_mut().now_or_never().is_none());
        drop(second);
        assert_eq!(closed.await, Some("data"));
    }

    #[tokio::test]
    async fn a_cell_may_be_closed_before_it_is_known() {
        let (cells, gone) = (Cells::default(), CancellationToken::new());
        let id = CellId::nth(1);
        let mut closed = Box::pin(cells.closed(&id, &gone));
        assert!(closed.as_mut().now_or_never().is_none());
        drop(cells.admitted(id.clone(), ()));
        assert_eq!(closed.await, Some(()));
        gone.cancel();
        assert_eq!(cells.closed(&id, &gone).await, None);
    }
}
