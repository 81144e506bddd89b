//! Connections of clients, from their acceptance to where HTTP/2 begins.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use code_mode_system::Listener;
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// How long a client may take for its first words, TLS and HTTP/2 each; where it must show
/// a token, for the first request that does.
const GREETING: Duration = Duration::from_secs(10);

/// The words with which HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Connections beyond the most that are served: their requests are answered with that.
pub(super) const BEYOND: usize = 64;

/// The limit on connections that are served.
#[derive(Clone, Debug)]
pub(super) struct ConnectionLimits {
    /// Places of connections that are served.
    places: Arc<Semaphore>,
    /// Whether a client must be let in before it may stay.
    is_guarded: bool,
}

impl ConnectionLimits {
    pub(super) fn new(max: usize, is_guarded: bool) -> Self {
        Self {
            places: Arc::new(Semaphore::new(max)),
            is_guarded,
        }
    }
}

/// The client of a request.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    limits: ConnectionLimits,
    place: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

impl Peer {
    fn new(limits: ConnectionLimits) -> Self {
        Self {
            limits,
            place: Arc::default(),
        }
    }

    fn place(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its connection is one of those that are served, now that a request of it was
    /// let in. Others may have gone.
    pub(super) fn takes_place(&self) -> bool {
        let mut place = self.place();
        if place.is_none() {
            *place = self.limits.places.clone().try_acquire_owned().ok();
        }
        place.is_some()
    }

    fn has_place(&self) -> bool {
        self.place().is_some()
    }
}

/// A connection that HTTP/2 is spoken on.
pub(super) struct Connection {
    io: code_mode_system::Connection,
    peer: Peer,
    greeting: Option<Greeting>,
}

/// A client that has not begun with HTTP/2. One that speaks HTTP/1 never does: it asks
/// for its health, and goes.
struct Greeting {
    until: Pin<Box<Sleep>>,
    /// How much of the preface has come; `None` where it was something else.
    heard: Option<usize>,
}

impl Greeting {
    /// Takes in what a client says. Whether it has said all of the preface.
    fn is_over(&mut self, said: &[u8]) -> bool {
        let Some(heard) = self.heard else {
            return false;
        };
        let expected = PREFACE.get(heard..).unwrap_or_default();
        let compared = expected.len().min(said.len());
        self.heard = (expected[..compared] == said[..compared]).then_some(heard + compared);
        self.heard == Some(PREFACE.len())
    }
}

impl Connection {
    fn new(io: code_mode_system::Connection, limits: ConnectionLimits) -> Self {
        Self {
            io,
            peer: Peer::new(limits),
            greeting: Some(Greeting {
                until: Box::pin(tokio::time::sleep(GREETING)),
                heard: Some(0),
            }),
        }
    }
}

/// The connections that come to a listener, until `over`. A client that is slow to greet
/// keeps nobody else waiting.
pub(super) fn connections(
    listener: Listener,
    limits: ConnectionLimits,
    over: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    let (sender, mut receiver) = mpsc::channel(1);
    let accepting = async move {
        loop {
            let warn = |error: &io::Error| tracing::warn!("cannot accept a connection: {error}");
            let incoming = listener.accept(warn).await;
            let (limits, sender) = (limits.clone(), sender.clone());
            tokio::spawn(async move {
                match incoming.connect().await {
                    Ok(connection) => {
                        let _ = sender.send(Ok(Connection::new(connection, limits))).await;
                    }
                    Err(error) => tracing::info!("no TLS with a client: {error}"),
                }
            });
        }
    };
    tokio::spawn(over.run_until_cancelled_owned(accepting));
    futures::stream::poll_fn(move |context| receiver.poll_recv(context))
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        let Self { greeting, peer, .. } = &mut *self;
        let Some(waiting) = greeting else {
            return read;
        };
        let has_said = waiting.is_over(&buffer.filled()[before..]);
        let is_over = match peer.limits.is_guarded {
            true => peer.has_place(),
            false => has_said,
        };
        if is_over {
            *greeting = None;
        } else if waiting.until.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
