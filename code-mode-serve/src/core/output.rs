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
            ContentItem::Text { text } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    let Some(texts) = texts else {
        return truncate::truncate(items, tokens);
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
    if let Some(ContentItem::Text { text }) = items.first_mut() {
        text.insert_str(
            0,
            &format!(
                "Warning: truncated output (original token count: {original})\nTotal output lines: {lines}\n\n"
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use code_mode_host::CellId;

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
