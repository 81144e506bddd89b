//! JSON messages in frames, whose large texts are not copied.
//!
//! A message writes itself by its `Serialize`. Before that, [`LargeTexts`] moves each large
//! text out of it and leaves a mark in its place; afterwards the texts become parts of the
//! frame where their marks are. Copying and escaping would take a fifth of the time of a
//! message of 8 MiB.

use bytes::Bytes;
use memchr::memmem;
use serde::Serialize;
use uuid::Uuid;

use super::frame::{Frame, FrameBuilder, FrameError, LARGE_TEXT};
use crate::Json;
use crate::json::is_plain;

/// The large texts of one message, in the order in which it writes them.
pub(crate) struct LargeTexts {
    /// A random UUID: the author of a text cannot know it beforehand, and so cannot write it.
    mark: String,
    texts: Vec<Bytes>,
}

impl LargeTexts {
    pub(crate) fn new() -> Self {
        Self {
            mark: String::new(),
            texts: Vec::new(),
        }
    }

    /// Moves a text out of the message if it is large and needs no escaping.
    pub(crate) fn take(&mut self, text: &mut String) {
        if text.len() >= LARGE_TEXT && is_plain(text) {
            let quoted = Bytes::from(std::mem::replace(text, self.mark().to_owned()));
            self.texts
                .extend([Bytes::from_static(b"\""), quoted, Bytes::from_static(b"\"")]);
        }
    }

    /// Moves a JSON value out of the message if it is large.
    pub(crate) fn take_json(&mut self, json: &mut Json) {
        if json.as_str().len() >= LARGE_TEXT {
            let json = std::mem::replace(json, Json::string(self.mark()));
            self.texts
                .extend([Bytes::new(), Bytes::from(json.into_string()), Bytes::new()]);
        }
    }

    fn mark(&mut self) -> &str {
        if self.mark.is_empty() {
            self.mark = Uuid::new_v4().to_string();
        }
        &self.mark
    }

    /// The message as a frame, with the texts in the places of their marks.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] where it does not fit its prefix.
    /// [`FrameError::Malformed`] where `Serialize` fails, or does not write each mark once.
    pub(crate) fn frame(self, message: &impl Serialize) -> Result<Frame, FrameError> {
        let malformed = |error: serde_json::Error| FrameError::Malformed(error.to_string());
        let mut frame = FrameBuilder::with_room(256);
        if self.texts.is_empty() {
            serde_json::to_writer(&mut frame, message).map_err(malformed)?;
            return frame.finish([]);
        }
        let json = serde_json::to_vec(message).map_err(malformed)?;
        let mark = format!("\"{}\"", self.mark);
        let mut texts = self.texts.chunks_exact(3);
        let mut written = 0;
        for at in memmem::find_iter(&json, &mark) {
            frame.copy(&json[written..at]);
            let text = texts.next().ok_or_else(unplaced)?;
            text.iter().for_each(|part| frame.part(part.clone()));
            written = at + mark.len();
        }
        if texts.next().is_some() {
            return Err(unplaced());
        }
        frame.copy(&json[written..]);
        frame.finish([])
    }
}

fn unplaced() -> FrameError {
    FrameError::Malformed("a large text has no single place".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(mut text: String) -> (String, usize) {
        let mut large = LargeTexts::new();
        large.take(&mut text);
        let frame = large.frame(&text).expect("fits");
        let parts: Vec<Bytes> = frame.into_parts().collect();
        let bytes = parts.concat();
        let (prefix, content) = bytes.split_at(4);
        assert_eq!(prefix, (content.len() as u32).to_le_bytes());
        (
            String::from_utf8(content.to_vec()).expect("text"),
            parts.len(),
        )
    }

    #[test]
    fn every_text_is_what_it_was() {
        for end in ["", "\"", "\\", "\n", "\u{1f}", "\u{7f}", "-", "é"] {
            for text in ["é".repeat(LARGE_TEXT) + end, end.to_owned()] {
                let (json, _) = written(text.clone());
                assert_eq!(serde_json::from_str::<String>(&json).expect("JSON"), text);
            }
        }
    }

    #[test]
    fn a_large_text_with_nothing_to_escape_is_a_separate_part() {
        assert_eq!(written("a".repeat(LARGE_TEXT)).1, 3);
        assert_eq!(written("\n".repeat(LARGE_TEXT)).1, 1);
    }

    #[test]
    fn large_texts_and_values_keep_their_order() {
        let mut texts = ["a", "b", "c"].map(|text| text.repeat(LARGE_TEXT));
        let mut value = Json::string(&"d".repeat(LARGE_TEXT));
        let expected = serde_json::to_string(&(&texts, &value)).expect("JSON");
        let mut large = LargeTexts::new();
        texts.iter_mut().for_each(|text| large.take(text));
        large.take_json(&mut value);
        let frame = large.frame(&(&texts, &value)).expect("fits");
        let bytes = frame.into_parts().collect::<Vec<_>>().concat();
        assert_eq!(&bytes[4..], expected.as_bytes());
    }

    #[test]
    fn a_message_that_loses_a_mark_is_refused() {
        let mut large = LargeTexts::new();
        large.take(&mut "a".repeat(LARGE_TEXT));
        assert!(matches!(
            large.frame(&"other"),
            Err(FrameError::Malformed(_))
        ));
    }
}
