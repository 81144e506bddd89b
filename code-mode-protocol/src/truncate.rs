//! Fitting a cell's output into a budget of tokens.
//!
//! A token is taken as four bytes of UTF-8. Text is cut in the middle: what a
//! program prints first and last tells most. Images and sounds are never cut
//! and do not count.

use crate::ContentItem;

const BYTES_PER_TOKEN: u64 = 4;

/// Cuts the text of `items` to about `max_output_tokens`.
///
/// Where all text fits, nothing changes. Otherwise the text items together keep
/// a head and a tail of half the budget each; the item or items in between say
/// how much was left out, and items that have nothing left vanish.
pub fn truncate(items: &mut Vec<ContentItem>, max_output_tokens: u64) {
    let budget = budget_bytes(max_output_tokens);
    let total: usize = items.iter().filter_map(text_of).map(str::len).sum();
    if total <= budget {
        return;
    }
    let head_end = budget / 2;
    let tail_start = total - (budget - head_end);
    let mut at = 0;
    let mut marked = false;
    items.retain_mut(|item| {
        let ContentItem::Text { text, .. } = item else {
            return true;
        };
        let (start, end) = (at, at + text.len());
        at = end;
        if end <= head_end || start >= tail_start {
            return true;
        }
        let head = floor_boundary(text, head_end.saturating_sub(start));
        let tail = ceil_boundary(text, tail_start.saturating_sub(start).min(text.len()));
        let mut kept = text[..head].to_owned();
        if !marked {
            marked = true;
            let omitted = (total - budget).div_ceil(BYTES_PER_TOKEN as usize);
            kept.push_str(&format!("…{omitted} tokens truncated…"));
        }
        kept.push_str(&text[tail..]);
        *text = kept;
        !text.is_empty()
    });
}

/// How many bytes of text a budget has room for.
pub fn budget_bytes(tokens: u64) -> usize {
    usize::try_from(tokens.saturating_mul(BYTES_PER_TOKEN)).unwrap_or(usize::MAX)
}

/// The text of an item that is one.
pub fn text_of(item: &ContentItem) -> Option<&str> {
    match item {
        ContentItem::Text { text, .. } => Some(text),
        _ => None,
    }
}

fn floor_boundary(text: &str, mut at: usize) -> usize {
    at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn ceil_boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(items: &[ContentItem]) -> Vec<&str> {
        items.iter().filter_map(text_of).collect()
    }

    #[test]
    fn output_within_the_budget_is_left_alone() {
        let mut items = vec![ContentItem::text("12345678"), ContentItem::text("")];
        truncate(&mut items, 2);
        assert_eq!(texts(&items), ["12345678", ""]);
    }

    #[test]
    fn a_long_text_keeps_head_and_tail_and_says_how_much_went() {
        let mut items = vec![ContentItem::text(format!("head{}tail", "-".repeat(400)))];
        truncate(&mut items, 2);
        assert_eq!(texts(&items), ["head…100 tokens truncated…tail"]);
    }

    #[test]
    fn items_wholly_in_the_cut_vanish_and_the_mark_stands_once() {
        let mut items: Vec<_> = (0..10)
            .map(|i| ContentItem::text(i.to_string().repeat(4)))
            .collect();
        truncate(&mut items, 2);
        assert_eq!(texts(&items), ["0000", "…8 tokens truncated…", "9999"]);
    }

    #[test]
    fn images_are_never_cut() {
        let image = ContentItem::Image {
            image_url: "data:image/png;base64,AAAA".repeat(10),
            detail: crate::ImageDetail::High,
        };
        let mut items = vec![image.clone(), ContentItem::text("x".repeat(100))];
        truncate(&mut items, 0);
        assert_eq!(items[0], image);
        assert_eq!(texts(&items), ["…25 tokens truncated…"]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_and_budget_stay_valid_and_about_within_it(
            texts_in in proptest::collection::vec("\\PC{0,30}", 0..8), tokens in 0u64..40
        ) {
            let mut items: Vec<_> = texts_in.iter().map(ContentItem::text).collect();
            truncate(&mut items, tokens);
            let length: usize = texts(&items).iter().map(|t| t.len()).sum();
            proptest::prop_assert!(length <= tokens as usize * 4 + "…1234567 tokens truncated…".len());
        }
    }
}
