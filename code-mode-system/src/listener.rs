//! Where clients connect: TCP, with TLS where it is wanted, or a socket of one user.

use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::places::{Place, Places};

/// Connections that wait in the kernel to be accepted.
const BACKLOG: u32 = 1024;

/// How long a client may take until it is let in.
const GREETING: Duration = Duration::from_secs(10);

/// How long to wait after an error of `accept`: a machine without descriptors left may have
/// some again after a while.
const PAUSE: Duration = Duration::from_millis(50);

/// A listener with bounds on its connections: one for clients that were let in (see
/// [`Place::admit`]), and one of 4,096 (512 where there are few descriptors) for strangers, of whom the newest takes the place of the
/// oldest. A stranger has 10 s to be let in.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    tls: Option<Tls>,
    places: Arc<Places>,
}

#[derive(Clone)]
struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix {
        listener: tokio::net::UnixListener,
        _name: SocketName,
    },
}

impl Listener {
    /// Listens at an address, for at most `max_connections` at once that were let in. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// What the system says where the address cannot be bound.
    pub fn tcp(address: SocketAddr, max_connections: usize) -> io::Result<Self> {
        let socket = match address.is_ipv4() {
            true => TcpSocket::new_v4()?,
            false => TcpSocket::new_v6()?,
        };
        // A port is free again with its program. On Windows the option means another thing.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self::new(
            Socket::Tcp(socket.listen(BACKLOG)?),
            max_connections,
        ))
    }

    /// Takes over a listener that was bound before there was a runtime.
    ///
    /// # Errors
    /// What the system says where the listener cannot be made non-blocking.
    pub fn from_std(listener: std::net::TcpListener, max_connections: usize) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        Ok(Self::new(Socket::Tcp(listener), max_connections))
    }

    /// Listens on a socket in the file system that this user alone reaches. The name of the
    /// socket is removed with the listener.
    ///
    /// # Errors
    /// Those of [`listen`](crate::listen).
    #[cfg(unix)]
    pub async fn unix(path: &Path, max_connections: usize) -> io::Result<Self> {
        let listener = crate::listen_again(path).await?;
        listener.set_nonblocking(true)?;
        let socket = Socket::Unix {
            listener: tokio::net::UnixListener::from_std(listener)?,
            _name: SocketName::of(path),
        };
        Ok(Self::new(socket, max_connections))
    }

    /// This system has no sockets in the file system.
    ///
    /// # Errors
    /// Always [`io::ErrorKind::Unsupported`].
    #[cfg(not(unix))]
    pub async fn unix(_: &std::path::Path, _: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn new(socket: Socket, max_connections: usize) -> Self {
        Self {
            socket,
            tls: None,
            places: Places::new(max_connections),
        }
    }

    /// Sets what speaks TLS with clients over TCP; default nothing.
    #[must_use]
    pub fn tls(mut self, acceptor: Option<TlsAcceptor>) -> Self {
        self.tls = acceptor.map(Tls);
        self
    }

    /// The address that was bound; an error for a socket in the file system.
    ///
    /// # Errors
    /// What the system says, and [`io::ErrorKind::Unsupported`].
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr(),
            #[cfg(unix)]
            Socket::Unix { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The next connection. Errors are waited out, and reported to `on_error`; a connection of
    /// another user is closed.
    pub async fn accept(&self, on_error: impl Fn(&io::Error)) -> Incoming {
        loop {
            match self.socket.accept().await {
                Ok(stream) => {
                    return Incoming {
                        stream,
                        tls: self.tls.clone(),
                        place: self.places.stranger(),
                    };
                }
                Err(error) => {
                    on_error(&error);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Socket {
    async fn accept(&self) -> io::Result<Box<dyn Io>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Small messages must not wait for each other.
                let _ = stream.set_nodelay(true);
                Ok(Box::new(stream))
            }
            #[cfg(unix)]
            Self::Unix { listener, .. } => loop {
                let (stream, _) = listener.accept().await?;
                if crate::is_own(&stream) {
                    return Ok(Box::new(stream));
                }
            },
        }
    }
}

/// Both directions of a connection.
trait Io: AsyncRead + AsyncWrite + Unpin + Send {
    /// Ready with the client's first byte, which stays to be read; `None` where that is not known.
    fn poll_first(&mut self, _: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
        Poll::Ready(Ok(None))
    }
}

impl Io for TcpStream {
    fn poll_first(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
        let mut byte = [0];
        let peeked = self.poll_peek(context, &mut ReadBuf::new(&mut byte));
        peeked.map_ok(|length| (length == 1).then_some(byte[0]))
    }
}

#[cfg(unix)]
impl Io for tokio::net::UnixStream {}
impl Io for TlsStream<Box<dyn Io>> {}

/// A connection whose client has not said anything yet.
pub struct Incoming {
    stream: Box<dyn Io>,
    tls: Option<Tls>,
    place: Place,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Incoming")
    }
}

impl Incoming {
    /// Speaks TLS with the client, where the listener does. Call it in a separate task: a
    /// slow client must keep nobody else waiting.
    ///
    /// # Errors
    /// What went wrong in the handshake; [`io::ErrorKind::TimedOut`] after 10 s, and
    /// [`io::ErrorKind::ConnectionAborted`] where a newer stranger took the place.
    pub async fn connect(self) -> io::Result<Connection> {
        let mut greeting = Greeting::new(&self.place);
        let io: Box<dyn Io> = match self.tls {
            None => self.stream,
            Some(Tls(acceptor)) => tokio::select! {
                accepted = shake_hands(acceptor, self.stream) => Box::new(accepted?),
                over = std::future::poll_fn(|context| greeting.poll_over(context)) => {
                    return Err(over);
                }
            },
        };
        Ok(Connection {
            io,
            place: self.place,
            greeting: Some(greeting),
        })
    }
}

/// The answer to a client that speaks plain HTTP.
const SPEAK_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\
    Content-Length: 58\r\n\r\nthis address speaks TLS: write https:// instead of http://";

/// The TLS handshake, with a client that begins one.
async fn shake_hands(
    acceptor: TlsAcceptor,
    mut stream: Box<dyn Io>,
) -> io::Result<TlsStream<Box<dyn Io>>> {
    let first = std::future::poll_fn(|context| stream.poll_first(context)).await?;
    // A handshake begins with the byte 22, and a request of HTTP with a letter.
    if first.is_some_and(|byte| byte.is_ascii_alphabetic()) {
        stream.write_all(SPEAK_TLS).await?;
        stream.shutdown().await?;
        return Err(io::Error::other("the client speaks plain HTTP"));
    }
    acceptor.accept(stream).await
}

/// What ends the connection of a stranger.
struct Greeting {
    until: Pin<Box<Sleep>>,
    lost: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Greeting {
    fn new(place: &Place) -> Self {
        Self {
            until: Box::pin(tokio::time::sleep(GREETING)),
            lost: Box::pin(place.lost().cancelled_owned()),
        }
    }

    /// Ready with the reason when the stranger's time is over.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if self.until.as_mut().poll(context).is_ready() {
            return Poll::Ready(io::ErrorKind::TimedOut.into());
        }
        let lost = self.lost.as_mut().poll(context);
        lost.map(|()| io::ErrorKind::ConnectionAborted.into())
    }
}

/// A connection of a client. Reading from it fails when the time of a stranger is over.
pub struct Connection {
    io: Box<dyn Io>,
    place: Place,
    /// `None` once the client was let in.
    greeting: Option<Greeting>,
}

impl Connection {
    /// The connection's place, by which its client is let in.
    pub fn place(&self) -> &Place {
        &self.place
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let connection = &mut *self;
        if let Some(greeting) = &mut connection.greeting {
            if connection.place.is_admitted() {
                connection.greeting = None;
            } else if let Poll::Ready(over) = greeting.poll_over(context) {
                return Poll::Ready(Err(over));
            }
        }
        Pin::new(&mut connection.io).poll_read(context, buffer)
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

/// The name of a socket, which is removed with its listener, unless it is another file by
/// then.
#[cfg(unix)]
#[derive(Debug)]
struct SocketName {
    path: PathBuf,
    file: Option<(u64, u64)>,
}

#[cfg(unix)]
impl SocketName {
    fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: file(path),
        }
    }
}

#[cfg(unix)]
impl Drop for SocketName {
    fn drop(&mut self) {
        if self.file.is_some() && self.file == file(&self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Which file a name stands for.
#[cfg(unix)]
fn file(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}
