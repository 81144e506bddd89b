//! `code-mode mcp`: the gateway's command line.

#[cfg(unix)]
mod approvals;
mod import;
mod login;
#[cfg(unix)]
mod shared;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use code_mode_host::{JournalOptions, Provider, ProviderError};
use code_mode_mcp::import::ImportError;
use code_mode_mcp::login::LoginError;
#[cfg(unix)]
use code_mode_mcp::shim::{FindError, GatewayName, HeldName, Place, PlaceError, hold_name};
use code_mode_mcp::{
    AuditLog, Broker, BrokerError, BrokerOptions, DurableError, DurableFolder, Gateway,
    GatewayOptions, Loaded, MARKER, MAX_HTTP_CONNECTIONS, Pattern, Store,
};
use code_mode_system::{Interrupts, Listener, TokenFile, TokenFileError, say, show};

#[cfg(unix)]
use crate::approvals::Door;
use crate::args::{RuntimeArgs, TraceArgs};
use crate::telemetry::{TelemetryArgs, watched};
use crate::units::Time;

/// Connections to a gateway at once: each client has two, for its messages and for the log.
#[cfg(unix)]
const MAX_CONNECTIONS: usize = 1024;

/// How long an orderly end may take.
pub(crate) const END: Duration = Duration::from_secs(5);

/// The options of `code-mode mcp`.
#[derive(clap::Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Without --http the client is at standard input and output. All clients of this user with the same options,
configuration and environment share one gateway, and so the processes of the servers; a server with
\"shared\": false is started for each. Exit status: 0 the client left, 2 wrong usage,
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
    /// longer is left running [default: 50s, or 4s for clients that have the name of Python's SDK]
    #[arg(long, alias = "patience-ms", value_name = "TIME")]
    patience: Option<Time>,
    /// Keep stored values in this folder from one session to the next
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Keep programs and their questions in this folder, for the next gateway. One gateway at a time has
    /// it; it shares all servers among its clients
    #[arg(long, value_name = "DIR", conflicts_with = "trace")]
    durable: Option<PathBuf>,
    /// A durable program that has waited for so long, and whose next timer is a minute away, leaves its
    /// process
    #[arg(long, value_name = "TIME", requires = "durable", default_value_t = Time(JournalOptions::default().park_after))]
    park_after: Time,
    /// Have a gateway, and processes of the servers, for this client alone
    #[arg(long)]
    private: bool,
    /// How long the gateway that clients share waits for another after its last
    #[arg(long, value_name = "TIME", default_value_t = Time(Duration::from_secs(600)))]
    linger: Time,
    /// Be the gateway of this name, which clients share
    #[arg(long, value_name = "NAME", hide = true, conflicts_with_all = ["http", "private"])]
    #[cfg(unix)]
    gateway: Option<GatewayName>,
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
        #[command(subcommand)]
        test: Option<PolicyCommand>,
    },
    /// Put the servers of other clients into one file
    #[command(after_help = "\
Reads the files of Claude Code, Claude Desktop, Cursor, VS Code, Codex, Gemini CLI, Qwen Code, Zed, goose and
opencode, and those of the current project for the first four. The same server of several clients is written once, and a
server of another client that has a taken name gets a number. Variables stay variables. Exit status: 0 done, 1 there is
nothing to import or a file could not be changed, 2 wrong usage.

Example: code-mode mcp import && code-mode mcp check --config ~/.config/code-mode/servers.json")]
    Import(import::ImportArgs),
    /// Log in to a server that is reached over HTTP; without one, show all logins
    #[command(after_help = "\
A page opens in the browser ($BROWSER). The login is kept in a file for this user alone, renewed before it ends, and
used by every gateway of this user; one that waits for it notices. Exit status: 0 logged in, 1 the login was
refused or nobody came, 2 wrong usage or no such server, 3 the runtime failed.

Examples: code-mode mcp login --config .mcp.json tracker
          code-mode mcp login https://mcp.example.com/mcp")]
    Login(login::LoginArgs),
    /// Forget the login to a server
    Logout(login::LogoutArgs),
    /// Show the gateways of this user that clients share: clients, servers, memory, calls
    #[cfg(unix)]
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the calls that wait for a person, or answer them
    #[cfg(unix)]
    #[command(after_help = "\
For policies with \"terminal_may_answer\": true, and the gateways that clients share. Exit status: 0 shown or answered, 1 a call
that was named does not wait (any more), 2 wrong usage, 3 a gateway does not answer.

Examples: code-mode mcp approvals
          code-mode mcp approvals allow 4711.1 4711.2
          code-mode mcp approvals deny all")]
    Approvals(approvals::ApprovalsArgs),
    /// End the gateways of this user that clients share
    #[cfg(unix)]
    Stop,
}

