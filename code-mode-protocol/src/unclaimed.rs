//! Responses whose observer went away before it had them.

use std::collections::HashMap;

use crate::{CellId, CellResponse, PendingOutcome, WaitOutcome};

/// Output is lost never: what an observation returned to nobody is kept here and
/// handed to the next observation of the cell.
#[derive(Debug, Default)]
pub struct Unclaimed(HashMap<CellId, CellResponse>);

impl Unclaimed {
    /// Keeps what an observation returned for the next observer of its cell.
    pub fn keep(&mut self, outcome: PendingOutcome) {
        let response = match outcome {
            PendingOutcome::Pending {
                cell_id,
                content_items,
                ..
            } => CellResponse::Yielded {
                cell_id,
                content_items,
            },
            PendingOutcome::Observed(WaitOutcome::LiveCell(response)) => response,
            PendingOutcome::Observed(WaitOutcome::MissingCell(_)) => return,
        };
        let response = self.join_response(response);
        if response.is_final() || !response.content_items().is_empty() {
            self.0.insert(response.cell_id().clone(), response);
        }
    }

    /// The end of a cell that nobody has seen; it is the next observer's.
    pub fn take_final(&mut self, cell_id: &CellId) -> Option<CellResponse> {
        if self.0.get(cell_id)?.is_final() {
            self.0.remove(cell_id)
        } else {
            None
        }
    }

    /// Puts what was kept for the cell in front of a new observation of it. One that
    /// found no cell any more, because the end it came too late for was on its way
    /// to an observer that had gone, gets that end.
    pub fn join(&mut self, outcome: PendingOutcome) -> PendingOutcome {
        match outcome {
            PendingOutcome::Pending {
                cell_id,
                mut content_items,
                pending_tool_call_ids,
            } => {
                if let Some(mut earlier) = self.0.remove(&cell_id) {
                    let items = std::mem::take(earlier.content_items_mut());
                    content_items.splice(0..0, items);
                }
                PendingOutcome::Pending {
                    cell_id,
                    content_items,
                    pending_tool_call_ids,
                }
            }
            PendingOutcome::Observed(WaitOutcome::LiveCell(response)) => {
                PendingOutcome::Observed(WaitOutcome::LiveCell(self.join_response(response)))
            }
            PendingOutcome::Observed(WaitOutcome::MissingCell(missing)) => {
                match self.take_final(missing.cell_id()) {
                    Some(end) => PendingOutcome::live(end),
                    None => PendingOutcome::Observed(WaitOutcome::MissingCell(missing)),
                }
            }
        }
    }

    fn join_response(&mut self, mut response: CellResponse) -> CellResponse {
        if let Some(mut earlier) = self.0.remove(response.cell_id()) {
            let items = std::mem::take(earlier.content_items_mut());
            response.content_items_mut().splice(0..0, items);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ContentItem;

    fn yielded(text: &str) -> PendingOutcome {
        PendingOutcome::Observed(WaitOutcome::LiveCell(CellResponse::Yielded {
            cell_id: CellId::nth(1),
            content_items: vec![ContentItem::text(text)],
        }))
    }

    fn texts(outcome: PendingOutcome) -> Vec<ContentItem> {
        match outcome {
            PendingOutcome::Pending { content_items, .. } => content_items,
            PendingOutcome::Observed(outcome) => outcome.into_response().content_items().to_vec(),
        }
    }

    #[test]
    fn what_nobody_took_comes_first_and_once() {
        let mut unclaimed = Unclaimed::default();
        unclaimed.keep(yielded("a"));
        unclaimed.keep(yielded("b"));
        assert_eq!(unclaimed.take_final(&CellId::nth(1)), None);
        assert_eq!(
            texts(unclaimed.join(yielded("c"))),
            ["a", "b", "c"].map(ContentItem::text)
        );
        assert_eq!(
            texts(unclaimed.join(yielded("d"))),
            ["d"].map(ContentItem::text)
        );
    }

    #[test]
    fn an_end_that_nobody_saw_is_the_next_observers() {
        let mut unclaimed = Unclaimed::default();
        unclaimed.keep(yielded("a"));
        let end = CellResponse::failed(CellId::nth(1), "boom");
        unclaimed.keep(PendingOutcome::Observed(WaitOutcome::LiveCell(end)));
        let end = unclaimed.take_final(&CellId::nth(1)).expect("kept");
        assert_eq!(end.content_items(), [ContentItem::text("a")]);
        assert_eq!(unclaimed.take_final(&CellId::nth(1)), None);
    }

    #[test]
    fn an_observer_that_came_too_late_gets_the_end_that_nobody_took() {
        let mut unclaimed = Unclaimed::default();
        let missing = PendingOutcome::missing(&CellId::nth(1));
        assert_eq!(unclaimed.join(missing.clone()), missing);
        let end = PendingOutcome::live(CellResponse::failed(CellId::nth(1), "boom"));
        unclaimed.keep(end.clone());
        assert_eq!(unclaimed.join(missing.clone()), end);
        assert_eq!(unclaimed.join(missing.clone()), missing);
    }
}
