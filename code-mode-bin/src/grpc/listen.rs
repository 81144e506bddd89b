//! Where the gRPC wire is served, and how it ends.

use std::convert::Infallible;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use code_mode_host::{Limits, Provider};
use futures::future::Either;
use futures::{Stream, StreamExt, stream};
use http::{Method, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tower::Service;
use tower::layer::layer_fn;

use super::outcome::MAX_MESSAGE;
use super::service::Host;
use super::wire;
use super::wire::code_mode_host_server::CodeModeHostServer;
use crate::interrupts::Interrupts;
use crate::standard_streams::{output_closed, standard_streams};

/// What a client may send before it is told that there is room again.
const WINDOW: u32 = 1 << 20;

/// The largest list of headers.
const MAX_HEADERS: u32 = 16 << 10;

/// How many requests a client may drop at once before they were looked at: as many as
/// cells and waits may be there. The library's own number is 20.
const MAX_RESETS: usize = 8192;

/// How long clients may take to read the last of what they are sent.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Where to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// One connection, on standard input and output.
    StandardStreams,
    /// Any number of connections to this address of this machine.
    Tcp(SocketAddr),
}

/// Why the wire cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error("invalid gRPC --listen URL `{0}`; expected `grpc://IP:PORT`")]
    Invalid(String),
    #[error(
        "gRPC --listen URL `{0}` is not a loopback address; there is no authentication yet, so others are refused"
    )]
    Exposed(String),
    #[error("failed to bind code-mode gRPC host to {address}: {source}")]
    Bind {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("cannot serve: {0}")]
    Serve(#[from] tonic::transport::Error),
    #[error("cannot describe the service: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Address {
    /// The address in `--listen`; `None` where it is another wire's.
    pub(crate) fn parse(url: &str) -> Option<Result<Self, ListenError>> {
        if url == "grpc+stdio://" {
            return Some(Ok(Self::StandardStreams));
        }
        let address = url.strip_prefix("grpc://")?;
        Some(match address.parse::<SocketAddr>() {
            Err(_) => Err(ListenError::Invalid(url.to_owned())),
            Ok(address) if !address.ip().is_loopback() => Err(ListenError::Exposed(url.to_owned())),
            Ok(address) => Ok(Self::Tcp(address)),
        })
    }
}

/// Serves until the client on the standard streams is gone, or a signal ends it.
pub(crate) async fn serve(
    address: Address,
    provider: Provider,
    limits: Limits,
) -> Result<(), ListenError> {
    let mut interrupts = Interrupts::new()?;
    let host = Host::new(provider, limits);
    let over = CancellationToken::new();
    let serving = async {
        match address {
            Address::StandardStreams => {
                let connection = StandardStreams::new(over.clone());
                // There is no second connection, and never an end of them.
                let connections = stream::iter([Ok::<_, io::Error>(connection)]);
                let connections = connections.chain(stream::pending());
                serve_connections(&host, connections, &over, false).await
            }
            Address::Tcp(address) => {
                let bind = |source| ListenError::Bind { address, source };
                let listener = TcpListener::bind(address).await.map_err(bind)?;
                let bound = listener.local_addr().map_err(bind)?;
                tracing::info!("listening on http://{bound}");
                announce(bound)?;
                serve_connections(&host, accepted(listener), &over, true).await
            }
        }
    };
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => Some(served),
        _ = interrupts.next() => None,
        () = over.cancelled() => None,
        () = output_closed(), if address == Address::StandardStreams => None,
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

/// Says where the program listens: one line, and nothing else, on standard output.
fn announce(address: SocketAddr) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "http://{address}")?;
    output.flush()
}

fn accepted(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    /// A machine without descriptors left may have some again after a while.
    const PAUSE: Duration = Duration::from_millis(50);
    stream::unfold(listener, async |listener| {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Small messages must not wait for each other.
                    let _ = stream.set_nodelay(true);
                    return Some((Ok(stream), listener));
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

async fn serve_connections<C>(
    host: &Host,
    connections: impl Stream<Item = io::Result<C>>,
    over: &CancellationToken,
    has_http1: bool,
) -> Result<(), ListenError>
where
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let service = CodeModeHostServer::new(host.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<CodeModeHostServer<Host>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
        .accept_http1(has_http1)
        .layer(layer_fn(move |inner| Front { inner, has_http1 }))
        .add_service(service)
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming_shutdown(connections, over.cancelled())
        .await?;
    Ok(())
}

/// Answers health checks over plain HTTP, and refuses the rest of HTTP/1.
#[derive(Clone)]
struct Front<S> {
    inner: S,
    has_http1: bool,
}

impl<S> Service<http::Request<Body>> for Front<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<std::future::Ready<Result<http::Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let is_health = self.has_http1 && request.uri().path() == "/healthz";
        let is_http2 = request.version() == Version::HTTP_2;
        let method = request.method();
        let status = match (is_health, is_http2) {
            (true, _) if method == Method::GET => StatusCode::OK,
            (true, true) if method == Method::HEAD => StatusCode::OK,
            (true, true) => StatusCode::METHOD_NOT_ALLOWED,
            (_, false) => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            (false, true) => return Either::Right(self.inner.call(request)),
        };
        let mut response = http::Response::new(Body::empty());
        *response.status_mut() = status;
        Either::Left(std::future::ready(Ok(response)))
    }
}

/// Standard input and output as a connection. Whatever ends it is told to `over`.
struct StandardStreams {
    reader: Box<dyn AsyncRead + Unpin + Send>,
    writer: Box<dyn AsyncWrite + Unpin + Send>,
    over: CancellationToken,
}

impl StandardStreams {
    fn new(over: CancellationToken) -> Self {
        let (reader, writer) = standard_streams();
        Self {
            reader,
            writer,
            over,
        }
    }
}

impl Drop for StandardStreams {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

impl Connected for StandardStreams {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for StandardStreams {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, has_room) = (buffer.filled().len(), buffer.remaining() > 0);
        let read = Pin::new(&mut self.reader).poll_read(context, buffer);
        let is_over = match &read {
            Poll::Ready(Ok(())) => has_room && buffer.filled().len() == before,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if is_over {
            self.over.cancel();
        }
        read
    }
}

impl AsyncWrite for StandardStreams {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.writer).poll_write(context, bytes);
        if matches!(written, Poll::Ready(Err(_))) {
            self.over.cancel();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_of_this_machine_with_a_port_is_listened_on() {
        let parsed =
            |url: &str| Address::parse(url).map(|parsed| parsed.map_err(|e| e.to_string()));
        let tcp = |address: &str| Some(Ok(Address::Tcp(address.parse().expect("an address"))));
        assert_eq!(parsed("stdio"), None);
        assert_eq!(parsed("grpc+stdio://"), Some(Ok(Address::StandardStreams)));
        assert_eq!(parsed("grpc://127.0.0.1:0"), tcp("127.0.0.1:0"));
        assert_eq!(parsed("grpc://[::1]:80"), tcp("[::1]:80"));
        for url in [
            "grpc://",
            "grpc://localhost:1",
            "grpc://127.0.0.1",
            "grpc://127.0.0.1:1/x",
        ] {
            let error = format!("invalid gRPC --listen URL `{url}`; expected `grpc://IP:PORT`");
            assert_eq!(parsed(url), Some(Err(error)));
        }
        let exposed = parsed("grpc://0.0.0.0:1").expect("this wire's");
        assert!(exposed.expect_err("refused").contains("not a loopback"));
    }
}
