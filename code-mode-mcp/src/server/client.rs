//! A request, and what its client can do.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use code_mode_host::TraceContext;
use rmcp::RoleServer;
use rmcp::model::{LoggingLevel, ProtocolVersion};
use rmcp::service::RequestContext;

use super::Shared;
use super::cell::{CanAsk, Cell, CellKey};
use super::changes::Shown;
use super::in_flight::Open;
use super::progress::Progress;
use super::session::{KnownCells, Session};

/// The longest time until an answer where the model asks for none: the clients that are known give a
/// request a minute or more.
const LONG: Duration = Duration::from_secs(50);
/// As good as no limit, for a client that progress keeps waiting.
const ENDLESS: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Clients that ask for progress, because their library does so with every request, and stop waiting all
/// the same.
const DEAF_TO_PROGRESS: [&str; 3] = ["codex-mcp-client", "goose", "rmcp"];
/// The same for a client that has the name of its library: one of them, openai-agents, gives a request
/// five seconds.
const SHORT: Duration = Duration::from_secs(4);

/// One connection of the era of sessions, or one request of the stateless one.
pub(crate) struct Connection {
    pub(crate) server: Arc<Shared>,
    /// The requests of a connection that a process serves alone: its session is that of stateless
    /// requests, too.
    alone: Option<Arc<Open>>,
    /// The connection's own session.
    own: tokio::sync::Mutex<Option<Arc<Session>>>,
    /// Approvals of the connection's reads, which belong to no session.
    reads: Arc<KnownCells>,
    /// The tools that the client has seen.
    pub(super) shown: Arc<Shown>,
    log_level: Mutex<LoggingLevel>,
}

/// A request of a client.
pub(crate) struct Client<'a> {
    pub(crate) server: &'a Arc<Shared>,
    pub(crate) context: &'a RequestContext<RoleServer>,
    connection: &'a Connection,
    /// The request is stateless: a question to the person is an answer, and not a request.
    pub(crate) stateless: bool,
    pub(crate) can_ask: CanAsk,
    /// Whether the client wants notifications of cells as messages of a log.
    pub(crate) wants_log: bool,
    pub(super) progress: Progress,
}

impl Connection {
    pub(crate) fn new(server: Arc<Shared>, alone: Option<Arc<Open>>) -> Self {
        Self {
            server,
            alone,
            own: tokio::sync::Mutex::default(),
            reads: Arc::default(),
            shown: Arc::default(),
            log_level: Mutex::new(LoggingLevel::Info),
        }
    }

    pub(crate) fn set_log_level(&self, level: LoggingLevel) {
        *self
            .log_level
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = level;
    }

    pub(crate) fn client<'a>(&'a self, context: &'a RequestContext<RoleServer>) -> Client<'a> {
        let stateless = is_stateless(context);
        let elicitation = context
            .client_capabilities()
            .and_then(|capabilities| capabilities.elicitation);
        let level = match stateless {
            true => context.meta.log_level(),
            false => Some(
                *self
                    .log_level
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner),
            ),
        };
        Client {
            server: &self.server,
            context,
            connection: self,
            stateless,
            can_ask: CanAsk {
                // Without a mode named, forms are meant.
                forms: elicitation
                    .as_ref()
                    .is_some_and(|e| e.form.is_some() || e.url.is_none()),
                pages: elicitation.is_some_and(|e| e.url.is_some()),
            },
            wants_log: level.is_some_and(|level| severity(level) <= severity(LoggingLevel::Info)),
            progress: Progress::default(),
        }
    }
}

