//! One server behind this one: kept running, listed, called.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CancelledNotificationParam, ClientRequest,
    CustomResult, ElicitRequestParams, ElicitResult, ElicitationAction, InputRequest,
    InputRequiredResult, InputResponses, ProtocolVersion, RequestId, ServerResult,
};
use rmcp::service::{Peer, PeerRequestOptions, RunningServiceCancellationToken, ServiceError};
use rmcp::{ErrorData, RoleClient};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::config::Server;
use super::connect::{Client, Retry, connect, end, ended_how, http_words};
use super::listing::{UpstreamTool, list};
use super::secrets::Secrets;
use super::stdio_server::ServerProcess;
use super::texts::short;

/// A call with news may take so long.
const HARD_CALL_LIMIT: Duration = Duration::from_secs(600);
/// Lists are asked for no more often.
const LIST_EVERY: Duration = Duration::from_secs(1);
/// Rounds of questions that one call may have.
const MAX_ROUNDS: usize = 10;
/// A server that lived this long is started again at once.
const LIVED_LONG: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE_NOT_FOUND: Duration = Duration::from_secs(60);

/// How a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// It is being started, for the first time or again.
    Starting,
    Ready,
    /// It is not there; why.
    Down(String),
}

impl Status {
    pub(super) fn words(&self) -> String {
        match self {
            Self::Starting => "starting".to_owned(),
            Self::Ready => "ready".to_owned(),
            Self::Down(why) => format!("down: {why}"),
        }
    }
}

/// Why a call gave no result.
#[derive(Debug)]
pub(super) enum CallError {
    /// It was never sent.
    NotSent(String),
    /// It was sent, and what became of it is not known.
    MayHaveRun(String),
    /// The server answered with an error.
    Rpc(ErrorData),
}

/// Answers a server's questions.
pub(super) trait Answers: Send + Sync {
    /// A server asks the person.
    fn elicit(
        &self,
        server: &str,
        params: ElicitRequestParams,
    ) -> futures::future::BoxFuture<'static, ElicitResult>;
}

/// What is heard of servers.
pub(super) struct Ears {
    /// Rung when tools or the state of a server have changed.
    pub(super) changed: Arc<Notify>,
    pub(super) answers: Arc<dyn Answers>,
    pub(super) secrets: Secrets,
}

/// A server, whether it runs or not.
pub(super) struct Upstream {
    pub(super) config: Server,
    state: Mutex<State>,
    /// Rung when something waits for the server.
    wanted: Notify,
    /// Rung when the state changes.
    changed: Notify,
    relist: Arc<Notify>,
    /// Rung when the server must be started again.
    restart: Notify,
    ears: Arc<Ears>,
}

struct State {
    status: Status,
    peer: Option<Peer<RoleClient>>,
    tools: Arc<Vec<UpstreamTool>>,
    instructions: Option<String>,
    /// Why it last went away.
    lost: Option<String>,
    /// Calls in a row that timed out.
    timeouts: u32,
}

