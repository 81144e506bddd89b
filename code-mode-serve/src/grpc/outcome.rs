//! Responses of cells as messages.

use std::time::{Duration, Instant};

use code_mode_host::{CellResponse, ContentItem, ImageDetail};

use super::wire;
use super::wire::content_item::Item;
use super::wire::execution_outcome::Outcome;
use crate::core::{Budget, Encoding};

/// The largest message, in bytes.
pub const MAX_MESSAGE: usize = 64 << 20;

/// How a request wants its output, and since when it waits for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timed {
    pub(super) budget: Budget,
    pub(super) received: Instant,
}

/// The response of a cell as a message, and how long a result had lain ready.
pub(super) fn outcome(
    mut response: CellResponse,
    timed: Timed,
) -> (wire::ExecutionOutcome, Option<Duration>) {
    timed
        .budget
        .apply(&mut response, MAX_MESSAGE, Encoding::Plain);
    let cell_id = response.cell_id().to_string();
    let (items, outcome, buffered_for) = match response {
        CellResponse::Yielded { content_items, .. }
        | CellResponse::Pending { content_items, .. } => (
            content_items,
            Outcome::Yielded(wire::ExecutionYielded {}),
            None,
        ),
        CellResponse::Terminated { content_items, .. } => (
            content_items,
            Outcome::Terminated(wire::ExecutionTerminated {}),
            None,
        ),
        CellResponse::Result {
            content_items,
            error_text,
            buffered_for,
            ..
        } => (
            content_items,
            Outcome::Completed(wire::ExecutionCompleted { error_text }),
            Some(buffered_for),
        ),
    };
    let taken = timed.received.elapsed().as_nanos();
    let message = wire::ExecutionOutcome {
        cell_id,
        content_items: items.into_iter().map(item).collect(),
        outcome: Some(outcome),
        code_mode_host_duration_ns: u64::try_from(taken).unwrap_or(u64::MAX),
    };
    (message, buffered_for)
}

fn item(item: ContentItem) -> wire::ContentItem {
    let item = match item {
        ContentItem::Text { text, .. } => Item::Text(wire::TextContent { text }),
        ContentItem::Image { image_url, detail } => {
            let detail = match detail {
                ImageDetail::Auto => wire::ImageDetail::Auto,
                ImageDetail::Low => wire::ImageDetail::Low,
                ImageDetail::High => wire::ImageDetail::High,
                ImageDetail::Original => wire::ImageDetail::Original,
            };
            Item::Image(wire::ImageContent {
                image_url,
                detail: Some(detail.into()),
            })
        }
        ContentItem::Audio { audio_url } => Item::Audio(wire::AudioContent { audio_url }),
    };
    wire::ContentItem { item: Some(item) }
}
