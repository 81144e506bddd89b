//! Workers for a provider on another machine.

use std::pin::Pin;
use std::task::{Context, Poll};

use interprocess::local_socket::tokio::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::process::{Child, ExitReason};
use crate::worker::Counted;

/// A worker that was started for somebody else's provider: the bytes to and from it are
/// those of the native wire, which begins with the provider's greeting. Dropping it ends
/// its process.
pub struct LentWorker {
    stream: Stream,
    child: Child,
    counted: Counted,
}

impl LentWorker {
    pub(crate) fn new(stream: Stream, child: Child, mut counted: Counted) -> Self {
        counted.serves(false);
        Self {
            stream,
            child,
            counted,
        }
    }

    /// How its process ended, once its bytes have ended. It is killed if it has not.
    pub async fn ended(mut self) -> ExitReason {
        // A worker that must end ends at once.
        const LAST_BREATH: std::time::Duration = std::time::Duration::from_millis(500);
        drop(self.stream);
        let reason = match tokio::time::timeout(LAST_BREATH, self.child.wait()).await {
            Ok(reason) => reason,
            Err(_) => {
                self.child.kill();
                self.child.wait().await
            }
        };
        if reason != ExitReason::Exited(0) {
            self.counted.lost();
        }
        reason
    }
}

impl std::fmt::Debug for LentWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LentWorker").finish_non_exhaustive()
    }
}

impl AsyncRead for LentWorker {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for LentWorker {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
