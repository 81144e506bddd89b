//! Messages to the client.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use code_mode_protocol::frame::{Content, FrameOutput, FrameWriter};
use code_mode_protocol::stdio::{HostMessage, MAX_FRAME_BYTES};
use tokio::io::Sink;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

/// Bytes waiting for a client that does not read, past which callbacks wait too.
/// Answers to requests do not: each was asked for.
const HIGH_WATER: usize = 8 << 20;

/// The queue of messages to the client.
#[derive(Clone)]
pub(super) struct Outbound {
    queue: UnboundedSender<Content>,
    waiting: Arc<Waiting>,
}

#[derive(Default)]
struct Waiting {
    bytes: AtomicUsize,
    drained: Notify,
    closed: CancellationToken,
}

/// A message does not fit a frame.
#[derive(Debug)]
pub(super) struct TooLarge;

impl Outbound {
    /// The queue, and what writes it out.
    pub(super) fn new() -> (Self, OutboundWriter) {
        let (queue, contents) = unbounded_channel();
        let waiting = Arc::<Waiting>::default();
        let outbound = Self {
            queue,
            waiting: waiting.clone(),
        };
        (outbound, OutboundWriter { contents, waiting })
    }

    /// Queues a message that always fits.
    pub(super) fn send(&self, message: HostMessage<'_>) {
        let _ = self.try_send(message);
    }

    /// Queues a message.
    pub(super) fn try_send(&self, message: HostMessage<'_>) -> Result<(), TooLarge> {
        // The wire's own messages cannot fail to serialise.
        let Ok(content) = message.encode() else {
            return Ok(());
        };
        if content.len() > MAX_FRAME_BYTES {
            return Err(TooLarge);
        }
        self.waiting
            .bytes
            .fetch_add(content.len(), Ordering::Relaxed);
        let _ = self.queue.send(content);
        Ok(())
    }

    /// Writes what is queued and takes no more.
    pub(super) fn close(&self) {
        self.waiting.closed.cancel();
    }

    /// Waits until the client has read most of what it was sent.
    pub(super) async fn ready(&self) {
        loop {
            let drained = self.waiting.drained.notified();
            if self.waiting.bytes.load(Ordering::Relaxed) < HIGH_WATER {
                return;
            }
            drained.await;
        }
    }
}

/// Writes the queue out.
pub(super) struct OutboundWriter {
    contents: UnboundedReceiver<Content>,
    waiting: Arc<Waiting>,
}

impl OutboundWriter {
    /// Writes until every [`Outbound`] is gone or one is closed. Where the client
    /// is gone, what is left is dropped.
    pub(super) async fn run(mut self, output: impl FrameOutput) {
        const AT_ONCE: usize = FrameWriter::<Sink>::AT_ONCE;
        let mut frames = FrameWriter::new(output, MAX_FRAME_BYTES);
        let mut together = Vec::with_capacity(AT_ONCE);
        let mut broken = false;
        let closed = self.waiting.closed.clone();
        loop {
            let received = tokio::select! {
                biased;
                received = self.contents.recv_many(&mut together, AT_ONCE) => received,
                () = closed.cancelled(), if !self.contents.is_closed() => {
                    self.contents.close();
                    continue;
                }
            };
            if received == 0 {
                return;
            }
            let bytes: usize = together.iter().map(Content::len).sum();
            if broken {
                together.clear();
            } else {
                broken = frames.write(&mut together).await.is_err();
            }
            let left = self.waiting.bytes.fetch_sub(bytes, Ordering::Relaxed) - bytes;
            if left < HIGH_WATER {
                self.waiting.drained.notify_waiters();
            }
        }
    }
}
