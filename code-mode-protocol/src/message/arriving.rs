//! A message whose large texts are on their way.

use std::vec;

use bytes::{Buf, BytesMut};
use serde::de::DeserializeOwned;

use super::{Announced, Lender, Loan, config, malformed};
use crate::frame::FrameError;
use crate::gather::Texts;
use crate::json::InShort;

/// What is read of a lent text at a time: so much is still near when it is checked.
const PIECE: usize = 256 << 10;

/// A message some of whose texts are not there yet.
#[derive(Debug)]
pub(super) struct Arriving<Rx> {
    message: Rx,
    announced: vec::IntoIter<(Option<InShort>, Announced)>,
    pub(super) text: Option<ArrivingText>,
    arrived: Vec<ArrivingText>,
}

impl<Rx: DeserializeOwned + Texts> Arriving<Rx> {
    /// What the frame of this content begins. Its texts may have `max` bytes, and be
    /// lent if it `borrows`.
    pub(super) fn new(content: &[u8], max: usize, borrows: bool) -> Result<Self, FrameError> {
        let ((announced, mut message), read): ((Vec<Announced>, Rx), usize) =
            bincode::serde::decode_from_slice(content, config()).map_err(malformed)?;
        if read != content.len() {
            let more = content.len() - read;
            return Err(malformed(format!("{more} bytes after the message")));
        }
        let bytes: u64 = announced.iter().map(|text| u64::from(text.bytes)).sum();
        if bytes > max as u64 {
            return Err(malformed(format!("{bytes} bytes of texts are too many")));
        }
        if !borrows && announced.iter().any(|text| text.loan.is_some()) {
            return Err(malformed("a text is lent that nobody borrows"));
        }
        let mut shorts = Vec::new();
        if !announced.is_empty() {
            message.texts(&mut |text| shorts.push(text.in_short()));
        }
        let with_short = |text: Announced| {
            let short = shorts.get_mut(text.number as usize);
            (short.and_then(Option::take), text)
        };
        let announced: Vec<_> = announced.into_iter().map(with_short).collect();
        Ok(Self {
            message,
            announced: announced.into_iter(),
            text: None,
            arrived: Vec::new(),
        })
    }

    /// Takes in what has come; `true` once everything has.
    pub(super) fn take(&mut self, src: &mut BytesMut) -> Result<bool, FrameError> {
        loop {
            if let Some(text) = &mut self.text {
                if text.loan.is_none() {
                    let came = src.len().min(text.missing());
                    text.bytes.extend_from_slice(&src[..came]);
                    src.advance(came);
                    text.check()?;
                }
                if text.missing() > 0 {
                    return Ok(false);
                }
            }
            self.arrived.extend(self.text.take());
            match self.announced.next() {
                Some((short, announced)) => self.text = Some(ArrivingText::new(announced, short)),
                None => return Ok(true),
            }
        }
    }

    pub(super) fn message(self) -> Result<Rx, FrameError> {
        let Self {
            mut message,
            arrived,
            ..
        } = self;
        let mut arrived = arrived.into_iter().peekable();
        let mut number = 0;
        let mut invalid = None;
        message.texts(&mut |text| {
            if let Some(arrived) = arrived.next_if(|arrived| arrived.number == number) {
                let (arrived, short) = arrived.into_text();
                invalid = text.put(arrived, short).err().or(invalid.take());
            }
            number += 1;
        });
        if let Some(invalid) = invalid {
            return Err(malformed(invalid));
        }
        match arrived.next() {
            None => Ok(message),
            Some(text) => Err(malformed(format!("no text {} belongs here", text.number))),
        }
    }
}

/// A text on its way.
#[derive(Debug)]
pub(super) struct ArrivingText {
    /// Which of the message's it is.
    number: u32,
    /// Where it is to be read, if it does not come by itself.
    pub(super) loan: Option<Loan>,
    /// What has come of it.
    pub(super) bytes: Vec<u8>,
    /// So many of them are UTF-8.
    checked: usize,
    /// What was seen of them, where they are to be JSON.
    short: Option<InShort>,
    len: usize,
}

impl ArrivingText {
    fn new(announced: Announced, short: Option<InShort>) -> Self {
        let len = announced.bytes as usize;
        Self {
            number: announced.number,
            loan: announced.loan,
            bytes: Vec::with_capacity(len),
            checked: 0,
            short,
            len,
        }
    }

    pub(super) fn missing(&self) -> usize {
        self.len - self.bytes.len()
    }

    /// Reads the next piece of what was lent.
    pub(super) fn borrow_piece(&mut self, from: &dyn Lender, loan: Loan) -> Result<(), FrameError> {
        let piece = self.missing().min(PIECE);
        let address = loan.address.wrapping_add(self.bytes.len() as u64);
        from.read(address, piece, &mut self.bytes)?;
        self.check()
    }

    /// Checks what has come since, while it is near.
    fn check(&mut self) -> Result<(), FrameError> {
        if let Some(short) = &mut self.short {
            short.push(&self.bytes[short.seen()..]);
        }
        match simdutf8::compat::from_utf8(&self.bytes[self.checked..]) {
            Ok(_) => self.checked = self.bytes.len(),
            // The rest of the last character is on its way.
            Err(error) if error.error_len().is_none() && self.missing() > 0 => {
                self.checked += error.valid_up_to();
            }
            Err(error) => return Err(malformed(error)),
        }
        Ok(())
    }

    /// The text, and what was seen of it.
    fn into_text(self) -> (String, Option<InShort>) {
        debug_assert_eq!(self.checked, self.len);
        // SAFETY: a text is complete when it gets here, and its last `check` accepted
        // all of it: each checks from the end of the last whole character before, and
        // one that leaves the beginning of a character fails where nothing is missing.
        let text = unsafe { String::from_utf8_unchecked(self.bytes) };
        (text, self.short)
    }
}
