//! Output that does not fit a message of a wire.
//!
//! A session's output is bounded, but a user may raise that bound, and JSON writes a
//! control character in six bytes. Longer output is cut, and says so.

use code_mode_host::{CellResponse, ContentItem};

/// Room for everything but the items and the error text.
const ENVELOPE: usize = 64 << 10;

/// What an item takes beyond its text.
const ITEM: usize = 96;

/// The most that one byte of text becomes in JSON.
const WORST: usize = 6;

/// How a wire writes text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// As a string of JSON.
    Json,
    /// As it is.
    Plain,
}

impl Encoding {
    fn worst(self) -> usize {
        match self {
            Self::Json => WORST,
            Self::Plain => 1,
        }
    }

    fn bytes(self, character: char) -> usize {
        match (self, character) {
            (Self::Json, '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}') => 2,
            (Self::Json, '\0'..='\u{1f}') => WORST,
            _ => character.len_utf8(),
        }
    }
}

/// Cuts the items of a response that does not fit a message of `max` bytes.
pub(super) fn fit(response: &mut CellResponse, max: usize, encoding: Encoding) {
    let error = match response {
        CellResponse::Result {
            error_text: Some(text),
            ..
        } => text.len(),
        _ => 0,
    };
    let raw: usize = response
        .content_items()
        .iter()
        .map(|i| i.bytes() + ITEM)
        .sum();
    let worst = encoding.worst();
    if (raw + error).saturating_mul(worst) + ENVELOPE <= max {
        return;
    }
    let room = max.saturating_sub(ENVELOPE + error * worst);
    let left_out = cut(response.content_items_mut(), room, encoding);
    if left_out > 0 {
        response.content_items_mut().push(ContentItem::text(format!(
            "[{left_out} bytes of output left out: they do not fit a message of {max} bytes]"
        )));
    }
}

/// Cuts items to so many bytes of a message; how many bytes of them were left out.
fn cut(items: &mut Vec<ContentItem>, mut room: usize, encoding: Encoding) -> usize {
    let mut kept = 0;
    let mut left_out = 0;
    for item in items.iter_mut() {
        let text = match item {
            ContentItem::Text { text, .. } => text,
            ContentItem::Image { image_url, .. } => image_url,
            ContentItem::Audio { audio_url } => audio_url,
        };
        let (fitting, bytes) = prefix(text, room.saturating_sub(ITEM), encoding);
        if fitting == text.len() && room >= ITEM {
            room -= bytes + ITEM;
            kept += 1;
            continue;
        }
        if matches!(item, ContentItem::Text { .. }) && fitting > 0 {
            if let ContentItem::Text { text, .. } = item {
                left_out += text.len() - fitting;
                text.truncate(fitting);
            }
            kept += 1;
        }
        break;
    }
    left_out += items[kept..].iter().map(ContentItem::bytes).sum::<usize>();
    items.truncate(kept);
    left_out
}

/// How much of a text fits so many bytes of a message, and how many it takes there.
fn prefix(text: &str, room: usize, encoding: Encoding) -> (usize, usize) {
    let mut taken = 0;
    for (at, character) in text.char_indices() {
        let bytes = encoding.bytes(character);
        if taken + bytes > room {
            return (at, taken);
        }
        taken += bytes;
    }
    (text.len(), taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_kept_and_the_rest_is_said() {
        let control = "\u{1}".repeat(100);
        let mut items = vec![
            ContentItem::text("first"),
            ContentItem::text(control.clone()),
        ];
        let left_out = cut(&mut items, 2 * ITEM + 5 + 60, Encoding::Json);
        assert_eq!(items[0], ContentItem::text("first"));
        assert_eq!(items[1], ContentItem::text("\u{1}".repeat(10)));
        assert_eq!(left_out, 90);
        for (room, encoding) in [(600, Encoding::Json), (100, Encoding::Plain)] {
            let mut items = vec![ContentItem::text(control.clone())];
            assert_eq!(cut(&mut items, ITEM + room, encoding), 0);
            assert_eq!(items.len(), 1);
        }
    }

    #[test]
    fn the_length_in_json_is_what_serde_writes() {
        for text in ["plain", "\"\\\n\t\u{1}\u{7f}é", "", "\u{8}\u{c}\r"] {
            let written = serde_json::to_string(text).expect("text").len() - 2;
            assert_eq!(
                prefix(text, usize::MAX, Encoding::Json),
                (text.len(), written),
                "{text:?}"
            );
        }
    }
}
