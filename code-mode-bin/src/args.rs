//! Options that several commands share.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use code_mode_host::{Limits, ProviderOptions, RemoteHost, Sandbox, WorkerSource};
use code_mode_protocol::wire::frame::MAX_FRAME_BYTES;

/// How workers run.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Runtime")]
pub(crate) struct RuntimeArgs {
    /// Refuse to run where a layer of the sandbox is missing
    #[arg(long, conflicts_with = "no_sandbox")]
    pub(crate) require_sandbox: bool,
    /// Run workers without the operating system's sandbox (to measure its cost)
    #[arg(long)]
    pub(crate) no_sandbox: bool,
    /// Interpret JavaScript and never compile it to machine code: less to attack,
    /// slower where code runs hot
    #[arg(long)]
    pub(crate) jitless: bool,
    /// Bound each worker by a control group of its own below this one, which must be
    /// delegated to this program and without processes (Linux, cgroup v2)
    #[arg(long, value_name = "DIR")]
    pub(crate) worker_cgroup: Option<PathBuf>,
    /// Start workers from this program instead of this one
    #[arg(long, value_name = "PROGRAM", conflicts_with = "worker_socket")]
    pub(crate) worker_program: Option<PathBuf>,
    /// Use workers of another machine: `code-mode serve --listen grpc://IP:PORT` there, and
    /// here its address, https://HOST:PORT
    #[arg(long, value_name = "URL", conflicts_with_all = ["worker_program", "worker_socket", "jitless", "no_sandbox", "worker_cgroup"], value_parser = host)]
    pub(crate) worker_host: Option<String>,
    /// Show that host the first token of this file
    #[arg(long, value_name = "FILE", requires = "worker_host")]
    pub(crate) worker_token_file: Option<PathBuf>,
    /// Trust hosts whose certificate these roots signed, in PEM, instead of those that the
    /// machine trusts
    #[arg(long, value_name = "FILE", requires = "worker_host")]
    pub(crate) worker_ca: Option<PathBuf>,
    /// Use the worker that listens on this socket (`code-mode worker --listen`)
    #[arg(long, value_name = "SOCKET")]
    pub(crate) worker_socket: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

/// The address of a host, as it was given.
fn host(url: &str) -> Result<String, code_mode_host::RemoteError> {
    RemoteHost::check(url).map(|()| url.to_owned())
}

impl RuntimeArgs {
    /// The options of a provider.
    pub(crate) fn provider_options(&self) -> ProviderOptions {
        let sandbox = match (self.require_sandbox, self.no_sandbox) {
            (true, _) => Sandbox::Required,
            (_, true) => Sandbox::Off,
            _ => Sandbox::BestEffort,
        };
        let worker = match (&self.worker_program, &self.worker_socket, &self.worker_host) {
            (Some(program), ..) => WorkerSource::Program(program.clone()),
            (_, Some(socket), _) => WorkerSource::Socket(socket.clone()),
            (.., Some(url)) => WorkerSource::Remote(self.remote_host(url)),
            // This program is one, whatever name it goes by.
            _ => match this_program() {
                Some(program) => WorkerSource::Program(program),
                None => WorkerSource::Find,
            },
        };
        ProviderOptions::default()
            .worker(worker)
            .sandbox(sandbox)
            .jitless(self.jitless)
            .cgroup(self.worker_cgroup.clone())
            .limits(self.limits.limits())
            .wrap_delegates(crate::telemetry::metered)
    }

    fn remote_host(&self, url: &str) -> RemoteHost {
        code_mode_system::prepare_name_lookup();
        let mut host = RemoteHost::new(url);
        if let Some(path) = &self.worker_token_file {
            host = host.bearer_token_file(path);
        }
        if let Some(path) = &self.worker_ca {
            host = host.ca_certificate_file(path);
        }
        host
    }
}

/// The file this program was started from: as the system says, or, where it does
/// not (Linux without `/proc`), as it stands in the command line.
fn this_program() -> Option<PathBuf> {
    std::env::current_exe().ok().or_else(|| {
        let written = PathBuf::from(std::env::args_os().next()?);
        let is_path = written.components().count() > 1;
        is_path.then(|| std::path::absolute(written).ok()).flatten()
    })
}

/// What a cell may use. An option left out has its default; `code-mode doctor`
/// lists the values in force.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Memory of one cell
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_heap_bytes: Option<usize>,
    /// Processor time of one cell (0: no limit)
    #[arg(long, value_name = "MS")]
    pub(crate) max_cpu_time_ms: Option<u64>,
    /// Time from the start of one cell to its end (0: no limit)
    #[arg(long, value_name = "MS")]
    pub(crate) max_wall_time_ms: Option<u64>,
    /// Longest observation (0: no limit)
    #[arg(long, value_name = "MS")]
    pub(crate) max_yield_time_ms: Option<u64>,
    /// Output of one cell not yet observed
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_output_bytes: Option<usize>,
    /// Live cells of one session
    #[arg(long, value_name = "N")]
    pub(crate) max_live_cells: Option<usize>,
    /// Ended cells of one session whose results nobody has taken
    #[arg(long, value_name = "N")]
    pub(crate) max_ended_cells: Option<usize>,
    /// Such results together
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_ended_bytes: Option<usize>,
    /// Tool calls and notifications of one cell without an answer
    #[arg(long, value_name = "N")]
    pub(crate) max_pending_tool_calls: Option<usize>,
    /// Timers of one cell that have not run
    #[arg(long, value_name = "N")]
    pub(crate) max_pending_timers: Option<usize>,
    /// Stored values of one session
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_stored_bytes: Option<usize>,
    /// One source, tool input or tool result
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_frame_bytes: Option<usize>,
}

impl LimitArgs {
    /// The limits that the options make.
    pub(crate) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        let time = |limit: &mut Option<Duration>, ms: Option<u64>| match ms {
            None => {}
            Some(0) => *limit = None,
            Some(ms) => *limit = Some(Duration::from_millis(ms)),
        };
        time(&mut limits.max_cpu_time, self.max_cpu_time_ms);
        time(&mut limits.max_wall_time, self.max_wall_time_ms);
        time(&mut limits.max_yield_time, self.max_yield_time_ms);
        let number = |limit: &mut usize, asked: Option<usize>| {
            if let Some(asked) = asked {
                *limit = asked;
            }
        };
        number(&mut limits.max_heap_bytes, self.max_heap_bytes);
        number(&mut limits.max_output_bytes, self.max_output_bytes);
        number(&mut limits.max_live_cells, self.max_live_cells);
        number(&mut limits.max_ended_cells, self.max_ended_cells);
        number(&mut limits.max_ended_bytes, self.max_ended_bytes);
        number(
            &mut limits.max_pending_tool_calls,
            self.max_pending_tool_calls,
        );
        number(&mut limits.max_pending_timers, self.max_pending_timers);
        number(&mut limits.max_stored_bytes, self.max_stored_bytes);
        number(&mut limits.max_frame_bytes, self.max_frame_bytes);
        limits.max_frame_bytes = limits.max_frame_bytes.min(MAX_FRAME_BYTES / 2);
        limits.max_output_bytes = limits.max_output_bytes.min(MAX_FRAME_BYTES / 2);
        limits
    }
}
