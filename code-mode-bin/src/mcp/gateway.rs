//! What all clients of one `code-mode mcp` share: servers, tools, policy, sessions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use code_mode_host::{CodeModeSessionProvider, Provider, SessionError, SessionOptions};
use futures::future::BoxFuture;
use rmcp::model::{ElicitRequestParams, ElicitResult};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::calls::CellDelegate;
use super::catalogue::Catalogue;
use super::cell::CellRecord;
use super::config::Server;
use super::ledger::LedgerFile;
use super::policy::{Pattern, Policy};
use super::seal::Seal;
use super::secrets::Secrets;
use super::session::FrontSession;
use super::store::Store;
use super::upstream::{Answers, Ears, Status, Upstream, nobody};

/// How long the first listing of tools waits for the servers.
const FIRST_LISTING: Duration = Duration::from_secs(4);
/// Clients are told of changed lists no more often.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// A session of the stateless era that nobody uses goes after so long.
const IDLE: Duration = Duration::from_secs(30 * 60);
/// Sessions at the same time.
const MAX_SESSIONS: usize = 256;

/// How the program was asked to be.
pub(super) struct Settings {
    pub(super) policy: Policy,
    pub(super) direct: Vec<Pattern>,
    pub(super) describe_tokens: usize,
    pub(super) store: Option<Store>,
    pub(super) ledger: Option<LedgerFile>,
}

pub(super) struct Gateway {
    provider: Arc<Provider>,
    pub(super) upstreams: Vec<Arc<Upstream>>,
    pub(super) settings: Settings,
    pub(super) secrets: Secrets,
    catalogue: Mutex<Arc<Catalogue>>,
    /// Counts up when what clients were shown has changed.
    pub(super) version: watch::Sender<u64>,
    /// Sessions of the stateless era, by their handles.
    sessions: Mutex<HashMap<String, Arc<FrontSession>>>,
    /// Their cells, by theirs.
    cells: Mutex<HashMap<String, Weak<CellRecord>>>,
    pub(super) seal: Seal,
    pub(super) shutdown: CancellationToken,
    tasks: TaskTracker,
    asking: Arc<Asking>,
    /// Somebody has waited for the servers' start.
    has_waited: AtomicBool,
}

/// Which cells have calls at which server: a server's question is for one of them.
#[derive(Default)]
pub(super) struct Asking(Mutex<HashMap<String, Vec<Weak<CellRecord>>>>);

impl Asking {
    /// A cell calls a server, until what is returned is dropped.
    pub(super) fn calls(
        self: &Arc<Self>,
        server: &str,
        cell: &Arc<CellRecord>,
    ) -> impl Drop + use<> {
        let mut calling = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        calling
            .entry(server.to_owned())
            .or_default()
            .push(Arc::downgrade(cell));
        Calling {
            asking: self.clone(),
            server: server.to_owned(),
            cell: Arc::downgrade(cell),
        }
    }
}

struct Calling {
    asking: Arc<Asking>,
    server: String,
    cell: Weak<CellRecord>,
}

impl Drop for Calling {
    fn drop(&mut self) {
        let mut calling = self.asking.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cells) = calling.get_mut(&self.server)
            && let Some(at) = cells.iter().position(|cell| cell.ptr_eq(&self.cell))
        {
            cells.swap_remove(at);
        }
    }
}

impl Answers for Asking {
    /// The question goes to the session whose cell has a call at the server. Where
    /// several sessions have one, nobody can say whose it is.
    fn elicit(
        &self,
        server: &str,
        params: ElicitRequestParams,
    ) -> BoxFuture<'static, ElicitResult> {
        let cells: Vec<Arc<CellRecord>> = {
            let calling = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let cells = calling.get(server).map(Vec::as_slice).unwrap_or_default();
            cells.iter().filter_map(Weak::upgrade).collect()
        };
        let server = server.to_owned();
        Box::pin(async move {
            let Some(cell) = cells.last() else {
                return nobody();
            };
            if cells.iter().any(|other| other.session != cell.session) {
                return nobody();
            }
            cell.forward(&server, params).await.unwrap_or_else(nobody)
        })
    }
}

impl Gateway {
    /// A gateway to these servers, which are started in the background.
    pub(super) fn new(
        provider: Arc<Provider>,
        servers: Vec<Server>,
        settings: Settings,
        secrets: Secrets,
    ) -> Arc<Self> {
        let changed = Arc::new(Notify::new());
        let asking = Arc::<Asking>::default();
        let ears = Arc::new(Ears {
            changed: changed.clone(),
            answers: asking.clone(),
            secrets: secrets.clone(),
        });
        let upstreams: Vec<_> = servers
            .into_iter()
            .map(|server| Upstream::new(server, ears.clone()))
            .collect();
        let catalogue = Catalogue::of(&upstreams, &settings, None);
        let gateway = Arc::new(Self {
            provider,
            upstreams,
            settings,
            secrets,
            catalogue: Mutex::new(Arc::new(catalogue)),
            version: watch::Sender::new(0),
            sessions: Mutex::default(),
            cells: Mutex::default(),
            seal: Seal::new(),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            asking,
            has_waited: AtomicBool::new(false),
        });
        for upstream in &gateway.upstreams {
            let run = upstream.clone().run(gateway.shutdown.clone());
            gateway.tasks.spawn(run);
        }
        tokio::spawn(watch_servers(Arc::downgrade(&gateway), changed));
        tokio::spawn(sweep(Arc::downgrade(&gateway)));
        gateway
    }

