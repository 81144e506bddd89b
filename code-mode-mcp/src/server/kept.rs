//! The text that a cell has put out: its answers may have shown less.

use code_mode_host::{ContentItem, truncate};

/// The most bytes of text that are kept of one cell.
const MAX_OF_CELL: usize = 7 << 20;
/// The most that are kept of a session, whose oldest is forgotten first. What searches in a large output
/// puts some out too.
pub(super) const MAX_KEPT: usize = 8 << 20;

/// The text of one cell's output, its items on lines of their own.
#[derive(Debug, Default)]
pub(super) struct Kept {
    text: String,
    /// Whether there was more than may be kept.
    is_cut: bool,
    is_forgotten: bool,
}

/// A part of a text that is kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) text: String,
    /// Where it begins and ends, and how long the whole is, in bytes.
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) whole: usize,
}

/// The text that the budget of an answer left out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Where in the kept text it begins.
    pub(super) from: usize,
    pub(super) bytes: usize,
    /// Whether the end of the output is not kept either.
    pub(super) is_cut: bool,
}

impl Kept {
    /// Keeps the text of these items, and fits the items into a budget.
    pub(super) fn keep(&mut self, items: &mut Vec<ContentItem>, tokens: u64) -> Option<LeftOut> {
        let head = truncate::budget_bytes(tokens) / 2;
        let (mut all, mut from) = (0, None);
        for text in items.iter().filter_map(truncate::text_of) {
            if !self.text.is_empty() {
                self.add("\n");
            }
            let start = self.text.len();
            if from.is_none() && all + text.len() > head {
                from = Some(start + text.floor_char_boundary(head - all));
            }
            all += text.len();
            self.add(text);
        }
        truncate::truncate(items, tokens);
        let shown = truncate::budget_bytes(tokens);
        let bytes = all.checked_sub(shown).filter(|bytes| *bytes > 0)?;
        let from = from.filter(|from| *from < self.text.len())?;
        Some(LeftOut {
            from,
            bytes,
            is_cut: self.is_cut,
        })
    }

    fn add(&mut self, text: &str) {
        if self.is_forgotten {
            return;
        }
        let room = MAX_OF_CELL - self.text.len();
        self.is_cut |= text.len() > room;
        self.text.push_str(&text[..text.floor_char_boundary(room)]);
    }

    /// Everything that is kept; `None` where it was forgotten.
    pub(super) fn text(&self) -> Option<String> {
        if self.is_forgotten {
            return None;
        }
        let mut text = self.text.clone();
        if self.is_cut {
            text.push_str(END);
        }
        Some(text)
    }

    /// The part that begins at a byte and fits into a budget. `None` where the output was forgotten.
    pub(super) fn part(&self, from: usize, tokens: u64) -> Option<Part> {
        let text = self.text()?;
        let from = text.floor_char_boundary(from);
        let most = truncate::budget_bytes(tokens).max(MIN_PART);
        let to = text.floor_char_boundary(from.saturating_add(most));
        Some(Part {
            text: text[from..to].to_owned(),
            from,
            to,
            whole: text.len(),
        })
    }

    /// How many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Drops the text, and keeps none from now on.
    pub(super) fn forget(&mut self) {
        *self = Self {
            is_forgotten: true,
            ..Self::default()
        };
    }
}

/// The end of a text of which there was more.
const END: &str = "\n(there was more: the first 7 MiB of a program's output are kept)";
/// A part is at least so long, so that pages come to an end.
const MIN_PART: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> ContentItem {
        ContentItem::text(text)
    }

    #[test]
    fn what_a_budget_leaves_out_can_be_had_from_where_it_begins() {
        let mut kept = Kept::default();
        let mut items = vec![text("12345678"), text(&"ä".repeat(1000)), text("the end")];
        let left_out = kept.keep(&mut items, 25).expect("cut");
        let whole = format!("12345678\n{}\nthe end", "ä".repeat(1000));
        assert_eq!(kept.text().as_deref(), Some(&*whole));
        assert_eq!(left_out.bytes, 8 + 2000 + 7 - 100);
        let shown = items.first().and_then(truncate::text_of).map(str::len);
        let second = items.get(1).and_then(truncate::text_of).unwrap_or_default();
        let head = second.split('…').next().unwrap_or_default();
        assert_eq!(
            Some(left_out.from),
            shown.map(|first| first + 1 + head.len())
        );
    }

    #[test]
    fn pages_make_the_whole_whatever_their_size() {
        let mut kept = Kept::default();
        let whole = "aä€😀".repeat(500);
        assert_eq!(kept.keep(&mut vec![text(&whole)], 10_000), None);
        for tokens in [0, 1, 17, 100, u64::MAX] {
            let (mut from, mut pages) = (0, String::new());
            while from < whole.len() {
                let part = kept.part(from, tokens).expect("kept");
                assert_eq!(part.from, from);
                pages.push_str(&part.text);
                from = part.to;
            }
            assert_eq!(pages, whole);
        }
        assert_eq!(
            kept.part(usize::MAX, 1).map(|part| part.text),
            Some(String::new())
        );
    }

    #[test]
    fn more_than_may_be_kept_is_cut_and_says_so() {
        let mut kept = Kept::default();
        kept.keep(&mut vec![text(&"x".repeat(MAX_OF_CELL + 5))], 10);
        kept.keep(&mut vec![text("more")], 10);
        assert_eq!(kept.bytes(), MAX_OF_CELL);
        assert!(kept.text().is_some_and(|text| text.ends_with(END)));
        kept.forget();
        kept.keep(&mut vec![text("more")], 10);
        assert_eq!(kept.part(0, 10), None);
    }
}
