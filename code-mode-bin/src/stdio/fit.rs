//! Output that does not fit a frame of the wire.
//!
//! A session's output is bounded, but JSON writes a control character in six bytes.
//! What does not fit is cut, and the output says so.

use code_mode_host::{CellResponse, ContentItem};
use code_mode_protocol::wire::stdio::MAX_FRAME_BYTES;

/// Room for everything but the items and the error text.
const ENVELOPE: usize = 64 << 10;

/// What an item takes beyond its text.
const ITEM: usize = 96;

/// The most that one byte of text becomes in JSON.
const WORST: usize = 6;

/// Cuts the items of a response that does not fit a frame.
pub(super) fn fit(response: &mut CellResponse) {
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
    if (raw + error).saturating_mul(WORST) + ENVELOPE <= MAX_FRAME_BYTES {
        return;
    }
    let room = MAX_FRAME_BYTES - ENVELOPE - error * WORST;
    cut(response.content_items_mut(), room);
}

fn cut(items: &mut Vec<ContentItem>, mut room: usize) {
    let mut kept = 0;
    let mut left_out = 0;
    for item in items.iter_mut() {
        let text = match item {
            ContentItem::Text { text } => text,
            ContentItem::Image { image_url, .. } => image_url,
            ContentItem::Audio { audio_url } => audio_url,
        };
        let (fitting, bytes) = prefix(text, room.saturating_sub(ITEM));
        if fitting == text.len() && room >= ITEM {
            room -= bytes + ITEM;
            kept += 1;
            continue;
        }
        if matches!(item, ContentItem::Text { .. }) && fitting > 0 {
            if let ContentItem::Text { text } = item {
                left_out += text.len() - fitting;
                text.truncate(fitting);
            }
            kept += 1;
        }
        break;
    }
    left_out += items[kept..].iter().map(ContentItem::bytes).sum::<usize>();
    items.truncate(kept);
    if left_out > 0 {
        items.push(ContentItem::text(format!(
            "[{left_out} bytes of output left out: they do not fit a message of {MAX_FRAME_BYTES} bytes]"
        )));
    }
}

/// How much of a text fits so many bytes of JSON, and how many it takes there.
fn prefix(text: &str, room: usize) -> (usize, usize) {
    let mut taken = 0;
    for (at, character) in text.char_indices() {
        let bytes = match character {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            '\0'..='\u{1f}' => WORST,
            other => other.len_utf8(),
        };
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
        cut(&mut items, 2 * ITEM + 5 + 60);
        assert_eq!(items[0], ContentItem::text("first"));
        assert_eq!(items[1], ContentItem::text("\u{1}".repeat(10)));
        assert!(matches!(&items[2], ContentItem::Text { text } if text.starts_with("[90 bytes")));
        let mut items = vec![ContentItem::text(control)];
        cut(&mut items, ITEM + 600);
        assert_eq!(items.len(), 1);
    }

    #[test]
    fn the_length_in_json_is_what_serde_writes() {
        for text in ["plain", "\"\\\n\t\u{1}\u{7f}é", "", "\u{8}\u{c}\r"] {
            let written = serde_json::to_string(text).expect("text").len() - 2;
            assert_eq!(prefix(text, usize::MAX), (text.len(), written), "{text:?}");
        }
    }
}
