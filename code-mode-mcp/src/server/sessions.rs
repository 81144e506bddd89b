//! The sessions of all clients.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use code_mode_host::{Provider, SessionError, SessionOptions};
use tokio::sync::Notify;

use super::cell::{Cell, CellKey};
use super::delegate::SessionDelegate;
use super::session::{KnownCells, Saving, Session, name_in_records};
use super::store::Store;
use crate::broker::Broker;

/// A session of the stateless era that nobody uses is closed after so long, with what runs in it.
const IDLE: Duration = Duration::from_secs(30 * 60);
/// A program that nobody has asked about for so long makes room for another session.
const ABANDONED: Duration = Duration::from_secs(60);
/// How often idle sessions are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// Sessions at the same time: each has a process while a program runs in it.
const MAX_SESSIONS: usize = 256;

/// Opens sessions, and finds those that clients name by a handle.
pub(crate) struct Sessions {
    broker: Arc<Broker>,
    provider: Arc<Provider>,
    store: Option<Store>,
    /// Sessions of the stateless era, by their handles. Others belong to a connection.
    stateless: Mutex<HashMap<String, Arc<Session>>>,
    /// Every session, to count them and to save their values at the end.
    all: Mutex<Vec<Weak<Session>>>,
}

impl Sessions {
    pub(crate) fn new(
        broker: Arc<Broker>,
        provider: Arc<Provider>,
        store: Option<Store>,
    ) -> Arc<Self> {
        let sessions = Arc::new(Self {
            broker: broker.clone(),
            provider,
            store,
            stateless: Mutex::default(),
            all: Mutex::default(),
        });
        let sweeping = sweep(Arc::downgrade(&sessions));
        tokio::spawn(broker.shutdown.clone().run_until_cancelled_owned(sweeping));
        sessions
    }

    /// What sessions are made of: for others beside these.
    #[cfg(unix)]
    pub(crate) fn sources(&self) -> (Arc<Provider>, Option<Store>) {
        (self.provider.clone(), self.store.clone())
    }

    fn stateless(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.stateless
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> MutexGuard<'_, Vec<Weak<Session>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session. Where there are too many, the one that nobody has used for the longest
    /// time is closed: one without a running program, or else one that was abandoned.
    pub(crate) async fn open(&self) -> Result<Arc<Session>, OpenError> {
        let sessions = self.known();
        if sessions.len() >= MAX_SESSIONS {
            let unused = unused(&sessions, Instant::now()).ok_or(OpenError::TooMany)?;
            self.stateless().remove(&unused.handle);
            unused.cells.shutdown().await;
        }
        drop(sessions);
        let stored = self.store.as_ref().map(Store::read).unwrap_or_default();
        let handle = uuid::Uuid::new_v4().simple().to_string();
        let (known, closed) = (Arc::<KnownCells>::default(), Arc::new(Notify::new()));
        let delegate = SessionDelegate {
            broker: self.broker.clone(),
            session: name_in_records(&handle),
            known: known.clone(),
            closed: closed.clone(),
        };
        let options = SessionOptions::default()
            .guided(true)
            .check_inputs(true)
            .stored(stored.clone());
        let cells = self
            .provider
            .open_session(Arc::new(delegate), options)
            .await?;
        let saving = self
            .store
            .clone()
            .map(|store| Arc::new(Saving::new(store, stored)));
        let is_saved = saving.is_some();
        let session = Session::new(handle, cells, known, saving);
        if is_saved {
            let saving = save_when_closed(Arc::downgrade(&session), closed);
            tokio::spawn(
                self.broker
                    .shutdown
                    .clone()
                    .run_until_cancelled_owned(saving),
            );
        }
        self.all().push(Arc::downgrade(&session));
        Ok(session)
    }

    /// Every session that is alive.
    fn known(&self) -> Vec<Arc<Session>> {
        let mut all = self.all();
        all.retain(|known| known.strong_count() > 0);
        let known = all.iter().filter_map(Weak::upgrade);
        known.filter(|session| session.cells.is_alive()).collect()
    }

    /// Opens a session that a client of the stateless era finds again by its handle.
    pub(crate) async fn open_stateless(&self) -> Result<Arc<Session>, OpenError> {
        let session = self.open().await?;
        self.stateless()
            .insert(session.handle.clone(), session.clone());
        Ok(session)
    }

    /// The session of a handle, of the stateless era.
    pub(crate) fn by_handle(&self, handle: &str) -> Option<Arc<Session>> {
        self.stateless().get(handle).cloned()
    }

    /// The cell of a key, in whatever session of the stateless era.
    pub(crate) fn cell(&self, key: &CellKey) -> Option<(Arc<Session>, Arc<Cell>)> {
        let sessions = self.stateless();
        sessions
            .values()
            .find_map(|session| Some((session.clone(), session.known.by_key(key)?)))
    }

    /// Ends every session; the stored values are saved.
    pub(crate) async fn end(&self) {
        let sessions: Vec<_> = self.all().iter().filter_map(Weak::upgrade).collect();
        self.stateless().clear();
        self.provider.shutdown().await;
        sessions.iter().for_each(|session| session.save());
    }

    fn close_idle(&self) {
        let now = Instant::now();
        // A person who answers later finds the program that asked.
        let idle = IDLE.max(self.broker.policy.answer_time());
        let closed: Vec<Arc<Session>> = {
            let mut sessions = self.stateless();
            let idle: Vec<String> = sessions
                .values()
                .filter(|session| session.unused_for(now).is_some_and(|time| time >= idle))
                .map(|session| session.handle.clone())
                .collect();
            idle.iter()
                .filter_map(|handle| sessions.remove(handle))
                .collect()
        };
        // Dropped outside the lock: their workers end.
        drop(closed);
    }
}

/// The session that may be closed for another one.
fn unused(sessions: &[Arc<Session>], now: Instant) -> Option<&Arc<Session>> {
    let unused = sessions.iter().filter_map(|session| {
        let time = session.unused_for(now)?;
        let is_busy = session.open_cells() > 0;
        (!is_busy || time >= ABANDONED).then_some((session, (!is_busy, time)))
    });
    let longest = unused.max_by_key(|(_, why)| *why);
    longest.map(|(session, _)| session)
}

/// Why a session cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{MAX_SESSIONS} sessions have running programs: use one by its session_id")]
    TooMany,
    #[error(transparent)]
    Session(#[from] SessionError),
}

async fn sweep(sessions: Weak<Sessions>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        match sessions.upgrade() {
            Some(sessions) => sessions.close_idle(),
            None => return,
        }
    }
}

/// Saves the values of a session whenever a cell was closed.
async fn save_when_closed(session: Weak<Session>, closed: Arc<Notify>) {
    loop {
        closed.notified().await;
        match session.upgrade() {
            Some(session) => session.save(),
            None => return,
        }
    }
}
