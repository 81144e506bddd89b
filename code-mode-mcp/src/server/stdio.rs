//! The front door at standard input and output.

use rmcp::RoleServer;
use rmcp::transport::async_rw::AsyncRwTransport;
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader, Stdin, Stdout, stdin, stdout,
};
use tokio_util::sync::CancellationToken;

/// The largest message of a client.
const MAX_MESSAGE: usize = 64 << 20;

/// Messages at the standard streams; `ended` is cancelled when the client has closed its side.
pub(super) fn transport(
    ended: CancellationToken,
) -> AsyncRwTransport<RoleServer, impl AsyncRead + Send + Unpin + 'static, Stdout> {
    let (read, write) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        only_messages(BufReader::new(stdin()), write).await;
        ended.cancel();
    });
    AsyncRwTransport::new(read, stdout()).with_max_line_length(MAX_MESSAGE)
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
