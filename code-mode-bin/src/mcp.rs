//! `code-mode mcp`: the gateway's command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use code_mode_host::{Provider, ProviderError};
use code_mode_mcp::{
    AuditLog, Broker, BrokerError, BrokerOptions, Gateway, GatewayOptions, MARKER,
    MAX_HTTP_CONNECTIONS, Pattern, Store,
};
use code_mode_system::{Interrupts, Listener, TokenFile, TokenFileError, say};

use crate::args::{RuntimeArgs, TraceArgs};
use crate::telemetry::{TelemetryArgs, watched};
use crate::units::Time;

/// How long an orderly end may take.
pub(crate) const END: Duration = Duration::from_secs(5);

/// The options of `code-mode mcp`.
#[derive(clap::Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Without --http the client is at standard input and output. Exit status: 0 the client left, 2 wrong usage,
configuration or policy, 3 the runtime failed; check: 1 where a server is not ready.

Example: code-mode mcp --config .mcp.json"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    servers: ServerArgs,
    /// Serve streamable HTTP at /mcp on this address
    #[arg(long, value_name = "ADDR:PORT")]
    http: Option<SocketAddr>,
    /// Ask clients of --http for the token in this file
    #[arg(long, value_name = "FILE", requires = "http")]
    token_file: Option<PathBuf>,
    /// Offer these tools beside exec too; * stands for any characters
    #[arg(long, value_name = "SERVER/TOOL")]
    direct: Vec<Pattern>,
    /// Tokens that exec's description may spend on the servers' tools
    #[arg(long, value_name = "N", default_value_t = 4000)]
    describe_tokens: usize,
    /// The longest time until an answer to a client that shows no progress; a program that takes
    /// longer is left running
    #[arg(long, alias = "patience-ms", value_name = "TIME", default_value_t = Time(Duration::from_secs(4)))]
    patience: Time,
    /// Keep stored values in this folder from one session to the next
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Append what became of every call to this file, a JSON object a line
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArgs,
}

/// Which servers, and what of them may be called.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ServerArgs {
    /// Servers, as clients' files have them (mcpServers, servers, mcp_servers; JSON or
    /// TOML); repeatable
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// One more server: a command, or a URL; repeatable
    #[arg(long, value_name = "NAME=COMMAND")]
    server: Vec<String>,
    /// What may be called (JSON)
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Start every server; show its tools, the cost of its definitions and its problems
    Check {
        #[command(flatten)]
        servers: ServerArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what the policy says of every tool
    Policy {
        #[command(flatten)]
        servers: ServerArgs,
    },
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("this is a server of code-mode mcp already: it cannot be behind itself")]
    BehindItself,
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("{option} {}: {source}", path.display())]
    File {
        option: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("--token-file: {0}")]
    Tokens(#[from] TokenFileError),
    #[error(
        "{0} can be reached from other machines: give a token (--token-file FILE), and put a proxy with TLS in front"
    )]
    NeedsToken(SocketAddr),
    #[error("cannot listen on {address}: {source}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error(transparent)]
    Runtime(#[from] std::io::Error),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Listen { .. } | Self::Provider(_) | Self::Runtime(_) => crate::RUNTIME_FAILED,
            _ => crate::WRONG_USAGE,
        })
    }
}

impl Args {
    /// Whether it looks at servers and serves none.
    pub(crate) fn reports(&self) -> bool {
        self.command.is_some()
    }
}

/// Serves, or looks.
pub(crate) fn main(args: Args) -> ExitCode {
    match run(args) {
        Ok(code) => code,
        Err(failure) => {
            say!("code-mode mcp: {failure}");
            failure.exit_code()
        }
    }
}

fn run(args: Args) -> Result<ExitCode, Failure> {
    if std::env::var_os(MARKER).is_some() {
        return Err(Failure::BehindItself);
    }
    code_mode_system::allow_many();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let done = runtime.block_on(crate::with_children(async {
        match &args.command {
            Some(Command::Check { servers, json }) => look(servers, Some(*json)).await,
            Some(Command::Policy { servers }) => look(servers, None).await,
            None => serve(&args).await,
        }
    }));
    runtime.shutdown_background();
    done
}

