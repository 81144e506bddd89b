//! Length-prefixed frames: 4 bytes of little-endian length, then that many bytes.
//!
//! Both wires use them: bincode messages between the provider and a worker
//! ([`native`](crate::native)), JSON on the stdio wire ([`stdio`](crate::stdio)).

use std::io;
use std::marker::PhantomData;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::codec::{Decoder, Encoder, LengthDelimitedCodec};

pub use crate::gather::Content;
use crate::gather::{self, Texts, gather};

/// The largest frame either wire can be set to: 1 GiB.
pub const MAX_FRAME_BYTES: usize = 1 << 30;

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

/// bincode messages in frames. `Rx` is what is decoded; anything serialisable
/// can be encoded.
#[derive(Debug)]
pub struct MessageCodec<Rx> {
    frames: LengthDelimitedCodec,
    received: PhantomData<fn() -> Rx>,
}

impl<Rx> MessageCodec<Rx> {
    /// A codec for frames up to `max_frame_bytes`.
    pub fn new(max_frame_bytes: usize) -> Self {
        Self {
            frames: codec(max_frame_bytes),
            received: PhantomData,
        }
    }

    /// Sets another bound, for the frames from here on.
    pub fn set_max_frame_bytes(&mut self, max_frame_bytes: usize) {
        self.frames
            .set_max_frame_length(max_frame_bytes.min(MAX_FRAME_BYTES));
    }
}

/// The limit makes bincode check a length it reads against what a frame can hold
/// before it allocates that much.
fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_FRAME_BYTES>()
}

/// The content of a frame that carries `message`.
pub(crate) fn encode<T: Serialize + Texts>(message: T) -> Result<Content, FrameError> {
    gather(
        message,
        |message, out| match bincode::serde::encode_into_std_write(message, out, config()) {
            Ok(_) => Ok(()),
            Err(error) => Err(FrameError::Malformed(error.to_string())),
        },
    )
}

/// The message a frame's content carries.
///
/// # Errors
/// [`FrameError::Malformed`] where it carries none, or more than one.
pub fn decode<T: DeserializeOwned>(content: &[u8]) -> Result<T, FrameError> {
    let (message, read) = bincode::serde::decode_from_slice(content, config())
        .map_err(|e| FrameError::Malformed(e.to_string()))?;
    if read != content.len() {
        return Err(FrameError::Malformed(format!(
            "{} bytes after the message",
            content.len() - read
        )));
    }
    Ok(message)
}

impl<Rx: DeserializeOwned> Decoder for MessageCodec<Rx> {
    type Item = Rx;
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Rx>, FrameError> {
        match self.frames.decode(src)? {
            Some(content) => decode(&content).map(Some),
            None => Ok(None),
        }
    }
}

/// Writes frames of these contents until the sending side is gone, whatever is
/// waiting together in one write.
///
/// # Errors
/// Of `writer`, and where a content does not fit a frame of `max_frame_bytes`.
pub async fn write_frames<W: AsyncWrite + Unpin>(
    mut contents: UnboundedReceiver<Content>,
    writer: W,
    max_frame_bytes: usize,
) -> io::Result<()> {
    let mut frames = FrameWriter::new(writer, max_frame_bytes);
    let mut waiting = Vec::with_capacity(FrameWriter::<W>::AT_ONCE);
    while contents
        .recv_many(&mut waiting, FrameWriter::<W>::AT_ONCE)
        .await
        > 0
    {
        frames.write(&mut waiting).await?;
    }
    Ok(())
}

/// Writes frames: small ones together, large ones without a copy.
#[derive(Debug)]
pub struct FrameWriter<W> {
    writer: W,
    max_frame_bytes: usize,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// How many contents are worth waiting for together.
    pub const AT_ONCE: usize = 64;
    /// What is written at a time: a pipe is locked while it is written to, and its
    /// reader is to take the pieces meanwhile.
    const PIECE: usize = 64 << 10;

    /// A writer of frames up to `max_frame_bytes`.
    pub fn new(writer: W, max_frame_bytes: usize) -> Self {
        Self {
            writer,
            max_frame_bytes: max_frame_bytes.min(MAX_FRAME_BYTES),
            buffer: BytesMut::new(),
        }
    }

    /// What is written to. Between two calls of [`write`](Self::write) it has whole
    /// frames.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.writer
    }

    /// Writes these contents, in order, and leaves the list empty.
    ///
    /// # Errors
    /// Of the writer, and where a content does not fit a frame.
    pub async fn write(&mut self, contents: &mut Vec<Content>) -> io::Result<()> {
        for content in contents.drain(..) {
            if content.len() > self.max_frame_bytes {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let length = u32::try_from(content.len()).map_err(io::Error::other)?;
            self.buffer.extend_from_slice(&length.to_le_bytes());
            for part in content.parts() {
                if part.len() < gather::LARGE {
                    self.buffer.extend_from_slice(part);
                } else {
                    self.flush().await?;
                    for piece in part.chunks(Self::PIECE) {
                        self.writer.write_all(piece).await?;
                    }
                }
            }
        }
        self.flush().await?;
        self.writer.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.writer.write_all(&self.buffer).await?;
        self.buffer.clear();
        Ok(())
    }
}

impl<Rx> Encoder<Content> for MessageCodec<Rx> {
    type Error = FrameError;

    fn encode(&mut self, content: Content, dst: &mut BytesMut) -> Result<(), FrameError> {
        Ok(self.frames.encode(Bytes::from(content), dst)?)
    }
}
