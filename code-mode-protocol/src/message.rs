//! The messages of the native wire, as bytes.
//!
//! A message is bincode in a [frame](crate::frame). Its large texts are not in it:
//! the frame begins with which they are and how long, and they follow it as they
//! are. So a text goes from where the sender has it, and arrives piece by piece
//! where the receiver keeps it, checked while it comes.

use std::io;
use std::vec;

use bytes::{Buf, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::{Decoder, Encoder, LengthDelimitedCodec};

use crate::frame::{Content, FrameError, MAX_FRAME_BYTES, codec};
use crate::gather::{LARGE, Texts};

/// A text that follows: which of the message's it is, and its bytes.
type Announced = (u32, u32);

/// How much of a text is read at a time, so that it is copied while it is near.
const PIECE: usize = 256 << 10;

/// The limit makes bincode check a length it reads against what a frame can hold
/// before it allocates that much.
fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_FRAME_BYTES>()
}

fn malformed(error: impl ToString) -> FrameError {
    FrameError::Malformed(error.to_string())
}

/// The frame that carries `message`, and the texts that follow.
pub(crate) fn encode<T: Serialize + Texts>(mut message: T) -> Result<Content, FrameError> {
    let mut announced: Vec<Announced> = Vec::new();
    let mut texts = Vec::new();
    let mut number = 0;
    let mut room = 64;
    message.texts(&mut |text| {
        let length = text.as_str().len();
        match u32::try_from(length) {
            Ok(bytes) if length >= LARGE => {
                announced.push((number, bytes));
                texts.push(text.take());
            }
            // Growing a buffer step by step costs more than filling it.
            _ => room += length + 48,
        }
        number += 1;
    });
    let mut head = Vec::with_capacity(room);
    bincode::serde::encode_into_std_write((&announced, &message), &mut head, config())
        .map_err(malformed)?;
    let mut content = Content::default();
    content.push(head.into());
    for text in texts {
        content.follow(text.into());
    }
    Ok(content)
}

/// Messages in frames. `Rx` is what is decoded; what is encoded is the content that
/// a message's own `encode` makes.
#[derive(Debug)]
pub struct MessageCodec<Rx> {
    frames: LengthDelimitedCodec,
    max_frame_bytes: usize,
    arriving: Option<Arriving<Rx>>,
}

impl<Rx> MessageCodec<Rx> {
    /// A codec for messages up to `max_frame_bytes`, with the texts that follow.
    pub fn new(max_frame_bytes: usize) -> Self {
        Self {
            frames: codec(max_frame_bytes),
            max_frame_bytes: max_frame_bytes.min(MAX_FRAME_BYTES),
            arriving: None,
        }
    }

    /// Sets another bound, for the messages from here on.
    pub fn set_max_frame_bytes(&mut self, max_frame_bytes: usize) {
        self.max_frame_bytes = max_frame_bytes.min(MAX_FRAME_BYTES);
        self.frames.set_max_frame_length(self.max_frame_bytes);
    }
}

impl<Rx: DeserializeOwned + Texts> Decoder for MessageCodec<Rx> {
    type Item = Rx;
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Rx>, FrameError> {
        if self.arriving.is_none() {
            let Some(content) = self.frames.decode(src)? else {
                return Ok(None);
            };
            let max = self.max_frame_bytes.saturating_sub(content.len());
            self.arriving = Some(Arriving::new(&content, max)?);
        }
        if let Some(arriving) = &mut self.arriving
            && !arriving.take(src)?
        {
            return Ok(None);
        }
        self.arriving.take().map(Arriving::message).transpose()
    }
}

/// A message some of whose texts are not there yet.
#[derive(Debug)]
struct Arriving<Rx> {
    message: Rx,
    announced: vec::IntoIter<Announced>,
    /// The text that comes now: which it is, what there is of it, what is missing.
    text: Option<(u32, String, usize)>,
    arrived: Vec<(u32, String)>,
}

impl<Rx: DeserializeOwned + Texts> Arriving<Rx> {
    /// What the frame of this content begins. At most `max` bytes may follow.
    fn new(content: &[u8], max: usize) -> Result<Self, FrameError> {
        let ((announced, message), read): ((Vec<Announced>, Rx), usize) =
            bincode::serde::decode_from_slice(content, config()).map_err(malformed)?;
        if read != content.len() {
            let more = content.len() - read;
            return Err(malformed(format!("{more} bytes after the message")));
        }
        let follow: u64 = announced.iter().map(|(_, bytes)| u64::from(*bytes)).sum();
        if follow > max as u64 {
            return Err(malformed(format!("{follow} bytes of texts are too many")));
        }
        Ok(Self {
            message,
            announced: announced.into_iter(),
            text: None,
            arrived: Vec::new(),
        })
    }

    /// Takes in what has come; `true` once everything has.
    fn take(&mut self, src: &mut BytesMut) -> Result<bool, FrameError> {
        loop {
            if let Some((number, mut text, missing)) = self.text.take() {
                let came = take_piece(src, &mut text, missing)?;
                if came < missing {
                    src.reserve(PIECE);
                    self.text = Some((number, text, missing - came));
                    return Ok(false);
                }
                self.arrived.push((number, text));
            }
            let Some((number, bytes)) = self.announced.next() else {
                return Ok(true);
            };
            let bytes = bytes as usize;
            self.text = Some((number, String::with_capacity(bytes), bytes));
        }
    }

    fn message(self) -> Result<Rx, FrameError> {
        let Self {
            mut message,
            arrived,
            ..
        } = self;
        let mut arrived = arrived.into_iter().peekable();
        let mut number = 0;
        let mut invalid = None;
        message.texts(&mut |text| {
            if let Some((_, arrived)) = arrived.next_if(|(of, _)| *of == number) {
                invalid = text.put(arrived).err().or(invalid.take());
            }
            number += 1;
        });
        if let Some(invalid) = invalid {
            return Err(malformed(invalid));
        }
        match arrived.next() {
            None => Ok(message),
            Some((number, _)) => Err(malformed(format!("no text {number} belongs here"))),
        }
    }
}

/// Moves what has come of a text; returns how many of the `missing` bytes it was.
fn take_piece(src: &mut BytesMut, text: &mut String, missing: usize) -> Result<usize, FrameError> {
    let piece = &src[..src.len().min(missing)];
    let came = match std::str::from_utf8(piece) {
        Ok(piece) => {
            text.push_str(piece);
            piece.len()
        }
        // The rest of the last character is on its way.
        Err(error) if error.error_len().is_none() && piece.len() < missing => {
            let whole = &piece[..error.valid_up_to()];
            text.push_str(std::str::from_utf8(whole).map_err(malformed)?);
            whole.len()
        }
        Err(error) => return Err(malformed(error)),
    };
    src.advance(came);
    Ok(came)
}

impl<Rx> Encoder<Content> for MessageCodec<Rx> {
    type Error = FrameError;

    fn encode(&mut self, content: Content, dst: &mut BytesMut) -> Result<(), FrameError> {
        if content.len() > self.max_frame_bytes {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        Ok(content.put(dst)?)
    }
}
