//! Reports to the observers of a session.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use code_mode_protocol::{CellEnded, CellId, Observers, SessionObserver};
use futures::FutureExt;
use futures::future::join_all;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Calls all observers at the same time, and waits for them. A panic of one has no effect.
pub(super) async fn tell<'a, T>(
    observers: &'a Observers,
    told: impl Fn(&'a dyn SessionObserver) -> T,
) where
    T: Future<Output = ()> + 'a,
{
    if observers.is_empty() {
        return;
    }
    let all = observers
        .iter()
        .map(|one| AssertUnwindSafe(told(&**one)).catch_unwind());
    if join_all(all).await.iter().any(Result::is_err) {
        tracing::warn!("an observer of a session panicked");
    }
}

/// The observers of a session, and the reports of ended cells that are still running.
#[derive(Default)]
pub(super) struct Told {
    pub(super) observers: Arc<Observers>,
    endings: Mutex<HashMap<CellId, JoinHandle<()>>>,
}

impl Told {
    pub(super) fn new(observers: Observers) -> Self {
        Self {
            observers: Arc::new(observers),
            endings: Mutex::default(),
        }
    }

    /// Begins to report a cell's end.
    pub(super) fn cell_ended(&self, cell: &CellEnded, runtime: &Handle) {
        if self.observers.is_empty() {
            return;
        }
        let (observers, ended) = (self.observers.clone(), cell.clone());
        let telling = runtime.spawn(async move {
            tell(&observers, |one| one.cell_ended(&ended)).await;
        });
        let mut endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        endings.insert(cell.cell_id.clone(), telling);
    }

    /// Waits for the reports of a cell's end.
    pub(super) async fn end_was_told(&self, cell: &CellId) {
        let telling = {
            let mut endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
            endings.remove(cell)
        };
        if let Some(telling) = telling {
            let _ = telling.await;
        }
    }
}
