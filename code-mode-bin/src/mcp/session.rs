//! A client's session: its cells, what was allowed in it, its stored values.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use code_mode_host::{CodeModeSession, Json};

use super::calls::CellDelegate;
use super::cell::CellRecord;
use super::store::Store;

/// Ended cells that are still known, so that a late `wait` hears of their end.
const ENDED_KEPT: usize = 64;

pub(super) struct FrontSession {
    /// Random; a client of the stateless era hands it back.
    pub(super) handle: String,
    pub(super) session: Arc<dyn CodeModeSession>,
    delegate: Arc<CellDelegate>,
    cells: Mutex<Cells>,
    used: Mutex<Instant>,
    /// As the store has them.
    stored: Mutex<HashMap<String, Json>>,
}

#[derive(Default)]
struct Cells {
    /// By their handles, and by their ids.
    by_name: HashMap<String, Arc<CellRecord>>,
    order: VecDeque<Arc<CellRecord>>,
}

/// What a person allowed for a session: the tools, as they were then.
#[derive(Default)]
pub(super) struct Allowed(Mutex<HashSet<(String, String, String)>>);

impl Allowed {
    pub(super) fn has(&self, server: &str, tool: &str, definition: &str) -> bool {
        let allowed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.contains(&(server.to_owned(), tool.to_owned(), definition.to_owned()))
    }

    pub(super) fn add(&self, server: &str, tool: &str, definition: &str) {
        let mut allowed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.insert((server.to_owned(), tool.to_owned(), definition.to_owned()));
    }
}

impl FrontSession {
    pub(super) fn new(
        session: Arc<dyn CodeModeSession>,
        delegate: Arc<CellDelegate>,
        stored: Vec<(String, Json)>,
    ) -> Arc<Self> {
        let session = Arc::new(Self {
            handle: uuid::Uuid::new_v4().simple().to_string(),
            session,
            delegate,
            cells: Mutex::default(),
            used: Mutex::new(Instant::now()),
            stored: Mutex::new(stored.into_iter().collect()),
        });
        session.delegate.belongs_to(&session);
        session
    }

    fn cells(&self) -> MutexGuard<'_, Cells> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session is used.
    pub(super) fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether a cell of it runs.
    pub(super) fn is_busy(&self) -> bool {
        !self.session.live_cells().is_empty()
    }

    pub(super) fn last_used(&self) -> Instant {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn delegate(&self) -> &Arc<CellDelegate> {
        &self.delegate
    }

    /// Whether nobody has used it for so long, and nothing runs in it.
    pub(super) fn is_idle_since(&self, now: Instant, time: Duration) -> bool {
        now.saturating_duration_since(self.last_used()) >= time && !self.is_busy()
    }

    /// Makes a cell known by a name.
    pub(super) fn know(&self, name: String, record: &Arc<CellRecord>) {
        let mut cells = self.cells();
        if !cells.order.iter().any(|known| Arc::ptr_eq(known, record)) {
            cells.order.push_back(record.clone());
        }
        cells.by_name.insert(name, record.clone());
        let ended = cells.order.iter().filter(|cell| cell.has_ended()).count();
        if ended > ENDED_KEPT
            && let Some(at) = cells.order.iter().position(|cell| cell.has_ended())
        {
            let gone = cells.order.remove(at);
            cells
                .by_name
                .retain(|_, cell| !gone.as_ref().is_some_and(|gone| Arc::ptr_eq(gone, cell)));
        }
    }

    /// The cell of a name.
    pub(super) fn cell(&self, name: &str) -> Option<Arc<CellRecord>> {
        self.cells().by_name.get(name).cloned()
    }

    /// Keeps what the session has stored.
    pub(super) fn save(&self, store: &Store) {
        let mut known = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = store.write(self.session.stored_values(), &mut known) {
            tracing::warn!(%error, "stored values cannot be kept");
        }
    }
}
