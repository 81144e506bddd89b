//! The content of a frame, gathered from where its texts are.
//!
//! A message is mostly small, and at times carries a text of megabytes: a source,
//! a tool's input or result, output. Copied into the frame, such a text costs a
//! second buffer as large, whose pages the kernel must make first. So a large
//! text is taken out of its message and becomes a part of the content as it is.
//!
//! In JSON, a text is looked through byte by byte for what must be escaped. A large
//! one that has nothing of the kind is taken before, and a stand-in is written.

use std::io;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

use crate::json::{self, InShort, InvalidJson, Json};

/// What is left where a text was taken: not empty, so that it has an address.
const STAND_IN: &str = "-";

/// A text from this size on is not copied.
pub(crate) const LARGE: usize = 64 << 10;

/// The content of one frame, and what follows the frame.
#[derive(Clone, Debug, Default)]
pub struct Content {
    parts: Vec<Bytes>,
    /// How much of it is in the frame.
    framed: usize,
    len: usize,
}

impl Content {
    /// How many bytes it has, with those that follow the frame.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends the frame, and what follows it, to `buffer`.
    ///
    /// # Errors
    /// Where the length does not fit a frame's prefix.
    pub fn put(&self, buffer: &mut BytesMut) -> io::Result<()> {
        buffer.reserve(4 + self.len);
        buffer.put_u32_le(self.prefix()?);
        for part in &self.parts {
            buffer.extend_from_slice(part);
        }
        Ok(())
    }

    /// The length that stands before the frame.
    pub(crate) fn prefix(&self) -> io::Result<u32> {
        u32::try_from(self.framed).map_err(io::Error::other)
    }

    /// What it consists of, in order.
    pub(crate) fn into_parts(self) -> Vec<Bytes> {
        self.parts
    }

    /// Adds to what is in the frame. Nothing follows the frame yet.
    pub(crate) fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.framed += part.len();
            self.follow(part);
        }
    }

    /// Adds to what follows the frame.
    pub(crate) fn follow(&mut self, part: Bytes) {
        self.len += part.len();
        self.parts.push(part);
    }
}

/// A text that can be taken out of its message.
pub(crate) trait Text {
    /// The text.
    fn as_str(&self) -> &str;
    /// Takes it, and leaves a short one that has an address of its own.
    fn take(&mut self) -> String;
    /// Where a text that is to take its place is to be seen in short as it comes: what
    /// to see it with.
    fn in_short(&self) -> Option<InShort>;
    /// Takes its place; the text was seen with this.
    fn put(&mut self, text: String, short: Option<InShort>) -> Result<(), InvalidJson>;
    /// Whether JSON has it between quotes as it is.
    fn is_plain(&self) -> bool;
}

impl Text for String {
    fn as_str(&self) -> &str {
        self
    }

    fn take(&mut self) -> String {
        std::mem::replace(self, STAND_IN.to_owned())
    }

    fn in_short(&self) -> Option<InShort> {
        None
    }

    fn put(&mut self, text: String, _: Option<InShort>) -> Result<(), InvalidJson> {
        *self = text;
        Ok(())
    }

    fn is_plain(&self) -> bool {
        json::is_plain(self)
    }
}

impl Text for Json {
    fn as_str(&self) -> &str {
        Json::as_str(self)
    }

    fn take(&mut self) -> String {
        std::mem::replace(self, Self::null()).into_string()
    }

    fn in_short(&self) -> Option<InShort> {
        Some(InShort::default())
    }

    fn put(&mut self, text: String, short: Option<InShort>) -> Result<(), InvalidJson> {
        *self = Self::parse_seen(text, &short.unwrap_or_default())?;
        Ok(())
    }

    fn is_plain(&self) -> bool {
        false
    }
}

/// A message that may hold large texts.
pub(crate) trait Texts {
    /// Shows each text that can be large, always in the same order.
    fn texts(&mut self, visit: &mut dyn FnMut(&mut dyn Text));
}

/// The content that is `message` in JSON. A large text, or what of one is written
/// in one go, is not copied.
///
/// # Errors
/// Those of the message's own `Serialize`.
pub(crate) fn gather_json<T: Texts + Serialize>(
    mut message: T,
) -> Result<Content, serde_json::Error> {
    let mut gathering = Gathering::default();
    let mut room = 256;
    message.texts(&mut |text| {
        let length = text.as_str().len();
        if length < LARGE {
            // Growing a buffer step by step costs more than filling it.
            room += length + 48;
            return;
        }
        let taken = text.is_plain().then(|| text.take().into());
        gathering.large.push(Large {
            addresses: addresses(text.as_str().as_bytes()),
            taken,
        });
    });
    gathering.copied.reserve(room);
    serde_json::to_writer(&mut gathering, &message)?;
    let mut left = gathering.large.iter_mut().filter(|l| l.taken.is_none());
    message.texts(&mut |text| {
        if text.as_str().len() >= LARGE
            && let Some(large) = left.next()
        {
            large.taken = Some(text.take().into());
        }
    });
    let mut content = Content::default();
    let copied = Bytes::from(gathering.copied);
    let mut from = 0;
    for part in gathering.kept {
        content.push(copied.slice(from..part.after));
        from = part.after;
        if let Some(text) = &gathering.large[part.text].taken {
            content.push(text.slice(part.range));
        }
    }
    content.push(copied.slice(from..));
    Ok(content)
}

