//! What tests share: the program, providers, delegates.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{
    CellId, CellNotification, CellResponse, CodeModeSessionDelegate, ContentItem, ExecuteRequest,
    Json, Limits, NestedToolCall, Provider, ProviderOptions, SessionError, SessionOptions,
    ToolDefinition, ToolError, ToolSet, WorkerSource,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The program `code-mode`, which cargo builds beside the tests.
pub fn program() -> PathBuf {
    let mut path = std::env::current_exe().expect("a test binary has a path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    let program = path.join(code_mode_host::PROGRAM_NAME);
    assert!(
        program.is_file(),
        "{} is missing: build it with `cargo build --workspace`",
        program.display()
    );
    program
}

/// Options for workers of the program under test. The machine may be busy with other
/// tests, so a cell gets more time to stop than it would by default.
pub fn options() -> ProviderOptions {
    ProviderOptions::default()
        .worker(WorkerSource::Program(program()))
        .stop_grace(Duration::from_secs(20))
}

/// A provider whose worker is at this socket already.
#[cfg(unix)]
pub fn provider_at(socket: PathBuf) -> Provider {
    Provider::new(options().worker(WorkerSource::Socket(socket))).expect("nothing to find")
}

/// A provider whose workers are in this process.
pub fn provider_in_process() -> Provider {
    Provider::new(options().worker(WorkerSource::in_memory(code_mode::in_process)))
        .expect("nothing to find")
}

pub use code_mode_host::Session;

/// A provider and one session of it.
pub struct Opened {
    pub provider: Provider,
    pub session: Session,
}

/// Opens a session, if that is possible.
pub async fn try_session(
    provider: &Provider,
    delegate: Arc<dyn CodeModeSessionDelegate>,
    limits: Limits,
) -> Result<Session, SessionError> {
    let options = SessionOptions::default().limits(limits);
    provider.open_session(delegate, options).await
}

/// Opens a session.
pub async fn session_of(
    provider: &Provider,
    delegate: Arc<dyn CodeModeSessionDelegate>,
    limits: Limits,
) -> Session {
    try_session(provider, delegate, limits)
        .await
        .expect("a worker starts")
}

/// Opens a session in a worker process.
pub async fn open(delegate: Arc<dyn CodeModeSessionDelegate>, limits: Limits) -> Opened {
    let provider = Provider::new(options()).expect("the program is there");
    let session = session_of(&provider, delegate, limits).await;
    Opened { provider, session }
}

/// Opens a session whose worker is in this process.
pub async fn open_in_process(delegate: Arc<dyn CodeModeSessionDelegate>, limits: Limits) -> Opened {
    let provider = provider_in_process();
    let session = session_of(&provider, delegate, limits).await;
    Opened { provider, session }
}

/// Runs a test with a session in this process, and with one in a worker process.
pub fn on_both<F>(limits: Limits, test: impl Fn(Session, Arc<Agent>) -> F)
where
    F: Future<Output = ()>,
{
    run(async {
        let agent = Arc::new(Agent::default());
        let opened = open_in_process(agent.clone(), limits.clone()).await;
        test(opened.session.clone(), agent).await;
        opened.provider.shutdown().await;

        let agent = Arc::new(Agent::default());
        let opened = open(agent.clone(), limits.clone()).await;
        test(opened.session.clone(), agent).await;
        opened.provider.shutdown().await;
    });
}

/// Runs an async test on a runtime of several threads, as an agent core would.
pub fn run<F: Future<Output = ()>>(test: F) {
    runtime().block_on(async {
        // A promise broken by waiting for ever fails instead.
        tokio::time::timeout(Duration::from_secs(120), test)
            .await
            .expect("the test ends");
    });
}

/// Set in a process that runs one test.
#[cfg(target_os = "linux")]
const ALONE: &str = "CODE_MODE_TEST_ALONE";

/// Whether this process runs nothing but the test; where it does not, the test is
/// run in one that does, so that its workers and descriptors are known.
#[cfg(target_os = "linux")]
pub fn alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let status = std::process::Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .stdout(std::process::Stdio::null())
        .status()
        .expect("the test starts");
    assert!(status.success(), "{test} failed in its own process");
    false
}

/// The processes of a test that is [`alone`]. `cargo test` runs all tests in one process, so
/// a test that is not alone would count the workers of others.
#[cfg(target_os = "linux")]
pub fn own_processes() -> Vec<u32> {
    assert!(
        std::env::var_os(ALONE).is_some(),
        "other tests' processes would be counted too"
    );
    crate::processes::descendants(std::process::id())
}

