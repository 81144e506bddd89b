//! One server behind this one: kept running, listed, called.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue};
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CancelledNotificationParam, ClientCapabilities,
    ClientConfig, ClientRequest, CustomResult, ElicitRequestParams, ElicitResult,
    ElicitationAction, Implementation, InputRequest, InputRequiredResult, InputResponses,
    ListToolsRequest, PaginatedRequestParams, ProtocolVersion, RequestId, ServerResult,
};
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, NotificationContext, Peer, PeerRequestOptions,
    RequestContext, RunningService, ServiceError, serve_client_with_lifecycle,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientHandler, ErrorData, RoleClient};
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::config::{Server, Transport};
use super::lines::{Lines, MAX_MESSAGE};
use super::policy::Claims;
use super::secrets::Secrets;
use super::stdio_server::{Era, Probed, ServerProcess, probe};
use super::texts::clean_definition;

/// A call with news may take so long.
const HARD_CALL_LIMIT: Duration = Duration::from_secs(600);
/// Pages and tools of one listing, and its time.
const MAX_PAGES: usize = 100;
const MAX_TOOLS: usize = 10_000;
const LISTING: Duration = Duration::from_secs(10);
/// Lists are asked for no more often.
const LIST_EVERY: Duration = Duration::from_secs(1);
/// Rounds of questions that one call may have.
const MAX_ROUNDS: usize = 10;
/// A server that lived this long is started again at once.
const LIVED_LONG: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE_NOT_FOUND: Duration = Duration::from_secs(60);

/// A tool as its server lists it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct UpstreamTool {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) input_schema: Option<Value>,
    pub(super) output_schema: Option<Value>,
    pub(super) claims: Claims,
    /// The whole definition, to offer it directly and to see it change.
    pub(super) definition: Value,
}

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

/// The client's side of a connection to a server.
#[derive(Clone)]
struct Client {
    name: String,
    relist: Arc<Notify>,
    ears: Arc<Ears>,
}

impl ClientHandler for Client {
    fn get_info(&self) -> ClientConfig {
        let mut capabilities = ClientCapabilities::builder().enable_elicitation().build();
        // Whether a page can be opened is asked when a server wants one.
        capabilities.elicitation = serde_json::from_value(json!({"form": {}, "url": {}})).ok();
        let mut config = ClientConfig::new(
            capabilities,
            Implementation::new("code-mode", env!("CARGO_PKG_VERSION")),
        );
        // A handshake is of the era of sessions.
        config.protocol_version = ProtocolVersion::V_2025_11_25;
        config
    }

    async fn create_elicitation(
        &self,
        params: ElicitRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        Ok(self.ears.answers.elicit(&self.name, params).await)
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.relist.notify_one();
    }
}

type Running = RunningService<RoleClient, Client>;

