//! A stream of chunks as bytes, each way.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::Stream;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use tonic::{Status, Streaming};

use super::wire::Chunk;

/// The most of one chunk.
pub(super) const MAX_CHUNK: usize = 1 << 20;

/// Chunks that wait to be sent.
const WAITING: usize = 4;

/// Bytes to a worker.
pub(super) struct Sending(PollSender<Chunk>);

impl Sending {
    /// The writer, and the chunks made from its bytes.
    pub(super) fn new() -> (Self, impl Stream<Item = Chunk> + Send + 'static) {
        let (sender, mut receiver) = mpsc::channel(WAITING);
        let chunks = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        (Self(PollSender::new(sender)), chunks)
    }
}

fn gone<E>(_: E) -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl AsyncWrite for Sending {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.0.poll_reserve(context)).map_err(gone)?;
        let length = bytes.len().min(MAX_CHUNK);
        let data = Bytes::copy_from_slice(&bytes[..length]);
        self.0.send_item(Chunk { data }).map_err(gone)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.close();
        Poll::Ready(Ok(()))
    }
}

/// Bytes from a worker.
pub(super) struct Receiving {
    chunks: Chunks,
    /// The unread rest of the last chunk.
    rest: Bytes,
}

enum Chunks {
    Asked(BoxFuture<'static, Result<Streaming<Chunk>, Status>>),
    Coming(Box<Streaming<Chunk>>),
    Refused,
}

impl Receiving {
    /// The reader of the answers.
    pub(super) fn new(
        answered: impl Future<Output = Result<Streaming<Chunk>, Status>> + Send + 'static,
    ) -> Self {
        Self {
            chunks: Chunks::Asked(Box::pin(answered)),
            rest: Bytes::new(),
        }
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, Status>>> {
        if let Chunks::Asked(answered) = &mut self.chunks {
            match ready!(answered.as_mut().poll(context)) {
                Ok(chunks) => self.chunks = Chunks::Coming(Box::new(chunks)),
                Err(status) => {
                    self.chunks = Chunks::Refused;
                    return Poll::Ready(Some(Err(status)));
                }
            }
        }
        match &mut self.chunks {
            Chunks::Coming(chunks) => Pin::new(chunks).poll_next(context),
            Chunks::Asked(_) | Chunks::Refused => Poll::Ready(None),
        }
    }
}

impl AsyncRead for Receiving {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.poll_chunk(context)) {
                Some(Ok(chunk)) => self.rest = chunk.data,
                // Its message says how the worker ended, or the connection.
                Some(Err(status)) => return Poll::Ready(Err(io::Error::other(status))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..length]);
        self.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}
