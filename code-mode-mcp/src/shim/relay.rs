//! A client's messages, over as many gateways as it takes.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::messages::{Conversation, FromClient, refused};
use super::start::{Connection, Gateways, follow_log};

/// The longest line of a gateway: a message of 64 MiB, each byte of which is written as an escape.
const MAX_LINE: u64 = 512 << 20;

/// How long a gateway may take to give its last answers when the client has left.
const LAST_ANSWERS: Duration = Duration::from_secs(10);
/// The same after a signal: whoever sent it kills this process soon.
const AFTER_SIGNAL: Duration = Duration::from_secs(1);
/// A buffer that was larger is given back.
const KEPT: usize = 1 << 20;

/// What both directions share.
struct Relay<W> {
    conversation: Mutex<Conversation>,
    client: tokio::sync::Mutex<W>,
    /// Rung when a gateway has ended.
    gateway_ended: Notify,
    /// The client has stopped reading.
    client_gone: CancellationToken,
}

impl<W: AsyncWrite + Unpin> Relay<W> {
    fn conversation(&self) -> MutexGuard<'_, Conversation> {
        self.conversation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell_client(&self, line: &[u8]) {
        let mut client = self.client.lock().await;
        let told: io::Result<()> = async {
            client.write_all(line).await?;
            client.flush().await
        }
        .await;
        if told.is_err() {
            self.client_gone.cancel();
        }
    }
}

/// Relays the messages of the client at standard input and output until it leaves, or `interrupted`
/// completes. `first` is a connection to a gateway; when that ends, the client's next request finds
/// another.
pub async fn relay(gateways: Gateways, first: Connection, interrupted: impl Future<Output = ()>) {
    let (stdin, stdout) = (tokio::io::stdin(), tokio::io::stdout());
    between(stdin, stdout, &gateways, first, interrupted).await;
}

async fn between(
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Send + Unpin + 'static,
    gateways: &Gateways,
    first: Connection,
    interrupted: impl Future<Output = ()>,
) {
    let relay = Arc::new(Relay {
        conversation: Mutex::default(),
        client: tokio::sync::Mutex::new(to),
        gateway_ended: Notify::new(),
        client_gone: CancellationToken::new(),
    });
    let mut connected = Connected::new(&relay, gateways, first).await;
    let mut client = BufReader::new(from);
    let stopping = async {
        tokio::select! {
            () = interrupted => {}
            () = relay.client_gone.cancelled() => {}
        }
    };
    tokio::pin!(stopping);
    let mut line = Vec::new();
    let is_stopped = loop {
        let message = tokio::select! {
            read = client.read_until(b'\n', &mut line) => match read {
                Ok(0) | Err(_) => break false,
                Ok(_) => {
                    if !line.ends_with(b"\n") {
                        line.push(b'\n');
                    }
                    std::mem::take(&mut line)
                }
            },
            // The part of a line that was read stays in `line`.
            () = relay.gateway_ended.notified() => match relay.conversation().unanswered_greeting() {
                Some(greeting) => greeting,
                None => continue,
            },
            () = &mut stopping => break true,
        };
        tokio::select! {
            () = pass(&relay, gateways, &mut connected, &message) => {}
            () = &mut stopping => break true,
        }
        if line.is_empty() && message.capacity() <= KEPT {
            line = message;
            line.clear();
        }
    };
    relay.conversation().leave();
    let _ = connected.write.shutdown().await;
    let limit = if is_stopped {
        AFTER_SIGNAL
    } else {
        LAST_ANSWERS
    };
    let _ = tokio::time::timeout(limit, connected.ended.cancelled()).await;
}

/// The gateway that is connected, or was the last.
struct Connected {
    write: OwnedWriteHalf,
    /// Its end, once everything that it left open was answered.
    ended: CancellationToken,
}

impl Connected {
    async fn new<W: AsyncWrite + Send + Unpin + 'static>(
        relay: &Arc<Relay<W>>,
        gateways: &Gateways,
        connection: Connection,
    ) -> Self {
        let Connection {
            name,
            read,
            mut write,
            ..
        } = connection;
        let place = gateways.place.clone();
        tokio::spawn(async move { follow_log(&place, &name).await });
        let (number, lines) = relay.conversation().gateway_connected();
        let ended = CancellationToken::new();
        let (relay, tell) = (relay.clone(), ended.clone().drop_guard());
        tokio::spawn(async move {
            listen(&relay, number, read).await;
            drop(tell);
            relay.gateway_ended.notify_one();
        });
        for line in lines {
            if write.write_all(&line).await.is_err() {
                break;
            }
        }
        Self { write, ended }
    }
}

/// Passes a message of the client on.
async fn pass<W: AsyncWrite + Send + Unpin + 'static>(
    relay: &Arc<Relay<W>>,
    gateways: &Gateways,
    connected: &mut Connected,
    message: &[u8],
) {
    loop {
        let what = relay.conversation().client_says(message);
        match what {
            FromClient::Send(line) => {
                if connected.write.write_all(&line).await.is_ok() {
                    return;
                }
                // No whole line of it has reached the gateway, which has ended.
                let is_unanswered = relay.conversation().take_back(message);
                connected.ended.cancelled().await;
                if !is_unanswered {
                    return;
                }
            }
            FromClient::Drop => return,
            FromClient::NeedsGateway => match gateways.find().await {
                Ok(connection) => *connected = Connected::new(relay, gateways, connection).await,
                Err(error) => {
                    if let Some(refusal) = refused(message, &error.to_string()) {
                        relay.tell_client(&refusal).await;
                    }
                    return;
                }
            },
        }
    }
}

/// Passes the messages of one gateway on until it ends, and then answers what it has not.
async fn listen<W: AsyncWrite + Unpin>(
    relay: &Relay<W>,
    number: u64,
    mut from: BufReader<OwnedReadHalf>,
) {
    let mut line = Vec::new();
    loop {
        line.clear();
        line.shrink_to(KEPT);
        // What answers here may be no gateway.
        let mut bounded = (&mut from).take(MAX_LINE);
        match bounded.read_until(b'\n', &mut line).await {
            Ok(_) if line.ends_with(b"\n") => {}
            _ => break,
        }
        let passed = relay.conversation().gateway_says(&line);
        if let Some(passed) = passed {
            relay.tell_client(&passed).await;
        }
    }
    let told = relay.conversation().gateway_ended(number);
    for line in told {
        relay.tell_client(&line).await;
    }
}