/// The broker of these servers. It logs oddities of their configuration.
pub(crate) fn broker(options: BrokerOptions) -> Result<Arc<Broker>, BrokerError> {
    let mut warnings = Vec::new();
    let broker = Broker::start(options, &mut warnings);
    for warning in warnings {
        say!("code-mode mcp: {warning}");
    }
    broker
}

impl ServerArgs {
    fn options(&self) -> BrokerOptions {
        let mut options = BrokerOptions::default();
        options.config = self.config.clone();
        options.servers = self.server.clone();
        options.policy = self.policy.clone();
        options
    }
}

/// `check` and `policy`.
async fn look(servers: &ServerArgs, json: Option<bool>) -> Result<ExitCode, Failure> {
    let mut interrupts = Interrupts::new()?;
    let broker = broker(servers.options())?;
    let checked = tokio::select! {
        checked = code_mode_mcp::check(&broker) => checked,
        by = interrupts.next() => {
            tokio::select! {
                _ = tokio::time::timeout(END, broker.end()) => {}
                _ = interrupts.next() => {}
            }
            return Ok(ExitCode::from(by.exit_status()));
        }
    };
    let shown = match json {
        Some(true) => checked.json() + "\n",
        Some(false) => checked.table(),
        None => checked.policy_table(),
    };
    let _ = std::io::Write::write_all(&mut std::io::stdout(), shown.as_bytes());
    let _ = tokio::time::timeout(END, broker.end()).await;
    Ok(match checked.is_well || json.is_none() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn serve(args: &Args) -> Result<ExitCode, Failure> {
    let mut options = args.servers.options();
    options.describe_tokens = Some(args.describe_tokens);
    if let Some(path) = &args.ledger {
        let audit = AuditLog::open(path);
        options.audit = Some(audit.map_err(|source| file("--ledger", path, source))?);
    }
    let store = match &args.store {
        Some(path) => Some(Store::open(path).map_err(|source| file("--store", path, source))?),
        None => None,
    };
    let tokens = args.token_file.clone().map(TokenFile::read).transpose()?;
    let mut interrupts = Interrupts::new()?;
    let listener = match args.http {
        Some(address) if !address.ip().is_loopback() && tokens.is_none() => {
            return Err(Failure::NeedsToken(address));
        }
        Some(address) => {
            let failed = |source| Failure::Listen { address, source };
            let listener = Listener::tcp(address, MAX_HTTP_CONNECTIONS).map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            Some((listener, bound))
        }
        None => None,
    };
    let broker = broker(options)?;
    let traces = args.traces.folder();
    let traces = traces.map_err(|source| file("--trace", &args.traces.path(), source))?;
    let provider = args.runtime.provider_options().prewarmed(1).traces(traces);
    let provider = watched(Provider::new(provider)?);
    let mut options = GatewayOptions::default();
    options.direct = args.direct.clone();
    options.store = store;
    options.patience = args.patience.0;
    let gateway = Gateway::new(broker, provider, options);
    let served = async {
        match listener {
            Some((listener, bound)) => {
                say!("code-mode mcp listens on http://{bound}/mcp");
                gateway.serve_http(listener, tokens).await;
            }
            None => gateway.serve_stdio().await,
        }
    };
    tokio::select! {
        () = served => {}
        _ = interrupts.next() => gateway.shut_down(),
    }
    // A second signal ends it at once.
    tokio::select! {
        _ = tokio::time::timeout(END, gateway.end()) => {}
        _ = interrupts.next() => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn file(option: &'static str, path: &std::path::Path, source: std::io::Error) -> Failure {
    Failure::File {
        option,
        path: path.to_owned(),
        source,
    }
}
