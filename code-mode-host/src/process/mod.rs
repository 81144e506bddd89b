//! Worker processes: started, watched, killed, never left behind.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use code_mode_protocol::text::line;
use code_mode_protocol::wire::template::WorkerSettings;
use futures::StreamExt;
use tokio::io::AsyncRead;
use tokio::task::JoinHandle;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use crate::{ProviderOptions, Sandbox};

#[cfg(target_os = "linux")]
pub mod ahead;
#[cfg(target_os = "linux")]
mod cgroup;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod template;
#[cfg(target_os = "linux")]
pub use linux::load_ahead;
#[cfg(target_os = "linux")]
pub(crate) use linux::{Child, Starter, start};

#[cfg(not(target_os = "linux"))]
mod other;
#[cfg(not(target_os = "linux"))]
pub use other::load_ahead;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::{Child, Starter, start};

/// A worker that was started, and the private connection to it.
pub(crate) struct Started {
    pub(crate) child: Child,
    pub(crate) socket: interprocess::local_socket::tokio::Stream,
    pub(crate) said: Said,
    /// Whether it is the one that was made before the program started itself anew.
    pub(crate) was_ahead: bool,
}

/// What a worker has said on its standard error, as far as it is kept.
pub(crate) struct Said {
    last: Arc<Mutex<VecDeque<String>>>,
    reader: JoinHandle<()>,
}

impl Said {
    /// The last lines of a worker that has ended, in one line for an error; empty where it said
    /// nothing.
    pub(crate) async fn last_words(self) -> String {
        /// Processes that the worker has left behind may hold the stream open.
        const LIMIT: Duration = Duration::from_millis(300);
        let _ = tokio::time::timeout(LIMIT, self.reader).await;
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = last.iter().map(|line| line.trim()).collect();
        line(&lines.join(" | "), LAST_WORDS)
    }
}

/// How many bytes of them an error has.
const LAST_WORDS: usize = 300;

/// A worker could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The worker's program was not found.
    #[error("the program {} was not found: {looked}", crate::PROGRAM_NAME)]
    NotFound {
        /// Where it was looked for, in one line.
        looked: String,
    },
    /// The operating system refused.
    #[error("cannot start {}: {error}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The refusal.
        #[source]
        error: io::Error,
    },
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// The operating system does not say.
    Unknown,
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Signalled(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "was killed by signal {signal} ({name})"),
                None => write!(f, "was killed by signal {signal}"),
            },
            Self::Unknown => write!(f, "ended"),
        }
    }
}

/// The names of the signals a worker dies of.
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

/// What a worker is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// This program's sessions.
    Serve,
    /// Examined by `doctor`: it runs the sandbox's probes on request.
    Examine,
    /// Somebody else's session, whose limits are at most this program's.
    Lend,
}

/// How a worker runs, as far as the system does not decide it.
fn settings(options: &ProviderOptions, purpose: Purpose) -> WorkerSettings {
    WorkerSettings {
        require_sandbox: options.sandbox == Sandbox::Required,
        no_sandbox: options.sandbox == Sandbox::Off,
        namespaces: None,
        jitless: options.jitless,
        probe: purpose == Purpose::Examine,
        most: (purpose == Purpose::Lend).then(|| options.limits.clone()),
    }
}

/// The arguments of a worker with these settings.
fn arguments(settings: &WorkerSettings) -> Vec<OsString> {
    let mut arguments = vec![OsString::from("worker")];
    for (is_set, option) in [
        (settings.require_sandbox, "--require-sandbox"),
        (settings.no_sandbox, "--no-sandbox"),
        (settings.jitless, "--jitless"),
        (settings.probe, "--probe"),
    ] {
        arguments.extend(is_set.then(|| option.into()));
    }
    if let Some(state) = &settings.namespaces {
        arguments.push(format!("--namespaces={state}").into());
    }
    if let Some(limits) = &settings.most {
        // Numbers and durations: there is nothing in it that JSON cannot say.
        let limits = serde_json::to_string(limits).unwrap_or_default();
        arguments.push(format!("--most={limits}").into());
    }
    arguments
}

/// The environment of a worker: nothing but how much it logs.
fn environment() -> Vec<(OsString, OsString)> {
    ["RUST_LOG", "SystemRoot"]
        .into_iter()
        .filter_map(|name| Some((name.into(), std::env::var_os(name)?)))
        .collect()
}

/// Passes what a worker says on its standard error to the log, so that a crash
/// of V8 does not write over the program's own standard error, and keeps the last of it.
fn log_stderr(stderr: impl AsyncRead + Unpin + Send + 'static) -> Said {
    /// A line longer than this comes in parts.
    const MAX_LINE: usize = 4096;
    /// Lines that are kept.
    const KEPT: usize = 3;
    let last = Arc::new(Mutex::new(VecDeque::new()));
    let keep = last.clone();
    let reader = tokio::spawn(async move {
        let lines = LinesCodec::new_with_max_length(MAX_LINE);
        let mut lines = FramedRead::new(stderr, lines);
        while let Some(line) = lines.next().await {
            match line {
                Ok(line) => {
                    tracing::debug!(target: "code_mode_host::worker_stderr", "{line}");
                    let mut last = keep.lock().unwrap_or_else(PoisonError::into_inner);
                    if last.len() == KEPT {
                        last.pop_front();
                    }
                    last.push_back(line);
                }
                Err(LinesCodecError::MaxLineLengthExceeded) => {}
                Err(LinesCodecError::Io(_)) => return,
            }
        }
    });
    Said { last, reader }
}

fn refused(program: &Path, error: io::Error) -> SpawnError {
    SpawnError::Start {
        program: program.to_owned(),
        error,
    }
}
