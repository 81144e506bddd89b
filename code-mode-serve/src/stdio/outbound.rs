//! Messages to the client.

use code_mode_protocol::wire::frame::Frame;
use code_mode_protocol::wire::outbound::{Outbound, OutboundTask};
use code_mode_protocol::wire::stdio::{HostMessage, MAX_FRAME_BYTES};
use tokio::io::AsyncWrite;

/// Bytes waiting for a client that does not read, past which callbacks wait too.
/// Answers to requests do not: each was requested.
const HIGH_WATER: usize = 8 << 20;

/// The way to the client.
#[derive(Clone)]
pub(super) struct ToClient(Outbound);

/// A message does not fit a frame.
#[derive(Debug)]
pub(super) struct TooLarge;

impl ToClient {
    /// The way, and the task that writes what the client does not take at once. A
    /// client that is gone is found by its end of the input: later messages are
    /// dropped.
    pub(super) fn new(output: impl AsyncWrite + Send + 'static) -> (Self, OutboundTask) {
        let (outbound, task) = Outbound::new(output, usize::MAX);
        (Self(outbound), task)
    }

    /// Sends a message that always fits.
    pub(super) fn send(&self, message: HostMessage<'_>) {
        let _ = self.try_send(message);
    }

    /// Sends a message.
    pub(super) fn try_send(&self, message: HostMessage<'_>) -> Result<(), TooLarge> {
        self.send_frame(fitting(message)?);
        Ok(())
    }

    /// Sends a frame.
    pub(super) fn send_frame(&self, frame: Frame) {
        self.0.send(frame);
    }

    /// Writes the queue and takes nothing new.
    pub(super) fn close(&self) {
        self.0.close();
    }

    /// Waits until the client has read most of what it was sent.
    pub(super) async fn ready(&self) {
        self.0.until_queued_below(HIGH_WATER).await;
    }
}

/// The message as a frame, if it fits one.
pub(super) fn fitting(message: HostMessage<'_>) -> Result<Frame, TooLarge> {
    match message.encode() {
        Ok(frame) if frame.len() <= MAX_FRAME_BYTES + 4 => Ok(frame),
        _ => Err(TooLarge),
    }
}
