//! A client at the two ends of a stream: standard input and output, or a socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use code_mode_protocol::text::line;
use rmcp::RoleServer;
use rmcp::model::Implementation;
use rmcp::service::serve_server;
use rmcp::transport::async_rw::AsyncRwTransport;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt,
};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::handler::Handler;
use super::in_flight::{InFlight, Open};

/// The largest message of a client.
const MAX_MESSAGE: usize = 64 << 20;
/// How much of a client's name is shown.
const SHOWN: usize = 100;

/// Serves a client until it leaves, or the gateway shuts down. `greeted` hears what the client calls
/// itself, where it says that.
pub(super) async fn serve(
    server: Arc<Shared>,
    from: impl AsyncBufRead + Send + Unpin + 'static,
    to: impl AsyncWrite + Send + Unpin + 'static,
    greeted: impl FnOnce(String),
) {
    let shutdown = server.broker.shutdown.clone();
    let input_ended = CancellationToken::new();
    let silence = Silence::default();
    let transport = transport(from, to, input_ended.clone(), silence.clone());
    let open = Arc::<Open>::default();
    let transport = InFlight::new(transport, open.clone());
    let serving = serve_server(Handler::alone(server, open), transport);
    let running = tokio::select! {
        serving = serving => match serving {
            Ok(running) => running,
            // The client left before its first request.
            Err(error) => {
                tracing::debug!(%error, "no client");
                return;
            }
        },
        () = shutdown.cancelled() => return,
    };
    if let Some(client) = running.peer().peer_info() {
        let Implementation { name, version, .. } = &client.client_info;
        greeted(line(&format!("{name} {version}"), SHOWN));
    }
    let cancel = running.cancellation_token();
    let waiting = running.waiting();
    tokio::pin!(waiting);
    tokio::select! {
        _ = &mut waiting => {}
        () = shutdown.cancelled() => {
            cancel.cancel();
            let _ = tokio::time::timeout(Duration::from_secs(1), waiting).await;
        }
        () = input_ended.cancelled() => {
            /// A request that was piped in may be answered until then.
            const LAST_ANSWERS: Duration = Duration::from_millis(250);
            if tokio::time::timeout(LAST_ANSWERS, waiting).await.is_err() {
                silence.begin();
            }
            cancel.cancel();
        }
    }
}

/// Whether anything more is written to the client. One that has closed its side and still reads may
/// fail at the answer to a request that it has given up: the Python SDK 1.x does.
#[derive(Clone, Default)]
struct Silence(Arc<AtomicBool>);

impl Silence {
    /// From now on nothing is written.
    fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An output until silence begins; later writes are lost.
struct Output<W> {
    to: W,
    silence: Silence,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Output<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.silence.0.load(Ordering::Relaxed) {
            true => Poll::Ready(Ok(bytes.len())),
            false => Pin::new(&mut self.to).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(context)
    }
}

/// Messages of a client; `ended` is cancelled when it has closed its side.
fn transport<W: AsyncWrite + Send + Unpin + 'static>(
    from: impl AsyncBufRead + Send + Unpin + 'static,
    to: W,
    ended: CancellationToken,
    silence: Silence,
) -> AsyncRwTransport<RoleServer, impl AsyncRead + Send + Unpin + 'static, Output<W>> {
    let (read, write) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        only_messages(from, write).await;
        ended.cancel();
    });
    AsyncRwTransport::new(read, Output { to, silence }).with_max_line_length(MAX_MESSAGE)
}

/// Passes lines on. Until the first request, a line without a message is left out: it would
/// end the conversation before it began.
async fn only_messages(mut from: impl AsyncBufRead + Unpin, mut to: tokio::io::DuplexStream) {
    let mut has_begun = false;
    let mut line = Vec::new();
    while !has_begun {
        line.clear();
        let mut bounded = (&mut from).take(MAX_MESSAGE as u64 + 1);
        match bounded.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if line.len() > MAX_MESSAGE {
            // Nobody begins a conversation so.
            return;
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
