//! A client's session: its cells, approvals and stored values.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use code_mode_host::{CellId, Json};
use sha2::{Digest, Sha256};

use super::cell::{Cell, CellKey};
use super::kept::MAX_KEPT;
use super::store::Store;
use crate::caller::Approvals;
use crate::texts::hex;

/// Ended cells that are still known, so that a late `wait` finds their end.
const ENDED_KEPT: usize = 64;

/// A session of a client over the provider's session.
pub(crate) struct Session {
    /// Random; a client of the stateless era sends it back.
    pub(crate) handle: String,
    pub(crate) cells: code_mode_host::Session,
    pub(crate) known: Arc<KnownCells>,
    use_: Mutex<Use>,
    store: Option<Arc<Saving>>,
}

/// The name of a session in records. Its handle would let a reader of the records use it.
pub(crate) fn name_in_records(handle: &str) -> String {
    hex(&Sha256::digest(handle.as_bytes())[..8])
}

/// Who uses a session.
struct Use {
    /// Requests that observe a cell of it.
    observers: usize,
    /// When the last request came or ended.
    last: Instant,
}

/// A request that observes a cell of a session, until it is dropped.
pub(crate) struct Observing(Arc<Session>);

impl Drop for Observing {
    fn drop(&mut self) {
        let mut use_ = self.0.use_();
        use_.observers -= 1;
        use_.last = Instant::now();
    }
}

/// What a session and its delegate know of its cells.
#[derive(Default)]
pub(crate) struct KnownCells {
    pub(crate) approvals: Approvals,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    by_key: HashMap<CellKey, Arc<Cell>>,
    by_id: HashMap<CellId, Arc<Cell>>,
    order: VecDeque<Arc<Cell>>,
}

/// A folder of stored values, and what it has.
pub(crate) struct Saving {
    store: Store,
    known: Mutex<HashMap<String, Json>>,
}

impl Saving {
    pub(crate) fn new(store: Store, values: Vec<(String, Json)>) -> Self {
        Self {
            store,
            known: Mutex::new(values.into_iter().collect()),
        }
    }

    pub(crate) fn save(&self, values: Vec<(String, Json)>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.store.write(values, &mut known) {
            tracing::warn!(%error, "stored values cannot be kept");
        }
    }
}

impl Session {
    pub(crate) fn new(
        handle: String,
        cells: code_mode_host::Session,
        known: Arc<KnownCells>,
        store: Option<Arc<Saving>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            handle,
            cells,
            known,
            use_: Mutex::new(Use {
                observers: 0,
                last: Instant::now(),
            }),
            store,
        })
    }

    fn use_(&self) -> MutexGuard<'_, Use> {
        self.use_.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session is used.
    pub(crate) fn touch(&self) {
        self.use_().last = Instant::now();
    }

    /// A request observes a cell of it.
    pub(crate) fn observe(self: &Arc<Self>) -> Observing {
        self.use_().observers += 1;
        Observing(self.clone())
    }

    /// Its cells that run, or have not begun.
    pub(crate) fn open_cells(&self) -> usize {
        self.cells.live_cells().len() + self.known.not_begun()
    }

    /// How long nobody has used it; `None` while somebody does.
    pub(crate) fn unused_for(&self, now: Instant) -> Option<Duration> {
        let use_ = self.use_();
        (use_.observers == 0).then(|| now.saturating_duration_since(use_.last))
    }

    /// Keeps what the session has stored, where there is a store.
    pub(crate) fn save(&self) {
        if let Some(store) = &self.store {
            store.save(self.cells.stored_values());
        }
    }
}

impl KnownCells {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a cell known. The oldest that has ended is forgotten where there are many.
    pub(crate) fn add(&self, cell: &Arc<Cell>) {
        let mut state = self.state();
        state.by_key.insert(cell.key.clone(), cell.clone());
        state.order.push_back(cell.clone());
        let ended = state.order.iter().filter(|cell| cell.has_ended()).count();
        if ended > ENDED_KEPT
            && let Some(at) = state.order.iter().position(|cell| cell.has_ended())
            && let Some(gone) = state.order.remove(at)
        {
            state.by_key.remove(&gone.key);
            if let Some(id) = gone.id() {
                state.by_id.remove(id);
            }
        }
    }

    /// Forgets the outputs of the oldest cells where more is kept than may be.
    pub(crate) fn bound_outputs(&self) {
        let state = self.state();
        let mut bytes: usize = state.order.iter().map(|cell| cell.output_bytes()).sum();
        for cell in &state.order {
            if bytes <= MAX_KEPT {
                return;
            }
            bytes -= cell.output_bytes();
            cell.forget_output();
        }
    }

    /// Every output that is kept, by the name that `name` gives to a cell.
    pub(crate) fn outputs(&self, name: impl Fn(&Cell) -> String) -> Vec<(String, String)> {
        let state = self.state();
        let begun = state.order.iter().filter(|cell| cell.id().is_some());
        begun
            .filter_map(|cell| Some((name(cell), cell.output()?)))
            .collect()
    }

    /// How many of its programs have not begun.
    fn not_begun(&self) -> usize {
        let state = self.state();
        let waiting = state.order.iter().filter(|cell| cell.program().is_some());
        waiting.count()
    }

    /// A cell was admitted with this id.
    pub(crate) fn admitted(&self, key: &CellKey, id: CellId) {
        let mut state = self.state();
        if let Some(cell) = state.by_key.get(key).cloned() {
            cell.admitted(id.clone());
            state.by_id.insert(id, cell);
        }
    }

    /// The cells whose end was not reported yet, the oldest first.
    pub(crate) fn unanswered(&self) -> Vec<Arc<Cell>> {
        let state = self.state();
        let cells = state.order.iter();
        cells
            .filter(|cell| cell.last_words().is_none())
            .cloned()
            .collect()
    }

    /// The cell of a key.
    pub(crate) fn by_key(&self, key: &CellKey) -> Option<Arc<Cell>> {
        self.state().by_key.get(key).cloned()
    }

    /// The cell of an id of this session.
    pub(crate) fn by_id(&self, id: &CellId) -> Option<Arc<Cell>> {
        self.state().by_id.get(id).cloned()
    }
}
