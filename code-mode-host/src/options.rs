//! How a provider runs its workers.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use code_mode_protocol::{CodeModeSessionDelegate, Limits};
use tokio::io::DuplexStream;
use uuid::Uuid;

use crate::RemoteHost;
use crate::propagation::{NoPropagation, Propagation};

/// How a provider runs its workers. The default suits an agent.
///
/// ```
/// # use code_mode_host::{ProviderOptions, Sandbox};
/// let options = ProviderOptions::default().sandbox(Sandbox::Required).prewarmed(2);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProviderOptions {
    /// Where workers come from. Default [`WorkerSource::Find`]: `CODE_MODE_BIN`, beside the running
    /// program, `PATH`.
    pub worker: WorkerSource,
    /// Limits of every session that does not bring its own.
    pub limits: Limits,
    /// What to do about layers of the sandbox that cannot be had. Default
    /// [`Sandbox::BestEffort`].
    pub sandbox: Sandbox,
    /// Whether workers interpret JavaScript and never compile it to machine code: less
    /// to attack, and several times slower where code runs hot. Default false. Workers
    /// in this process are not concerned: there it is for `code_mode::Engine`.
    pub jitless: bool,
    /// A control group (cgroup v2) that was delegated to this program, for example by
    /// `systemd-run --user -p Delegate=yes`, and contains no process: each worker gets
    /// a group below it, which bounds its memory and its threads whatever it does. Linux
    /// only. Default none.
    pub cgroup: Option<PathBuf>,
    /// The fewest workers that are started ahead of the cells that will need them;
    /// under demand there are up to four. Default 1; 0 starts each worker when it is
    /// needed.
    pub prewarmed: usize,
    /// How long a new worker may take to say that it is ready. Default 10 s.
    pub handshake_timeout: Duration,
    /// How long a cell that must stop may still run before its worker is
    /// killed. Default 1 s.
    pub stop_grace: Duration,
    /// How long a session keeps a worker that runs no cell. Its values and the numbers
    /// of its cells are the session's, so nothing is lost when the worker goes; the
    /// next cell starts with a spare. Default 30 s.
    pub idle_timeout: Duration,
    /// Where every session is recorded. Default nowhere.
    pub traces: Option<TraceFolder>,
    observer: Observer,
    propagation: Connecting,
}

/// How the delegate of every session is observed.
#[derive(Clone, Default)]
struct Observer(Option<Arc<Wrap>>);

type Wrap =
    dyn Fn(Arc<dyn CodeModeSessionDelegate>) -> Arc<dyn CodeModeSessionDelegate> + Send + Sync;

/// How spans are connected with those of other programs.
#[derive(Clone)]
struct Connecting(Arc<dyn Propagation>);

impl fmt::Debug for Connecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Propagation")
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

impl ProviderOptions {
    /// Sets the wrapper around the delegate of every session: a delegate that counts or
    /// traces, and passes everything on. Default nothing.
    #[must_use]
    pub fn wrap_delegates(
        mut self,
        wrap: impl Fn(Arc<dyn CodeModeSessionDelegate>) -> Arc<dyn CodeModeSessionDelegate>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.observer = Observer(Some(Arc::new(wrap)));
        self
    }

    /// Sets how the spans of sessions are connected with those of the agent and of the tools. By
    /// default they are not; a tool is then told the span that its execute names.
    #[must_use]
    pub fn propagation(mut self, propagation: Arc<dyn Propagation>) -> Self {
        self.propagation = Connecting(propagation);
        self
    }

    pub(crate) fn propagates(&self) -> Arc<dyn Propagation> {
        self.propagation.0.clone()
    }

    /// The delegate with the observer around it.
    pub(crate) fn observe(
        &self,
        delegate: Arc<dyn CodeModeSessionDelegate>,
    ) -> Arc<dyn CodeModeSessionDelegate> {
        match &self.observer.0 {
            Some(wrap) => wrap(delegate),
            None => delegate,
        }
    }
}

