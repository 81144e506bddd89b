//! How output is cut to what a client asked for, and to what a message holds.

use code_mode_host::{CellResponse, ContentItem, truncate};

use super::fit::{Encoding, fit};

/// The budget where a request names none.
const DEFAULT_TOKENS: u64 = 10_000;
const BYTES_PER_TOKEN: usize = 4;

/// The side that cuts the output of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TruncatedBy {
    /// The client.
    #[default]
    Client,
    /// This program, in the form a model reads: a script's error is part of the output,
    /// and output of text alone that is cut becomes one text that says so first.
    Server,
}

/// How much output the response to a request may have.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Budget {
    pub(crate) by: TruncatedBy,
    /// In tokens; `None` where the request names no budget.
    pub(crate) tokens: Option<u64>,
}

impl Budget {
    /// Cuts a response to its budget and to a message of `max` bytes.
    pub(crate) fn apply(self, response: &mut CellResponse, max: usize, encoding: Encoding) {
        if self.by == TruncatedBy::Server {
            present(response, self.tokens.unwrap_or(DEFAULT_TOKENS));
        }
        fit(response, max, encoding);
    }
}

fn present(response: &mut CellResponse, tokens: u64) {
    let error = match response {
        CellResponse::Result { error_text, .. } => error_text.clone(),
        _ => None,
    };
    let items = response.content_items_mut();
    if let Some(error) = error {
        items.push(ContentItem::text(format!("Script error:\n{error}")));
    }
    let texts: Option<Vec<&str>> = items
        .iter()
        .map(|item| match item {
            ContentItem::Text { text, .. } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    let Some(texts) = texts else {
        return present_mixed(items, tokens);
    };
    let joined = texts.join("\n");
    let budget = usize::try_from(tokens).unwrap_or(usize::MAX);
    if joined.len() <= budget.saturating_mul(BYTES_PER_TOKEN) {
        return;
    }
    let original = joined.len().div_ceil(BYTES_PER_TOKEN);
    let lines = joined.lines().count();
    *items = vec![ContentItem::text(joined)];
    truncate::truncate(items, tokens);
    if let Some(ContentItem::Text { text, .. }) = items.first_mut() {
        text.insert_str(
            0,
            &format!(
                "Warning: truncated output (original token count: {original})\nTotal output lines: {lines}\n\n"
            ),
        );
    }
}

/// Cuts texts that have other items between them: the first that exceeds the rest of the budget is
/// cut by itself, and a line at the end counts the texts behind it.
fn present_mixed(items: &mut Vec<ContentItem>, tokens: u64) {
    let mut remaining = tokens;
    let mut omitted = 0;
    items.retain_mut(|item| {
        let ContentItem::Text { text, .. } = item else {
            return true;
        };
        if remaining == 0 {
            omitted += 1;
            return false;
        }
        let cost = text.len().div_ceil(BYTES_PER_TOKEN) as u64;
        if cost > remaining {
            let mut cut = vec![ContentItem::text(std::mem::take(text))];
            truncate::truncate(&mut cut, remaining);
            if let Some(ContentItem::Text { text: cut, .. }) = cut.pop() {
                *text = cut;
            }
        }
        remaining = remaining.saturating_sub(cost);
        true
    });
    if omitted > 0 {
        items.push(ContentItem::text(format!(
            "[omitted {omitted} text items ...]"
        )));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use code_mode_host::CellId;

    #[test]
    fn beside_an_image_each_text_is_cut_by_itself_and_later_ones_are_counted() {
        let image = ContentItem::Image {
            image_url: "data:image/png;base64,AAAA".to_owned(),
            detail: code_mode_host::ImageDetail::High,
        };
        let text = |letter: &str| ContentItem::text(letter.repeat(40));
        let mut items = vec![text("a"), image.clone(), text("b"), text("c"), text("d")];
        present_mixed(&mut items, 12);
        let cut = ContentItem::text("bbbb…8 tokens truncated…bbbb");
        let counted = ContentItem::text("[omitted 2 text items ...]");
        assert_eq!(items, [text("a"), image, cut, counted]);
    }

    #[test]
    fn an_error_is_part_of_the_output_and_what_is_cut_says_so_first() {
        let mut response =
            CellResponse::missing_because(CellId::nth(1), "Error: boom\n    at exec_main.mjs:1:17");
        response.content_items_mut().push(ContentItem::text("a"));
        present(&mut response, 3);
        assert_eq!(
            response.content_items(),
            [ContentItem::text(
                "Warning: truncated output (original token count: 14)\nTotal output lines: 4\n\na\nScri…11 tokens truncated…s:1:17"
            )]
        );
    }
}
