//! `code-mode mcp`: the tools of many MCP servers as one tool that runs programs.
//!
//! A client speaks to a [`front`], of which there is one for each connection. All share
//! a [`gateway`]: the servers behind it (each an [`upstream`]), their tools (the
//! [`catalogue`]), the [`policy`], and the sessions. A cell's calls go through
//! [`calls`]: decided, asked about, sent, entered in the [`ledger`].

#![expect(
    deprecated,
    reason = "protocol logging goes with the revision of 2026-07-28; clients of the eras before it hear of cells by it"
)]

mod calls;
mod catalogue;
mod cell;
mod check;
mod config;
mod connect;
mod exec;
mod expand;
mod for_run;
mod front;
mod front_stdio;
mod gateway;
mod http;
mod ledger;
mod lines;
mod listing;
mod names;
mod passthrough;
mod policy;
mod seal;
mod secrets;
mod session;
mod sse;
mod stdio_server;
mod store;
mod texts;
mod upstream;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use code_mode_host::{Provider, ProviderError};
use rmcp::service::serve_server;
use tokio_util::sync::CancellationToken;

pub(crate) use for_run::Servers;

use crate::args::RuntimeArgs;
use crate::interrupts::Interrupts;
use crate::telemetry::{TelemetryArgs, watched};
use front::Front;
use gateway::{Gateway, Settings};
use ledger::LedgerFile;
use policy::{Pattern, Policy};
use secrets::Secrets;
use store::Store;

/// How long an orderly end may take.
const END: Duration = Duration::from_secs(5);

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
    /// Keep stored values in this folder from one session to the next
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Append what became of every call to this file, a JSON object a line
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArgs,
}

/// Which servers, and what of them may be called.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ServerArgs {
    /// Servers, as clients' files have them (mcpServers, servers, mcp_servers; JSON or
    /// TOML); may come again
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// One more server: a command, or a URL; may come again
    #[arg(long, value_name = "NAME=COMMAND")]
    server: Vec<String>,
    /// What may be called (JSON)
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Start every server; say what it offers, what its definitions cost, what is wrong
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
pub(crate) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error("{0}")]
    Runtime(String),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => crate::WRONG_USAGE,
            Self::Provider(_) | Self::Runtime(_) => 3,
        })
    }
}

fn usage(error: impl ToString) -> Failure {
    Failure::Usage(error.to_string())
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
    if std::env::var_os(config::MARKER).is_some() {
        return Err(usage(
            "this is a server of code-mode mcp already: it cannot be behind itself",
        ));
    }
    crate::descriptors::allow_many();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::Runtime(error.to_string()))?;
    let done = runtime.block_on(async {
        match &args.command {
            Some(Command::Check { servers, json }) => look(&args, servers, Some(*json)).await,
            Some(Command::Policy { servers }) => look(&args, servers, None).await,
            None => serve(&args).await,
        }
    });
    runtime.shutdown_background();
    done
}

/// A gateway as the options say.
async fn gateway(
    servers: &ServerArgs,
    settings: impl FnOnce(Policy) -> Result<Settings, Failure>,
    runtime: &RuntimeArgs,
) -> Result<Arc<Gateway>, Failure> {
    let secrets = Secrets::default();
    let policy = match &servers.policy {
        Some(path) => Policy::read(path).map_err(usage)?,
        None => Policy::default(),
    };
    let configured = config::read(&servers.config, &servers.server, &secrets).map_err(usage)?;
    if configured.is_empty() {
        return Err(usage(
            "no servers: name a file (--config FILE) or a command (--server NAME=COMMAND)",
        ));
    }
    for server in &configured {
        if let Some(why) = &server.unusable {
            say!(
                "code-mode mcp: the server {:?} is left out: {}",
                server.name,
                secrets.hide(why)
            );
        }
    }
    let settings = settings(policy)?;
    let provider = watched(Provider::new(runtime.provider_options().prewarmed(1))?);
    Ok(Gateway::new(provider, configured, settings, secrets))
}

fn plain(policy: Policy) -> Settings {
    Settings {
        policy,
        direct: Vec::new(),
        describe_tokens: 4000,
        store: None,
        ledger: None,
    }
}

/// `check` and `policy`.
async fn look(args: &Args, servers: &ServerArgs, json: Option<bool>) -> Result<ExitCode, Failure> {
    let gateway = gateway(servers, |policy| Ok(plain(policy)), &args.runtime).await?;
    let checked = check::check(&gateway).await;
    let shown = match json {
        Some(true) => checked.json() + "\n",
        Some(false) => checked.table(),
        None => checked.policy_table(),
    };
    let _ = std::io::Write::write_all(&mut std::io::stdout(), shown.as_bytes());
    let _ = tokio::time::timeout(END, gateway.end()).await;
    Ok(match checked.is_well || json.is_none() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn serve(args: &Args) -> Result<ExitCode, Failure> {
    let settings = |policy| {
        let ledger = args.ledger.as_deref().map(|path| {
            LedgerFile::open(path).map_err(|e| usage(format!("--ledger {}: {e}", path.display())))
        });
        let store = args.store.as_deref().map(|path| {
            Store::open(path).map_err(|e| usage(format!("--store {}: {e}", path.display())))
        });
        Ok(Settings {
            direct: args.direct.clone(),
            describe_tokens: args.describe_tokens,
            store: store.transpose()?,
            ledger: ledger.transpose()?,
            ..plain(policy)
        })
    };
    let token = match &args.token_file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| usage(format!("--token-file {}: {error}", path.display())))?;
            let token = text.trim();
            if token.len() < 16 {
                return Err(usage(format!(
                    "--token-file {}: fewer than 16 characters",
                    path.display()
                )));
            }
            Some(token.to_owned())
        }
        None => None,
    };
    let mut interrupts = Interrupts::new().map_err(|error| Failure::Runtime(error.to_string()))?;
    let gateway = gateway(&args.servers, settings, &args.runtime).await?;
    let served = async {
        match args.http {
            Some(address) => http::serve(gateway.clone(), address, token)
                .await
                .map_err(|error| match error {
                    http::HttpError::NeedsToken(_) => usage(error),
                    error @ http::HttpError::Listen { .. } => Failure::Runtime(error.to_string()),
                }),
            None => serve_stdio(&gateway).await,
        }
    };
    tokio::pin!(served);
    let done = tokio::select! {
        done = &mut served => done,
        _ = interrupts.next() => {
            gateway.shutdown.cancel();
            Ok(())
        }
    };
    // A second signal ends it at once.
    tokio::select! {
        _ = tokio::time::timeout(END, gateway.end()) => {}
        _ = interrupts.next() => {}
    }
    done.map(|()| ExitCode::SUCCESS)
}

async fn serve_stdio(gateway: &Arc<Gateway>) -> Result<(), Failure> {
    let transport = front_stdio::transport();
    let front = Front::new(gateway.clone());
    let serving = serve_server(front, transport);
    let running = tokio::select! {
        serving = serving => match serving {
            Ok(running) => running,
            // The client left before it said anything of use.
            Err(error) => {
                tracing::debug!(%error, "no client");
                return Ok(());
            }
        },
        () = gateway.shutdown.cancelled() => return Ok(()),
    };
    let stop: CancellationToken = gateway.shutdown.clone();
    let cancel = running.cancellation_token();
    let waiting = running.waiting();
    tokio::pin!(waiting);
    tokio::select! {
        _ = &mut waiting => {}
        () = stop.cancelled() => {
            cancel.cancel();
            let _ = tokio::time::timeout(Duration::from_secs(1), waiting).await;
        }
    }
    Ok(())
}
