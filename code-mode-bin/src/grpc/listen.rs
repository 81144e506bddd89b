//! Where the gRPC wire is served, and how it ends.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use code_mode_host::{Limits, Provider};
use futures::{Stream, StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;
use tower::layer::layer_fn;

use super::accept::{Doors, Listener};
use super::front::Front;
use super::guard::{Guard, GuardArgs, GuardError};
use super::ops::{self, OpsError};
use super::outcome::MAX_MESSAGE;
use super::service::Host;
use super::standard::StandardStreams;
use super::wire::code_mode_host_server::CodeModeHostServer;
use super::workers::MAX_CHUNK;
use super::workers_wire::workers_server::WorkersServer;
use super::{Address, wire};
use crate::interrupts::{Interrupt, Interrupts};
use crate::standard_streams::output_closed;

/// What a client may send before it is told that there is room again.
const WINDOW: u32 = 1 << 20;

/// The largest list of headers.
const MAX_HEADERS: u32 = 16 << 10;

/// How many requests a client may drop at once before they were looked at: as many as
/// cells and waits may be there. The library's own number is 20.
const MAX_RESETS: usize = 8192;

/// The largest question about health.
const MAX_HEALTH: usize = 1024;

/// How long clients may take to read the last of what they are sent.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// After so long without a word, a client is asked whether it is still there, and how long
/// its answer may take: one whose machine is gone says nothing for ever.
const ASK_AFTER: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// The most connections, and sessions.
const MAX_COUNT: usize = 1 << 24;

/// A number of an option, of at least 1.
fn number(most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => Err(format!("expected a number from 1 to {most}")),
    }
}

/// Limits of the host as a whole.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "gRPC host")]
pub(crate) struct HostArgs {
    /// Connections that are served at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = number(MAX_COUNT))]
    max_connections: usize,
    /// Requests under way on one connection
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    max_streams: u32,
    /// Sessions at once
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = number(MAX_COUNT))]
    pub(super) max_sessions: usize,
    /// The largest request
    #[arg(long, value_name = "BYTES", default_value_t = MAX_MESSAGE, value_parser = number(MAX_MESSAGE))]
    max_message_bytes: usize,
    /// After SIGTERM, how long cells may go on before they are stopped
    #[arg(long, value_name = "MS", default_value_t = 5_000)]
    drain_time_ms: u64,
    /// Answer /healthz, and /metrics for Prometheus, over HTTP at this address
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) ops_listen: Option<SocketAddr>,
    #[command(flatten)]
    guard: GuardArgs,
}

impl HostArgs {
    /// Refuses what another wire has no use for: who asks for TLS must not believe that
    /// there is some.
    pub(crate) fn without_grpc(&self) -> Result<(), GuardError> {
        if self.ops_listen.is_some() {
            return Err(GuardError::NeedsGrpc("--ops-listen"));
        }
        self.guard.guard(&Address::StandardStreams).map(drop)
    }
}

