//! The large texts of a message, which travel behind its frame.
//!
//! A message is mostly small, and at times carries a text of megabytes: a source, a
//! tool's input or result, output. Such a text is taken out of its message before
//! that is encoded, follows the frame as it is, and is put back by the receiver. So
//! it is copied neither into the frame nor out of it.

use bytes::Bytes;

use super::native::JsonText;
use crate::{ContentItem, InvalidJson, Json};

/// A text of a message.
pub(crate) enum TextMut<'a> {
    Plain(&'a mut String),
    Json(&'a mut JsonText),
}

impl TextMut<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Plain(text) => text.len(),
            Self::Json(json) => json.len(),
        }
    }

    /// Takes the text out of its message. The rest is short.
    pub(crate) fn take(self) -> Bytes {
        match self {
            Self::Plain(text) => std::mem::take(text),
            Self::Json(json) => json.take(),
        }
        .into()
    }

    /// Puts a text in its place.
    pub(crate) fn put(self, text: String) -> Result<(), InvalidJson> {
        match self {
            Self::Plain(place) => *place = text,
            Self::Json(place) => *place = JsonText::Checked(Json::parse(text)?),
        }
        Ok(())
    }
}

/// A message that may hold large texts.
pub trait Texts {
    /// Shows each text that can be large, always in the same order.
    #[doc(hidden)]
    #[allow(private_interfaces, reason = "the wires alone implement and call this")]
    fn texts(&mut self, visit: &mut dyn FnMut(TextMut<'_>));
}

#[allow(private_interfaces, reason = "as in the trait")]
impl Texts for ContentItem {
    fn texts(&mut self, visit: &mut dyn FnMut(TextMut<'_>)) {
        visit(TextMut::Plain(match self {
            Self::Text { text, .. } => text,
            Self::Image { image_url, .. } => image_url,
            Self::Audio { audio_url } => audio_url,
        }));
    }
}
