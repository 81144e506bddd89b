//! The sessions of all clients.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use code_mode_host::{
    JournalError, JournaledSession, Json, Provider, SessionError, SessionOptions,
};
use tokio::sync::Notify;

use super::cell::{Cell, CellKey};
use super::delegate::SessionDelegate;
use super::durable::DurableFolder;
use super::session::{KnownCells, Saving, Session, name_in_records};
use super::store::Store;
use crate::broker::Broker;
use crate::kept_question::QuestionKeeper;

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
    durable: Option<DurableFolder>,
    /// Sessions of the stateless era and durable ones, by their handles. Others belong to a connection.
    stateless: Mutex<HashMap<String, Arc<Session>>>,
    /// The cells of durable sessions that nobody has asked for yet, and in which no program runs.
    ended: Mutex<HashMap<CellKey, String>>,
    /// One at a time opens a durable session again.
    reopening: tokio::sync::Mutex<()>,
    /// Every session, to count them and to save their values at the end.
    all: Mutex<Vec<Weak<Session>>>,
}

impl Sessions {
    pub(crate) fn new(
        broker: Arc<Broker>,
        provider: Arc<Provider>,
        store: Option<Store>,
        durable: Option<DurableFolder>,
    ) -> Arc<Self> {
        let sessions = Arc::new(Self {
            broker: broker.clone(),
            provider,
            store,
            durable,
            stateless: Mutex::default(),
            ended: Mutex::default(),
            reopening: tokio::sync::Mutex::default(),
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
            let unused = unused(&sessions, Instant::now());
            let may_close = |session: &&Arc<Session>| !self.is_waited_for(session);
            let unused = unused.filter(may_close).ok_or(OpenError::TooMany)?;
            self.stateless().remove(&unused.handle);
            self.leave(unused);
            unused.cells.shutdown().await;
        }
        drop(sessions);
        let stored = self.store.as_ref().map(Store::read).unwrap_or_default();
        let handle = uuid::Uuid::new_v4().simple().to_string();
        let (known, closed) = (Arc::<KnownCells>::default(), Arc::new(Notify::new()));
        let delegate = self.delegate(&handle, &known, &closed);
        let options = SessionOptions::default()
            .guided(true)
            .check_inputs(true)
            .stored(stored.clone());
        let (provider, durable) = (&self.provider, self.durable.as_ref());
        let cells = match durable.map(DurableFolder::journal) {
            Some(journal) => {
                let opened = provider.open_durable(journal, &handle, delegate, options);
                opened.await?
            }
            None => provider.open_session(delegate, options).await?,
        };
        Ok(self.opened(handle, cells, (known, closed), stored))
    }

    fn delegate(
        &self,
        handle: &str,
        known: &Arc<KnownCells>,
        closed: &Arc<Notify>,
    ) -> Arc<SessionDelegate> {
        let journal = self.durable.as_ref().map(DurableFolder::journal);
        let keeper = journal.map(|journal| QuestionKeeper::new(journal.clone(), handle));
        Arc::new(SessionDelegate {
            broker: self.broker.clone(),
            session: name_in_records(handle),
            known: known.clone(),
            closed: closed.clone(),
            keeper,
        })
    }

    /// Adds a session to those that are known.
    fn opened(
        &self,
        handle: String,
        cells: code_mode_host::Session,
        (known, closed): (Arc<KnownCells>, Arc<Notify>),
        stored: Vec<(String, Json)>,
    ) -> Arc<Session> {
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
        if self.durable.is_some() {
            self.keep(&session);
        }
        session
    }

    /// Keeps a session that clients find again by its handle.
    fn keep(&self, session: &Arc<Session>) {
        let handle = session.handle.clone();
        self.stateless().insert(handle, session.clone());
    }

    /// How a person answers the questions of durable programs from another terminal.
    pub(crate) fn way_to_answer(&self) -> Option<String> {
        self.durable.as_ref().map(DurableFolder::way_to_answer)
    }

    /// Whether sessions outlive their clients.
    pub(crate) fn are_durable(&self) -> bool {
        self.durable.is_some()
    }

    /// Continues the durable sessions in which programs run, or have ended without anybody taking that.
    pub(crate) async fn resume(&self) {
        let Some(folder) = &self.durable else {
            return;
        };
        let journal = folder.journal().clone();
        let found = tokio::task::spawn_blocking(move || journal.sessions()).await;
        let found = found.unwrap_or_else(|error| Err(JournalError::Storage(error.to_string())));
        let sessions = match found {
            Ok(sessions) => sessions,
            Err(error) => return tracing::warn!(%error, "durable sessions cannot be read"),
        };
        for session in sessions {
            let is_running = session.cells.iter().any(|cell| cell.outcome.is_none());
            if !is_running {
                let keys = session.cells.iter();
                let keys = keys.map(|cell| CellKey::from(cell.tool_call_id.as_str()));
                self.ended()
                    .extend(keys.map(|key| (key, session.name.clone())));
            } else if let Err(error) = self.resume_one(folder, &session).await {
                tracing::warn!(%error, "a durable session does not continue");
            }
        }
    }

    /// Remembers the results in a durable session that nobody has taken, before it is closed.
    fn leave(&self, session: &Session) {
        if self.are_durable() {
            let cells = session.known.unanswered().into_iter();
            let keys = cells.map(|cell| (cell.key.clone(), session.handle.clone()));
            self.ended().extend(keys);
        }
    }

    fn ended(&self) -> MutexGuard<'_, HashMap<CellKey, String>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn resume_one(
        &self,
        folder: &DurableFolder,
        journaled: &JournaledSession,
    ) -> Result<Arc<Session>, SessionError> {
        let handle = &journaled.name;
        let (known, closed) = (Arc::<KnownCells>::default(), Arc::new(Notify::new()));
        for cell in &journaled.cells {
            known.add(&Arc::new(Cell::of_another_process(&cell.tool_call_id)));
        }
        let delegate = self.delegate(handle, &known, &closed);
        let cells = self
            .provider
            .resume(folder.journal(), handle, delegate)
            .await?;
        let stored = cells.stored_values();
        Ok(self.opened(handle.clone(), cells, (known, closed), stored))
    }

