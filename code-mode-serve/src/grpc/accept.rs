//! Connections of clients, from their acceptance to where HTTP/2 begins.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use code_mode_system::{Listener, Place, Refused};
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::guard::Guard;

/// The words with which HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The client of a request.
#[derive(Clone, Debug)]
pub(super) struct Peer(Place);

impl Peer {
    /// Whether its connection is one of those that are served, now that a request of it was
    /// let in. Others may have gone.
    pub(super) fn takes_place(&self) -> bool {
        self.0.admit()
    }
}

/// A connection that HTTP/2 is spoken on.
pub(super) struct Connection {
    io: code_mode_system::Connection,
    /// `None` once it has begun, or where only a token lets its client in.
    preface: Option<Preface>,
}

/// How much of the preface a client has said, and whether it said something else. A client that
/// speaks HTTP/1 asks for its health, and goes.
#[derive(Default)]
struct Preface {
    heard: usize,
    is_other: bool,
}

impl Preface {
    /// Takes in what a client says. Whether it has said all of the preface.
    fn is_over(&mut self, said: &[u8]) -> bool {
        let expected = PREFACE.get(self.heard..).unwrap_or_default();
        let compared = expected.len().min(said.len());
        self.is_other |= expected[..compared] != said[..compared];
        self.heard += compared;
        !self.is_other && self.heard == PREFACE.len()
    }
}

/// The connections that come to a listener, until `over`. A client that is slow to greet
/// keeps nobody else waiting. Where nothing is guarded, a client is let in with its preface; else
/// with its first request that shows a token.
pub(super) fn connections(
    listener: Listener,
    guard: &Guard,
    over: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + use<> {
    let (sender, mut receiver) = mpsc::channel(1);
    let (is_guarded, refusals) = (!guard.is_open(), guard.refusals.clone());
    let accepting = async move {
        loop {
            let warn = |error: &io::Error| tracing::warn!("cannot accept a connection: {error}");
            let incoming = listener.accept(warn).await;
            let (sender, refusals) = (sender.clone(), refusals.clone());
            tokio::spawn(async move {
                match incoming.connect().await {
                    Ok(io) => {
                        let preface = (!is_guarded).then(Preface::default);
                        let _ = sender.send(Ok(Connection { io, preface })).await;
                    }
                    Err(error) => {
                        refusals.refused(Refused::Tls);
                        tracing::info!("no TLS with a client: {error}");
                    }
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
        Peer(self.io.place().clone())
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
        let said = buffer.filled().get(before..).unwrap_or_default();
        if self
            .preface
            .as_mut()
            .is_some_and(|preface| preface.is_over(said))
        {
            self.preface = None;
            // Where no place is free, each request tries again.
            self.io.place().admit();
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
