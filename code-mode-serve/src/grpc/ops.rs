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
use tokio_util::sync::CancellationToken;

use code_mode_system::{Listener, say};

use crate::Telemetry;

/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 256;

/// How long a connection may last: one question, one answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("failed to bind --ops-listen to {address}: {source}")]
pub struct OpsError {
    address: SocketAddr,
    source: io::Error,
}

/// Where health and metrics are answered.
pub(super) struct Ops {
    listener: Listener,
    telemetry: Arc<dyn Telemetry>,
    draining: CancellationToken,
}

impl Ops {
    /// Listens. Says on standard error where.
    pub(super) fn bind(
        address: SocketAddr,
        telemetry: Arc<dyn Telemetry>,
        draining: CancellationToken,
    ) -> Result<Self, OpsError> {
        let error = |source| OpsError { address, source };
        let listener = Listener::tcp(address, MAX_CONNECTIONS).map_err(error)?;
        let bound = listener.local_addr().map_err(error)?;
        say!("health and metrics at http://{bound}");
        Ok(Self {
            listener,
            telemetry,
            draining,
        })
    }

    /// Answers, until it is dropped.
    pub(super) async fn serve(self) {
        loop {
            let incoming = self.listener.accept(|_| {}).await;
            let (draining, telemetry) = (self.draining.clone(), self.telemetry.clone());
            tokio::spawn(async move {
                let answer = service_fn(move |request| {
                    let answer = answer(&request, &*telemetry, draining.is_cancelled());
                    std::future::ready(Ok::<_, Infallible>(answer))
                });
                let Ok(stream) = incoming.connect().await else {
                    return;
                };
                // Nobody has a token here.
                if !stream.place().admit() {
                    return;
                }
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), answer);
                let _ = tokio::time::timeout(PATIENCE, connection).await;
            });
        }
    }
}

fn answer(
    request: &Request<Incoming>,
    telemetry: &dyn Telemetry,
    is_draining: bool,
) -> Response<Full<Bytes>> {
    let is_reading = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, text) = match request.uri().path() {
        "/healthz" | "/metrics" if !is_reading => (StatusCode::METHOD_NOT_ALLOWED, None),
        "/healthz" if is_draining => (StatusCode::SERVICE_UNAVAILABLE, None),
        "/healthz" => (StatusCode::OK, None),
        "/metrics" => match telemetry.metrics_page() {
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
