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

use bytes::Bytes;
use serde::Serialize;

use crate::json::{self, Json};

/// What is left where a text was taken: not empty, so that it has an address.
const STAND_IN: &str = "-";

/// A text from this size on is not copied.
pub(crate) const LARGE: usize = 64 << 10;

/// The content of one frame.
#[derive(Clone, Debug, Default)]
pub struct Content {
    parts: Vec<Bytes>,
    len: usize,
}

impl Content {
    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What it consists of, in order.
    pub(crate) fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.len += part.len();
            self.parts.push(part);
        }
    }
}

impl From<Content> for Bytes {
    /// In one piece; this copies where there are several.
    fn from(content: Content) -> Self {
        match content.parts.as_slice() {
            [one] => one.clone(),
            parts => parts.concat().into(),
        }
    }
}

/// A text that can be taken out of its message.
pub(crate) trait Text {
    /// The text.
    fn as_str(&self) -> &str;
    /// Takes it, and leaves a short one that has an address of its own.
    fn take(&mut self) -> String;
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

    fn is_plain(&self) -> bool {
        false
    }
}

/// A message that may hold large texts.
pub(crate) trait Texts {
    /// Shows each text that can be large, always in the same order.
    fn texts(&mut self, visit: &mut dyn FnMut(&mut dyn Text));
}

/// The content that `write` makes of `message`. What it writes in one go and out
/// of a large text of the message is not copied.
///
/// # Errors
/// Those of `write`.
pub(crate) fn gather<T: Texts, E>(
    message: T,
    write: impl FnOnce(&T, &mut Gathering) -> Result<(), E>,
) -> Result<Content, E> {
    gathered(message, |_| false, write)
}

/// The content that is `message` in JSON.
///
/// # Errors
/// Those of the message's own `Serialize`.
pub(crate) fn gather_json<T: Texts + Serialize>(message: T) -> Result<Content, serde_json::Error> {
    gathered(
        message,
        |text| text.is_plain(),
        |message, out| serde_json::to_writer(out, message),
    )
}

fn gathered<T: Texts, E>(
    mut message: T,
    has_stand_in: impl Fn(&mut dyn Text) -> bool,
    write: impl FnOnce(&T, &mut Gathering) -> Result<(), E>,
) -> Result<Content, E> {
    let mut gathering = Gathering::default();
    let mut room = 256;
    message.texts(&mut |text| {
        let length = text.as_str().len();
        if length < LARGE {
            // Growing a buffer step by step costs more than filling it.
            room += length + 48;
            return;
        }
        let taken = has_stand_in(text).then(|| text.take().into());
        gathering.large.push(Large {
            addresses: addresses(text.as_str().as_bytes()),
            taken,
        });
    });
    gathering.copied.reserve(room);
    write(&message, &mut gathering)?;
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
    use std::io::Write;

    use super::*;

    #[derive(Clone, Serialize)]
    struct Message(Vec<String>);

    impl Texts for Message {
        fn texts(&mut self, visit: &mut dyn FnMut(&mut dyn Text)) {
            for text in &mut self.0 {
                visit(text);
            }
        }
    }

    fn texts() -> Vec<String> {
        ["a".repeat(LARGE), "b".to_owned(), "c".repeat(3 * LARGE)].to_vec()
    }

    #[test]
    fn the_content_is_what_was_written() {
        let content = gather(Message(texts()), |message, out| {
            out.write_all(b"<")?;
            for text in message.0.iter().rev() {
                out.write_all(&text.as_bytes()[..text.len() / 2])?;
                out.write_all(b"|")?;
                out.write_all(&text.as_bytes()[text.len() / 2..])?;
            }
            out.write_all(b">")
        });
        let content = content.expect("written");
        let expected: String = texts()
            .iter()
            .rev()
            .map(|text| format!("{}|{}", &text[..text.len() / 2], &text[text.len() / 2..]))
            .collect();
        assert_eq!(content.len(), expected.len() + 2);
        assert_eq!(Bytes::from(content), format!("<{expected}>"));
    }

    #[test]
    fn a_large_text_is_not_copied() {
        let texts = texts();
        let addresses = [texts[0].as_ptr(), texts[2].as_ptr()];
        let content = gather(Message(texts), |message, out| {
            message
                .0
                .iter()
                .try_for_each(|text| out.write_all(text.as_bytes()))
        })
        .expect("written");
        let large = content.parts().iter().filter(|part| part.len() >= LARGE);
        assert_eq!(
            large.map(|part| part.as_ptr()).collect::<Vec<_>>(),
            addresses
        );
    }

    #[test]
    fn in_json_every_text_is_what_it_was() {
        let large = |end: &str| "é".repeat(LARGE) + end;
        let ends = ["", "\"", "\\", "\n", "\u{1f}", "\u{7f}", "-"];
        let mut texts = ends.map(large).to_vec();
        texts.extend(ends.map(str::to_owned));
        let message = Message(texts);
        let expected = serde_json::to_vec(&message).expect("written");
        let content = gather_json(message).expect("written");
        assert_eq!(Bytes::from(content), expected);
    }

    #[test]
    fn a_large_text_is_not_copied_in_json_where_nothing_of_it_is_escaped() {
        let message = Message(texts());
        let addresses = [message.0[0].as_ptr(), message.0[2].as_ptr()];
        let content = gather_json(message).expect("written");
        let large = content.parts().iter().filter(|part| part.len() >= LARGE);
        assert_eq!(
            large.map(|part| part.as_ptr()).collect::<Vec<_>>(),
            addresses
        );
    }

    #[test]
    fn bytes_from_elsewhere_are_copied() {
        let elsewhere = vec![b'z'; 2 * LARGE];
        let content = gather(Message(texts()), |_, out| out.write_all(&elsewhere));
        assert_eq!(Bytes::from(content.expect("written")), elsewhere);
    }
}