/// Why a server could not be connected to.
struct Refused {
    why: String,
    /// When to try again; `None`: not by itself.
    retry: Option<Retry>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Retry {
    Soon,
    /// The program may be installed one day.
    NotFound,
}

impl Refused {
    fn soon(why: impl ToString) -> Self {
        Self {
            why: why.to_string(),
            retry: Some(Retry::Soon),
        }
    }
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
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.status() != Status::Starting {
                return;
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
        let connected = tokio::select! {
            connected = self.connect() => connected,
            () = shutdown.cancelled() => return (String::new(), None),
        };
        let (running, process) = match connected {
            Ok(connected) => connected,
            Err(refused) => return (refused.why, refused.retry),
        };
        let peer = running.peer().clone();
        let instructions = instructions_of(&peer).map(|text| self.ears.secrets.hide(&text));
        let tools = match self.list(&peer).await {
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
                    stop.cancel();
                    let _ = tokio::time::timeout(Duration::from_secs(1), waiting).await;
                    if let Some(process) = process {
                        process.end().await;
                    }
                    return (String::new(), None);
                }
                () = self.restart.notified() => {
                    stop.cancel();
                    let _ = tokio::time::timeout(Duration::from_secs(1), waiting).await;
                    if let Some(process) = process {
                        process.end().await;
                    }
                    return ("it did not answer".to_owned(), Some(Retry::Soon));
                }
                () = self.relist.notified() => {}
                Some(()) = listened.recv() => {}
            }
            tokio::time::sleep(LIST_EVERY).await;
            match self.list(&peer).await {
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

    async fn connect(&self) -> Result<(Running, Option<ServerProcess>), Refused> {
        let client = Client {
            name: self.config.name.clone(),
            relist: self.relist.clone(),
            ears: self.ears.clone(),
        };
        let limit = self.config.startup_timeout;
        match &self.config.transport {
            Transport::Stdio { .. } => self.connect_stdio(client, limit).await,
            Transport::Http { url, headers } => {
                let transport = http_transport(url, headers).map_err(Refused::soon)?;
                let lifecycle = ClientLifecycleMode::Auto {
                    preferred_versions: vec![ProtocolVersion::V_2026_07_28],
                    legacy_version: Some(ProtocolVersion::V_2025_11_25),
                };
                let running = serve_client_with_lifecycle(client, transport, lifecycle);
                match tokio::time::timeout(limit, running).await {
                    Ok(Ok(running)) => Ok((running, None)),
                    Ok(Err(error))
                        if error.is_authorization_required()
                            || http_failure(&error).contains("403") =>
                    {
                        Err(Refused {
                            why: format!(
                                "needs a login: put a token into the headers of {:?}",
                                self.config.name
                            ),
                            retry: None,
                        })
                    }
                    Ok(Err(error)) => Err(Refused::soon(http_failure(&error))),
                    Err(_) => Err(Refused::soon(format!("no answer within {limit:?}"))),
                }
            }
            Transport::Sse { url, headers } => {
                let transport = super::sse::connect(url, headers)
                    .await
                    .map_err(Refused::soon)?;
                let running =
                    serve_client_with_lifecycle(client, transport, ClientLifecycleMode::Initialize);
                match tokio::time::timeout(limit, running).await {
                    Ok(Ok(running)) => Ok((running, None)),
                    Ok(Err(error)) => Err(Refused::soon(http_failure(&error))),
                    Err(_) => Err(Refused::soon(format!("no answer within {limit:?}"))),
                }
            }
        }
    }

    /// Starts the program and greets it: in the way it answers a probe, and without one
    /// where it does not survive that.
    async fn connect_stdio(
        &self,
        client: Client,
        limit: Duration,
    ) -> Result<(Running, Option<ServerProcess>), Refused> {
        let mut way = None;
        for attempt in 0..3 {
            let started = ServerProcess::start(&self.config, &self.ears.secrets);
            let (process, mut stdin, mut stdout) = started.map_err(|error| Refused {
                why: error.to_string(),
                retry: Some(match error {
                    super::stdio_server::StartError::NotFound(_) => Retry::NotFound,
                    super::stdio_server::StartError::Spawn(_) => Retry::Soon,
                }),
            })?;
            let (era, read_already) = match way {
                Some(era) => (era, Vec::new()),
                None => match probe(&mut stdin, &mut stdout).await {
                    Probed::Speaks(era, read) => (era, read),
                    Probed::Ended if attempt == 0 => {
                        way = Some(Era::Legacy);
                        continue;
                    }
                    Probed::Ended => return Err(Refused::soon(ended_how(process).await)),
                },
            };
            let lifecycle = match era {
                Era::Modern => ClientLifecycleMode::Discover {
                    preferred_versions: vec![ProtocolVersion::V_2026_07_28],
                },
                Era::Legacy => ClientLifecycleMode::Initialize,
            };
            let stdout = std::io::Cursor::new(read_already).chain(stdout);
            let transport = Lines::new(tokio::io::BufReader::new(stdout), stdin);
            let greeting = serve_client_with_lifecycle(client.clone(), transport, lifecycle);
            match tokio::time::timeout(limit, greeting).await {
                Ok(Ok(running)) => return Ok((running, Some(process))),
                // It has taken the probe for its era after all.
                Ok(Err(ClientInitializeError::JsonRpcError(error)))
                    if error.code.0 == -32022 && era == Era::Legacy =>
                {
                    way = Some(Era::Modern);
                }
                Ok(Err(ClientInitializeError::ConnectionClosed(_)))
                    if way.is_none() && attempt < 2 =>
                {
                    way = Some(Era::Legacy);
                }
                Ok(Err(ClientInitializeError::ConnectionClosed(_))) => {
                    return Err(Refused::soon(ended_how(process).await));
                }
                Ok(Err(error)) => {
                    let why = format!("the greeting failed: {}", short(&error.to_string()));
                    return Err(Refused::soon(with_last_words(why, &process)));
                }
                Err(_) => {
                    let why = format!("no answer to the greeting within {limit:?}");
                    return Err(Refused::soon(with_last_words(why, &process)));
                }
            }
        }
        Err(Refused::soon("no way to greet it was found"))
    }

    /// Lists the tools; what is malformed is left out.
    async fn list(&self, peer: &Peer<RoleClient>) -> Result<Vec<UpstreamTool>, String> {
        let mut tools: Vec<UpstreamTool> = Vec::new();
        let mut cursor: Option<String> = None;
        let until = tokio::time::Instant::now() + LISTING;
        for _ in 0..MAX_PAGES {
            let params = cursor
                .clone()
                .map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor)));
            let request = ClientRequest::ListToolsRequest(ListToolsRequest {
                method: Default::default(),
                params,
                extensions: Default::default(),
            });
            let page = match tokio::time::timeout_at(until, peer.send_request(request)).await {
                Ok(Ok(page)) => serde_json::to_value(&page).unwrap_or_default(),
                // It has none.
                Ok(Err(ServiceError::McpError(error))) if error.code.0 == -32601 => break,
                Ok(Err(_)) | Err(_) if !tools.is_empty() => break,
                Ok(Err(error)) => {
                    return Err(format!(
                        "its tools cannot be listed: {}",
                        short(&error.to_string())
                    ));
                }
                Err(_) => return Err("its tools cannot be listed in time".to_owned()),
            };
            let listed = page.get("tools").and_then(Value::as_array);
            for definition in listed.into_iter().flatten() {
                let mut definition = definition.clone();
                self.ears.secrets.hide_json(&mut definition);
                clean_definition(&mut definition);
                if let Some(tool) = tool_of(&definition)
                    && self.config.wants(&tool.name)
                    && !tools.iter().any(|known| known.name == tool.name)
                {
                    tools.push(tool);
                }
            }
            let next = page
                .get("nextCursor")
                .and_then(Value::as_str)
                .map(str::to_owned);
            if next.is_none() || next == cursor || tools.len() >= MAX_TOOLS {
                break;
            }
            cursor = next;
        }
        tools.truncate(MAX_TOOLS);
        tools.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tools)
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
        if let Some(peer) = self.peer()
            && !peer.is_transport_closed()
        {
            return Some(peer);
        }
        let wait = async {
            self.wanted.notify_one();
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(peer) = self.peer()
                    && !peer.is_transport_closed()
                {
                    return Some(peer);
                }
                if self.config.unusable.is_some() {
                    return None;
                }
                changed.await;
            }
        };
        let limit = self.config.startup_timeout.min(Duration::from_secs(10));
        tokio::time::timeout(limit, wait).await.ok().flatten()
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
                let _ = tokio::time::timeout(Duration::from_secs(2), async {
                    while self.peer().is_some() {
                        let changed = self.changed.notified();
                        tokio::pin!(changed);
                        changed.as_mut().enable();
                        if self.peer().is_none() {
                            break;
                        }
                        changed.await;
                    }
                })
                .await;
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

