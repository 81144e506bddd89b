//! Length-prefixed frames: 4 bytes of little-endian length, then that many bytes.
//!
//! Both wires use them: messages between the provider and a worker
//! ([`message`](crate::message)), JSON on the stdio wire ([`stdio`](crate::stdio)).

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::codec::LengthDelimitedCodec;

use crate::gather;
pub use crate::gather::Content;

/// The largest frame either wire can be set to: 1 GiB.
pub const MAX_FRAME_BYTES: usize = 1 << 30;

/// How much of a large part is written at a time: a pipe is locked while it is written
/// to, and its reader is to take the pieces meanwhile.
pub const PIECE: usize = 256 << 10;

/// The framing of both wires, refusing frames past `max_frame_bytes` (at most
/// [`MAX_FRAME_BYTES`]) before any of their content is buffered.
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
    /// The connection failed, ended inside a frame, or a frame is too large.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The content is not a message of the wire.
    #[error("malformed message: {0}")]
    Malformed(String),
}

/// Writes frames of these contents until the sending side is gone, whatever is
/// waiting together in one write.
///
/// # Errors
/// Of `output`, and where a content does not fit a frame of `max_frame_bytes`.
pub async fn write_frames<O: FrameOutput>(
    mut contents: UnboundedReceiver<Content>,
    output: O,
    max_frame_bytes: usize,
) -> io::Result<()> {
    let mut frames = FrameWriter::new(output, max_frame_bytes);
    let mut waiting = Vec::with_capacity(FrameWriter::<O>::AT_ONCE);
    while contents
        .recv_many(&mut waiting, FrameWriter::<O>::AT_ONCE)
        .await
        > 0
    {
        frames.write(&mut waiting).await?;
    }
    Ok(())
}

/// What frames are written to: anything that bytes can be written to, or what has a
/// way of its own for large ones.
pub trait FrameOutput: Send {
    /// Writes all of these bytes.
    fn write(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// Writes all of a large part of a frame.
    fn write_large(&mut self, part: Bytes) -> impl Future<Output = io::Result<()>> + Send;

    /// Has on its way what was written. It is called behind a frame with large parts,
    /// before the next is begun, and when there is no other.
    fn flush(&mut self) -> impl Future<Output = io::Result<()>> + Send;
}

impl<W: AsyncWrite + Unpin + Send> FrameOutput for W {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await
    }

    async fn write_large(&mut self, part: Bytes) -> io::Result<()> {
        for piece in part.chunks(PIECE) {
            self.write_all(piece).await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        AsyncWriteExt::flush(self).await
    }
}

/// Writes frames: small ones together, large ones without a copy.
#[derive(Debug)]
pub struct FrameWriter<O> {
    output: O,
    max_frame_bytes: usize,
    buffer: BytesMut,
}

impl<O: FrameOutput> FrameWriter<O> {
    /// How many contents are worth waiting for together.
    pub const AT_ONCE: usize = 64;

    /// A writer of frames up to `max_frame_bytes`.
    pub fn new(output: O, max_frame_bytes: usize) -> Self {
        Self {
            output,
            max_frame_bytes: max_frame_bytes.min(MAX_FRAME_BYTES),
            buffer: BytesMut::new(),
        }
    }

    /// What is written to. Between two calls of [`write`](Self::write) it has whole
    /// frames.
    pub fn get_mut(&mut self) -> &mut O {
        &mut self.output
    }

    /// Writes these contents, in order, and leaves the list empty.
    ///
    /// # Errors
    /// Of the output, and where a content does not fit a frame.
    pub async fn write(&mut self, contents: &mut Vec<Content>) -> io::Result<()> {
        for content in contents.drain(..) {
            if content.len() > self.max_frame_bytes {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            self.buffer.put_u32_le(content.prefix()?);
            let mut is_large = false;
            for part in content.into_parts() {
                if part.len() < gather::LARGE {
                    self.buffer.extend_from_slice(&part);
                } else {
                    self.write_buffer().await?;
                    self.output.write_large(part).await?;
                    is_large = true;
                }
            }
            if is_large {
                self.flush().await?;
            }
        }
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.write_buffer().await?;
        self.output.flush().await
    }

    async fn write_buffer(&mut self) -> io::Result<()> {
        self.output.write(&self.buffer).await?;
        self.buffer.clear();
        Ok(())
    }
}