/// What a message was written to: copies of its small pieces, and notes of where
/// the large ones are.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    copied: Vec<u8>,
    large: Vec<Large>,
    kept: Vec<Kept>,
}

/// A large text.
#[derive(Debug)]
struct Large {
    /// Where it is, or what stands in for it.
    addresses: Range<usize>,
    /// The text itself, once it is taken: before the message is written where
    /// something stands in for it, else afterwards.
    taken: Option<Bytes>,
}

fn addresses(bytes: &[u8]) -> Range<usize> {
    let range = bytes.as_ptr_range();
    range.start.addr()..range.end.addr()
}

/// A piece of a large text that was written.
#[derive(Debug)]
struct Kept {
    /// It comes after so many of the copied bytes.
    after: usize,
    /// Which of the large texts it is of.
    text: usize,
    /// Its place there.
    range: Range<usize>,
}

impl io::Write for Gathering {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = addresses(bytes);
        // Texts are alive and not changed while the message is written, so what lies
        // within one at that address is a piece of it.
        let piece = self.large.iter().enumerate().find_map(|(text, large)| {
            let Range { start, end } = large.addresses;
            let range = match &large.taken {
                Some(whole) => (large.addresses == written).then_some(0..whole.len()),
                None => (bytes.len() >= LARGE && start <= written.start && written.end <= end)
                    .then(|| written.start - start..written.end - start),
            };
            range.map(|range| (text, range))
        });
        match piece {
            Some((text, range)) => self.kept.push(Kept {
                after: self.copied.len(),
                text,
                range,
            }),
            None => self.copied.extend_from_slice(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Message<T>(Vec<T>);

    impl<T: Text> Texts for Message<T> {
        fn texts(&mut self, visit: &mut dyn FnMut(&mut dyn Text)) {
            for text in &mut self.0 {
                visit(text);
            }
        }
    }

    fn gathered<T: Text + Serialize>(message: Message<T>) -> Content {
        gather_json(message).expect("written")
    }

    /// Whether the content is what `expected` says, in JSON.
    fn is(content: &Content, expected: &impl Serialize) -> bool {
        content.parts.concat() == serde_json::to_vec(expected).expect("written")
    }

    fn large_parts(content: &Content) -> Vec<*const u8> {
        let large = content.parts.iter().filter(|part| part.len() >= LARGE);
        large.map(|part| part.as_ptr()).collect()
    }

    #[test]
    fn every_text_is_what_it_was() {
        let large = |end: &str| "é".repeat(LARGE) + end;
        let ends = ["", "\"", "\\", "\n", "\u{1f}", "\u{7f}", "-"];
        let mut texts = ends.map(large).to_vec();
        texts.extend(ends.map(str::to_owned));
        let content = gathered(Message(texts.clone()));
        assert!(is(&content, &texts));
        assert_eq!(content.prefix().expect("fits") as usize, content.len());
    }

    #[test]
    fn a_large_text_is_not_copied_where_nothing_of_it_is_escaped() {
        let texts = ["a".repeat(LARGE), "b".to_owned(), "c".repeat(3 * LARGE)].to_vec();
        let addresses = [texts[0].as_ptr(), texts[2].as_ptr()];
        assert_eq!(large_parts(&gathered(Message(texts))), addresses);
    }

    #[test]
    fn of_a_large_text_the_pieces_between_what_is_escaped_are_not_copied() {
        let text = "a".repeat(LARGE) + "\n" + &"b".repeat(2 * LARGE);
        let addresses = [text.as_ptr(), text[LARGE + 1..].as_ptr()];
        let copy = text.clone();
        let content = gathered(Message(vec![text]));
        assert_eq!(large_parts(&content), addresses);
        assert!(is(&content, &[copy]));
    }

    #[test]
    fn large_json_is_not_copied() {
        let json = Json::string(&("a".repeat(LARGE) + "\n"));
        let content = gathered(Message(vec![json.clone(), Json::null()]));
        assert_eq!(large_parts(&content).len(), 1);
        assert!(is(&content, &[json, Json::null()]));
    }
}
