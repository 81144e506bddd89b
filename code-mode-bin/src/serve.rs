//! `code-mode serve`: the wires of the Codex CLI's code-mode host.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use code_mode_host::{Journal, JournalOptions, Provider};
use code_mode_serve::{Address, GuardOptions, HostOptions, ListenError, MAX_MESSAGE};
use code_mode_system::say;

use crate::args::{RuntimeArgs, TraceArgs};
use crate::telemetry::{ServeTelemetry, TelemetryArgs, watched};
use crate::units::{Bytes, Time};

/// The options of `code-mode serve`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Which wire, and where: `stdio` or `stdio://`; `grpc+stdio://`, gRPC on standard
    /// input and output; `grpc://IP:PORT`, gRPC on an address of this machine; `unix:PATH`,
    /// gRPC on a socket that this user's programs reach
    #[arg(long, value_name = "ADDRESS", default_value = "stdio")]
    listen: String,
    /// Keep durable sessions of the SDKs in this file (on stdio)
    #[arg(long, value_name = "FILE", conflicts_with = "trace")]
    journal: Option<PathBuf>,
    #[command(flatten)]
    host: HostArgs,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArgs,
}

/// The most connections, and sessions.
const MAX_COUNT: usize = 1 << 24;

/// A number of an option, of at least 1.
fn number(most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => Err(format!("expected a number from 1 to {most}")),
    }
}

fn message_size(text: &str) -> Result<Bytes, String> {
    match text.parse::<Bytes>() {
        Ok(size) if (1..=MAX_MESSAGE).contains(&size.0) => Ok(size),
        Ok(_) => Err(format!("expected a size up to {}", Bytes(MAX_MESSAGE))),
        Err(error) => Err(error.to_string()),
    }
}

/// Limits of the gRPC wire as a whole.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "gRPC host")]
struct HostArgs {
    /// Connections that are served at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = number(MAX_COUNT))]
    max_connections: usize,
    /// Requests that run at once on one connection
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    max_streams: u32,
    /// Sessions at once
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = number(MAX_COUNT))]
    max_sessions: usize,
    /// The largest request
    #[arg(long, alias = "max-message-bytes", value_name = "SIZE", default_value_t = Bytes(MAX_MESSAGE), value_parser = message_size)]
    max_message: Bytes,
    /// After SIGTERM, how long cells may continue before they are stopped
    #[arg(long, alias = "drain-time-ms", value_name = "TIME", default_value_t = Time(Duration::from_secs(5)))]
    drain_time: Time,
    /// Answer /healthz, and /metrics for Prometheus, over HTTP at this address
    #[arg(long, value_name = "IP:PORT")]
    ops_listen: Option<SocketAddr>,
    #[command(flatten)]
    guard: GuardArgs,
}

/// Who may use the gRPC wire.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Access to a gRPC host")]
struct GuardArgs {
    /// Speak TLS with this certificate and the chain to its root (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Take only clients with a certificate that one of these roots signed (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Take only requests with `authorization: Bearer TOKEN`, where TOKEN is a line of this
    /// file, of 16 bytes or more; `#` begins a comment. The file is read again when it
    /// changes: while it has no token, or cannot be read, nobody is let in
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Listen beyond this machine without TLS and authentication: everybody who reaches the
    /// address runs programs here
    #[arg(long)]
    unprotected: bool,
}

impl HostArgs {
    fn options(self) -> HostOptions {
        let mut guard = GuardOptions::default();
        guard.tls_cert = self.guard.tls_cert;
        guard.tls_key = self.guard.tls_key;
        guard.tls_client_ca = self.guard.tls_client_ca;
        guard.token_file = self.guard.token_file;
        guard.unprotected = self.guard.unprotected;
        let mut options = HostOptions::default();
        options.max_connections = self.max_connections;
        options.max_streams = self.max_streams;
        options.max_sessions = self.max_sessions;
        options.max_message_bytes = self.max_message.0;
        options.drain_time = self.drain_time.0;
        options.ops_listen = self.ops_listen;
        options.guard = guard;
        options
    }
}

