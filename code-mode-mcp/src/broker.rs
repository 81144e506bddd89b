//! One call: decided by the policy, put to a person where the policy says so, sent, and
//! recorded. The broker has the servers and their tools; it knows no session and no cell.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use code_mode_host::{Json, NestedToolCall, ToolDefinition, ToolError, ToolName, TraceContext};
use code_mode_protocol::text::line;
use rmcp::ErrorData;
use rmcp::model::{ElicitRequestParams, ElicitResult};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{AuditLog, AuditRecord, Outcome};
use crate::caller::CallContext;
use crate::config::{self, ConfigError, ServerConfig};
use crate::decide::{Subject, decide};
use crate::elicitation::ElicitationRouter;
use crate::names;
use crate::pending::PendingApprovals;
use crate::policy::{Claims, Policy, PolicyError};
use crate::resources;
use crate::secrets::Secrets;
use crate::tools::{ToolEntry, Tools};
use crate::upstream::{CallError, ElicitInCall, Status, Upstream, UpstreamEvents};

/// The least time between two notices about changed lists.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How long the first program waits for the servers.
const FIRST_WAIT: Duration = Duration::from_secs(4);

/// Which servers, which of their calls may run, and where calls are recorded.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct BrokerOptions {
    /// Files with servers, as clients have them: `mcpServers`, `servers` or `mcp_servers`, in
    /// JSON or TOML.
    pub config: Vec<PathBuf>,
    /// More servers: `NAME=COMMAND` or `NAME=URL`.
    pub servers: Vec<String>,
    /// The file of the policy. Default: a tool that is read-only or has no hint runs, and one that is
    /// destructive needs an approval.
    pub policy: Option<PathBuf>,
    /// How many tokens the description of the tools may have. Default 4,000.
    pub describe_tokens: Option<usize>,
    /// Where every call is recorded. Default nowhere.
    pub audit: Option<AuditLog>,
    /// Servers with `"shared": false` are started for each client, and not for all.
    pub each_client_its_own: bool,
}

/// Why a broker could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// The policy cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No server is configured.
    #[error("no servers: name a file (--config FILE) or a command (--server NAME=COMMAND)")]
    NoServers,
}

/// The configuration and the policy of a broker, as they were when they were read.
pub struct Loaded {
    pub(crate) servers: Vec<ServerConfig>,
    pub(crate) policy: Policy,
    secrets: Secrets,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field("servers", &self.servers.len())
            .finish_non_exhaustive()
    }
}

impl Loaded {
    /// Reads the files of a broker's options. Oddities of the configuration are added to `warnings`.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub fn read(options: &BrokerOptions, warnings: &mut Vec<String>) -> Result<Self, BrokerError> {
        let secrets = Secrets::default();
        let policy = match &options.policy {
            Some(path) => Policy::read(path)?,
            None => Policy::default(),
        };
        let servers = config::read(&options.config, &options.servers, &secrets, warnings)?;
        if servers.is_empty() {
            return Err(BrokerError::NoServers);
        }
        config::warn_of_unusable(&servers, &secrets, warnings);
        Ok(Self {
            servers,
            policy,
            secrets,
        })
    }
}

/// The servers, and everything that every call goes through.
pub struct Broker {
    pub(crate) upstreams: Vec<Arc<Upstream>>,
    /// The configured servers, in their order.
    servers: Vec<Server>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) secrets: Secrets,
    /// The calls of all clients that wait for an answer from a terminal.
    pub(crate) pending: Arc<PendingApprovals>,
    audit: Option<Arc<AuditLog>>,
    describe_tokens: usize,
    /// Changes with every server that a client of this broker uses.
    changed: Arc<watch::Sender<()>>,
    tools: Arc<ToolsNow>,
    /// A client has waited for the servers' start.
    has_waited: AtomicBool,
    pub(crate) shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// A configured server.
enum Server {
    /// One for all clients.
    Shared(Arc<Upstream>),
    /// Each client has its own.
    OfClient(Box<ServerConfig>),
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("servers", &self.upstreams.len())
            .finish_non_exhaustive()
    }
}

/// The tools as they are now. One at a time makes them anew.
struct ToolsNow {
    upstreams: Vec<Arc<Upstream>>,
    policy: Arc<Policy>,
    describe_tokens: usize,
    refreshing: Mutex<()>,
    now: watch::Sender<Arc<Tools>>,
}

