//! Messages as they come over a connection.

use std::io;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::codec::Decoder;

use super::{Lender, MessageCodec};
use crate::frame::FrameError;

/// Messages from a connection.
pub struct MessageReader<R, Rx> {
    reader: R,
    buffer: BytesMut,
    codec: MessageCodec<Rx>,
    /// Whether a part of the next message was read.
    is_inside: bool,
    lender: Option<Box<dyn Lender>>,
    returned: Vec<u64>,
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
            lender: None,
            returned: Vec::new(),
        }
    }

    /// Sets another bound, for the messages from here on.
    pub fn set_max_frame_bytes(&mut self, max_frame_bytes: usize) {
        self.codec.set_max_frame_bytes(max_frame_bytes);
    }

    /// Lets the sender lend texts, which are read from its memory.
    pub fn borrow_from(&mut self, lender: Box<dyn Lender>) {
        self.codec.borrows = true;
        self.lender = Some(lender);
    }

    /// The names of the loans that were read since this was last asked; the sender is
    /// to be told.
    pub fn take_returned(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.returned)
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
            if let (Some(text), Some(lender)) = (self.codec.arriving_text(), &self.lender)
                && let Some(loan) = text.loan
            {
                text.borrow_piece(lender.as_ref(), loan)?;
                if text.missing() == 0 {
                    self.returned.push(loan.id);
                }
                // Others are to have their turn, as they have it between two reads of
                // a connection.
                tokio::task::yield_now().await;
                continue;
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