#[derive(clap::Subcommand, Debug)]
enum PolicyCommand {
    /// Show what the policy says of one call, and which rule says it
    #[command(after_help = "\
Exit status: 0 the call would run, 1 a person would be asked or it would be denied, 2 there is no such call.

Example: code-mode mcp policy --config .mcp.json --policy policy.json test git/push '{\"branch\": \"main\"}'")]
    Test {
        /// The call: SERVER/TOOL, SERVER/resource:ADDRESS or SERVER/prompt:NAME
        call: String,
        /// Its input, as JSON
        #[arg(default_value = "{}", value_parser = json)]
        input: serde_json::Value,
    },
}

fn json(text: &str) -> Result<serde_json::Value, serde_json::Error> {
    serde_json::from_str(text)
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
    #[error("--durable {}: {source}", path.display())]
    Durable { path: PathBuf, source: DurableError },
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
    #[cfg(unix)]
    #[error("cannot listen on {}: {source}", socket.display())]
    Socket {
        socket: PathBuf,
        source: std::io::Error,
    },
    #[cfg(unix)]
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[cfg(unix)]
    #[error(transparent)]
    Find(#[from] FindError),
    #[cfg(unix)]
    #[error("the configuration is another than that of this gateway's name")]
    Changed,
    #[error("no home: {} is not set", if cfg!(windows) { "USERPROFILE" } else { "HOME" })]
    NoHome,
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Login(#[from] LoginError),
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error(transparent)]
    Runtime(#[from] std::io::Error),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Import(_) => 1,
            Self::Login(error) => login::exit_status(error),
            Self::Listen { .. } | Self::Provider(_) | Self::Runtime(_) | Self::Durable { .. } => {
                crate::RUNTIME_FAILED
            }
            #[cfg(unix)]
            Self::Socket { .. } | Self::Place(_) | Self::Find(_) | Self::Changed => {
                crate::RUNTIME_FAILED
            }
            _ => crate::WRONG_USAGE,
        })
    }
}

impl Args {
    /// Whether it looks at servers and serves none.
    pub(crate) fn reports(&self) -> bool {
        self.command.is_some()
    }

    /// The files and folders that it names.
    #[cfg(unix)]
    fn paths(&self) -> Vec<PathBuf> {
        let own = [&self.store, &self.durable, &self.ledger, &self.traces.trace];
        let files = self.servers.config.iter().chain(&self.servers.policy);
        let files = files.chain(own.into_iter().flatten());
        files.chain(self.runtime.paths()).cloned().collect()
    }

    /// Whether what it reads is there for the next that reads it.
    #[cfg(unix)]
    fn can_be_read_again(&self) -> bool {
        let is_pipe = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|file| !file.is_file());
        let mut files = self.servers.config.iter().chain(&self.servers.policy);
        !files.any(is_pipe)
    }

    /// Whether it relays to a gateway that clients share, and serves nothing itself.
    pub(crate) fn is_shim(&self) -> bool {
        #[cfg(unix)]
        return self.command.is_none()
            && self.http.is_none()
            && !self.private
            && self.gateway.is_none();
        // This system has no shared gateway: every client has a private one.
        #[cfg(not(unix))]
        {
            let _ = (self.private, &self.linger);
            false
        }
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
    #[cfg(unix)]
    if args.is_shim() {
        return shared::relay_to_gateway(&args);
    }
    code_mode_system::allow_many();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let done = runtime.block_on(crate::with_children(async {
        match &args.command {
            Some(Command::Check { servers, json }) => look(servers, Some(*json)).await,
            Some(Command::Policy {
                servers,
                test: Some(PolicyCommand::Test { call, input }),
            }) => test_policy(servers, call, input).await,
            Some(Command::Policy { servers, .. }) => look(servers, None).await,
            Some(Command::Import(args)) => import::import(args),
            Some(Command::Login(args)) => login::log_in(args).await,
            Some(Command::Logout(args)) => login::log_out(args).await,
            #[cfg(unix)]
            Some(Command::Status { json }) => shared::status(*json).await,
            #[cfg(unix)]
            Some(Command::Approvals(args)) => approvals::approvals(args).await,
            #[cfg(unix)]
            Some(Command::Stop) => shared::stop().await,
            None => serve(&args).await,
        }
    }));
    runtime.shutdown_background();
    done
}

/// The broker of these servers. It logs oddities of their configuration.
pub(crate) fn broker(options: BrokerOptions) -> Result<Arc<Broker>, BrokerError> {
    load(&options).map(|loaded| Broker::start(loaded, options))
}

