//! The supervisor of one server: started, listed, started again when it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rmcp::RoleClient;
use rmcp::model::{ProtocolVersion, SubscriptionFilter};
use rmcp::service::{Peer, RunningServiceCancellationToken};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connect::{Client, connect, end, ended_how};
use super::error::Retry;
use super::transport::ServerProcess;
use super::{Down, Status, Upstream, UpstreamTool, known};
use crate::login::Login;

/// The least time between two requests for lists.
const LIST_EVERY: Duration = Duration::from_secs(1);
/// For each second that a listing took, so many pass before the next.
const LIST_SHARE: u32 = 20;
/// A server that lived this long is started again at once.
const LIVED_LONG: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE_NOT_FOUND: Duration = Duration::from_secs(60);

/// How one life of a server ended.
struct Ended {
    why: String,
    retry: Retry,
}

impl Ended {
    fn soon(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            retry: Retry::Soon,
        }
    }

    /// The gateway shuts down.
    fn for_good() -> Self {
        Self {
            why: String::new(),
            retry: Retry::Never,
        }
    }
}

impl Upstream {
    /// Keeps the server running until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        self.supervise(shutdown).await;
        // A renewal that is cut off would lose the login.
        if let Some(login) = &self.login {
            login.settled().await;
        }
    }

    async fn supervise(&self, shutdown: CancellationToken) {
        if self.config.unusable.is_some() {
            return;
        }
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            let token = self.login.as_ref().and_then(Login::saved_token);
            let ended = self.run_once(&shutdown).await;
            if shutdown.is_cancelled() {
                return;
            }
            let why = self.events.secrets.hide(&ended.why);
            let was = match self.status() {
                Status::Down(down) => Some(down),
                Status::Starting(_) | Status::Ready => None,
            };
            if was.as_ref().is_none_or(|was| was.why != why) {
                tracing::warn!(server = %self.config.name, "an MCP server is down: {why}");
            }
            let down = Down::since(was.as_ref(), why.clone());
            self.set(|state| {
                state.peer = None;
                state.process = None;
                state.lost = Some(why);
                state.status = Status::Down(down);
            });
            let longest = match ended.retry {
                Retry::Never => {
                    shutdown.cancelled().await;
                    return;
                }
                Retry::AtLogin => {
                    let logged_in = async {
                        self.logged_in(token.as_deref()).await;
                        // Another gateway may renew what the server refuses all the same.
                        tokio::time::sleep(pause).await;
                    };
                    tokio::select! {
                        () = logged_in => pause = (pause * 2).min(LONGEST_PAUSE),
                        () = self.wanted.notified() => {}
                        () = shutdown.cancelled() => return,
                    }
                    continue;
                }
                Retry::Soon => LONGEST_PAUSE,
                Retry::Rarely => LONGEST_PAUSE_NOT_FOUND,
            };
            let wait = match began.elapsed() >= LIVED_LONG {
                true => {
                    pause = FIRST_PAUSE;
                    Duration::ZERO
                }
                false => {
                    let wait = pause.mul_f64(0.8 + 0.4 * rand::random::<f64>());
                    pause = (pause * 2).min(longest);
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // A call that waits for the server need not wait for the pause.
                () = self.wanted.notified() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Completes when there is another token than the one that was refused.
    async fn logged_in(&self, refused: Option<&str>) {
        match &self.login {
            Some(login) => login.changed(refused).await,
            None => std::future::pending().await,
        }
    }

    /// One life of the server.
    async fn run_once(&self, shutdown: &CancellationToken) -> Ended {
        let client = Client {
            name: self.config.name.clone(),
            relist: self.relist.clone(),
            events: self.events.clone(),
            start: self.start.clone(),
        };
        self.start.begin();
        let connected = tokio::select! {
            connected = connect(&self.config, client, self.login.as_ref()) => connected,
            () = shutdown.cancelled() => return Ended::for_good(),
        };
        let (running, process) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                return Ended {
                    why: error.to_string(),
                    retry: error.retry(),
                };
            }
        };
        let peer = running.peer().clone();
        let instructions = instructions_of(&peer).map(|text| self.events.secrets.hide(&text));
        let tools = match self.list(&peer).await {
            Ok(tools) => tools,
            Err(error) => {
                end(running, process).await;
                return Ended::soon(error.to_string());
            }
        };
        let tools = Arc::new(tools);
        let id = process.as_ref().and_then(ServerProcess::id);
        self.set(|state| {
            state.status = Status::Ready;
            state.process = id;
            state.peer = Some(peer.clone());
            state.tools = tools.clone();
            state.instructions = instructions;
        });
        self.keep(tools);
        self.timeouts.store(0, Ordering::Relaxed);
        let stop = running.cancellation_token();
        let waiting = running.waiting();
        tokio::pin!(waiting);
        let mut changes = self.listen(&peer);
        let mut next_listing = Instant::now();
        loop {
            tokio::select! {
                _ = &mut waiting => {
                    let why = match process {
                        Some(process) => ended_how(process).await,
                        None => "the connection was lost".to_owned(),
                    };
                    return Ended::soon(why);
                }
                () = shutdown.cancelled() => {
                    stop_all(stop, waiting.as_mut(), process).await;
                    return Ended::for_good();
                }
                () = self.restart.notified() => {
                    stop_all(stop, waiting.as_mut(), process).await;
                    return Ended::soon("it did not answer");
                }
                () = self.relist.notified() => {}
                Some(()) = changes.recv() => {}
            }
            // A change is followed at once, and a storm of them at intervals.
            tokio::time::sleep_until(next_listing).await;
            let began = Instant::now();
            let listed = self.list(&peer).await;
            // A list that takes long to read must not take all of our time.
            next_listing = Instant::now() + LIST_EVERY.max(began.elapsed() * LIST_SHARE);
            match listed {
                Ok(tools) if tools == *self.state().tools => {}
                Ok(tools) => {
                    let tools = Arc::new(tools);
                    self.set(|state| state.tools = tools.clone());
                    self.keep(tools);
                }
                Err(error) => {
                    tracing::warn!(server = %self.config.name, "its tools cannot be listed again: {error}")
                }
            }
        }
    }

    /// Keeps the tools for the program's next start.
    fn keep(&self, tools: Arc<Vec<UpstreamTool>>) {
        self.shapes.only_of(&tools);
        let config = self.config.clone();
        tokio::task::spawn_blocking(move || known::keep(&config, &tools));
    }

    /// Subscribes to changes of the list of tools, where the server has subscriptions.
    fn listen(&self, peer: &Peer<RoleClient>) -> mpsc::Receiver<()> {
        let (changed, changes) = mpsc::channel(1);
        let is_modern = peer.peer_info().is_some_and(|info| {
            info.protocol_version.as_str() >= ProtocolVersion::V_2026_07_28.as_str()
        });
        if is_modern {
            let peer = peer.clone();
            tokio::spawn(async move {
                let mut filter = SubscriptionFilter::default();
                filter.tools_list_changed = Some(true);
                if let Ok(mut subscription) = peer.listen(filter).await {
                    while let Ok(Some(_)) = subscription.next().await {
                        if changed.send(()).await.is_err() {
                            return;
                        }
                    }
                }
                // The connection may last longer than the subscription.
                changed.closed().await;
            });
        } else {
            tokio::spawn(async move { changed.closed().await });
        }
        changes
    }
}

/// Ends a connection and the program behind it.
async fn stop_all(
    stop: RunningServiceCancellationToken,
    ended: impl Future,
    process: Option<ServerProcess>,
) {
    stop.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
    if let Some(process) = process {
        process.end().await;
    }
}

fn instructions_of(peer: &Peer<RoleClient>) -> Option<String> {
    peer.peer_info()?.instructions.clone()
}
