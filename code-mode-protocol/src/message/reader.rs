//! Messages as they come over a connection.

use std::io;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::codec::Decoder;

use super::MessageCodec;
use crate::frame::FrameError;

/// Messages from a connection.
#[derive(Debug)]
pub struct MessageReader<R, Rx> {
    reader: R,
    buffer: BytesMut,
    codec: MessageCodec<Rx>,
    /// Whether a part of the next message was read.
    is_inside: bool,
}

impl<R, Rx> MessageReader<R, Rx>
where
    R: AsyncRead + Unpin,
    MessageCodec<Rx>: Decoder<Item = Rx, Error = FrameError>,
{
    /// How much of small messages is kept.
    const BUFFER: usize = 8 << 10;

    /// Reads messages up to `max_frame_bytes`, with the texts that follow.
    pub fn new(reader: R, max_frame_bytes: usize) -> Self {
        Self {
            reader,
            buffer: BytesMut::with_capacity(Self::BUFFER),
            codec: MessageCodec::new(max_frame_bytes),
            is_inside: false,
        }
    }

    /// Sets another bound, for the messages from here on.
    pub fn set_max_frame_bytes(&mut self, max_frame_bytes: usize) {
        self.codec.set_max_frame_bytes(max_frame_bytes);
    }

    /// The next message; `None` where the connection ended between two. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// Of the connection, also where it ended inside a message, and
    /// [`FrameError::Malformed`]. Nothing can be read after an error.
    pub async fn next(&mut self) -> Result<Option<Rx>, FrameError> {
        loop {
            if let Some(message) = self.codec.decode(&mut self.buffer)? {
                self.is_inside = !self.buffer.is_empty();
                return Ok(Some(message));
            }
            let read = match self.codec.arriving_text() {
                // Into its place, which takes a copy less than by way of the buffer.
                Some(text) if self.buffer.is_empty() => {
                    let missing = text.missing();
                    let mut place = (&mut text.bytes).limit(missing);
                    self.reader.read_buf(&mut place).await?
                }
                _ => {
                    self.buffer.reserve(Self::BUFFER / 2);
                    self.reader.read_buf(&mut self.buffer).await?
                }
            };
            match read {
                0 if self.is_inside => {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                0 => return Ok(None),
                _ => self.is_inside = true,
            }
        }
    }
}