impl ToolsNow {
    /// Whether any server has neither started nor failed.
    fn is_starting(&self) -> bool {
        let mut all = self.upstreams.iter();
        all.any(|upstream| upstream.status().is_starting())
    }

    fn refresh(&self) {
        let _one = self
            .refreshing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = self.now.borrow().clone();
        let tools = Tools::of(
            &self.upstreams,
            &self.policy,
            self.describe_tokens,
            Some(&before),
        );
        self.now.send_replace(Arc::new(tools));
    }

    fn unmatched_rules(&self) -> Vec<String> {
        let tools = self.now.borrow().clone();
        let names: Vec<_> = (tools.entries.iter())
            .map(|entry| (entry.upstream.name(), entry.tool.name.as_str()))
            .collect();
        let unknown: Vec<_> = (self.upstreams.iter())
            .filter(|upstream| upstream.status() != Status::Ready)
            .map(|upstream| upstream.name())
            .collect();
        self.policy.unmatched(&names, &unknown)
    }
}

/// A call on its way.
struct Call<'a> {
    context: Arc<dyn CallContext>,
    entry: &'a ToolEntry,
    input: Option<&'a Json>,
    span: Option<&'a TraceContext>,
}

/// What became of a call.
struct Done {
    answer: Result<Json, ToolError>,
    outcome: Outcome,
}

/// What a broker, and those of its clients, have in common.
struct Common {
    policy: Arc<Policy>,
    secrets: Secrets,
    describe_tokens: usize,
    audit: Option<Arc<AuditLog>>,
    changed: Arc<watch::Sender<()>>,
    pending: Arc<PendingApprovals>,
}

impl Common {
    /// Where servers report. Questions that they ask go to the clients that share them.
    fn events(&self) -> Arc<UpstreamEvents> {
        Arc::new(UpstreamEvents {
            changed: self.changed.clone(),
            elicitations: Arc::new(ElicitationRouter::new(self.policy.clone())),
            secrets: self.secrets.clone(),
        })
    }

    /// The broker of all clients. It starts the servers.
    fn begin(self, servers: Vec<ServerConfig>, each_client_its_own: bool) -> Arc<Broker> {
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let events = self.events();
        let servers = servers.into_iter().map(|config| {
            if each_client_its_own && !config.is_shared {
                return Server::OfClient(Box::new(config));
            }
            let upstream = Upstream::new(config, events.clone());
            tasks.spawn(upstream.clone().run(shutdown.clone()));
            Server::Shared(upstream)
        });
        let servers: Vec<_> = servers.collect();
        let shared = servers.iter().filter_map(|server| match server {
            Server::Shared(upstream) => Some(upstream.clone()),
            Server::OfClient(_) => None,
        });
        let shared = shared.collect();
        self.broker(shared, servers, shutdown, tasks)
    }

    fn broker(
        self,
        upstreams: Vec<Arc<Upstream>>,
        servers: Vec<Server>,
        shutdown: CancellationToken,
        tasks: TaskTracker,
    ) -> Arc<Broker> {
        // Before the servers are looked at: no change is missed.
        let changes = self.changed.subscribe();
        let tools = Tools::of(&upstreams, &self.policy, self.describe_tokens, None);
        let tools = Arc::new(ToolsNow {
            upstreams: upstreams.clone(),
            policy: self.policy.clone(),
            describe_tokens: self.describe_tokens,
            refreshing: Mutex::default(),
            now: watch::Sender::new(Arc::new(tools)),
        });
        let following = follow(changes, tools.clone());
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(following));
        Arc::new(Broker {
            upstreams,
            servers,
            policy: self.policy,
            secrets: self.secrets,
            pending: self.pending,
            audit: self.audit,
            describe_tokens: self.describe_tokens,
            changed: self.changed,
            tools,
            has_waited: AtomicBool::new(false),
            shutdown,
            tasks,
        })
    }
}

impl Broker {
    /// Starts the servers of a configuration that was read from these options, in the background; the
    /// files are not read again. Must be called within a tokio runtime.
    pub fn start(loaded: Loaded, options: BrokerOptions) -> Arc<Self> {
        let Loaded {
            servers,
            policy,
            secrets,
        } = loaded;
        let common = Common {
            policy: Arc::new(policy),
            secrets,
            describe_tokens: options.describe_tokens.unwrap_or(4000),
            audit: options.audit.map(Arc::new),
            changed: Arc::new(watch::Sender::new(())),
            pending: Arc::default(),
        };
        common.begin(servers, options.each_client_its_own)
    }

