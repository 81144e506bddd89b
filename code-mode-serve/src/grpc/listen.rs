//! Where the gRPC wire is served, and how it ends.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
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

use super::accept::connections;
use super::auth::AuthLayer;
use super::guard::{Guard, GuardError, GuardOptions};
use super::ops::{self, OpsError};
use super::outcome::MAX_MESSAGE;
use super::service::Service;
use super::standard::StandardStreams;
use super::wire::code_mode_host_server::CodeModeHostServer;
use super::workers::MAX_CHUNK;
use super::workers_wire::workers_server::WorkersServer;
use super::{Address, wire};
use code_mode_system::{Interrupt, Interrupts, Listener, output_closed};

use crate::Telemetry;

/// How much a client may send before it gets more flow-control credit.
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

/// A silent client gets a ping after this time, and how long
/// its answer may take: one whose machine is gone says nothing for ever.
const ASK_AFTER: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Options of the gRPC wire as a whole.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HostOptions {
    /// Connections that are served at once. Default 1,024.
    pub max_connections: usize,
    /// Requests that run at once on one connection. Default 8,192.
    pub max_streams: u32,
    /// Sessions at once. Default 4,096.
    pub max_sessions: usize,
    /// The largest request in bytes; at most, and by default, [`MAX_MESSAGE`].
    pub max_message_bytes: usize,
    /// After SIGTERM, how long cells may continue before they are stopped. Default 5 s.
    pub drain_time: Duration,
    /// Where `/healthz` and `/metrics` are answered over HTTP. Default nowhere.
    pub ops_listen: Option<SocketAddr>,
    /// Which clients are accepted. Default everybody who reaches an address of this machine.
    pub guard: GuardOptions,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_streams: 8192,
            max_sessions: 4096,
            max_message_bytes: MAX_MESSAGE,
            drain_time: Duration::from_secs(5),
            ops_listen: None,
            guard: GuardOptions::default(),
        }
    }
}

impl HostOptions {
    /// Refuses options that only the gRPC wire has, where another wire is served: a user who
    /// asks for TLS must not believe that there is some.
    ///
    /// # Errors
    /// [`GuardError`], with the name of the option.
    pub fn check_without_grpc(&self) -> Result<(), GuardError> {
        if self.ops_listen.is_some() {
            return Err(GuardError::NeedsGrpc("--ops-listen"));
        }
        self.guard.guard(&Address::StandardStreams).map(drop)
    }
}