/// Reads the files of these options, and says oddities of the configuration.
fn load(options: &BrokerOptions) -> Result<Loaded, BrokerError> {
    let mut warnings = Vec::new();
    let loaded = Loaded::read(options, &mut warnings);
    for warning in warnings {
        say!("code-mode mcp: {warning}");
    }
    loaded
}

impl ServerArgs {
    pub(crate) fn options(&self) -> BrokerOptions {
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
        Some(true) => checked.json(),
        Some(false) => checked.table(),
        None => checked.policy_table(),
    };
    show!("{}", shown.trim_end_matches('\n'));
    let _ = tokio::time::timeout(END, broker.end()).await;
    Ok(match checked.is_well || json.is_none() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// `policy test`.
async fn test_policy(
    servers: &ServerArgs,
    call: &str,
    input: &serde_json::Value,
) -> Result<ExitCode, Failure> {
    let mut interrupts = Interrupts::new()?;
    let broker = broker(servers.options())?;
    let decided = tokio::select! {
        decided = code_mode_mcp::decided(&broker, call, input) => decided,
        by = interrupts.next() => {
            let _ = tokio::time::timeout(END, broker.end()).await;
            return Ok(ExitCode::from(by.exit_status()));
        }
    };
    let _ = tokio::time::timeout(END, broker.end()).await;
    Ok(match decided {
        Ok(decided) => {
            let reason = decided.reason.map(|reason| format!(": {reason}"));
            show!(
                "{}: {}, of {}{}",
                decided.decision,
                decided.rule,
                decided.place,
                reason.unwrap_or_default()
            );
            if let Some(input) = decided.rewritten {
                show!("sent: {input}");
            }
            ExitCode::from(u8::from(decided.decision != "allow"))
        }
        Err(why) => {
            say!("code-mode mcp policy test: {why}");
            ExitCode::from(crate::WRONG_USAGE)
        }
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
    let loaded = load(&options)?;
    #[cfg(unix)]
    let front = match &args.gateway {
        Some(name) => {
            // The program, `mcp`, `--gateway` and its name are before those of the client.
            let arguments: Vec<_> = std::env::args_os().skip(4).collect();
            let own = shared::name_of(&arguments, &args.paths(), &loaded)?;
            if own != *name {
                return Err(Failure::Changed);
            }
            // Programs outlive their clients, and so must their servers.
            options.each_client_its_own = args.durable.is_none();
            Some(Front::open(name).await?)
        }
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
    let durable = args.durable.as_ref().map(|folder| {
        let kept = JournalOptions::default().park_after(args.park_after.0);
        let opened = DurableFolder::open(folder, kept);
        opened.map_err(|source| Failure::Durable {
            path: folder.clone(),
            source,
        })
    });
    let durable = durable.transpose()?;
    let broker = Broker::start(loaded, options);
    #[cfg(unix)]
    let _door = (durable.as_ref().zip(args.durable.as_ref())).map(|(durable, folder)| {
        Door::open(
            &DurableFolder::journal_in(folder),
            durable.journal(),
            broker.terminal_may_answer(),
        )
    });
    if durable.is_some() {
        for name in broker.servers_of_each_client() {
            say!("code-mode mcp: all clients share the server {name}, because of --durable");
        }
    }
    let traces = args.traces.folder();
    let traces = traces.map_err(|source| file("--trace", &args.traces.path(), source))?;
    let provider = args.runtime.provider_options().prewarmed(1).traces(traces);
    let provider = watched(Provider::new(provider)?);
    let mut options = GatewayOptions::default();
    options.direct = args.direct.clone();
    options.store = store;
    options.durable = durable;
    options.patience = args.patience.map(|time| time.0);
    let gateway = Gateway::new(broker, provider, options);
    gateway.resume().await;
    let served = async {
        #[cfg(unix)]
        if let Some(Front { listener, name }) = front {
            return match name.listens() {
                Ok(()) => gateway.serve_socket(listener, args.linger.0).await,
                Err(error) => say!("code-mode mcp: {error}"),
            };
        }
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

/// The front door of the gateway that clients share.
#[cfg(unix)]
struct Front {
    listener: Listener,
    name: HeldName,
}

#[cfg(unix)]
impl Front {
    async fn open(name: &GatewayName) -> Result<Self, Failure> {
        let held = hold_name()?;
        let socket = Place::of_user()?.socket(name);
        let listener = Listener::unix(&socket, MAX_CONNECTIONS).await;
        Ok(Self {
            listener: listener.map_err(|source| Failure::Socket { socket, source })?,
            name: held,
        })
    }
}

fn file(option: &'static str, path: &std::path::Path, source: std::io::Error) -> Failure {
    Failure::File {
        option,
        path: path.to_owned(),
        source,
    }
}