impl Default for ProviderOptions {
    fn default() -> Self {
        Self {
            worker: WorkerSource::Find,
            limits: Limits::default(),
            sandbox: Sandbox::BestEffort,
            jitless: false,
            cgroup: None,
            prewarmed: 1,
            handshake_timeout: Duration::from_secs(10),
            stop_grace: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(30),
            traces: None,
            observer: Observer::default(),
            propagation: Connecting(Arc::new(NoPropagation)),
        }
    }
}

macro_rules! setters {
    ($($name:ident: $type:ty),* $(,)?) => {
        impl ProviderOptions {
            $(
                #[doc = concat!("These options with another [`", stringify!($name), "`](field@Self::", stringify!($name), ").")]
                #[must_use]
                pub fn $name(mut self, $name: $type) -> Self {
                    self.$name = $name;
                    self
                }
            )*
        }
    };
}

setters! {
    worker: WorkerSource,
    limits: Limits,
    sandbox: Sandbox,
    jitless: bool,
    cgroup: Option<PathBuf>,
    prewarmed: usize,
    handshake_timeout: Duration,
    stop_grace: Duration,
    idle_timeout: Duration,
    traces: Option<TraceFolder>,
}

/// A folder in which a provider records its sessions, each in a file that `code-mode timeline` reads.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TraceFolder {
    /// The folder. It must exist.
    pub path: PathBuf,
    /// Whether sources, inputs, answers and output are recorded too, as `code-mode replay` needs
    /// them. Then cells take time and randomness from a recording; see
    /// [`Determinism`](crate::Determinism).
    pub contents: bool,
}

impl TraceFolder {
    /// Records into this folder.
    pub fn new(path: impl Into<PathBuf>, contents: bool) -> Self {
        Self {
            path: path.into(),
            contents,
        }
    }

    /// A new file for a session, which only this user can read.
    pub(crate) fn file(&self) -> io::Result<std::fs::File> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let ms = since.unwrap_or_default().as_millis();
        let id = Uuid::new_v4().simple().to_string();
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(self.path.join(format!("{ms}-{}.jsonl", &id[..8])))
    }
}

/// Where workers come from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum WorkerSource {
    /// The program that the environment variable `CODE_MODE_BIN` names; else
    /// [`PROGRAM_NAME`](crate::PROGRAM_NAME) beside the running program, or on `PATH`.
    Find,
    /// This program, started as `PROGRAM worker`.
    Program(PathBuf),
    /// A worker that listens already, on this socket (`code-mode worker --listen`). It
    /// serves one provider and ends, and its socket goes with the first connection: a
    /// second worker can be had where another one listens there.
    Socket(PathBuf),
    /// Workers of `code-mode serve --listen grpc://IP:PORT` on another machine. Sessions
    /// stay here, with their stored values and tools: a machine that is lost costs its
    /// running cells.
    Remote(RemoteHost),
    /// Workers in this process, each at the other end of a stream in memory. They have
    /// no sandbox but V8's own.
    InMemory(InMemory),
}

impl WorkerSource {
    /// Workers in this process: `connect` serves one session at the other end of the
    /// stream it returns, as `code_mode::in_process` does.
    pub fn in_memory(connect: impl Fn() -> DuplexStream + Send + Sync + 'static) -> Self {
        Self::InMemory(InMemory(Arc::new(connect)))
    }
}

/// How to reach a new worker in this process.
#[derive(Clone)]
pub struct InMemory(Arc<dyn Fn() -> DuplexStream + Send + Sync>);

impl InMemory {
    pub(crate) fn stream(&self) -> DuplexStream {
        (self.0)()
    }
}

impl fmt::Debug for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemory").finish_non_exhaustive()
    }
}

/// What to do about layers of the worker's sandbox that cannot be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// Run with the rest; a warning names the missing layers, once for a provider.
    #[default]
    BestEffort,
    /// Refuse to run without every layer.
    Required,
    /// No operating-system sandbox at all. For measuring what it costs.
    Off,
}
