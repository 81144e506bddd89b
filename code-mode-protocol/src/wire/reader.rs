//! Messages of the native wire as they come over a connection.

use std::io;
use std::marker::PhantomData;

use bytes::{Buf, BufMut, BytesMut};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinHandle;

use super::frame::{FrameError, PREFIX_BYTES};
use super::native::{Announced, Announcements, decode, malformed};
use super::texts::Texts;

/// A message whose texts have more bytes than this together is put together on a
/// thread for blocking work: checking its JSON takes a millisecond or more, which
/// other sessions must not wait for.
const CHECKED_ELSEWHERE: usize = 1 << 20;

/// How much of small messages is buffered.
const BUFFER: usize = 8 << 10;

/// What a message may take.
#[derive(Clone, Copy, Debug)]
pub struct MaxMessage {
    /// Bytes of its frame.
    pub frame: usize,
    /// Bytes of all large texts behind the frame.
    pub texts: usize,
}

/// Reads messages from a connection.
#[derive(Debug)]
pub struct MessageReader<R, Rx> {
    reader: R,
    buffer: BytesMut,
    max: MaxMessage,
    arriving: Option<Arriving<Rx>>,
    /// A message that is complete and being put together.
    checking: Option<JoinHandle<Result<Rx, FrameError>>>,
    message: PhantomData<Rx>,
}

/// A message some of whose texts are still to come.
#[derive(Debug)]
struct Arriving<Rx> {
    message: Rx,
    /// In reverse: the next one is the last.
    announced: Vec<Announced>,
    text: Option<ArrivingText>,
    arrived: Vec<ArrivingText>,
    bytes: usize,
}

#[derive(Debug)]
struct ArrivingText {
    /// Which of the message's texts it is.
    number: u32,
    len: usize,
    bytes: Vec<u8>,
}

impl<R, Rx> MessageReader<R, Rx>
where
    R: AsyncRead + Unpin,
    Rx: DeserializeOwned + Texts + Send + 'static,
{
    /// Reads messages up to `max`.
    pub fn new(reader: R, max: MaxMessage) -> Self {
        Self {
            reader,
            buffer: BytesMut::with_capacity(BUFFER),
            max,
            arriving: None,
            checking: None,
            message: PhantomData,
        }
    }

    /// Sets another bound, for the messages from here on.
    pub fn set_max(&mut self, max: MaxMessage) {
        self.max = max;
    }

    /// The next message; `None` where the connection ended between two. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// The connection's, also where it ended inside a message, and the errors of what
    /// is not a message. The reader cannot be used after an error.
    pub async fn next(&mut self) -> Result<Option<Rx>, FrameError> {
        loop {
            if let Some(checking) = &mut self.checking {
                let checked = checking.await;
                self.checking = None;
                return checked.map_err(malformed)?.map(Some);
            }
            if let Some(complete) = self.decode()? {
                if complete.bytes <= CHECKED_ELSEWHERE {
                    return complete.finish().map(Some);
                }
                self.checking = Some(tokio::task::spawn_blocking(move || complete.finish()));
                continue;
            }
            let is_inside = self.arriving.is_some() || !self.buffer.is_empty();
            let text = self.arriving.as_mut().and_then(|a| a.text.as_mut());
            let read = match text {
                // Into its place, which saves a copy by way of the buffer.
                Some(text) if self.buffer.is_empty() => {
                    let missing = text.missing();
                    let mut place = (&mut text.bytes).limit(missing);
                    self.reader.read_buf(&mut place).await?
                }
                _ => {
                    self.buffer.reserve(BUFFER / 2);
                    self.reader.read_buf(&mut self.buffer).await?
                }
            };
            if read == 0 {
                return match is_inside {
                    true => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                    false => Ok(None),
                };
            }
        }
    }

    /// Reads the available bytes; a message once it is complete.
    fn decode(&mut self) -> Result<Option<Arriving<Rx>>, FrameError> {
        if self.arriving.is_none() {
            let Some(prefix) = self.buffer.first_chunk::<PREFIX_BYTES>() else {
                return Ok(None);
            };
            let len = u32::from_le_bytes(*prefix) as usize;
            if len > self.max.frame {
                return Err(FrameError::TooLarge(len as u64));
            }
            if self.buffer.len() < PREFIX_BYTES + len {
                self.buffer.reserve(PREFIX_BYTES + len - self.buffer.len());
                return Ok(None);
            }
            self.buffer.advance(PREFIX_BYTES);
            let content = self.buffer.split_to(len);
            self.arriving = Some(Arriving::new(&content, self.max.texts)?);
        }
        if let Some(arriving) = &mut self.arriving
            && !arriving.take(&mut self.buffer)?
        {
            return Ok(None);
        }
        Ok(self.arriving.take())
    }
}

impl<Rx: DeserializeOwned + Texts> Arriving<Rx> {
    fn new(content: &[u8], max_texts: usize) -> Result<Self, FrameError> {
        let (announced, message): (Announcements, Rx) = decode(content)?;
        let mut announced = announced.into_vec();
        let bytes: u64 = announced.iter().map(|text| u64::from(text.bytes)).sum();
        if bytes > max_texts as u64 {
            return Err(FrameError::TooLarge(bytes));
        }
        announced.reverse();
        Ok(Self {
            message,
            announced,
            text: None,
            arrived: Vec::new(),
            bytes: bytes as usize,
        })
    }

    /// Reads the available bytes; `true` once all are there.
    fn take(&mut self, src: &mut BytesMut) -> Result<bool, FrameError> {
        loop {
            if let Some(text) = &mut self.text {
                let came = src.len().min(text.missing());
                text.bytes.extend_from_slice(&src[..came]);
                src.advance(came);
                if text.missing() > 0 {
                    return Ok(false);
                }
            }
            self.arrived.extend(self.text.take());
            match self.announced.pop() {
                Some(announced) => self.text = Some(ArrivingText::new(announced)),
                None => return Ok(true),
            }
        }
    }

    /// The message with its texts in their places.
    fn finish(self) -> Result<Rx, FrameError> {
        let Self {
            mut message,
            arrived,
            ..
        } = self;
        let mut arrived = arrived.into_iter().peekable();
        let mut number = 0;
        let mut invalid = None;
        message.texts(&mut |place| {
            if let Some(arrived) = arrived.next_if(|arrived| arrived.number == number) {
                let text = String::from_utf8(arrived.bytes).map_err(malformed);
                let put = text.and_then(|text| place.put(text).map_err(malformed));
                invalid = invalid.take().or(put.err());
            }
            number += 1;
        });
        match (invalid, arrived.next()) {
            (Some(invalid), _) => Err(invalid),
            (None, Some(text)) => Err(malformed(format!("no text {} belongs here", text.number))),
            (None, None) => Ok(message),
        }
    }
}

impl ArrivingText {
    fn new(announced: Announced) -> Self {
        Self {
            number: announced.number,
            len: announced.bytes as usize,
            bytes: Vec::with_capacity(announced.bytes as usize),
        }
    }

    fn missing(&self) -> usize {
        self.len - self.bytes.len()
    }
}
