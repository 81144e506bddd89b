//! The front door over streamable HTTP.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use code_mode_system::{Listener, Place, Refusals, Refused, TokenFile};
use futures::StreamExt;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::Shared;
use super::handler::Handler;
use super::http_sessions::HttpSessions;

/// The one path.
const PATH: &str = "/mcp";
/// The largest message of a client.
const MAX_BODY: usize = 64 << 20;
/// How long the head of a request may take, and how long a connection may have none.
const HEADERS: std::time::Duration = std::time::Duration::from_secs(60);
/// Sessions by `initialize` at once; each costs some kilobytes until a program runs in it.
const MAX_SESSIONS: usize = 4096;
/// How long the last answers may take at the end.
const LAST_ANSWERS: std::time::Duration = std::time::Duration::from_secs(1);
/// A session that nobody uses is closed after so long.
const IDLE: std::time::Duration = std::time::Duration::from_secs(30 * 60);

type Body = BoxBody<Bytes, Infallible>;
type Mcp = StreamableHttpService<Handler, HttpSessions>;

/// The most connections at once of clients that were let in; others are refused.
pub const MAX_CONNECTIONS: usize = 1024;

/// Serves until the gateway shuts down.
pub(super) async fn serve(server: Arc<Shared>, listener: Listener, tokens: Option<TokenFile>) {
    let shutdown = server.broker.shutdown.clone();
    // Without a token whatever a browser runs for another page of this machine could run programs.
    let port = match (&tokens, listener.local_addr()) {
        (None, Ok(address)) => address.port().to_string(),
        _ => "*".to_owned(),
    };
    let origins = ["localhost", "127.0.0.1", "[::1]"]
        .into_iter()
        .flat_map(|host| ["http", "https"].map(|scheme| format!("{scheme}://{host}:{port}")));
    let mut config = StreamableHttpServerConfig::default()
        .enforce_origin_validation()
        .with_max_request_body_bytes(MAX_BODY)
        .with_cancellation_token(shutdown.child_token())
        .with_allowed_origins(origins);
    let is_loopback = listener
        .local_addr()
        .is_ok_and(|address| address.ip().is_loopback());
    if !is_loopback {
        // The names it goes by there are its proxy's; the token decides.
        config = config.disable_allowed_hosts();
    }
    let mut sessions = HttpSessions::default();
    sessions.inner.session_config.keep_alive = Some(IDLE);
    let closings = sessions.closings.clone();
    let places = Arc::new(Semaphore::new(MAX_SESSIONS));
    let mcp = StreamableHttpService::new(
        move || {
            let place = places.clone().try_acquire_owned();
            let place = place.map_err(|_| std::io::Error::other("too many sessions"))?;
            Ok(Handler::over_http(server.clone(), place, closings.clone()))
        },
        Arc::new(sessions),
        config,
    );
    let front = Front {
        mcp,
        tokens: tokens.map(Arc::new),
        refusals: Arc::default(),
    };
    let tasks = TaskTracker::new();
    let accepting = async {
        loop {
            let warn =
                |error: &std::io::Error| tracing::warn!("cannot accept a connection: {error}");
            let incoming = listener.accept(warn).await;
            let front = front.clone();
            let shutdown = shutdown.clone();
            tasks.spawn(async move {
                let Ok(stream) = incoming.connect().await else {
                    return;
                };
                let service = TowerToHyperService::new(AuthLayer {
                    place: stream.place().clone(),
                    front,
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADERS)
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
    };
    shutdown.run_until_cancelled(accepting).await;
    tasks.close();
    let _ = tokio::time::timeout(LAST_ANSWERS, tasks.wait()).await;
}

/// What all connections share.
#[derive(Clone)]
struct Front {
    mcp: Mcp,
    tokens: Option<Arc<TokenFile>>,
    refusals: Arc<Refusals>,
}

/// Path and token, before anything of the protocol.
#[derive(Clone)]
struct AuthLayer {
    front: Front,
    place: Place,
}

impl AuthLayer {
    fn refusal(&self, request: &Request<Incoming>) -> Option<Response<Body>> {
        if request.uri().path() != PATH {
            return Some(answer(StatusCode::NOT_FOUND, "the path is /mcp\n"));
        }
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given.map(|value| value.as_bytes());
        let tokens = self.front.tokens.as_ref();
        if tokens.is_some_and(|tokens| !tokens.admits(given)) {
            self.front.refusals.refused(Refused::Token);
            let mut refused = answer(StatusCode::UNAUTHORIZED, "a bearer token is needed\n");
            let scheme = header::HeaderValue::from_static("Bearer");
            refused
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
            return Some(refused);
        }
        // Only an admitted client holds one of the places.
        if self.place.admit() {
            return None;
        }
        self.front.refusals.refused(Refused::Connections);
        Some(answer(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many connections\n",
        ))
    }
}

/// A body that ends when the token it is for is withdrawn.
fn until(body: Body, over: impl Future<Output = ()> + Send + Sync + 'static) -> Body {
    let frames = BodyStream::new(body).take_until(over);
    BodyExt::boxed(StreamBody::new(frames))
}

fn answer(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed());
    *response.status_mut() = status;
    response
}

impl Service<Request<Incoming>> for AuthLayer {
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
        let Front { mcp, tokens, .. } = self.front.clone();
        let authorization = request.headers().get(header::AUTHORIZATION).cloned();
        let withdrawn = tokens.map(|tokens| async move {
            let authorization = authorization.as_ref().map(|value| value.as_bytes());
            tokens.withdrawn(authorization).await;
        });
        Box::pin(async move {
            let mut response = mcp.handle(request).await;
            if let Some(withdrawn) = withdrawn {
                response = response.map(|body| until(body, withdrawn));
            }
            // A proxy that collects the stream would hold news back.
            let no_buffering = header::HeaderValue::from_static("no");
            response
                .headers_mut()
                .insert("x-accel-buffering", no_buffering);
            Ok(response)
        })
    }
}