impl Upstream {
    pub(super) fn new(config: Server, ears: Arc<Ears>) -> Arc<Self> {
        let status = match &config.unusable {
            Some(why) => Status::Down(why.clone()),
            None => Status::Starting,
        };
        Arc::new(Self {
            config,
            state: Mutex::new(State {
                status,
                peer: None,
                tools: Arc::default(),
                instructions: None,
                lost: None,
                timeouts: 0,
            }),
            wanted: Notify::new(),
            changed: Notify::new(),
            relist: Arc::new(Notify::new()),
            restart: Notify::new(),
            ears,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> Status {
        self.state().status.clone()
    }

    pub(super) fn tools(&self) -> Arc<Vec<UpstreamTool>> {
        self.state().tools.clone()
    }

    pub(super) fn instructions(&self) -> Option<String> {
        self.state().instructions.clone()
    }

    pub(super) fn peer(&self) -> Option<Peer<RoleClient>> {
        self.state().peer.clone()
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_waiters();
        self.ears.changed.notify_one();
    }

    /// Completes when the server is no longer starting.
    pub(super) async fn started(&self) {
        self.until(|| (self.status() != Status::Starting).then_some(()))
            .await;
    }

    /// Waits until the state gives something.
    async fn until<T>(&self, look: impl Fn() -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = look() {
                return found;
            }
            changed.await;
        }
    }

    /// Keeps the server running until `shutdown`.
    pub(super) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        if self.config.unusable.is_some() {
            return;
        }
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            let (why, retry) = self.run_once(&shutdown).await;
            if shutdown.is_cancelled() {
                return;
            }
            let why = self.ears.secrets.hide(&why);
            let is_news = self.status() != Status::Down(why.clone());
            if is_news {
                tracing::warn!(server = %self.config.name, "an MCP server is down: {why}");
            }
            self.set(|state| {
                state.peer = None;
                state.lost = Some(why.clone());
                state.status = Status::Down(why);
            });
            let longest = match retry {
                None => {
                    shutdown.cancelled().await;
                    return;
                }
                Some(Retry::Soon) => LONGEST_PAUSE,
                Some(Retry::NotFound) => LONGEST_PAUSE_NOT_FOUND,
            };
            let wait = match began.elapsed() >= LIVED_LONG {
                true => {
                    pause = FIRST_PAUSE;
                    Duration::ZERO
                }
                false => {
                    let wait = pause.mul_f64(0.8 + 0.4 * share());
                    pause = (pause * 2).min(longest);
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // Whoever waits for it need not wait for the pause.
                () = self.wanted.notified() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// One life of the server. Returns why it ended, and when to try again.
    async fn run_once(&self, shutdown: &CancellationToken) -> (String, Option<Retry>) {
        let client = Client {
            name: self.config.name.clone(),
            relist: self.relist.clone(),
            ears: self.ears.clone(),
        };
        let connected = tokio::select! {
            connected = connect(&self.config, client) => connected,
            () = shutdown.cancelled() => return (String::new(), None),
        };
        let (running, process) = match connected {
            Ok(connected) => connected,
            Err(refused) => return (refused.why, refused.retry),
        };
        let peer = running.peer().clone();
        let instructions = instructions_of(&peer).map(|text| self.ears.secrets.hide(&text));
        let tools = match list(&peer, &self.config, &self.ears.secrets).await {
            Ok(tools) => tools,
            Err(why) => {
                end(running, process).await;
                return (why, Some(Retry::Soon));
            }
        };
        self.set(|state| {
            state.status = Status::Ready;
            state.peer = Some(peer.clone());
            state.tools = Arc::new(tools);
            state.instructions = instructions;
            state.timeouts = 0;
        });
        let stop = running.cancellation_token();
        let waiting = running.waiting();
        tokio::pin!(waiting);
        let mut listened = self.listen(&peer);
        loop {
            tokio::select! {
                _ = &mut waiting => {
                    let why = match process {
                        Some(process) => ended_how(process).await,
                        None => "the connection was lost".to_owned(),
                    };
                    return (why, Some(Retry::Soon));
                }
                () = shutdown.cancelled() => {
                    stop_all(stop, waiting.as_mut(), process).await;
                    return (String::new(), None);
                }
                () = self.restart.notified() => {
                    stop_all(stop, waiting.as_mut(), process).await;
                    return ("it did not answer".to_owned(), Some(Retry::Soon));
                }
                () = self.relist.notified() => {}
                Some(()) = listened.recv() => {}
            }
            tokio::time::sleep(LIST_EVERY).await;
            match list(&peer, &self.config, &self.ears.secrets).await {
                Ok(tools) => self.set(|state| state.tools = Arc::new(tools)),
                Err(why) => {
                    tracing::warn!(server = %self.config.name, "its tools cannot be listed again: {why}")
                }
            }
        }
    }

    /// Hears of changed lists where the server tells them to those who listen.
    fn listen(&self, peer: &Peer<RoleClient>) -> tokio::sync::mpsc::Receiver<()> {
        let (tell, told) = tokio::sync::mpsc::channel(1);
        let is_modern = peer.peer_info().is_some_and(|info| {
            info.protocol_version.as_str() >= ProtocolVersion::V_2026_07_28.as_str()
        });
        if is_modern {
            let peer = peer.clone();
            tokio::spawn(async move {
                let mut filter = rmcp::model::SubscriptionFilter::default();
                filter.tools_list_changed = Some(true);
                if let Ok(mut subscription) = peer.listen(filter).await {
                    while let Ok(Some(_)) = subscription.next().await {
                        if tell.send(()).await.is_err() {
                            return;
                        }
                    }
                }
                // While the connection lasts there may be nothing more to hear.
                tell.closed().await;
            });
        } else {
            tokio::spawn(async move { tell.closed().await });
        }
        told
    }

    /// Calls a tool; `answers` is asked what the server asks. Dropping the future tells the
    /// server that the call is cancelled.
    pub(super) async fn call(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
        answers: &dyn Answers,
    ) -> Result<Value, CallError> {
        let name = &self.config.name;
        let Some(peer) = self.ready_peer().await else {
            let why = self.status().words();
            return Err(CallError::NotSent(format!("the server {name} is {why}")));
        };
        let mut params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        for _ in 0..MAX_ROUNDS {
            let request = ClientRequest::CallToolRequest(CallToolRequest::new(params.clone()));
            let options = PeerRequestOptions::with_timeout(self.config.call_timeout)
                .reset_timeout_on_progress()
                .with_max_total_timeout(HARD_CALL_LIMIT);
            let sent = peer.send_request_with_option(request, options).await;
            let answer = match sent {
                Ok(handle) => {
                    let mut cancelling = Cancelling(Some((peer.clone(), handle.id.clone())));
                    let answer = handle.await_response().await;
                    // A call that ran out of time was cancelled already.
                    cancelling.0 = None;
                    answer
                }
                Err(error) => Err(error),
            };
            match answer {
                Ok(ServerResult::InputRequiredResult(asked)) => {
                    params.request_state = asked.request_state.clone();
                    params.input_responses = Some(self.answer(asked, answers).await);
                }
                Ok(result) => {
                    self.state().timeouts = 0;
                    if matches!(&result, ServerResult::CustomResult(CustomResult(value)) if is_task(value))
                    {
                        return Err(CallError::MayHaveRun(format!(
                            "{name}/{tool} answered with a task, which nobody asked for; it may have run"
                        )));
                    }
                    return serde_json::to_value(&result).map_err(|error| {
                        CallError::MayHaveRun(format!(
                            "the result of {name}/{tool} is malformed: {error}"
                        ))
                    });
                }
                Err(error) => return Err(self.failed(tool, error).await),
            }
        }
        Err(CallError::MayHaveRun(format!(
            "{name}/{tool} asked more than {MAX_ROUNDS} times for input"
        )))
    }

    /// The connection, once there is one: a call wakes a server that is down, and waits
    /// for it as long as it may take to start.
    async fn ready_peer(&self) -> Option<Peer<RoleClient>> {
        let open = || self.peer().filter(|peer| !peer.is_transport_closed());
        if let Some(peer) = open() {
            return Some(peer);
        }
        if self.config.unusable.is_some() {
            return None;
        }
        self.wanted.notify_one();
        let limit = self.config.startup_timeout.min(Duration::from_secs(10));
        tokio::time::timeout(limit, self.until(open)).await.ok()
    }

    async fn answer(&self, asked: InputRequiredResult, who: &dyn Answers) -> InputResponses {
        let mut answers = InputResponses::new();
        for (key, request) in asked.input_requests.unwrap_or_default() {
            let InputRequest::Elicitation(request) = request else {
                continue;
            };
            let answer = who.elicit(&self.config.name, request.params).await;
            answers.insert(key, serde_json::to_value(answer).unwrap_or_default());
        }
        answers
    }

    async fn failed(&self, tool: &str, error: ServiceError) -> CallError {
        const TIMEOUTS: u32 = 3;
        let name = &self.config.name;
        match error {
            ServiceError::McpError(error) => CallError::Rpc(error),
            ServiceError::Timeout { timeout } => {
                let in_a_row = {
                    let mut state = self.state();
                    state.timeouts += 1;
                    state.timeouts
                };
                if in_a_row >= TIMEOUTS {
                    tracing::warn!(server = %name, "an MCP server does not answer; it is started again");
                    self.restart.notify_one();
                }
                CallError::MayHaveRun(format!(
                    "{name}/{tool} did not answer within {} s; it may have run",
                    timeout.as_secs()
                ))
            }
            ServiceError::TransportSend(error)
                if self.peer().is_some_and(|peer| !peer.is_transport_closed()) =>
            {
                let words = http_words(&error);
                if words.contains("404") || words.contains("session") {
                    // Its session is gone: the next call has a new one.
                    self.restart.notify_one();
                }
                CallError::MayHaveRun(format!("{name}/{tool}: {words}; it may have run"))
            }
            ServiceError::TransportClosed | ServiceError::TransportSend(_) => {
                // The supervisor is about to say why.
                let gone = self.until(|| self.peer().is_none().then_some(()));
                let _ = tokio::time::timeout(Duration::from_secs(2), gone).await;
                let why = self.state().lost.clone();
                let why = why.unwrap_or_else(|| "the connection was lost".to_owned());
                CallError::MayHaveRun(format!(
                    "the server {name} went away during {tool} ({why}); it may have run"
                ))
            }
            error => CallError::MayHaveRun(format!(
                "{name}/{tool} failed: {}; it may have run",
                short(&self.ears.secrets.hide(&error.to_string()))
            )),
        }
    }
}

/// Whether an answer is a task instead of a result.
fn is_task(value: &Value) -> bool {
    let is_typed = value.get("resultType").and_then(Value::as_str) == Some("task");
    is_typed || (value.get("task").is_some() && value.get("content").is_none())
}

/// Tells a server that a call is cancelled, where nobody waits for its answer any more.
struct Cancelling(Option<(Peer<RoleClient>, RequestId)>);

impl Drop for Cancelling {
    fn drop(&mut self) {
        let Some((peer, id)) = self.0.take() else {
            return;
        };
        // Without a runtime there is no connection either.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let reason = Some("nobody waits for the answer any more".to_owned());
                let mut params = CancelledNotificationParam::new(Some(id), reason);
                params.meta = None;
                let _ = peer.notify_cancelled(params).await;
            });
        }
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

/// A number between 0 and 1, so that servers which died together do not come back
/// together.
fn share() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64
}

/// What a person who is not there answers.
pub(super) fn nobody() -> ElicitResult {
    ElicitResult::new(ElicitationAction::Cancel)
}

/// A JSON-RPC error as the cell's wrapper takes it.
pub(super) fn error_json(tool: &str, error: &ErrorData, secrets: &Secrets) -> Value {
    let message = format!("{tool}: {}", error.message);
    let mut json = json!({"code": error.code.0, "message": message});
    if let Some(data) = &error.data {
        json["data"] = data.clone();
    }
    secrets.hide_json(&mut json);
    json!({"error": json})
}
