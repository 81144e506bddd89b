//! A connection to a worker that has said what it is.

use std::io;

use code_mode_protocol::wire::frame::FrameError;
use code_mode_protocol::wire::native::{self, FromWorker, ToWorker, WorkerInfo};
use code_mode_protocol::wire::outbound::{Outbound, OutboundTask};
use code_mode_protocol::wire::reader::{MaxMessage, MessageReader};
use tokio::io::{AsyncRead, AsyncWrite};

/// What a worker may send before its session, and so its limits, are known.
const HANDSHAKE: MaxMessage = MaxMessage {
    frame: 64 << 10,
    texts: 0,
};

/// The most bytes that wait for a worker which does not read. An honest worker reads
/// all the time; its session's limits bound the messages to it.
const MAX_QUEUED: usize = 1 << 30;

/// The inbound half of a worker's stream.
pub(super) type Receive = Box<dyn AsyncRead + Send + Unpin>;

/// A worker is there but cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The connection failed.
    #[error("the connection to the worker failed: {0}")]
    Io(#[from] io::Error),
    /// The worker sent a malformed message.
    #[error("the worker broke the protocol: {0}")]
    Frame(#[source] FrameError),
    /// The worker's end of the connection was closed before it was ready; what the
    /// worker said on standard error is logged.
    #[error("the worker ended before it was ready")]
    Ended,
    /// The worker's process ended before it was ready.
    #[error("the worker {how} before it was ready{}{last_words}", if last_words.is_empty() { "" } else { ": " })]
    Died {
        /// How.
        how: crate::ExitReason,
        /// The last lines of its standard error, in one; empty where it said nothing.
        last_words: String,
    },
    /// The worker did not answer in time.
    #[error("the worker did not answer the greeting in time")]
    TimedOut,
    /// The worker refuses to serve this host.
    #[error("the worker refuses: {0}")]
    Rejected(String),
    /// The worker answered the greeting with another message.
    #[error("the worker answered the greeting with another message")]
    Unexpected,
}

/// A worker that has answered the greeting.
pub(crate) struct Connection {
    pub(super) inbound: MessageReader<Receive, FromWorker>,
    pub(super) outbound: Outbound,
    pub(super) writing: OutboundTask,
    pub(crate) info: WorkerInfo,
}

impl Connection {
    /// Greets the worker at the other end of a stream.
    pub(crate) async fn open<S>(stream: S) -> Result<Self, ConnectionError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (receive, send) = tokio::io::split(stream);
        let (outbound, mut writing) = Outbound::new(send, MAX_QUEUED);
        let hello = ToWorker::Hello {
            versions: vec![native::VERSION],
            required_capabilities: native::CAPABILITIES
                .iter()
                .map(ToString::to_string)
                .collect(),
        };
        outbound.send(hello.encode().map_err(ConnectionError::Frame)?);
        let receive: Receive = Box::new(receive);
        let mut inbound = MessageReader::new(receive, HANDSHAKE);
        let answer = tokio::select! {
            answer = inbound.next() => answer,
            failed = &mut writing => match failed {
                Ok(()) => return Err(ConnectionError::Ended),
                Err(error) => Err(FrameError::Io(error)),
            },
        };
        match answer {
            Ok(Some(FromWorker::Ready(info))) if info.version == native::VERSION => Ok(Self {
                inbound,
                outbound,
                writing,
                info,
            }),
            Ok(Some(FromWorker::Ready(info))) => Err(ConnectionError::Rejected(format!(
                "it chose version {} of the wire",
                info.version
            ))),
            Ok(Some(FromWorker::Rejected { reason })) => Err(ConnectionError::Rejected(reason)),
            Ok(Some(_)) => Err(ConnectionError::Unexpected),
            Ok(None) => Err(ConnectionError::Ended),
            Err(FrameError::Io(error)) if is_end(&error) => Err(ConnectionError::Ended),
            Err(FrameError::Io(error)) => Err(error.into()),
            Err(error) => Err(ConnectionError::Frame(error)),
        }
    }

    /// Has the worker try a probe; `Err` where the connection ends meanwhile.
    pub(crate) async fn probe(&mut self, name: &str) -> Result<Option<String>, ConnectionError> {
        let name = name.to_owned();
        let message = ToWorker::Probe { name };
        self.outbound
            .send(message.encode().map_err(ConnectionError::Frame)?);
        match self.inbound.next().await {
            Ok(Some(FromWorker::Probed { outcome, .. })) => Ok(outcome),
            Ok(Some(_)) => Err(ConnectionError::Unexpected),
            Err(_) | Ok(None) => Err(ConnectionError::Ended),
        }
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe
    )
}