/// Ends a server that was greeted and is not wanted.
async fn end(running: Running, process: Option<ServerProcess>) {
    let _ = running.cancel().await;
    if let Some(process) = process {
        process.end().await;
    }
}

async fn ended_how(mut process: ServerProcess) -> String {
    let status = tokio::time::timeout(Duration::from_secs(1), process.ended()).await;
    let how = match status {
        Ok(Some(status)) => format!("ended ({status})"),
        _ => "closed its output".to_owned(),
    };
    with_last_words(how, &process)
}

fn with_last_words(what: String, process: &ServerProcess) -> String {
    match process.last_words() {
        words if words.is_empty() => what,
        words => format!("{what}: {words}"),
    }
}

/// A failure of HTTP in words: its status or its kind, never the body a server sent.
fn http_failure(error: &ClientInitializeError) -> String {
    http_words(error)
}

fn http_words(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let status = text
        .split(|c: char| !c.is_ascii_digit())
        .find(|digits| digits.len() == 3 && (digits.starts_with('4') || digits.starts_with('5')));
    match status {
        Some("401" | "403") => format!(
            "the server answered with status {}: it needs a login, or another token in its headers",
            status.unwrap_or_default()
        ),
        Some(status) => format!("the server answered with status {status}"),
        None if text.contains("redirect") => "the server redirects to another origin".to_owned(),
        None if text.contains("onnect") => "the server cannot be reached".to_owned(),
        None if text.contains("imed out") || text.contains("timeout") => {
            "the server does not answer".to_owned()
        }
        None => "the server's answer is no message of the protocol".to_owned(),
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

/// A text of a stranger, at a bearable length.
fn short(text: &str) -> String {
    const MAX: usize = 300;
    match text.len() > MAX {
        true => format!("{}…", &text[..text.floor_char_boundary(MAX)]),
        false => text.to_owned(),
    }
}

fn instructions_of(peer: &Peer<RoleClient>) -> Option<String> {
    peer.peer_info()?.instructions.clone()
}

/// A tool of a listing; `None` where it has no name.
fn tool_of(definition: &Value) -> Option<UpstreamTool> {
    let text = |key: &str| definition.get(key).and_then(Value::as_str);
    let hint = |key: &str| {
        definition
            .pointer(&format!("/annotations/{key}"))
            .and_then(Value::as_bool)
    };
    let schema = |key: &str| {
        definition
            .get(key)
            .filter(|schema| schema.is_object())
            .cloned()
    };
    let name = text("name").filter(|name| !name.is_empty() && name.len() <= 512)?;
    Some(UpstreamTool {
        name: name.to_owned(),
        description: text("description")
            .or(text("title"))
            .unwrap_or_default()
            .to_owned(),
        input_schema: schema("inputSchema"),
        output_schema: schema("outputSchema"),
        claims: Claims {
            read_only: hint("readOnlyHint") == Some(true),
            destructive: hint("destructiveHint") == Some(true),
        },
        definition: definition.clone(),
    })
}

fn http_transport(
    url: &str,
    headers: &std::collections::BTreeMap<String, String>,
) -> Result<StreamableHttpClientTransport<reqwest::Client>, String> {
    let mut config = StreamableHttpClientTransportConfig::with_uri(url)
        .max_sse_event_size(MAX_MESSAGE)
        .max_json_response_size(MAX_MESSAGE)
        .max_concurrent_requests(256)
        // A call is not sent again on a new session: it may have run.
        .reinit_on_expired_session(false);
    config = config.custom_headers(header_map(headers)?);
    let client = super::sse::http_client()?;
    Ok(StreamableHttpClientTransport::with_client(client, config))
}

/// Headers of a configuration.
pub(super) fn header_map(
    headers: &std::collections::BTreeMap<String, String>,
) -> Result<HashMap<HeaderName, HeaderValue>, String> {
    let mut map = HashMap::new();
    for (name, value) in headers {
        let name: HeaderName = name
            .parse()
            .map_err(|_| format!("headers: {name:?} is no name of a header"))?;
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| format!("headers.{name}: not the value of a header"))?;
        value.set_sensitive(true);
        map.insert(name, value);
    }
    Ok(map)
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