    /// A broker of these servers, which are started in the background.
    #[cfg(test)]
    pub(crate) fn of(
        servers: Vec<ServerConfig>,
        policy: Policy,
        secrets: Secrets,
        describe_tokens: usize,
        audit: Option<AuditLog>,
    ) -> Arc<Self> {
        let loaded = Loaded {
            servers,
            policy,
            secrets,
        };
        let options = BrokerOptions {
            describe_tokens: Some(describe_tokens),
            audit,
            ..BrokerOptions::default()
        };
        Self::start(loaded, options)
    }

    /// A broker for one client: with the servers that all clients share, and those that are its own,
    /// which are started now. The caller ends it with [`end`](Self::end). Where all are shared, it is
    /// this broker: `None`.
    #[cfg(unix)]
    pub(crate) fn for_client(&self) -> Option<Arc<Self>> {
        if self
            .servers
            .iter()
            .all(|server| matches!(server, Server::Shared(_)))
        {
            return None;
        }
        let common = Common {
            policy: self.policy.clone(),
            secrets: self.secrets.clone(),
            describe_tokens: self.describe_tokens,
            audit: self.audit.clone(),
            changed: self.changed.clone(),
            pending: self.pending.clone(),
        };
        let (shutdown, tasks) = (self.shutdown.child_token(), TaskTracker::new());
        let events = common.events();
        let upstreams = self.servers.iter().map(|server| match server {
            Server::Shared(upstream) => upstream.clone(),
            Server::OfClient(config) => {
                let upstream = Upstream::new((**config).clone(), events.clone());
                tasks.spawn(upstream.clone().run(shutdown.clone()));
                upstream
            }
        });
        Some(common.broker(upstreams.collect(), Vec::new(), shutdown, tasks))
    }

    /// Whether the policy lets somebody at another terminal answer.
    pub fn terminal_may_answer(&self) -> bool {
        self.policy.terminal_may_answer
    }

    /// The servers that a configuration gives to each client, by their names.
    pub fn servers_of_each_client(&self) -> Vec<&str> {
        let own = self.servers.iter().filter_map(|server| match server {
            Server::Shared(upstream) if !upstream.config.is_shared => Some(upstream.name()),
            Server::Shared(_) => None,
            Server::OfClient(config) => Some(config.name.as_str()),
        });
        own.collect()
    }

    /// The tools as they are now.
    pub(crate) fn tools(&self) -> Arc<Tools> {
        self.tools.now.borrow().clone()
    }

    /// The tools, to see them change.
    pub(crate) fn tools_changes(&self) -> watch::Receiver<Arc<Tools>> {
        self.tools.now.subscribe()
    }

    /// The definitions of all tools, for an execute.
    pub fn definitions(&self) -> Vec<ToolDefinition> {
        self.tools().definitions.to_vec()
    }

    /// Globals that cells should have: `ALL_SERVERS`.
    pub fn constants(&self) -> Vec<(String, Json)> {
        let servers = self.upstreams.iter().map(|upstream| {
            let state = upstream.state();
            json!({
                "server": upstream.name(),
                "status": state.status.words(),
                "toolCount": state.tools.len(),
            })
        });
        let mut servers: Vec<Value> = servers.collect();
        servers.sort_by(|a, b| a["server"].as_str().cmp(&b["server"].as_str()));
        let servers = Json::from_value(&servers).unwrap_or_else(|_| Json::null());
        vec![("ALL_SERVERS".to_owned(), servers)]
    }

    /// Whether a tool of this name is offered now.
    pub fn has(&self, name: &ToolName) -> bool {
        self.tools()
            .definitions
            .iter()
            .any(|tool| tool.tool_name == *name)
    }

    /// Waits, for a while, until every server has started or failed. Only the first client
    /// waits: later changes are announced.
    pub(crate) async fn servers_started(&self) {
        self.started_within(FIRST_WAIT).await;
    }

