//! Connections of clients, from their acceptance to where HTTP/2 begins.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{FutureExt, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::descriptors::accepted;

/// How long a client may take for its first words, TLS and HTTP/2 each; where it must show
/// a token, for the first request that does.
const GREETING: Duration = Duration::from_secs(10);

/// The words with which HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Connections beyond the most that are served: their requests are answered with that.
const BEYOND: usize = 64;

/// How many connections there are.
#[derive(Clone, Debug)]
pub(super) struct Doors {
    /// Places of connections that are served.
    places: Arc<Semaphore>,
    /// Places of all that are accepted.
    accepted: Arc<Semaphore>,
    /// Whether a client must be let in before it may stay.
    is_guarded: bool,
}

impl Doors {
    pub(super) fn new(max: usize, is_guarded: bool) -> Self {
        Self {
            places: Arc::new(Semaphore::new(max)),
            accepted: Arc::new(Semaphore::new(max + BEYOND)),
            is_guarded,
        }
    }
}

/// What is known of the client of a request.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    doors: Doors,
    place: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

impl Peer {
    fn new(doors: Doors) -> Self {
        Self {
            doors,
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
            *place = self.doors.places.clone().try_acquire_owned().ok();
        }
        place.is_some()
    }

    fn has_place(&self) -> bool {
        self.place().is_some()
    }
}

/// Both directions of a connection.
trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection that HTTP/2 is spoken on.
pub(super) struct Connection {
    io: Box<dyn Io>,
    peer: Peer,
    _accepted: OwnedSemaphorePermit,
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
    fn new(io: Box<dyn Io>, doors: Doors, accepted: OwnedSemaphorePermit) -> Self {
        Self {
            io,
            peer: Peer::new(doors),
            _accepted: accepted,
            greeting: Some(Greeting {
                until: Box::pin(tokio::time::sleep(GREETING)),
                heard: Some(0),
            }),
        }
    }
}

/// What connections come to.
pub(super) enum Listener {
    Tcp(TcpListener, Option<TlsAcceptor>),
    #[cfg(unix)]
    Unix(tokio::net::UnixListener),
}

/// A connection as it comes.
enum Accepted {
    Plain(Box<dyn Io>),
    Tls(TlsAcceptor, tokio::net::TcpStream),
    /// It is somebody's who may not connect.
    Stranger,
}

impl Listener {
    /// Listens at an address. Returns the one that it really is.
    pub(super) async fn tcp(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
    ) -> io::Result<(Self, SocketAddr)> {
        let socket = match address.is_ipv4() {
            true => TcpSocket::new_v4()?,
            false => TcpSocket::new_v6()?,
        };
        // What the library does on its own; a port is free again with its host.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let bound = listener.local_addr()?;
        Ok((Self::Tcp(listener, tls), bound))
    }

    /// Listens on a socket in the file system.
    #[cfg(unix)]
    pub(super) async fn unix(path: &std::path::Path) -> io::Result<Self> {
        let listener = crate::private_socket::listen_again(path).await?;
        listener.set_nonblocking(true)?;
        Ok(Self::Unix(tokio::net::UnixListener::from_std(listener)?))
    }

    /// There are none.
    #[cfg(not(unix))]
    pub(super) async fn unix(_: &std::path::Path) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener, tls) => {
                let (stream, _) = listener.accept().await?;
                // Small messages must not wait for each other.
                let _ = stream.set_nodelay(true);
                Ok(match tls {
                    Some(tls) => Accepted::Tls(tls.clone(), stream),
                    None => Accepted::Plain(Box::new(stream)),
                })
            }
            #[cfg(unix)]
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(match crate::private_socket::is_own(&stream) {
                    true => Accepted::Plain(Box::new(stream)),
                    false => Accepted::Stranger,
                })
            }
        }
    }

    /// The connections that come, until `over`. A client that is slow to greet keeps
    /// nobody else waiting.
    pub(super) fn connections(
        self,
        doors: Doors,
        over: CancellationToken,
    ) -> impl Stream<Item = io::Result<Connection>> {
        let (sender, mut receiver) = mpsc::channel(1);
        tokio::spawn(over.run_until_cancelled_owned(self.take_in(doors, sender)));
        futures::stream::poll_fn(move |context| receiver.poll_recv(context))
    }

    async fn take_in(self, doors: Doors, sender: mpsc::Sender<io::Result<Connection>>) {
        while let Ok(place) = doors.accepted.clone().acquire_owned().await {
            let accept = || {
                let warn =
                    |error: &io::Error| tracing::warn!("cannot accept a connection: {error}");
                self.accept()
                    .map(move |accepted| accepted.inspect_err(warn))
            };
            let accepted = accepted(accept).await;
            let (doors, sender) = (doors.clone(), sender.clone());
            match accepted {
                Accepted::Plain(io) => {
                    let connection = Connection::new(io, doors, place);
                    if sender.send(Ok(connection)).await.is_err() {
                        return;
                    }
                }
                Accepted::Tls(tls, stream) => {
                    tokio::spawn(async move {
                        let greeting = tls.accept(stream);
                        match tokio::time::timeout(GREETING, greeting).await {
                            Ok(Ok(stream)) => {
                                let connection = Connection::new(Box::new(stream), doors, place);
                                let _ = sender.send(Ok(connection)).await;
                            }
                            Ok(Err(error)) => tracing::info!("no TLS with a client: {error}"),
                            Err(_) => tracing::info!("a client did not greet in time"),
                        }
                    });
                }
                Accepted::Stranger => {
                    tracing::warn!("another user connected to the socket and was turned away");
                }
            }
        }
    }
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
        let is_over = match peer.doors.is_guarded {
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
