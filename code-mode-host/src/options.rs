//! How a provider runs its workers.

use std::path::PathBuf;
use std::time::Duration;

use code_mode_protocol::Limits;

/// How a provider runs its workers. The default suits an agent.
#[derive(Clone, Debug)]
pub struct ProviderOptions {
    /// Where workers come from. Default: the program `code-mode`, looked for
    /// beside the running program and then on `PATH`.
    pub worker: WorkerSource,
    /// Limits of every session that does not bring its own.
    pub limits: Limits,
    /// What to do about layers of the sandbox that are not to be had. Default
    /// [`Sandbox::BestEffort`].
    pub sandbox: Sandbox,
    /// Workers started ahead of the sessions that will need them. Default 1; 0
    /// starts each with its session.
    pub prewarmed: usize,
    /// How long a new worker may take to say that it is ready. Default 10 s.
    pub handshake_timeout: Duration,
    /// How long a worker may take to stop its cells, at a shutdown or for one
    /// that is terminated, before it is killed. Default 10 s.
    pub stop_grace: Duration,
    /// Lets tests ask workers to try what the sandbox forbids. Default false.
    pub probe: bool,
}

impl Default for ProviderOptions {
    fn default() -> Self {
        Self {
            worker: WorkerSource::Find,
            limits: Limits::default(),
            sandbox: Sandbox::BestEffort,
            prewarmed: 1,
            handshake_timeout: Duration::from_secs(10),
            stop_grace: Duration::from_secs(10),
            probe: false,
        }
    }
}

/// Where workers come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerSource {
    /// The program [`PROGRAM_NAME`](crate::PROGRAM_NAME), beside the running
    /// program or on `PATH`.
    Find,
    /// This program, started as `PROGRAM worker`.
    Program(PathBuf),
    /// A worker that listens already, on this socket (`code-mode worker
    /// --listen`). It serves one session and ends, so the provider has one
    /// session, and nothing replaces a worker that dies.
    Socket(PathBuf),
}

/// What to do about layers of the worker's sandbox that are not to be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// Run with the rest; a warning names what is missing.
    #[default]
    BestEffort,
    /// Refuse to run without every layer.
    Required,
    /// No operating-system sandbox at all. For measuring what it costs.
    Off,
}