    async fn started_within(&self, limit: Duration) {
        if self.has_waited.load(Ordering::Relaxed) || !self.tools.is_starting() {
            return;
        }
        let _ = tokio::time::timeout(limit.min(FIRST_WAIT), self.all_started()).await;
        self.has_waited.store(true, Ordering::Relaxed);
        self.tools.refresh();
    }

    /// Waits until `limit` for the servers that a program needs: those that it names and that have
    /// listed nothing yet; or for a while for all, where it names none. Returns those that it needs
    /// and that still start, with their states, for a model.
    pub(crate) async fn ready_for(&self, program: &str, limit: Duration) -> Vec<String> {
        let names = |upstream: &&Arc<Upstream>| program.contains(&names::prefix(upstream.name()));
        let named: Vec<_> = self.upstreams.iter().filter(names).collect();
        if named.is_empty() {
            self.started_within(limit).await;
            return Vec::new();
        }
        let is_missing = |upstream: &&&Arc<Upstream>| {
            let state = upstream.state();
            state.status.is_starting() && state.tools.is_empty()
        };
        let missing = named.iter().filter(is_missing);
        let missing: Vec<_> = missing.map(|upstream| upstream.started()).collect();
        if !missing.is_empty() {
            let _ = tokio::time::timeout(limit, futures::future::join_all(missing)).await;
        }
        let missing = named.iter().filter(is_missing);
        let missing: Vec<String> = missing.map(|upstream| upstream.state_in_words()).collect();
        // The state of a server changes a moment before the tools are made of it.
        if missing.is_empty() && !self.tools().are_of(&self.upstreams) {
            self.tools.refresh();
        }
        missing
    }

    /// Waits until the server of a tool has started or failed, and takes its tools as they are then: a person
    /// decides about no definition of yesterday.
    pub(crate) async fn started_for(&self, tool: &ToolName, limit: Duration) {
        let server = tool.namespace.as_deref().unwrap_or_default();
        let upstream = self.upstreams.iter().find(|one| one.name() == server);
        if let Some(upstream) = upstream.filter(|one| one.status().is_starting()) {
            let _ = tokio::time::timeout(limit, upstream.started()).await;
        }
        // The state of a server changes a moment before the tools are made of it.
        if !self.tools().are_of(&self.upstreams) {
            self.tools.refresh();
        }
    }

    /// A line for each server that is not ready and whose tools a program's error misses, with the
    /// server's state. The caller adds the lines to the error.
    pub fn servers_missed(&self, error: &str) -> String {
        if !error.contains("no tool is called") {
            return String::new();
        }
        let missing = self.upstreams.iter().filter_map(|upstream| {
            let is_ready = upstream.status() == Status::Ready;
            let is_named = error.contains(&names::prefix(upstream.name()));
            (is_named && !is_ready).then(|| format!("\n{}", upstream.state_in_words()))
        });
        missing.collect()
    }

    /// Waits until every server has started or failed, however long that takes.
    pub async fn all_started(&self) {
        let started = self.upstreams.iter().map(|upstream| upstream.started());
        futures::future::join_all(started).await;
        self.tools.refresh();
    }

    /// The rules of the policy that fit no tool; see [`Policy::unmatched`].
    pub(crate) fn unmatched_rules(&self) -> Vec<String> {
        self.tools.unmatched_rules()
    }

