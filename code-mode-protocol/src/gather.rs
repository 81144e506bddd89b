//! The content of a frame, gathered from where its texts are.
//!
//! A message is mostly small, and at times carries a text of megabytes: a source,
//! a tool's input or result, output. Copied into the frame, such a text costs a
//! second buffer as large, whose pages the kernel must make first. So a large
//! text is taken out of its message and becomes a part of the content as it is.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::Json;

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
    /// Takes it, and leaves a short one.
    fn take(&mut self) -> String;
}

impl Text for String {
    fn as_str(&self) -> &str {
        self
    }

    fn take(&mut self) -> String {
        std::mem::take(self)
    }
}

impl Text for Json {
    fn as_str(&self) -> &str {
        Json::as_str(self)
    }

    fn take(&mut self) -> String {
        std::mem::replace(self, Self::null()).into_string()
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
    mut message: T,
    write: impl FnOnce(&T, &mut Gathering) -> Result<(), E>,
) -> Result<Content, E> {
    let mut gathering = Gathering::default();
    let mut room = 256;
    message.texts(&mut |text| {
        let bytes = text.as_str().as_bytes().as_ptr_range();
        let bytes = bytes.start.addr()..bytes.end.addr();
        if bytes.len() < LARGE {
            // Growing a buffer step by step costs more than filling it.
            room += bytes.len() + 48;
        } else {
            gathering.large.push(bytes);
        }
    });
    gathering.copied.reserve(room);
    write(&message, &mut gathering)?;
    let mut taken = Vec::with_capacity(gathering.large.len());
    message.texts(&mut |text| {
        if text.as_str().len() >= LARGE {
            taken.push(Bytes::from(text.take()));
        }
    });
    let mut content = Content::default();
    let copied = Bytes::from(gathering.copied);
    let mut from = 0;
    for part in gathering.kept {
        content.push(copied.slice(from..part.after));
        from = part.after;
        content.push(taken[part.text].slice(part.range));
    }
    content.push(copied.slice(from..));
    Ok(content)
}

/// What a message was written to: copies of its small pieces, and notes of where
/// the large ones are.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    copied: Vec<u8>,
    /// The addresses of the large texts.
    large: Vec<Range<usize>>,
    kept: Vec<Kept>,
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
        let range = bytes.as_ptr_range();
        let (start, end) = (range.start.addr(), range.end.addr());
        // Texts are alive and not changed while the message is written, so what lies
        // within one at that address is a piece of it.
        let text = (bytes.len() >= LARGE)
            .then(|| {
                self.large
                    .iter()
                    .position(|text| text.start <= start && end <= text.end)
            })
            .flatten();
        match text {
            Some(text) => {
                let origin = self.large[text].start;
                self.kept.push(Kept {
                    after: self.copied.len(),
                    text,
                    range: start - origin..end - origin,
                });
            }
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
    fn bytes_from_elsewhere_are_copied() {
        let elsewhere = vec![b'z'; 2 * LARGE];
        let content = gather(Message(texts()), |_, out| out.write_all(&elsewhere));
        assert_eq!(Bytes::from(content.expect("written")), elsewhere);
    }
}
