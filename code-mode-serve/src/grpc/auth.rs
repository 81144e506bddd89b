//! Authentication, before a request reaches the service.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use code_mode_system::Refused;
use futures::future::Either;
use http::{Method, StatusCode, Version};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::accept::Peer;
use super::guard::Guard;
use super::withdrawn::{self, WhileAdmitted};

/// The path of gRPC's health service, open without a token: health checkers have
/// none.
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Answers health checks over plain HTTP, refuses the rest of HTTP/1, and lets in only
/// those who may use the host.
#[derive(Clone)]
pub(super) struct AuthLayer<S> {
    pub(super) inner: S,
    pub(super) has_http1: bool,
    pub(super) guard: Guard,
    pub(super) draining: CancellationToken,
}

impl<S> AuthLayer<S> {
    /// The answer to a health check.
    fn health(&self, request: &http::Request<Body>) -> Option<StatusCode> {
        if !self.has_http1 || request.uri().path() != "/healthz" {
            return None;
        }
        let is_http2 = request.version() == Version::HTTP_2;
        let method = request.method();
        if method == Method::GET || (is_http2 && method == Method::HEAD) {
            return Some(match self.draining.is_cancelled() {
                true => StatusCode::SERVICE_UNAVAILABLE,
                false => StatusCode::OK,
            });
        }
        is_http2.then_some(StatusCode::METHOD_NOT_ALLOWED)
    }

    /// Why a request goes no further.
    fn refusal(&self, request: &http::Request<Body>) -> Option<http::Response<Body>> {
        let of_status = |status| {
            let mut response = http::Response::new(Body::empty());
            *response.status_mut() = status;
            response
        };
        if let Some(status) = self.health(request) {
            return Some(of_status(status));
        }
        if request.version() != Version::HTTP_2 {
            return Some(of_status(StatusCode::HTTP_VERSION_NOT_SUPPORTED));
        }
        if request.uri().path() == HEALTH {
            return None;
        }
        if !self.guard.admits(request.headers()) {
            self.guard.refusals.refused(Refused::Token);
            let status = Status::unauthenticated("code-mode host needs a bearer token it knows");
            return Some(status.into_http());
        }
        // A refused client must not take a permit.
        let peer = request.extensions().get::<Peer>();
        if peer.is_some_and(|peer| !peer.takes_place()) {
            self.guard.refusals.refused(Refused::Connections);
            let status = Status::resource_exhausted("code-mode host has too many connections");
            return Some(status.into_http());
        }
        None
    }
}

impl<S> Service<http::Request<Body>> for AuthLayer<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if let Some(response) = self.refusal(&request) {
            return Either::Left(std::future::ready(Ok(response)));
        }
        let is_health = request.uri().path() == HEALTH;
        let withdrawn = self.guard.withdrawn(request.headers());
        let answering = self.inner.call(request);
        match withdrawn.filter(|_| !is_health) {
            None => Either::Right(Either::Left(answering)),
            Some(withdrawn) => Either::Right(Either::Right(Box::pin(async move {
                let mut withdrawn = Box::pin(withdrawn);
                tokio::select! {
                    answer = answering => {
                        let answer = answer?;
                        Ok(answer.map(|body| Body::new(WhileAdmitted::new(body, withdrawn))))
                    }
                    () = &mut withdrawn => Ok(withdrawn::status().into_http()),
                }
            }))),
        }
    }
}

type Answer = Result<http::Response<Body>, Infallible>;
/// A refusal, or the answer of the service; guarded, it ends with its token.
type Answering<F> =
    Either<std::future::Ready<Answer>, Either<F, Pin<Box<dyn Future<Output = Answer> + Send>>>>;
