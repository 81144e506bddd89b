//! A message whose large texts are on their way.

use std::vec;

use bytes::{Buf, BytesMut};
use serde::de::DeserializeOwned;

use super::{Announced, config, malformed};
use crate::frame::FrameError;
use crate::gather::Texts;

/// A message some of whose texts are not there yet.
#[derive(Debug)]
pub(super) struct Arriving<Rx> {
    message: Rx,
    announced: vec::IntoIter<Announced>,
    pub(super) text: Option<ArrivingText>,
    arrived: Vec<ArrivingText>,
}

impl<Rx: DeserializeOwned + Texts> Arriving<Rx> {
    /// What the frame of this content begins. At most `max` bytes may follow.
    pub(super) fn new(content: &[u8], max: usize) -> Result<Self, FrameError> {
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
    pub(super) fn take(&mut self, src: &mut BytesMut) -> Result<bool, FrameError> {
        loop {
            if let Some(text) = &mut self.text {
                let came = src.len().min(text.missing());
                text.bytes.extend_from_slice(&src[..came]);
                src.advance(came);
                text.check()?;
                if text.missing() > 0 {
                    return Ok(false);
                }
            }
            self.arrived.extend(self.text.take());
            match self.announced.next() {
                Some(announced) => self.text = Some(ArrivingText::new(announced)),
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
                invalid = text.put(arrived.into_text()).err().or(invalid.take());
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
    /// What has come of it.
    pub(super) bytes: Vec<u8>,
    /// So many of them are UTF-8.
    checked: usize,
    len: usize,
}

impl ArrivingText {
    fn new((number, len): Announced) -> Self {
        let len = len as usize;
        Self {
            number,
            bytes: Vec::with_capacity(len),
            checked: 0,
            len,
        }
    }

    pub(super) fn missing(&self) -> usize {
        self.len - self.bytes.len()
    }

    /// Checks what has come since, while it is near.
    fn check(&mut self) -> Result<(), FrameError> {
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

    fn into_text(self) -> String {
        debug_assert_eq!(self.checked, self.len);
        // SAFETY: a text is complete when it gets here, and its last `check` accepted
        // all of it: each checks from the end of the last whole character before, and
        // one that leaves the beginning of a character fails where nothing is missing.
        unsafe { String::from_utf8_unchecked(self.bytes) }
    }
}
