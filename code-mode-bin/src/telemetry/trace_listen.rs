//! Traces for whoever connects a WebSocket.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use code_mode_system::{Incoming, Listener, say};
use futures::{SinkExt, StreamExt};
use opentelemetry_http::{HttpClient, HttpError};
use tokio::sync::broadcast;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How many batches are kept for a listener that reads slowly; it misses older ones.
const KEPT_BATCHES: usize = 64;

/// The most listeners at once.
const MAX_LISTENERS: usize = 64;

/// The largest message that a listener may send. None is read.
const MAX_SENT: usize = 4096;

/// How long a listener may take to read a batch.
const SENDING: Duration = Duration::from_secs(2);

/// How long a listener may take for its greeting.
const GREETING: Duration = Duration::from_secs(10);

/// Nobody can connect.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for clients of traces at {address}: {source}")]
pub(crate) struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// The address in `ws://IP:PORT`.
pub(super) fn address(url: &str) -> Result<SocketAddr, String> {
    let address = url
        .strip_prefix("ws://")
        .map(|rest| rest.trim_end_matches('/'));
    let address = address.and_then(|address| address.parse::<SocketAddr>().ok());
    match address {
        None => Err("expected `ws://IP:PORT`".to_owned()),
        Some(address) if !address.ip().is_loopback() => {
            Err("it is not a loopback address, and this address has no authentication".to_owned())
        }
        Some(address) => Ok(address),
    }
}

/// The listeners, in the place of an HTTP client: each post goes to all.
#[derive(Clone, Debug)]
pub(super) struct Listeners(broadcast::Sender<Bytes>);

/// The thread that sends to them. It must be ended, so that they get the last batch.
#[derive(Debug)]
pub(super) struct Telling {
    over: CancellationToken,
    done: std::sync::mpsc::Receiver<()>,
}

impl Telling {
    /// Waits, so long at most, until every listener has received everything.
    pub(super) fn end(&self, patience: Duration) {
        self.over.cancel();
        // An error is the end of the thread.
        let _ = self.done.recv_timeout(patience);
    }
}

#[async_trait]
impl HttpClient for Listeners {
    async fn send_bytes(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, HttpError> {
        // Where nobody listens, the batch is for nobody.
        let _ = self.0.send(request.into_body());
        Ok(http::Response::new(Bytes::new()))
    }
}

/// Listens in a separate thread, which ends with the program: the exporter begins
/// before the program's own runtime does, and ends after it.
pub(super) fn start(address: SocketAddr) -> Result<(Listeners, Telling), ListenError> {
    let error = |source| ListenError { address, source };
    let listener = TcpListener::bind(address).map_err(error)?;
    let bound = listener.local_addr().map_err(error)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(error)?;
    let (sender, _) = broadcast::channel(KEPT_BATCHES);
    let listeners = Listeners(sender.clone());
    let (tell_done, done) = std::sync::mpsc::channel::<()>();
    let over = CancellationToken::new();
    let telling = Telling {
        over: over.clone(),
        done,
    };
    std::thread::Builder::new()
        .name("trace-listen".to_owned())
        .spawn(move || {
            runtime.block_on(accept(listener, sender, over));
            drop(tell_done);
        })
        .map_err(error)?;
    say!("traces at ws://{bound}");
    Ok((listeners, telling))
}

async fn accept(listener: TcpListener, batches: broadcast::Sender<Bytes>, over: CancellationToken) {
    let told = TaskTracker::new();
    let Ok(listener) = Listener::from_std(listener, MAX_LISTENERS) else {
        return;
    };
    loop {
        let incoming = tokio::select! {
            incoming = listener.accept(|_| {}) => incoming,
            () = over.cancelled() => break,
        };
        told.spawn(tell(incoming, batches.subscribe(), over.clone()));
    }
    told.close();
    told.wait().await;
}

/// Sends one listener each batch, until it goes away.
async fn tell(
    incoming: Incoming,
    mut batches: broadcast::Receiver<Bytes>,
    over: CancellationToken,
) {
    let Ok(stream) = incoming.connect().await else {
        return;
    };
    let place = stream.place().clone();
    let mut config = WebSocketConfig::default();
    config.max_message_size = Some(MAX_SENT);
    config.max_frame_size = Some(MAX_SENT);
    let greeting = tokio_tungstenite::accept_hdr_async_with_config(stream, admit, Some(config));
    let Ok(Ok(socket)) = tokio::time::timeout(GREETING, greeting).await else {
        return;
    };
    if !place.admit() {
        return;
    }
    let (mut sink, mut said) = socket.split();
    loop {
        tokio::select! {
            biased;
            batch = batches.recv() => match batch {
                Ok(batch) => {
                    // One that does not read takes the place of one that does.
                    let sent = sink.send(Message::Binary(batch));
                    if !matches!(tokio::time::timeout(SENDING, sent).await, Ok(Ok(()))) {
                        return;
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
            // What it says is for nobody; that it is gone is.
            message = said.next() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
            // Everything before is delivered.
            () = over.cancelled() => {
                let _ = sink.close().await;
                return;
            }
        }
    }
}

/// A page in a browser must not read traces: it has an `Origin`.
#[allow(clippy::result_large_err, reason = "the library's signature")]
fn admit(request: &Request, response: Response) -> Result<Response, ErrorResponse> {
    let status = if request.headers().contains_key("origin") {
        http::StatusCode::FORBIDDEN
    } else if request.uri().path() != "/" {
        http::StatusCode::NOT_FOUND
    } else {
        return Ok(response);
    };
    let mut refused = ErrorResponse::new(None);
    *refused.status_mut() = status;
    Err(refused)
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn only_an_address_of_this_machine_with_a_port_is_listened_on() {
        assert_eq!(
            address("ws://127.0.0.1:4"),
            Ok("127.0.0.1:4".parse().expect("an address"))
        );
        assert!(address("ws://[::1]:4/").is_ok());
        for url in ["http://127.0.0.1:4", "ws://localhost:4", "ws://127.0.0.1"] {
            assert_eq!(address(url), Err("expected `ws://IP:PORT`".to_owned()));
        }
        assert!(address("ws://0.0.0.0:4").is_err());
    }
}
