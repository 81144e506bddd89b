//! Streams of a token that was withdrawn end: whoever takes a token away takes away what it has
//! opened, too.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;

/// The body of an answer that ends with a status when its token is withdrawn.
pub(super) struct WhileAdmitted {
    body: Body,
    /// `None` once the body has ended so.
    withdrawn: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl WhileAdmitted {
    pub(super) fn new(body: Body, withdrawn: impl Future<Output = ()> + Send + 'static) -> Self {
        Self {
            body,
            withdrawn: Some(Box::pin(withdrawn)),
        }
    }
}

/// The status that a client with such a token gets.
pub(super) fn status() -> Status {
    Status::unauthenticated("code-mode host does not know the bearer token any more")
}

impl http_body::Body for WhileAdmitted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(withdrawn) = &mut self.withdrawn else {
            return Poll::Ready(None);
        };
        if withdrawn.as_mut().poll(context).is_ready() {
            self.withdrawn = None;
            // What feeds the body learns that nobody reads it.
            self.body = Body::empty();
            let mut trailers = http::HeaderMap::new();
            let added = status().add_header(&mut trailers);
            return Poll::Ready(added.is_ok().then(|| Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.withdrawn.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::default()
    }
}