    /// Ends the servers, side by side: each has two seconds.
    pub async fn end(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Runs a call of a cell to its end and records it. Dropping the future cancels the call
    /// at its server.
    ///
    /// # Errors
    /// The error of the tool, with the code and the data of its server; or why the call did
    /// not run, or may have run.
    pub async fn call(
        &self,
        call: &NestedToolCall,
        context: Arc<dyn CallContext>,
    ) -> Result<Json, ToolError> {
        if resources::is_reader(&call.tool_name) {
            return resources::read(self, call.input.as_ref(), context).await;
        }
        let tools = self.tools();
        let Some(entry) = tools.entry(&call.tool_name) else {
            let server = call.tool_name.namespace.as_deref().unwrap_or_default();
            let gone = line(&call.tool_name.name, 100);
            let upstream = self.upstreams.iter().find(|one| one.name() == server);
            if let Some(upstream) = upstream.filter(|one| one.status() != Status::Ready) {
                let state = upstream.state_in_words();
                return Err(format!("{gone} cannot be called: {state}").into());
            }
            let near = tools.near(&gone);
            let near = match near.is_empty() {
                true => String::new(),
                false => format!("; there are {}", near.join(", ")),
            };
            return Err(format!("{gone} is no longer offered by {server}{near}").into());
        };
        let input = call.input.as_ref();
        self.run(Call {
            context,
            entry,
            input,
            span: call.trace_context.as_ref(),
        })
        .await
    }

    /// Runs a call of a tool that is offered directly.
    pub(crate) async fn call_directly(
        &self,
        entry: &ToolEntry,
        input: &Json,
        span: Option<&TraceContext>,
        context: Arc<dyn CallContext>,
    ) -> Result<Json, ToolError> {
        self.run(Call {
            context,
            entry,
            input: Some(input),
            span,
        })
        .await
    }

    async fn run(&self, call: Call<'_>) -> Result<Json, ToolError> {
        let (server, tool) = (call.entry.upstream.name(), &call.entry.tool);
        let text = call.input.map_or("{}", Json::as_str);
        let mut recording = self.recording(&call.context, server, &tool.name, text);
        let arguments = match arguments(call.input) {
            Ok(arguments) => arguments,
            Err(what) => {
                recording.outcome = Outcome::Failed;
                let why = format!("{server}/{} takes an object, not {what}", tool.name);
                return Err(why.into());
            }
        };
        let subject = Subject {
            server,
            name: &tool.name,
            claims: tool.claims,
            definition: &tool.definition,
            input_schema: tool.input_schema.as_ref(),
            arguments: &arguments,
            is_read: false,
        };
        let decided = decide(&self.policy, &self.secrets, &subject, &*call.context).await;
        recording.decision = decided.in_words;
        if let Some(why) = decided.refusal {
            recording.outcome = Outcome::Denied;
            return Err(ToolError::blocked(why));
        }
        // From here on it may have run, also where nobody waits for the answer any more.
        recording.outcome = Outcome::Unknown;
        let arguments = decided.rewritten.unwrap_or(arguments);
        let done = self.send(&call, arguments).await;
        recording.outcome = done.outcome;
        done.answer
    }

    /// Reads a resource or gets a prompt: decided, put to a person and recorded like a call.
    /// `name` is `resource:ADDRESS` or `prompt:NAME`.
    pub(crate) async fn read<T>(
        &self,
        context: Arc<dyn CallContext>,
        server: &str,
        name: &str,
        arguments: &Map<String, Value>,
        reading: impl Future<Output = Result<T, ErrorData>>,
    ) -> Result<T, ErrorData> {
        let text = Value::from(arguments.clone()).to_string();
        let subject = Subject {
            server,
            name,
            claims: Claims::READING,
            definition: &Value::Null,
            input_schema: None,
            arguments,
            is_read: true,
        };
        let mut recording = self.recording(&context, server, &self.secrets.hide(name), &text);
        let decided = decide(&self.policy, &self.secrets, &subject, &*context).await;
        recording.decision = decided.in_words;
        if let Some(why) = decided.refusal {
            recording.outcome = Outcome::Denied;
            return Err(ErrorData::invalid_params(why, None));
        }
        let read = reading.await;
        recording.outcome = match read {
            Ok(_) => Outcome::Ran,
            Err(_) => Outcome::Failed,
        };
        read
    }

    /// Begins the record of a call, which is written when the value is dropped.
    fn recording<'a>(
        &'a self,
        context: &'a Arc<dyn CallContext>,
        server: &str,
        name: &str,
        input: &str,
    ) -> Recording<'a> {
        let recording = Recording {
            audit: self.audit.as_deref(),
            context: &**context,
            name: format!("{server}/{name}"),
            record: Some(AuditRecord::new(context.ids(), server, name, input)),
            began: Instant::now(),
            decision: String::new(),
            outcome: Outcome::Cancelled,
        };
        context.began(&recording.name);
        recording
    }

    async fn send(&self, call: &Call<'_>, arguments: Map<String, Value>) -> Done {
        let upstream = &call.entry.upstream;
        let (server, tool) = (upstream.name(), &call.entry.tool);
        let name = &tool.name;
        let failed = |text: String| Done {
            answer: Err(self.secrets.hide(&text).into()),
            outcome: Outcome::Failed,
        };
        let router = &upstream.events.elicitations;
        let running = router.call_runs(server, call.context.clone());
        let questions = Questions {
            router,
            context: &*call.context,
        };
        let may_repeat = self.policy.retry_read_only && tool.claims.read_only;
        let mut result = upstream
            .call(name, arguments.clone(), call.span, &questions)
            .await;
        if may_repeat && matches!(result, Err(CallError::MayHaveRun(_))) {
            result = upstream.call(name, arguments, call.span, &questions).await;
        }
        running.over();
        match result {
            Ok(mut value) => {
                let is_error = value.get("isError") == Some(&Value::Bool(true));
                if is_error {
                    // An error goes further than a value: into what the model reads.
                    self.secrets.hide_json(&mut value);
                }
                match Json::from_value(&value) {
                    Ok(json) => {
                        upstream.shapes.saw(tool, json.as_str());
                        Done {
                            answer: Ok(json),
                            outcome: match is_error {
                                true => Outcome::Failed,
                                false => Outcome::Ran,
                            },
                        }
                    }
                    Err(error) => failed(format!(
                        "the result of {server}/{name} cannot be passed on: {error}"
                    )),
                }
            }
            Err(CallError::Rpc(error)) => Done {
                answer: Err(self.rpc_error(&format!("{server}/{name}"), &error)),
                outcome: Outcome::Failed,
            },
            Err(CallError::NotSent(why)) => failed(why),
            Err(CallError::MayHaveRun(why)) => Done {
                answer: Err(ToolError::unknown(self.secrets.hide(&why))),
                outcome: Outcome::Unknown,
            },
        }
    }

    /// A JSON-RPC error of a server as the error of a tool, without secrets.
    fn rpc_error(&self, tool: &str, error: &ErrorData) -> ToolError {
        let message = self.secrets.hide(&format!("{tool}: {}", error.message));
        let mut failure = ToolError::new(message).code(i64::from(error.code.0));
        if let Some(data) = &error.data {
            let mut data = data.clone();
            self.secrets.hide_json(&mut data);
            failure.data = Json::from_value(&data).ok();
        }
        failure
    }
}

