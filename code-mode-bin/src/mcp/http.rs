//! The front door over streamable HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::front::Front;
use super::gateway::Gateway;
use crate::descriptors::accepted;

/// The one path.
const PATH: &str = "/mcp";
/// Connections at the same time.
const MAX_CONNECTIONS: usize = 1024;
/// The largest message of a client.
const MAX_BODY: usize = 64 << 20;
/// A session that nobody uses goes after so long.
const IDLE: std::time::Duration = std::time::Duration::from_secs(30 * 60);

type Body = BoxBody<Bytes, Infallible>;
type Mcp = StreamableHttpService<Front, LocalSessionManager>;

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("cannot listen on {address}: {error}")]
    Listen {
        address: SocketAddr,
        #[source]
        error: std::io::Error,
    },
    #[error(
        "{0} can be reached from other machines: give a token (--token-file FILE), and put a proxy with TLS in front"
    )]
    NeedsToken(SocketAddr),
}

/// Serves until the gateway shuts down. Says on standard error where.
pub(super) async fn serve(
    gateway: Arc<Gateway>,
    address: SocketAddr,
    token: Option<String>,
) -> Result<(), HttpError> {
    if !address.ip().is_loopback() && token.is_none() {
        return Err(HttpError::NeedsToken(address));
    }
    let failed = |error| HttpError::Listen { address, error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    say!("code-mode mcp listens on http://{bound}{PATH}");
    let mut config = StreamableHttpServerConfig::default()
        .enforce_origin_validation()
        .with_max_request_body_bytes(MAX_BODY)
        .with_cancellation_token(gateway.shutdown.child_token())
        .with_allowed_origins(
            ["localhost", "127.0.0.1", "[::1]"]
                .iter()
                .flat_map(|host| [format!("http://{host}"), format!("https://{host}")]),
        );
    if !address.ip().is_loopback() {
        // The names it goes by there are its proxy's; the token decides.
        config = config.disable_allowed_hosts();
    }
    let fronts = gateway.clone();
    let mut sessions = LocalSessionManager::default();
    sessions.session_config.keep_alive = Some(IDLE);
    let mcp = StreamableHttpService::new(
        move || Ok(Front::new(fronts.clone())),
        Arc::new(sessions),
        config,
    );
    let door = Door {
        mcp,
        token: token.map(Arc::from),
    };
    let tasks = TaskTracker::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = accepted(|| listener.accept()) => accepted,
            () = gateway.shutdown.cancelled() => break,
        };
        if tasks.len() >= MAX_CONNECTIONS {
            continue;
        }
        let service = TowerToHyperService::new(door.clone());
        let shutdown = gateway.shutdown.clone();
        tasks.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            tokio::select! {
                _ = &mut connection => {}
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
        });
    }
    tasks.close();
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), tasks.wait()).await;
    Ok(())
}

/// Path and token, before anything of the protocol.
#[derive(Clone)]
struct Door {
    mcp: Mcp,
    token: Option<Arc<str>>,
}

impl Door {
    fn refusal(&self, request: &Request<Incoming>) -> Option<Response<Body>> {
        if request.uri().path() != PATH {
            return Some(answer(StatusCode::NOT_FOUND, "the path is /mcp\n"));
        }
        let token = self.token.as_ref()?;
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given
            .and_then(|value| value.as_bytes().split_at_checked(7))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
            .map(|(_, token)| token)
            .unwrap_or_default();
        if bool::from(given.ct_eq(token.as_bytes())) {
            return None;
        }
        let mut refused = answer(StatusCode::UNAUTHORIZED, "a bearer token is needed\n");
        let scheme = header::HeaderValue::from_static("Bearer");
        refused
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, scheme);
        Some(refused)
    }
}

fn answer(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed());
    *response.status_mut() = status;
    response
}

impl Service<Request<Incoming>> for Door {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        if let Some(refusal) = self.refusal(&request) {
            return Box::pin(async move { Ok(refusal) });
        }
        let mcp = self.mcp.clone();
        Box::pin(async move {
            let mut response = mcp.handle(request).await;
            // A proxy that collects the stream would hold news back.
            let no_buffering = header::HeaderValue::from_static("no");
            response
                .headers_mut()
                .insert("x-accel-buffering", no_buffering);
            Ok(response)
        })
    }
}