impl Client<'_> {
    /// Whether requests of the client belong to one session without naming it.
    pub(crate) fn has_own_session(&self) -> bool {
        !self.stateless || self.connection.alone.is_some()
    }

    /// Whether a request that is cancelled ends its program: in a durable gateway a client that has left
    /// leaves its programs behind.
    pub(super) fn has_cancelled(&self) -> bool {
        if !self.server.sessions.are_durable() {
            return true;
        }
        match &self.connection.alone {
            Some(open) => open.was_cancelled(&self.context.id),
            // Over HTTP a request outlives its connection; what cancels it is its client, or the end of all.
            None => !self.server.broker.shutdown.is_cancelled(),
        }
    }

    /// Adds the name of a session to a status that a stateless client reads: it names the session
    /// in its next requests.
    pub(super) fn name_session(&self, status: &mut String, session: &Session) {
        if !self.has_own_session() || self.server.sessions.are_durable() {
            status.push_str(&format!("\nsession: {}", session.handle));
        }
    }

    /// What the client calls a cell.
    pub(super) fn name_of(&self, cell: &Cell) -> String {
        match cell.id() {
            // The next process has sessions of several connections.
            Some(id) if self.has_own_session() && !self.server.sessions.are_durable() => {
                id.to_string()
            }
            _ => cell.key.as_str().to_owned(),
        }
    }

    /// The cell of a key in the connection's own session, where that was opened.
    pub(crate) async fn own_cell(&self, key: &CellKey) -> Option<(Arc<Session>, Arc<Cell>)> {
        let own = self.connection.own.lock().await.clone()?;
        let cell = own.known.by_key(key)?;
        Some((own, cell))
    }

    /// How long an answer to a request that came at `began` may still take. The model may ask for
    /// another time; a client that shows no progress may have little patience, and does not say when
    /// that ends.
    pub(crate) fn patience(&self, began: Instant, asked: Option<Duration>) -> Duration {
        let name = self.name();
        let wants_progress = self.context.meta.get_progress_token().is_some();
        let is_deaf = DEAF_TO_PROGRESS
            .iter()
            .any(|deaf| name.as_deref() == Some(*deaf));
        if wants_progress && !is_deaf {
            return asked.unwrap_or(ENDLESS).saturating_sub(began.elapsed());
        }
        let default = match name.as_deref() {
            // The protocol's library for Python gives this one.
            None | Some("mcp") => SHORT,
            Some(_) => LONG,
        };
        let patience = self.server.patience.unwrap_or(default);
        let limit = asked.unwrap_or(patience).min(patience);
        limit.saturating_sub(began.elapsed())
    }

    /// When a request that begins now is answered at the latest; `None` where the client waits as long as
    /// it takes.
    pub(crate) fn until(&self, asked: Option<Duration>) -> Option<Instant> {
        let now = Instant::now();
        let patience = self.patience(now, asked);
        now.checked_add(patience).filter(|_| patience < ENDLESS)
    }

    /// The name that the client has given.
    fn name(&self) -> Option<String> {
        let of_session = || Some(self.context.peer.peer_info()?.client_info.clone());
        let client = self.context.meta.client_info().or_else(of_session);
        client.map(|client| client.name)
    }

    /// The client's span, where the request names it.
    pub(crate) fn trace_context(&self) -> Option<TraceContext> {
        let meta = &self.context.meta;
        TraceContext::new(meta.get_traceparent(), meta.get_tracestate())
    }

    /// The approvals of the connection's reads.
    pub(crate) fn reads(&self) -> Arc<KnownCells> {
        self.connection.reads.clone()
    }

    /// The connection's session; opened with the first request for it. A session that was closed
    /// for others, or has failed, is reported once and then replaced.
    pub(crate) async fn own_session(&self) -> Result<Arc<Session>, String> {
        let mut own = self.connection.own.lock().await;
        if let Some(session) = &*own {
            if session.cells.is_alive() {
                return Ok(session.clone());
            }
            *own = None;
            return Err(
                "the session has ended, with its stored values and programs; the next program begins a new one"
                    .to_owned(),
            );
        }
        let opened = self.server.sessions.open().await;
        let session = opened.map_err(|error| error.to_string())?;
        *own = Some(session.clone());
        Ok(session)
    }
}

/// Whether a request is stateless, as from the revision of 2026-07-28 on.
pub(crate) fn is_stateless(context: &RequestContext<RoleServer>) -> bool {
    let version = context.meta.protocol_version();
    version.is_some_and(|v| v.as_str() >= ProtocolVersion::V_2026_07_28.as_str())
}

fn severity(level: LoggingLevel) -> u8 {
    match level {
        LoggingLevel::Debug => 0,
        LoggingLevel::Info => 1,
        LoggingLevel::Notice => 2,
        LoggingLevel::Warning => 3,
        LoggingLevel::Error => 4,
        LoggingLevel::Critical => 5,
        LoggingLevel::Alert => 6,
        LoggingLevel::Emergency => 7,
    }
}