    /// A durable session that was closed because nobody used it.
    async fn reopened(&self, handle: &str) -> Option<Arc<Session>> {
        let folder = self.durable.as_ref()?;
        let _reopening = self.reopening.lock().await;
        // Another request may have opened it meanwhile.
        let kept = self.kept(handle);
        if kept.is_some() {
            return kept;
        }
        let (journal, name) = (folder.journal().clone(), handle.to_owned());
        let found = tokio::task::spawn_blocking(move || journal.session(&name)).await;
        self.resume_one(folder, &found.ok()?.ok()?).await.ok()
    }

    /// A session of a handle, where it is open.
    fn kept(&self, handle: &str) -> Option<Arc<Session>> {
        self.stateless().get(handle).cloned()
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
        self.keep(&session);
        Ok(session)
    }

    /// The session of a handle, of the stateless era.
    pub(crate) async fn by_handle(&self, handle: &str) -> Option<Arc<Session>> {
        match self.kept(handle) {
            Some(session) => Some(session),
            None => self.reopened(handle).await,
        }
    }

    /// The cell of a key, in whatever session of the stateless era.
    pub(crate) async fn cell(&self, key: &CellKey) -> Option<(Arc<Session>, Arc<Cell>)> {
        let known = {
            let sessions = self.stateless();
            sessions
                .values()
                .find_map(|session| Some((session.clone(), session.known.by_key(key)?)))
        };
        if known.is_some() {
            return known;
        }
        let handle = self.ended().get(key).cloned()?;
        let session = self.by_handle(&handle).await?;
        let cell = session.known.by_key(key)?;
        self.ended().remove(key);
        Some((session, cell))
    }

    /// Ends every session; the stored values are saved.
    pub(crate) async fn end(&self) {
        let sessions: Vec<_> = self.all().iter().filter_map(Weak::upgrade).collect();
        self.stateless().clear();
        self.provider.shutdown().await;
        sessions.iter().for_each(|session| session.save());
    }

    /// Whether a session has programs that outlive their clients.
    fn is_waited_for(&self, session: &Session) -> bool {
        self.are_durable() && session.open_cells() > 0
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
                .filter(|session| !self.is_waited_for(session))
                .map(|session| session.handle.clone())
                .collect();
            idle.iter()
                .filter_map(|handle| sessions.remove(handle))
                .collect()
        };
        closed.iter().for_each(|session| self.leave(session));
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
