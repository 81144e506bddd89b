//! The messages of the native wire, as bytes.
//!
//! A message is bincode in a [frame](crate::frame). Its large texts are not in it:
//! the frame begins with which they are and how long, and they follow it as they
//! are. So a text goes from where the sender has it, and arrives piece by piece
//! where the receiver keeps it, checked while it comes. A very large one does not
//! follow where the receiver [can read it](Lender) in the sender's memory.

mod arriving;
mod loans;
mod reader;

use std::io;

use bytes::BytesMut;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::codec::{Decoder, Encoder, LengthDelimitedCodec};

use crate::frame::{Content, FrameError, MAX_FRAME_BYTES, codec};
use crate::gather::{LARGE, Texts};
use arriving::{Arriving, ArrivingText};

pub use loans::{Lender, Loan, Loans};
pub use reader::MessageReader;

/// A text that is not in its message's frame.
#[derive(Debug, Serialize, Deserialize)]
struct Announced {
    /// Which of the message's it is.
    number: u32,
    bytes: u32,
    /// Where it is, if it does not follow.
    loan: Option<Loan>,
}

/// The limit makes bincode check a length it reads against what a frame can hold
/// before it allocates that much.
fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_FRAME_BYTES>()
}

fn malformed(error: impl ToString) -> FrameError {
    FrameError::Malformed(error.to_string())
}

/// The frame that carries `message`, and the texts that follow: those that are not
/// kept in `loans`.
pub(crate) fn encode<T: Serialize + Texts>(
    mut message: T,
    loans: Option<&Loans>,
) -> Result<Content, FrameError> {
    let mut announced: Vec<Announced> = Vec::new();
    let mut texts = Vec::new();
    let mut number = 0;
    let mut room = 64;
    message.texts(&mut |text| {
        let length = text.as_str().len();
        match u32::try_from(length) {
            Ok(bytes) if length >= LARGE => {
                let text = text.take();
                let loan = match loans {
                    Some(loans) if length >= loans::LARGE => Some(loans.lend(text)),
                    _ => {
                        texts.push(text);
                        None
                    }
                };
                announced.push(Announced {
                    number,
                    bytes,
                    loan,
                });
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
    /// Whether texts may be lent.
    borrows: bool,
    arriving: Option<Arriving<Rx>>,
}

impl<Rx> MessageCodec<Rx> {
    /// A codec for messages up to `max_frame_bytes`, with the texts that follow.
    pub fn new(max_frame_bytes: usize) -> Self {
        Self {
            frames: codec(max_frame_bytes),
            max_frame_bytes: max_frame_bytes.min(MAX_FRAME_BYTES),
            borrows: false,
            arriving: None,
        }
    }

    /// Sets another bound, for the messages from here on.
    pub fn set_max_frame_bytes(&mut self, max_frame_bytes: usize) {
        self.max_frame_bytes = max_frame_bytes.min(MAX_FRAME_BYTES);
        self.frames.set_max_frame_length(self.max_frame_bytes);
    }

    fn arriving_text(&mut self) -> Option<&mut ArrivingText> {
        self.arriving.as_mut()?.text.as_mut()
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
            self.arriving = Some(Arriving::new(&content, max, self.borrows)?);
        }
        if let Some(arriving) = &mut self.arriving
            && !arriving.take(src)?
        {
            return Ok(None);
        }
        self.arriving.take().map(Arriving::message).transpose()
    }
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
