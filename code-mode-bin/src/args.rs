//! Options that several commands share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use code_mode_host::{
    Limit, Limits, ProviderOptions, RemoteHost, Sandbox, TraceFolder, WorkerSource,
};
use code_mode_protocol::wire::frame::MAX_FRAME_BYTES;

use crate::telemetry::ServeTelemetry;
use crate::units::{Bytes, Time};

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
    /// Bound each worker by its own control group below this one, which must be
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
    /// The files and folders that it names.
    #[cfg(unix)]
    pub(crate) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let paths = [
            &self.worker_cgroup,
            &self.worker_program,
            &self.worker_token_file,
            &self.worker_ca,
            &self.worker_socket,
        ];
        paths.into_iter().flatten()
    }

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
            .propagation(Arc::new(ServeTelemetry))
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
/// not (Linux without `/proc`), as the command line has it.
fn this_program() -> Option<PathBuf> {
    std::env::current_exe().ok().or_else(|| {
        let written = PathBuf::from(std::env::args_os().next()?);
        let is_path = written.components().count() > 1;
        is_path.then(|| std::path::absolute(written).ok()).flatten()
    })
}

/// Whether sessions are recorded.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Traces")]
pub(crate) struct TraceArgs {
    /// Record each session in a file of this folder, for `code-mode timeline`
    #[arg(long, value_name = "DIR")]
    pub(crate) trace: Option<PathBuf>,
    /// Record sources, inputs, answers and output too, as `code-mode replay` needs them
    #[arg(long, requires = "trace")]
    trace_contents: bool,
}

impl TraceArgs {
    /// The folder, which is made where it is missing.
    pub(crate) fn folder(&self) -> std::io::Result<Option<TraceFolder>> {
        let Some(path) = &self.trace else {
            return Ok(None);
        };
        std::fs::create_dir_all(path)?;
        Ok(Some(TraceFolder::new(path, self.trace_contents)))
    }

    /// The folder as it was named.
    pub(crate) fn path(&self) -> PathBuf {
        self.trace.clone().unwrap_or_default()
    }
}

/// What a cell may use. Sizes and times take units; see [`Bytes`] and [`Time`].
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Memory of one cell
    #[arg(long, alias = "max-heap-bytes", value_name = "SIZE", default_value_t = Bytes(Limits::default().max_heap_bytes))]
    max_heap: Bytes,
    /// Processor time of one cell (0: no limit)
    #[arg(long, alias = "max-cpu-time-ms", value_name = "TIME", default_value_t = time(Limits::default().max_cpu_time))]
    max_cpu_time: Time,
    /// Time from the start of one cell to its end (0: no limit)
    #[arg(long, alias = "max-wall-time-ms", value_name = "TIME", default_value_t = time(Limits::default().max_wall_time))]
    max_wall_time: Time,
    /// Longest observation (0: no limit)
    #[arg(long, alias = "max-yield-time-ms", value_name = "TIME", default_value_t = time(Limits::default().max_yield_time))]
    max_yield_time: Time,
    /// Output of one cell not yet observed
    #[arg(long, alias = "max-output-bytes", value_name = "SIZE", default_value_t = Bytes(Limits::default().max_output_bytes))]
    max_output: Bytes,
    /// Live cells of one session
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_live_cells)]
    max_live_cells: usize,
    /// Ended cells of one session whose results nobody has taken
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_ended_cells)]
    max_ended_cells: usize,
    /// Such results together
    #[arg(long, alias = "max-ended-bytes", value_name = "SIZE", default_value_t = Bytes(Limits::default().max_ended_bytes))]
    max_ended: Bytes,
    /// Tool calls and notifications of one cell without an answer
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_pending_tool_calls)]
    max_pending_tool_calls: usize,
    /// Timers of one cell that have not run
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_pending_timers)]
    max_pending_timers: usize,
    /// Stored values of one session
    #[arg(long, alias = "max-stored-bytes", value_name = "SIZE", default_value_t = Bytes(Limits::default().max_stored_bytes))]
    max_stored: Bytes,
    /// One source, tool input or tool result
    #[arg(long, alias = "max-frame-bytes", value_name = "SIZE", default_value_t = Bytes(Limits::default().max_frame_bytes))]
    max_frame: Bytes,
}

/// A limit on time as an option has it: 0 means without a limit.
fn time(limit: Option<Duration>) -> Time {
    Time(limit.unwrap_or_default())
}

/// The option that sets a limit.
pub(crate) fn option_of(limit: Limit) -> &'static str {
    match limit {
        Limit::Heap => "--max-heap",
        Limit::CpuTime => "--max-cpu-time",
        Limit::WallTime => "--max-wall-time",
        Limit::Output => "--max-output",
        Limit::LiveCells => "--max-live-cells",
        Limit::PendingToolCalls => "--max-pending-tool-calls",
        Limit::PendingTimers => "--max-pending-timers",
        Limit::StoredBytes => "--max-stored",
        Limit::Frame => "--max-frame",
        Limit::Journal => "--max-log",
    }
}

impl LimitArgs {
    /// The limits that the options make.
    pub(crate) fn limits(&self) -> Limits {
        let time = |Time(time): Time| (!time.is_zero()).then_some(time);
        Limits::default()
            .max_heap_bytes(self.max_heap.0)
            .max_cpu_time(time(self.max_cpu_time))
            .max_wall_time(time(self.max_wall_time))
            .max_yield_time(time(self.max_yield_time))
            .max_output_bytes(self.max_output.0.min(MAX_FRAME_BYTES / 2))
            .max_live_cells(self.max_live_cells)
            .max_ended_cells(self.max_ended_cells)
            .max_ended_bytes(self.max_ended.0)
            .max_pending_tool_calls(self.max_pending_tool_calls)
            .max_pending_timers(self.max_pending_timers)
            .max_stored_bytes(self.max_stored.0)
            .max_frame_bytes(self.max_frame.0.min(MAX_FRAME_BYTES / 2))
    }
}
