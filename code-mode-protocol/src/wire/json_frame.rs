//! JSON messages in frames, whose large texts are not copied.

use bytes::Bytes;
use serde::Serialize;

use super::frame::{Frame, FrameBuilder, FrameError, LARGE_TEXT};
use crate::Json;
use crate::json::is_plain;

/// A JSON message in the making. The caller writes the syntax between the values;
/// large texts become parts of the frame as they are.
pub(crate) struct JsonFrame(FrameBuilder);

impl JsonFrame {
    /// A message whose small content takes about `room` bytes.
    pub(crate) fn with_room(room: usize) -> Self {
        Self(FrameBuilder::with_room(room))
    }

    /// Adds JSON syntax as it is.
    pub(crate) fn raw(&mut self, json: &str) -> &mut Self {
        self.0.copy(json.as_bytes());
        self
    }

    /// Adds a value.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] where the value's own `Serialize` fails.
    pub(crate) fn value(
        &mut self,
        value: &(impl Serialize + ?Sized),
    ) -> Result<&mut Self, FrameError> {
        serde_json::to_writer(&mut self.0, value)
            .map_err(|error| FrameError::Malformed(error.to_string()))?;
        Ok(self)
    }

    /// Adds a string.
    pub(crate) fn text(&mut self, text: String) -> Result<&mut Self, FrameError> {
        if text.len() < LARGE_TEXT || !is_plain(&text) {
            return self.value(&text);
        }
        self.0.copy(b"\"");
        self.0.part(Bytes::from(text));
        self.0.copy(b"\"");
        Ok(self)
    }

    /// Adds a JSON value.
    pub(crate) fn json(&mut self, json: Json) -> &mut Self {
        self.0.part(Bytes::from(json.into_string()));
        self
    }

    /// The frame.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] where it does not fit its prefix.
    pub(crate) fn finish(self) -> Result<Frame, FrameError> {
        self.0.finish([])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: String) -> (String, usize) {
        let mut frame = JsonFrame::with_room(16);
        frame.text(text).expect("written");
        let parts: Vec<Bytes> = frame.finish().expect("fits").into_parts().collect();
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
    fn a_large_text_with_nothing_to_escape_is_a_part_of_its_own() {
        assert_eq!(written("a".repeat(LARGE_TEXT)).1, 3);
        assert_eq!(written("\n".repeat(LARGE_TEXT)).1, 1);
    }
}