impl Args {
    /// Whether somebody may ask for its metrics.
    pub(crate) fn has_metrics_page(&self) -> bool {
        self.host.ops_listen.is_some()
    }
}

/// Why nothing is served, or not any more.
enum Failure {
    /// What the Codex CLI's host fails with too, with its exit status: an address that cannot be
    /// listened on, and a client that breaks the stdio wire.
    AsCodex(String),
    /// The options, or a file that they name.
    Usage(String),
    Runtime(String),
}

impl Failure {
    fn usage(error: impl std::fmt::Display) -> Self {
        Self::Usage(error.to_string())
    }

    fn runtime(error: impl std::fmt::Display) -> Self {
        Self::Runtime(error.to_string())
    }
}

impl From<ListenError> for Failure {
    fn from(error: ListenError) -> Self {
        let text = error.to_string();
        match error {
            ListenError::Bind { .. } | ListenError::Socket { .. } => Self::AsCodex(text),
            ListenError::Guard(_) => Self::Usage(text),
            _ => Self::Runtime(text),
        }
    }
}

/// Serves until the client has gone or a signal ends the program.
pub(crate) fn main(args: Args) -> ExitCode {
    let (status, error) = match serve(args) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::AsCodex(error)) => (1, error),
        Err(Failure::Usage(error)) => (crate::WRONG_USAGE, error),
        Err(Failure::Runtime(error)) => (crate::RUNTIME_FAILED, error),
    };
    say!("code-mode serve: {error}");
    ExitCode::from(status)
}

fn serve(args: Args) -> Result<(), Failure> {
    code_mode_system::allow_many();
    let address = Address::parse(&args.listen).transpose();
    let grpc = address.map_err(|error| Failure::AsCodex(error.to_string()))?;
    if grpc.is_none() && !matches!(args.listen.as_str(), "stdio" | "stdio://") {
        return Err(Failure::AsCodex(format!(
            "unsupported --listen URL `{}`; expected `grpc://IP:PORT`, `grpc+stdio://`, `stdio`, or `stdio://`",
            args.listen
        )));
    }
    let traces = args.traces.folder().map_err(|error| {
        let path = args.traces.path();
        Failure::Usage(format!("--trace {}: {error}", path.display()))
    })?;
    let host = args.host.options();
    if grpc.is_none() {
        host.check_without_grpc().map_err(Failure::usage)?;
    }
    let journal = match &args.journal {
        Some(_) if grpc.is_some() => {
            return Err(Failure::usage(
                "--journal is for stdio: SDKs start the program so",
            ));
        }
        Some(path) => {
            let journal = Journal::open(path, JournalOptions::default());
            Some(journal.map_err(Failure::runtime)?)
        }
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::runtime)?;
    let served = runtime.block_on(async {
        // Its first worker starts now, while the client says hello.
        let options = args.runtime.provider_options().traces(traces);
        let startup = tracing::info_span!("code_mode_host.startup");
        let provider = startup.in_scope(|| Provider::new(options));
        let provider = watched(provider.map_err(Failure::runtime)?);
        // The worker's start is another task, and what follows does not wait for a while.
        tokio::task::yield_now().await;
        // This span has no parent: what a client asks for belongs to the client's trace.
        let _run_main = tracing::info_span!("code_mode_host.run_main");
        let limits = args.runtime.limits.limits();
        let telemetry = Arc::new(ServeTelemetry);
        match grpc {
            Some(address) => {
                code_mode_serve::serve_grpc(address, provider, limits, host, telemetry).await?;
            }
            None => {
                let served =
                    code_mode_serve::serve_stdio(provider, limits, telemetry, journal).await;
                served.map_err(|error| Failure::AsCodex(error.to_string()))?;
            }
        }
        Ok(())
    });
    // A read of standard input that still waits must not hold the process up.
    runtime.shutdown_background();
    served
}