/// Why the wire cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The address cannot be bound.
    #[error("failed to bind code-mode gRPC host to {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("failed to bind code-mode gRPC host to {}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Nobody can be let in.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// Health and metrics cannot be served.
    #[error(transparent)]
    Ops(#[from] OpsError),
    /// Standard output, where the address is written, is closed.
    #[error("cannot say on standard output where it listens: {0}")]
    Announce(#[source] io::Error),
    /// The gRPC library failed.
    #[error("cannot serve: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The interface cannot be described to clients.
    #[error("cannot describe the service: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// Signals cannot be handled.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves the gRPC wire until the client on the standard streams is gone, or a signal ends it.
/// `limits` bounds what clients may ask for. Must be called within a tokio runtime with I/O
/// and time.
///
/// # Errors
/// [`ListenError`].
pub async fn serve(
    address: Address,
    provider: Arc<Provider>,
    limits: Limits,
    options: HostOptions,
    telemetry: Arc<dyn Telemetry>,
) -> Result<(), ListenError> {
    let mut interrupts = Interrupts::new()?;
    let guard = options.guard.guard(&address)?;
    let refusals = guard.refusals.clone();
    telemetry.watch_refusals(Box::new(move |why| refusals.count(why)));
    let service = Service::new(provider, limits, options.max_sessions, telemetry.clone());
    let ops = match options.ops_listen {
        Some(address) => Some(ops::Ops::bind(address, telemetry, service.draining())?),
        None => None,
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<CodeModeHostServer<Service>>().await;
    let over = CancellationToken::new();
    let is_standard = address == Address::StandardStreams;
    let served = Served {
        service: service.clone(),
        options: options.clone(),
        guard,
        over: over.clone(),
    };
    let drain_time = match is_standard {
        // Its one client has asked for it.
        true => Duration::ZERO,
        false => options.drain_time,
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
        if drains(interrupts.next().await) && !drain_time.is_zero() {
            drain(&service, &health, drain_time, &mut interrupts).await;
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
    service.shut_down().await;
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

/// Whether cells may continue for a while: a person at a keyboard wants the end now.
fn drains(interrupt: Interrupt) -> bool {
    #[cfg(unix)]
    return interrupt == Interrupt::Terminate;
    #[cfg(not(unix))]
    return {
        let _ = interrupt;
        false
    };
}

/// Takes no new sessions and cells, and waits for the cells that are there: until none is
/// left, the time is over or a second signal comes.
async fn drain(service: &Service, health: &HealthReporter, time: Duration, again: &mut Interrupts) {
    notify(State::Stopping);
    service.draining().cancel();
    health
        .set_not_serving::<CodeModeHostServer<Service>>()
        .await;
    let all = tonic_health::ServingStatus::NotServing;
    health.set_service_status("", all).await;
    tracing::info!("no new sessions; cells have {} s", time.as_secs());
    tokio::select! {
        () = service.without_cells() => {}
        () = tokio::time::sleep(time) => tracing::warn!("cells did not end in time and are stopped"),
        _ = again.next() => {}
    }
}

/// The service.
struct Served {
    service: Service,
    options: HostOptions,
    guard: Guard,
    over: CancellationToken,
}

impl Served {
    async fn serve(
        self,
        address: Address,
        health: HealthServer<impl Health>,
    ) -> Result<(), ListenError> {
        let most = self.options.max_connections;
        match address {
            Address::StandardStreams => {
                let connection = StandardStreams::new(self.over.clone());
                // A second connection never comes, and the stream of them never ends.
                let connections = stream::iter([Ok::<_, io::Error>(connection)]);
                let connections = connections.chain(stream::pending());
                self.serve_connections(connections, health, false).await
            }
            Address::Tcp(address) => {
                let bind = |source| ListenError::Bind { address, source };
                let listener = Listener::tcp(address, most).map_err(bind)?;
                let listener = listener.tls(self.guard.tls.clone());
                let bound = listener.local_addr().map_err(bind)?;
                let scheme = match self.guard.tls {
                    Some(_) => "https",
                    None => "http",
                };
                tracing::info!("listening on {scheme}://{bound}");
                announce(&format!("{scheme}://{bound}"))?;
                let connections = connections(listener, &self.guard, self.over.clone());
                self.serve_connections(connections, health, true).await
            }
            Address::Unix(path) => {
                let bind = |source| ListenError::Socket {
                    path: path.clone(),
                    source,
                };
                let listener = Listener::unix(&path, most).await.map_err(bind)?;
                tracing::info!("listening on unix:{}", path.display());
                announce(&format!("unix:{}", path.display()))?;
                let connections = connections(listener, &self.guard, self.over.clone());
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
        let host_service = CodeModeHostServer::new(self.service.clone())
            .max_decoding_message_size(self.options.max_message_bytes)
            .max_encoding_message_size(MAX_MESSAGE);
        // On standard streams there is one client, which has started this program.
        let workers = is_listening.then(|| {
            let workers = WorkersServer::new(self.service.clone());
            workers.max_decoding_message_size(MAX_CHUNK * 2)
        });
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let (guard, draining) = (self.guard, self.service.draining());
        let front = layer_fn(move |inner| AuthLayer {
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
            .max_concurrent_streams(is_listening.then_some(self.options.max_streams))
            .accept_http1(is_listening)
            .layer(front)
            .add_service(host_service)
            .add_optional_service(workers)
            // Whoever connects may ask; a length that is claimed is memory that is taken.
            .add_service(health.max_decoding_message_size(MAX_HEALTH))
            .add_service(reflection)
            .serve_with_incoming_shutdown(connections, self.over.cancelled())
            .await?;
        Ok(())
    }
}

/// Says where the program listens: one line, and nothing else, on standard output; and to systemd,
/// where that has started it, that it is ready.
fn announce(address: &str) -> Result<(), ListenError> {
    let mut output = io::stdout().lock();
    writeln!(output, "{address}")
        .and_then(|()| output.flush())
        .map_err(ListenError::Announce)?;
    notify(State::Ready);
    Ok(())
}

/// What systemd may know of a service.
#[derive(Clone, Copy)]
enum State {
    Ready,
    Stopping,
}

/// Sends a state to systemd, where that has started the program.
fn notify(state: State) {
    #[cfg(target_os = "linux")]
    {
        let state = match state {
            State::Ready => sd_notify::NotifyState::Ready,
            State::Stopping => sd_notify::NotifyState::Stopping,
        };
        if let Err(error) = sd_notify::notify(&[state]) {
            tracing::warn!("systemd does not take a notification: {error}");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = state;
}
