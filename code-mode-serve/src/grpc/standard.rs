//! Standard input and output as a connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use code_mode_system::standard_streams;

/// Standard input and output as a connection. Its end is reported to `over`.
pub(super) struct StandardStreams {
    reader: Box<dyn AsyncRead + Unpin + Send>,
    writer: Box<dyn AsyncWrite + Unpin + Send>,
    over: CancellationToken,
}

impl StandardStreams {
    pub(super) fn new(over: CancellationToken) -> Self {
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