/// Sends a signal to a process, which may be gone already.
#[cfg(unix)]
pub fn send(process: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(process).ok();
    let pid = pid.and_then(rustix::process::Pid::from_raw);
    let _ = rustix::process::kill_process(pid.expect("a process"), signal);
}

/// Whether this process ignores SIGHUP, and so what it starts: `nohup` started it.
#[cfg(unix)]
pub fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 != 0)
}

/// A runtime of several threads, for tests with a bound of their own.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// A delegate that answers by the tool's name and remembers what happened.
#[derive(Default)]
pub struct Agent {
    pub calls: AtomicUsize,
    pub cancelled: AtomicUsize,
    pub notifications: Mutex<Vec<String>>,
    pub closed: Mutex<Vec<String>>,
    /// Rung at every call, notification and close.
    pub changed: Notify,
    /// No notification is taken before it is cancelled.
    pub holds_notifications: bool,
    /// Answers by tool name; `echo` and `never` are known without.
    pub answers: HashMap<&'static str, Result<String, String>>,
}

impl Agent {
    /// Waits until `reached` says so.
    pub async fn until(&self, reached: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if reached(self) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until a cell has called a tool, once in all.
    pub async fn called_once(&self) {
        self.until(|agent| agent.calls.load(Ordering::SeqCst) == 1)
            .await;
    }

    /// The cells that were closed so far.
    pub fn closed(&self) -> Vec<String> {
        self.closed.lock().expect("not poisoned").clone()
    }
}

#[async_trait]
impl CodeModeSessionDelegate for Agent {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
        match call.tool_name.name.as_str() {
            "echo" => Ok(call.input.unwrap_or_else(Json::null)),
            "never" => {
                cancelled.cancelled().await;
                self.cancelled.fetch_add(1, Ordering::SeqCst);
                self.changed.notify_waiters();
                Err("cancelled".into())
            }
            "deaf" => std::future::pending().await,
            name => match self.answers.get(name) {
                Some(Ok(json)) => Json::parse(json.clone()).map_err(|e| e.to_string().into()),
                Some(Err(message)) => Err(message.clone().into()),
                None => Err(format!("no tool {name}").into()),
            },
        }
    }

    async fn notify(&self, notification: CellNotification, cancelled: CancellationToken) {
        self.notifications
            .lock()
            .expect("not poisoned")
            .push(notification.text);
        self.changed.notify_waiters();
        if self.holds_notifications {
            cancelled.cancelled().await;
        }
    }

    async fn cell_closed(&self, cell_id: CellId) {
        self.closed
            .lock()
            .expect("not poisoned")
            .push(cell_id.to_string());
        self.changed.notify_waiters();
    }
}

/// A tool definition with nothing but a name.
pub fn tool(name: &str) -> ToolDefinition {
    ToolDefinition::function(name, "")
}

/// The tools an [`Agent`] knows.
pub fn agent_tools() -> ToolSet {
    ToolSet::from(["echo", "never", "deaf"].map(tool))
}

/// A request with the agent's tools.
pub fn request(source: &str) -> ExecuteRequest {
    ExecuteRequest::new("call-1", source).tools(agent_tools())
}

/// A request that is observed for a moment only.
pub fn brief(source: &str) -> ExecuteRequest {
    request(source).yield_time(Duration::from_millis(1))
}

/// Starts a cell, observes it for a moment and leaves it running.
pub async fn started(session: &code_mode_host::Session, source: &str) -> CellId {
    let started = session.execute(brief(source)).await.expect("admitted");
    let cell_id = started.id().clone();
    started.outcome().await.expect("observed");
    cell_id
}

/// Runs a cell to its first response.
pub async fn exec(session: &code_mode_host::Session, source: &str) -> CellResponse {
    let request = request(source).yield_time(Duration::from_secs(100));
    let started = session.execute(request).await.expect("admitted");
    started.outcome().await.expect("observed")
}

/// The texts of a response.
pub fn texts(response: &CellResponse) -> Vec<&str> {
    response
        .content_items()
        .iter()
        .map(|item| match item {
            ContentItem::Text { text, .. } => text.as_str(),
            other => panic!("not text: {other:?}"),
        })
        .collect()
}

/// The error text of a result.
pub fn error_text(response: &CellResponse) -> Option<&str> {
    match response {
        CellResponse::Result { error_text, .. } => error_text.as_deref(),
        other => panic!("not a result: {other:?}"),
    }
}
