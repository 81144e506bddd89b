//! One server behind the gateway: kept running, listed, called.
//!
//! [`supervisor`] keeps the server running and owns its [`State`]; [`call`] sends calls to it;
//! [`connect`] and [`transport`] make connections; [`listing`] reads what it offers.

mod call;
mod claims;
mod connect;
mod error;
mod fuzzed;
mod helper;
mod known;
mod listing;
mod pages;
#[cfg(test)]
pub(crate) mod scripted;
mod shapes;
mod start;
mod supervisor;
mod task;
mod transport;

use std::collections::HashSet;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use code_mode_protocol::text::line;
use rmcp::RoleClient;
use rmcp::service::Peer;
use tokio::sync::{Notify, watch};

use crate::config::ServerConfig;
use crate::elicitation::ElicitationRouter;
use crate::login::Login;
use crate::secrets::Secrets;

use claims::StrictestClaims;
use known::known_tools;
use shapes::KnownShapes;
use start::Start;

pub(crate) use call::ElicitInCall;
pub(crate) use error::CallError;
use error::ConnectError;
pub use fuzzed::{read_events, read_lines, read_listing};
pub(crate) use listing::UpstreamTool;
pub(crate) use pages::pages;
pub(crate) use transport::{answered, challenge};

/// How a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It is being started for the first time.
    Starting(Start),
    Ready,
    /// It does not run.
    Down(Down),
}

/// Why a server does not run, and since when.
#[derive(Clone, Debug)]
pub(crate) struct Down {
    pub(crate) why: String,
    since: Instant,
}

impl Down {
    /// A server that was down before is down since then.
    fn since(was: Option<&Self>, why: String) -> Self {
        let since = was.map_or_else(Instant::now, |was| was.since);
        Self { why, since }
    }
}

/// Two states are equal where the reason is the same, so that nobody is notified again.
impl PartialEq for Down {
    fn eq(&self, other: &Self) -> bool {
        self.why == other.why
    }
}

impl Eq for Down {}

impl Status {
    pub(crate) fn is_starting(&self) -> bool {
        matches!(self, Self::Starting(_))
    }

    pub(crate) fn words(&self) -> String {
        match self {
            Self::Starting(start) => start.words(),
            Self::Ready => "ready".to_owned(),
            Self::Down(down) => format!("down: {}", down.why),
        }
    }

    /// The same with the time since when it is so: for an error, which is read once.
    fn words_now(&self) -> String {
        match self {
            Self::Down(down) => {
                let seconds = down.since.elapsed().as_secs();
                format!("down since {seconds} s: {}", down.why)
            }
            other => other.words(),
        }
    }
}

/// What a server reports, and where it goes.
pub(crate) struct UpstreamEvents {
    /// Changes when the tools or the status of a server have changed.
    pub(crate) changed: Arc<watch::Sender<()>>,
    /// Questions that a server asks outside of a call.
    pub(crate) elicitations: Arc<ElicitationRouter>,
    pub(crate) secrets: Secrets,
}

/// A server's state at one moment. All of it changes together, and only its
/// supervisor changes it.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) status: Status,
    pub(crate) peer: Option<Peer<RoleClient>>,
    pub(crate) tools: Arc<Vec<UpstreamTool>>,
    pub(crate) instructions: Option<String>,
    /// Its process, where it has one.
    pub(crate) process: Option<u32>,
    /// Why the server last went away.
    lost: Option<String>,
}

/// A server, whether it runs or not.
pub(crate) struct Upstream {
    pub(crate) config: ServerConfig,
    /// The login to it, where there can be one.
    login: Option<Login>,
    state: watch::Sender<State>,
    /// Rung when a call waits for the server.
    wanted: Notify,
    relist: Arc<Notify>,
    /// Rung when the server must be started again.
    restart: Notify,
    /// The progress of its latest start.
    start: Start,
    claims: Mutex<StrictestClaims>,
    /// What it did not list in time when it was last asked.
    late: Mutex<HashSet<&'static str>>,
    /// Calls in a row that timed out.
    timeouts: AtomicU32,
    /// What its tools' results looked like.
    pub(crate) shapes: KnownShapes,
    pub(crate) events: Arc<UpstreamEvents>,
}

impl Upstream {
    pub(crate) fn new(config: ServerConfig, events: Arc<UpstreamEvents>) -> Arc<Self> {
        let start = Start::default();
        let status = match &config.unusable {
            Some(why) => Status::Down(Down::since(None, why.clone())),
            None => Status::Starting(start.clone()),
        };
        let tools = Arc::new(known_tools(&config));
        let shapes = KnownShapes::read(&config);
        let address = config.address();
        let login = address.and_then(|address| Login::of(address, &events.secrets));
        Arc::new(Self {
            config,
            login,
            state: watch::Sender::new(State {
                status,
                peer: None,
                tools,
                instructions: None,
                process: None,
                lost: None,
            }),
            start,
            wanted: Notify::new(),
            relist: Arc::new(Notify::new()),
            restart: Notify::new(),
            claims: Mutex::default(),
            late: Mutex::default(),
            timeouts: AtomicU32::new(0),
            shapes,
            events,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// The server's state now.
    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(crate) fn status(&self) -> Status {
        self.state.borrow().status.clone()
    }

    /// Its name and its status, in a line for a model.
    pub(crate) fn state_in_words(&self) -> String {
        let name = line(self.name(), 100);
        format!("the server {name} is {}", self.status().words_now())
    }

    pub(crate) fn peer(&self) -> Option<Peer<RoleClient>> {
        self.state.borrow().peer.clone()
    }

    /// Whether the server is there and has resources.
    pub(crate) fn has_resources(&self) -> bool {
        let has_some = |peer: Peer<RoleClient>| peer.peer_info()?.capabilities.resources.clone();
        self.peer().and_then(has_some).is_some()
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
        self.events.changed.send_replace(());
    }

    /// Whether the server did not list this in time when it was last asked.
    pub(crate) fn listed_late(&self, what: &str) -> bool {
        let late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        late.contains(what)
    }

    pub(crate) fn set_listed_late(&self, what: &'static str, is_late: bool) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        match is_late {
            true => late.insert(what),
            false => late.remove(what),
        };
    }

    /// What the server lists now, with claims that only get stricter.
    async fn list(&self, peer: &Peer<RoleClient>) -> Result<Vec<UpstreamTool>, ConnectError> {
        let mut tools = listing::list(peer, &self.config, &self.events.secrets).await?;
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.apply(&mut tools);
        Ok(tools)
    }

    /// Completes when the server is no longer starting.
    pub(crate) async fn started(&self) {
        self.until(|state| !state.status.is_starting()).await;
    }

    /// Waits until the state is as wanted.
    async fn until(&self, is_wanted: impl FnMut(&State) -> bool) {
        let mut state = self.state.subscribe();
        // The sender is in `self`, so sending cannot fail.
        let _ = state.wait_for(is_wanted).await;
    }
}