/// Makes the tools anew when a server has changed.
async fn follow(mut changes: watch::Receiver<()>, tools: Arc<ToolsNow>) {
    let mut has_warned = false;
    while changes.changed().await.is_ok() {
        tools.refresh();
        if !tools.is_starting() {
            if !std::mem::replace(&mut has_warned, true) {
                let rules = tools.unmatched_rules();
                for rule in rules.iter().filter(|rule| rule.starts_with("deny ")) {
                    tracing::warn!(
                        "the rule {rule} of the policy fits no tool: it forbids nothing"
                    );
                }
            }
            // A storm of changes is announced as one.
            tokio::time::sleep(TELL_EVERY).await;
        }
    }
}

/// Questions that a server asks within a call go to the maker of the call.
struct Questions<'a> {
    router: &'a ElicitationRouter,
    context: &'a dyn CallContext,
}

impl ElicitInCall for Questions<'_> {
    async fn elicit(&self, server: &str, params: ElicitRequestParams) -> ElicitResult {
        self.router.ask(self.context, server, params).await
    }
}

/// Records a call when it is over: also where its future was dropped, because its cell has
/// ended.
struct Recording<'a> {
    audit: Option<&'a AuditLog>,
    context: &'a dyn CallContext,
    name: String,
    record: Option<AuditRecord>,
    began: Instant,
    decision: String,
    outcome: Outcome,
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        let Some(record) = self.record.take() else {
            return;
        };
        let decision = std::mem::take(&mut self.decision);
        let record = record.ended(decision, self.outcome, self.began.elapsed());
        if let Some(audit) = self.audit {
            audit.write(&record);
        }
        self.context.ended(&self.name, &record);
    }
}

fn arguments(input: Option<&Json>) -> Result<Map<String, Value>, &'static str> {
    match input.map(|json| json.to::<Value>()) {
        None | Some(Ok(Value::Null)) => Ok(Map::new()),
        Some(Ok(Value::Object(arguments))) => Ok(arguments),
        Some(Ok(Value::Array(_))) => Err("an array"),
        Some(Ok(Value::String(_))) => Err("a string"),
        Some(Ok(_)) => Err("a number or boolean"),
        Some(Err(_)) => Err("this"),
    }
}
