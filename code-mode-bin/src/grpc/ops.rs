//! Health and metrics for those who run a host, over plain HTTP at an address of their own.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::descriptors::accepted;
use crate::telemetry;

/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 256;

/// How long a connection may last: one question, one answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("failed to bind --ops-listen to {address}: {source}")]
pub(crate) struct OpsError {
    address: SocketAddr,
    source: io::Error,
}

/// Where health and metrics are answered.
pub(super) struct Ops {
    listener: TcpListener,
    draining: CancellationToken,
}

impl Ops {
    /// Listens. Says on standard error where.
    pub(super) async fn bind(
        address: SocketAddr,
        draining: CancellationToken,
    ) -> Result<Self, OpsError> {
        let error = |source| OpsError { address, source };
        let listener = TcpListener::bind(address).await.map_err(error)?;
        let bound = listener.local_addr().map_err(error)?;
        say!("health and metrics at http://{bound}");
        Ok(Self { listener, draining })
    }

    /// Answers, until it is dropped.
    pub(super) async fn serve(self) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        while let Ok(place) = places.clone().acquire_owned().await {
            let (stream, _) = accepted(|| self.listener.accept()).await;
            let draining = self.draining.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |request| {
                    let answer = answer(&request, draining.is_cancelled());
                    std::future::ready(Ok::<_, Infallible>(answer))
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), answer);
                let _ = tokio::time::timeout(PATIENCE, connection).await;
                drop(place);
            });
        }
    }
}

fn answer(request: &Request<Incoming>, is_draining: bool) -> Response<Full<Bytes>> {
    let is_reading = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, text) = match request.uri().path() {
        "/healthz" | "/metrics" if !is_reading => (StatusCode::METHOD_NOT_ALLOWED, None),
        "/healthz" if is_draining => (StatusCode::SERVICE_UNAVAILABLE, None),
        "/healthz" => (StatusCode::OK, None),
        "/metrics" => match telemetry::metrics_page() {
            Some(page) => (StatusCode::OK, Some(page)),
            None => (StatusCode::NOT_IMPLEMENTED, None),
        },
        _ => (StatusCode::NOT_FOUND, None),
    };
    let mut response = Response::new(Full::from(text.unwrap_or_default()));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
