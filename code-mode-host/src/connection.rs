//! A connection to a worker that has said what it is.

use std::io;

use code_mode_protocol::frame::{self, Content, FrameError};
use code_mode_protocol::message::{Lender, MessageReader};
use code_mode_protocol::native::{self, FromWorker, Sample, ToWorker, WorkerInfo};
use interprocess::local_socket::tokio::Stream;
use tokio::io::ReadHalf;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// What a worker may send before its session, and so its frame limit, is known.
const HANDSHAKE_BYTES: usize = 64 << 10;

/// A worker is there but cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The connection failed.
    #[error("the connection to the worker failed: {0}")]
    Io(#[from] io::Error),
    /// It sent what is no message.
    #[error("the worker broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// It ended before it was ready; what it said on standard error is logged.
    #[error("the worker ended before it was ready")]
    Ended,
    /// It ended before it was ready, and this is how.
    #[error("the worker {0} before it was ready")]
    Died(crate::ExitReason),
    /// It did not answer in time.
    #[error("the worker did not answer the greeting in time")]
    TimedOut,
    /// It refuses to serve this provider.
    #[error("the worker refuses: {0}")]
    Rejected(String),
    /// It answered the greeting with something else.
    #[error("the worker answered the greeting with another message")]
    Unexpected,
}

/// Messages to a worker. They are queued and never waited for; what bounds the
/// queue are the limits on what a session may have in flight.
#[derive(Clone, Debug)]
pub(crate) struct Outbound(UnboundedSender<Content>);

impl Outbound {
    /// Queues a message. Where the worker is gone it is lost, and so is the
    /// worker: its supervisor answers for it.
    pub(crate) fn send(&self, message: ToWorker) {
        if let Ok(content) = message.encode() {
            let _ = self.0.send(content);
        }
    }
}

/// A worker that is ready for a session.
pub(crate) struct Connection {
    pub(crate) inbound: MessageReader<ReadHalf<Stream>, FromWorker>,
    pub(crate) outbound: Outbound,
    pub(crate) info: WorkerInfo,
}

impl Connection {
    /// Greets the worker at the other end, and has it lend its large texts where
    /// `memory`, its own, can be read.
    pub(crate) async fn open(
        stream: Stream,
        memory: Option<Box<dyn Lender>>,
    ) -> Result<Self, ConnectionError> {
        let (receive, send) = tokio::io::split(stream);
        let (queue, contents) = unbounded_channel();
        // Ends when the queue's last sender is gone; its failure shows as the end
        // of the inbound side.
        tokio::spawn(frame::write_frames(contents, send, frame::MAX_FRAME_BYTES));
        let outbound = Outbound(queue);
        outbound.send(ToWorker::Hello {
            versions: vec![native::VERSION],
            required_capabilities: native::CAPABILITIES
                .iter()
                .map(ToString::to_string)
                .collect(),
        });
        let mut inbound = MessageReader::new(receive, HANDSHAKE_BYTES);
        match inbound.next().await {
            Ok(Some(FromWorker::Ready(info))) if info.version == native::VERSION => {
                if let Some(memory) = memory
                    && can_borrow(&*memory, &info)
                {
                    inbound.borrow_from(memory);
                    outbound.send(ToWorker::Lend);
                }
                Ok(Self {
                    inbound,
                    outbound,
                    info,
                })
            }
            Ok(Some(FromWorker::Ready(info))) => Err(ConnectionError::Rejected(format!(
                "it chose version {} of the wire",
                info.version
            ))),
            Ok(Some(FromWorker::Rejected { reason })) => Err(ConnectionError::Rejected(reason)),
            Ok(Some(_)) => Err(ConnectionError::Unexpected),
            Err(FrameError::Io(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Err(ConnectionError::Ended)
            }
            Err(error) => Err(error.into()),
            Ok(None) => Err(ConnectionError::Ended),
        }
    }

    /// Takes frames up to this size from here on, and some more for what is
    /// around the payload that the limit is about.
    pub(crate) fn set_max_frame_bytes(&mut self, max: usize) {
        self.inbound
            .set_max_frame_bytes(max.saturating_add(HANDSHAKE_BYTES));
    }
}

/// Whether a worker's memory can be read, and is safe to: one that is locked in
/// cannot have memory that makes its reader wait, such as a file of its own making.
fn can_borrow(memory: &dyn Lender, info: &WorkerInfo) -> bool {
    let Sample { address, content } = info.sample;
    let mut read = Vec::new();
    info.missing_layers().is_empty()
        && memory.read(address, content.len(), &mut read).is_ok()
        && read == content
}