    /// The tools as they are now.
    pub(super) fn catalogue(&self) -> Arc<Catalogue> {
        self.catalogue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn asking(&self) -> &Arc<Asking> {
        &self.asking
    }

    /// Makes the catalogue anew; says so where a client would see another one.
    fn refresh(&self) {
        let before = self.catalogue();
        let now = Catalogue::of(&self.upstreams, &self.settings, Some(&before));
        let differs =
            now.description != before.description || !Arc::ptr_eq(&now.tools, &before.tools);
        *self
            .catalogue
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(now);
        if differs {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// Waits until every server has started or failed, for a while.
    pub(super) async fn servers_started(&self) {
        let is_starting = |upstream: &Arc<Upstream>| upstream.status() == Status::Starting;
        if self.has_waited.load(Ordering::Relaxed) || !self.upstreams.iter().any(is_starting) {
            // Changes are followed; nobody waits twice.
            return;
        }
        let started = self.upstreams.iter().map(|upstream| upstream.started());
        let _ = tokio::time::timeout(FIRST_LISTING, futures::future::join_all(started)).await;
        self.has_waited.store(true, Ordering::Relaxed);
        self.refresh();
    }

    /// Waits until every server has started or failed, however long it takes.
    pub(super) async fn all_started(&self) {
        let started = self.upstreams.iter().map(|upstream| upstream.started());
        futures::future::join_all(started).await;
        self.refresh();
    }

    /// Opens a session.
    pub(super) async fn open(self: &Arc<Self>) -> Result<Arc<FrontSession>, SessionError> {
        let delegate = Arc::new(CellDelegate::new(self.clone()));
        let stored = match &self.settings.store {
            Some(store) => store.read(),
            None => Vec::new(),
        };
        let options = SessionOptions::default()
            .guided(true)
            .check_inputs(true)
            .stored(stored.clone());
        let observed = crate::telemetry::metered(delegate.clone());
        let session = self.provider.open_session(observed, options).await?;
        let session = FrontSession::new(session, delegate, stored);
        Ok(session)
    }

    /// Opens a session that a client of the stateless era finds again by its handle.
    pub(super) async fn open_with_handle(self: &Arc<Self>) -> Result<Arc<FrontSession>, String> {
        if self.sessions().len() >= MAX_SESSIONS && !self.let_longest_idle_go() {
            return Err(format!(
                "{MAX_SESSIONS} sessions have running cells: use one by its session_id"
            ));
        }
        let session = self.open().await.map_err(|error| error.to_string())?;
        self.sessions()
            .insert(session.handle.clone(), session.clone());
        Ok(session)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Arc<FrontSession>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session of a handle.
    pub(super) fn session(&self, handle: &str) -> Option<Arc<FrontSession>> {
        self.sessions().get(handle).cloned()
    }

    /// The cell of a handle, in whatever session of the stateless era.
    pub(super) fn cell(&self, handle: &str) -> Option<(Arc<FrontSession>, Arc<CellRecord>)> {
        let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let record = cells.get(handle)?.upgrade()?;
        let session = self.session(&record.session)?;
        Some((session, record))
    }

    /// Makes a cell known by its handle.
    pub(super) fn know(&self, record: &Arc<CellRecord>) {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cells.retain(|_, cell| cell.strong_count() > 0);
        cells.insert(record.key.clone(), Arc::downgrade(record));
    }

    /// Ends everything: cells first, then the servers, side by side.
    pub(super) async fn end(&self) {
        self.sessions().clear();
        self.provider.shutdown().await;
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Makes room for a session: the one that nobody has used for the longest time goes.
    fn let_longest_idle_go(&self) -> bool {
        let gone = {
            let mut sessions = self.sessions();
            let idle = sessions.values().filter(|session| !session.is_busy());
            let longest = idle.min_by_key(|session| session.last_used());
            let handle = longest.map(|session| session.handle.clone());
            handle.and_then(|handle| sessions.remove(&handle))
        };
        gone.is_some()
    }

    /// Lets go of sessions that nobody uses.
    fn let_idle_go(&self) {
        let now = Instant::now();
        let gone: Vec<Arc<FrontSession>> = {
            let mut sessions = self.sessions();
            let idle: Vec<String> = sessions
                .values()
                .filter(|session| session.is_idle_since(now, IDLE))
                .map(|session| session.handle.clone())
                .collect();
            idle.iter()
                .filter_map(|handle| sessions.remove(handle))
                .collect()
        };
        // Dropped outside the lock: their cells' processes end.
        drop(gone);
    }
}

/// Follows the servers' changes.
async fn watch_servers(gateway: Weak<Gateway>, changed: Arc<Notify>) {
    loop {
        changed.notified().await;
        let Some(gateway) = gateway.upgrade() else {
            return;
        };
        gateway.refresh();
        if gateway.shutdown.is_cancelled() {
            return;
        }
        let is_starting = gateway
            .upstreams
            .iter()
            .any(|u| u.status() == Status::Starting);
        drop(gateway);
        if !is_starting {
            // A storm of changes is told of as one.
            tokio::time::sleep(TELL_EVERY).await;
        }
    }
}

async fn sweep(gateway: Weak<Gateway>) {
    loop {
        tokio::time::sleep(Duration::from_secs(60)).await;
        match gateway.upgrade() {
            Some(gateway) if !gateway.shutdown.is_cancelled() => gateway.let_idle_go(),
            _ => return,
        }
    }
}
