//! The front door at standard input and output.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use rmcp::RoleServer;
use rmcp::transport::async_rw::AsyncRwTransport;
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, Stdin, Stdout, stdin, stdout,
};
use tokio_util::sync::CancellationToken;

/// The largest message of a client.
const MAX_MESSAGE: usize = 64 << 20;

/// Whether anything more is written to the client. One that has closed its side and still reads may
/// fail at the answer to a request that it has given up: the Python SDK 1.x does.
#[derive(Clone, Default)]
pub(super) struct Silence(Arc<AtomicBool>);

impl Silence {
    /// From now on nothing is written.
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Standard output until silence begins; later writes are lost.
pub(super) struct Output {
    stdout: Stdout,
    silence: Silence,
}

impl AsyncWrite for Output {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.silence.0.load(Ordering::Relaxed) {
            true => Poll::Ready(Ok(bytes.len())),
            false => Pin::new(&mut self.stdout).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_shutdown(context)
    }
}

/// Messages at the standard streams; `ended` is cancelled when the client has closed its side.
pub(super) fn transport(
    ended: CancellationToken,
    silence: Silence,
) -> AsyncRwTransport<RoleServer, impl AsyncRead + Send + Unpin + 'static, Output> {
    let (read, write) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        only_messages(BufReader::new(stdin()), write).await;
        ended.cancel();
    });
    let output = Output {
        stdout: stdout(),
        silence,
    };
    AsyncRwTransport::new(read, output).with_max_line_length(MAX_MESSAGE)
}

/// Passes lines on. Until the first request, a line without a message is left out: it would
/// end the conversation before it began.
async fn only_messages(mut from: BufReader<Stdin>, mut to: tokio::io::DuplexStream) {
    let mut has_begun = false;
    let mut line = Vec::new();
    while !has_begun {
        line.clear();
        match from.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if line.len() > MAX_MESSAGE {
            continue;
        }
        if is_request(&line) {
            has_begun = true;
            if to.write_all(&line).await.is_err() {
                return;
            }
        }
    }
    let _ = tokio::io::copy_buf(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

fn is_request(line: &[u8]) -> bool {
    let message: Result<serde_json::Value, _> = serde_json::from_slice(line);
    message.is_ok_and(|message| message.get("id").is_some() && message.get("method").is_some())
}