/// Why the wire cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error("failed to bind code-mode gRPC host to {address}: {source}")]
    Bind {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("failed to bind code-mode gRPC host to {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Guard(#[from] GuardError),
    #[error(transparent)]
    Ops(#[from] OpsError),
    #[error("cannot say on standard output where it listens: {0}")]
    Announce(io::Error),
    #[error("cannot serve: {0}")]
    Serve(#[from] tonic::transport::Error),
    #[error("cannot describe the service: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves until the client on the standard streams is gone, or a signal ends it.
pub(crate) async fn serve(
    address: Address,
    provider: Arc<Provider>,
    limits: Limits,
    args: HostArgs,
) -> Result<(), ListenError> {
    let mut interrupts = Interrupts::new()?;
    let guard = args.guard.guard(&address)?;
    let host = Host::new(provider, limits, args.max_sessions);
    let ops = match args.ops_listen {
        Some(address) => Some(ops::Ops::bind(address, host.draining()).await?),
        None => None,
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<CodeModeHostServer<Host>>().await;
    let over = CancellationToken::new();
    let is_standard = address == Address::StandardStreams;
    let served = Served {
        host: host.clone(),
        args: args.clone(),
        guard,
        over: over.clone(),
    };
    let drain_time = match is_standard {
        // Its one client has asked for it.
        true => Duration::ZERO,
        false => Duration::from_millis(args.drain_time_ms),
    };
    let serving = served.serve(address, health_service);
    tokio::pin!(serving);
    let answering = async {
        match ops {
            Some(ops) => ops.serve().await,
            None => std::future::pending().await,
        }
    };
    let ending = async {
        if interrupts.next().await.drains() && !drain_time.is_zero() {
            drain(&host, &health, drain_time, &mut interrupts).await;
        }
    };
    let served = tokio::select! {
        served = &mut serving => Some(served),
        () = ending => None,
        () = over.cancelled() => None,
        () = answering => None,
        () = output_closed(), if is_standard => None,
    };
    // Streams end with their sessions; then the connections do.
    host.shut_down().await;
    over.cancel();
    match served {
        Some(served) => served,
        None => match tokio::time::timeout(LAST_WORDS, serving).await {
            Ok(served) => served,
            // A client that does not read any more.
            Err(_) => Ok(()),
        },
    }
}

impl Interrupt {
    /// Whether cells may go on for a while: a person at a keyboard wants the end now.
    fn drains(self) -> bool {
        #[cfg(unix)]
        return self == Self::Terminate;
        #[cfg(not(unix))]
        return false;
    }
}

/// Takes no new sessions and cells, and waits for the cells that are there: until none is
/// left, the time is over or a second signal comes.
async fn drain(host: &Host, health: &HealthReporter, time: Duration, again: &mut Interrupts) {
    host.draining().cancel();
    health.set_not_serving::<CodeModeHostServer<Host>>().await;
    let all = tonic_health::ServingStatus::NotServing;
    health.set_service_status("", all).await;
    tracing::info!("no new sessions; cells have {} s", time.as_secs());
    tokio::select! {
        () = host.without_cells() => {}
        () = tokio::time::sleep(time) => tracing::warn!("cells did not end in time and are stopped"),
        _ = again.next() => {}
    }
}

/// What is served.
struct Served {
    host: Host,
    args: HostArgs,
    guard: Guard,
    over: CancellationToken,
}

impl Served {
    async fn serve(
        self,
        address: Address,
        health: HealthServer<impl Health>,
    ) -> Result<(), ListenError> {
        let doors = Doors::new(self.args.max_connections, !self.guard.is_open());
        match address {
            Address::StandardStreams => {
                let connection = StandardStreams::new(self.over.clone());
                // There is no second connection, and never an end of them.
                let connections = stream::iter([Ok::<_, io::Error>(connection)]);
                let connections = connections.chain(stream::pending());
                self.serve_connections(connections, health, false).await
            }
            Address::Tcp(address) => {
                let bind = |source| ListenError::Bind { address, source };
                let listener = Listener::tcp(address, self.guard.tls.clone()).await;
                let (listener, bound) = listener.map_err(bind)?;
                let scheme = match self.guard.tls {
                    Some(_) => "https",
                    None => "http",
                };
                tracing::info!("listening on {scheme}://{bound}");
                announce(&format!("{scheme}://{bound}"))?;
                let connections = listener.connections(doors, self.over.clone());
                self.serve_connections(connections, health, true).await
            }
            Address::Unix(path) => {
                let bind = |source| ListenError::Socket {
                    path: path.clone(),
                    source,
                };
                let listener = Listener::unix(&path).await.map_err(bind)?;
                let _name = Name::of(&path);
                tracing::info!("listening on unix:{}", path.display());
                announce(&format!("unix:{}", path.display()))?;
                let connections = listener.connections(doors, self.over.clone());
                self.serve_connections(connections, health, true).await
            }
        }
    }

    async fn serve_connections<C>(
        self,
        connections: impl Stream<Item = io::Result<C>>,
        health: HealthServer<impl Health>,
        is_listening: bool,
    ) -> Result<(), ListenError>
    where
        C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let service = CodeModeHostServer::new(self.host.clone())
            .max_decoding_message_size(self.args.max_message_bytes)
            .max_encoding_message_size(MAX_MESSAGE);
        // On standard streams there is one client, which has started this program.
        let workers = is_listening.then(|| {
            let workers = WorkersServer::new(self.host.clone());
            workers.max_decoding_message_size(MAX_CHUNK * 2)
        });
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let (guard, draining) = (self.guard, self.host.draining());
        let front = layer_fn(move |inner| Front {
            inner,
            has_http1: is_listening,
            guard: guard.clone(),
            draining: draining.clone(),
        });
        Server::builder()
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .http2_max_header_list_size(MAX_HEADERS)
            .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
            .http2_keepalive_interval(is_listening.then_some(ASK_AFTER))
            .http2_keepalive_timeout(is_listening.then_some(ANSWER_WITHIN))
            .max_concurrent_streams(is_listening.then_some(self.args.max_streams))
            .accept_http1(is_listening)
            .layer(front)
            .add_service(service)
            .add_optional_service(workers)
            // Whoever connects may ask; a length that is claimed is memory that is taken.
            .add_service(health.max_decoding_message_size(MAX_HEALTH))
            .add_service(reflection)
            .serve_with_incoming_shutdown(connections, self.over.cancelled())
            .await?;
        Ok(())
    }
}

/// The name of a socket, which goes with the host, unless it is another's by then.
struct Name<'a> {
    path: &'a Path,
    file: Option<(u64, u64)>,
}

impl<'a> Name<'a> {
    fn of(path: &'a Path) -> Self {
        let file = file(path);
        Self { path, file }
    }
}

impl Drop for Name<'_> {
    fn drop(&mut self) {
        if self.file.is_some() && self.file == file(self.path) {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

/// Which file a name stands for.
#[cfg(unix)]
fn file(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// There are no sockets in the file system.
#[cfg(not(unix))]
fn file(_: &Path) -> Option<(u64, u64)> {
    None
}

/// Says where the program listens: one line, and nothing else, on standard output.
fn announce(address: &str) -> Result<(), ListenError> {
    let mut output = io::stdout().lock();
    writeln!(output, "{address}")
        .and_then(|()| output.flush())
        .map_err(ListenError::Announce)
}
