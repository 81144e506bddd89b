//! Length-prefixed frames: 4 bytes of little-endian length, then that many bytes.
//!
//! Both wires use them: bincode messages between the host and a worker
//! ([`native`](super::native)), JSON on the stdio wire ([`stdio`](super::stdio)).

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio_util::codec::LengthDelimitedCodec;

/// The largest frame either wire can be set to: 1 GiB.
pub const MAX_FRAME_BYTES: usize = 1 << 30;

/// The bytes before a frame's content.
pub const PREFIX_BYTES: usize = 4;

/// A text from this size on travels as a separate part: it is not copied into
/// the frame.
pub(crate) const LARGE_TEXT: usize = 64 << 10;

/// The framing of both wires, which refuses a frame past `max_frame_bytes` (at most
/// [`MAX_FRAME_BYTES`]) before it buffers any of the content.
pub fn codec(max_frame_bytes: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .little_endian()
        .length_field_type::<u32>()
        .max_frame_length(max_frame_bytes.min(MAX_FRAME_BYTES))
        .new_codec()
}

/// Why a frame could not be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed, or it ended inside a frame.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A frame, or what follows it, is larger than may be sent.
    #[error("a message of {0} bytes is too large")]
    TooLarge(u64),
    /// The content is not a message of the wire.
    #[error("malformed message: {0}")]
    Malformed(String),
}

/// One message as it goes out: the prefix, the content, and the large texts that
/// follow the content on the native wire.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    parts: Vec<Bytes>,
    len: usize,
}

impl Frame {
    /// How many bytes go out, the prefix included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes, in order.
    pub fn into_parts(self) -> impl Iterator<Item = Bytes> {
        self.parts.into_iter()
    }
}

/// A frame in the making. Its first bytes are kept free for the prefix.
#[derive(Debug)]
pub(crate) struct FrameBuilder {
    /// The content before the first large part, with room for the prefix.
    head: Option<BytesMut>,
    parts: Vec<Bytes>,
    /// The end of the content so far, not yet a part.
    tail: BytesMut,
    /// The content so far, with the prefix.
    framed: usize,
}

impl FrameBuilder {
    /// A frame whose small content takes about `room` bytes.
    pub(crate) fn with_room(room: usize) -> Self {
        let mut tail = BytesMut::with_capacity(PREFIX_BYTES + room);
        tail.put_u32_le(0);
        Self {
            head: None,
            parts: Vec::new(),
            tail,
            framed: PREFIX_BYTES,
        }
    }

    /// Adds to the content by copying.
    pub(crate) fn copy(&mut self, bytes: &[u8]) {
        self.framed += bytes.len();
        self.tail.extend_from_slice(bytes);
    }

    /// Adds to the content; a large part is not copied.
    pub(crate) fn part(&mut self, part: Bytes) {
        if part.len() < LARGE_TEXT {
            return self.copy(&part);
        }
        self.framed += part.len();
        self.end_tail();
        self.parts.push(part);
    }

    fn end_tail(&mut self) {
        let tail = std::mem::take(&mut self.tail);
        if self.head.is_none() {
            self.head = Some(tail);
        } else if !tail.is_empty() {
            self.parts.push(tail.freeze());
        }
    }

    /// The frame, followed by these texts.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] where the content does not fit the prefix.
    pub(crate) fn finish(
        mut self,
        followed_by: impl IntoIterator<Item = Bytes>,
    ) -> Result<Frame, FrameError> {
        let content = self.framed - PREFIX_BYTES;
        let prefix = u32::try_from(content).map_err(|_| FrameError::TooLarge(content as u64))?;
        self.end_tail();
        let mut parts = Vec::with_capacity(1 + self.parts.len());
        if let Some(mut head) = self.head {
            head[..PREFIX_BYTES].copy_from_slice(&prefix.to_le_bytes());
            parts.push(head.freeze());
        }
        parts.append(&mut self.parts);
        parts.extend(followed_by);
        let len = parts.iter().map(Bytes::len).sum();
        Ok(Frame { parts, len })
    }
}

impl io::Write for FrameBuilder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.copy(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
