//! Results that nobody has taken yet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use code_mode_protocol::{CellId, CellResponse, Limits};

use super::number::CellNumber;

/// How many dropped results are remembered as dropped, for a better error.
const REMEMBERED: usize = 65_536;

/// What an item of output counts beyond its bytes.
pub(super) const ITEM_OVERHEAD: usize = 64;

/// Results of ended cells that wait for an observer.
#[derive(Debug, Default)]
pub(super) struct Ended {
    results: BTreeMap<CellNumber, Kept>,
    /// The cells above, in the order in which they were kept.
    order: VecDeque<CellNumber>,
    bytes: usize,
    dropped: BTreeSet<CellNumber>,
}

#[derive(Debug)]
struct Kept {
    response: CellResponse,
    at: Instant,
    bytes: usize,
    /// Its closing was reported already.
    closed: bool,
}

/// What a response counts against [`Limits::max_ended_bytes`].
fn bytes_of(response: &CellResponse) -> usize {
    let items = response.content_items().iter();
    let items: usize = items.map(|item| item.bytes() + ITEM_OVERHEAD).sum();
    match response {
        CellResponse::Result {
            error_text: Some(text),
            ..
        } => items + text.len(),
        _ => items,
    }
}

impl Ended {
    /// Keeps a cell's result. Returns the cells whose results had to make room and
    /// that must be closed now.
    pub(super) fn keep(
        &mut self,
        cell: CellNumber,
        response: CellResponse,
        (at, closed): (Instant, bool),
        limits: &Limits,
    ) -> Vec<CellNumber> {
        let bytes = bytes_of(&response);
        self.bytes += bytes;
        self.order.push_back(cell);
        self.results.insert(
            cell,
            Kept {
                response,
                at,
                bytes,
                closed,
            },
        );
        let mut to_close = Vec::new();
        while self.results.len() > limits.max_ended_cells || self.bytes > limits.max_ended_bytes {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if let Some((_, _, closed)) = self.remove(oldest) {
                self.dropped.insert(oldest);
                if !closed {
                    to_close.push(oldest);
                }
            }
        }
        while self.dropped.len() > REMEMBERED {
            self.dropped.pop_first();
        }
        to_close
    }

    /// The cells whose results are kept.
    pub(super) fn cells(&self) -> impl Iterator<Item = CellNumber> {
        self.results.keys().copied()
    }

    /// Puts output in front of a kept result's; `false` without a kept result.
    pub(super) fn put_back(&mut self, cell: CellNumber, response: &mut CellResponse) -> bool {
        let Some(kept) = self.results.get_mut(&cell) else {
            return false;
        };
        let items = std::mem::take(response.content_items_mut());
        kept.response.content_items_mut().splice(0..0, items);
        self.bytes -= kept.bytes;
        kept.bytes = bytes_of(&kept.response);
        self.bytes += kept.bytes;
        true
    }

    /// Takes a cell's result, and whether its closing was reported already.
    pub(super) fn take(&mut self, cell: CellNumber, now: Instant) -> Option<(CellResponse, bool)> {
        let (mut response, at, closed) = self.remove(cell)?;
        self.order.retain(|kept| *kept != cell);
        if let CellResponse::Result { buffered_for, .. } = &mut response {
            *buffered_for = now.saturating_duration_since(at);
        }
        Some((response, closed))
    }

    fn remove(&mut self, cell: CellNumber) -> Option<(CellResponse, Instant, bool)> {
        let kept = self.results.remove(&cell)?;
        self.bytes -= kept.bytes;
        Some((kept.response, kept.at, kept.closed))
    }

    /// Takes nothing more; returns the cells that must be closed.
    pub(super) fn clear(&mut self) -> Vec<CellNumber> {
        let results = std::mem::take(&mut self.results);
        self.order.clear();
        self.bytes = 0;
        results
            .into_iter()
            .filter(|(_, kept)| !kept.closed)
            .map(|(cell, _)| cell)
            .collect()
    }

    /// The outcome for a cell that is not there, or no longer.
    pub(super) fn missing(&self, cell_id: &CellId, limits: &Limits) -> CellResponse {
        let is_dropped = CellNumber::of(cell_id).is_some_and(|n| self.dropped.contains(&n));
        if !is_dropped {
            return CellResponse::missing(cell_id);
        }
        let error = format!(
            "{}: its result was dropped, because nobody took it and at most {} results or {} bytes are kept",
            code_mode_protocol::cell_not_found(cell_id),
            limits.max_ended_cells,
            limits.max_ended_bytes
        );
        CellResponse::missing_because(cell_id.clone(), error)
    }
}

#[cfg(test)]
mod tests {
    use code_mode_protocol::ContentItem;

    use super::*;

    fn number(n: u64) -> CellNumber {
        CellNumber::of_wire(n).expect("not 0")
    }

    fn result(n: u64) -> CellResponse {
        let mut response = CellResponse::missing_because(CellId::nth(n), "x");
        response
            .content_items_mut()
            .push(ContentItem::text("0123456789"));
        response
    }

    #[test]
    fn past_its_bounds_the_oldest_result_is_dropped_and_said_to_be() {
        let now = Instant::now();
        let limits = Limits::default().max_ended_cells(2);
        let mut ended = Ended::default();
        assert_eq!(ended.keep(number(1), result(1), (now, false), &limits), []);
        assert_eq!(ended.keep(number(2), result(2), (now, false), &limits), []);
        assert_eq!(
            ended.keep(number(3), result(3), (now, false), &limits),
            [number(1)]
        );
        let by_bytes = Limits::default().max_ended_bytes(2 * (10 + ITEM_OVERHEAD + 1));
        assert_eq!(
            ended.keep(number(4), result(4), (now, false), &by_bytes),
            [number(2)]
        );
        assert!(ended.take(number(1), now).is_none());
        let missing = ended.missing(&CellId::nth(1), &limits);
        assert!(format!("{missing:?}").contains("its result was dropped"));
        assert_eq!(
            ended.missing(&CellId::nth(9), &limits),
            CellResponse::missing(&CellId::nth(9))
        );
        assert!(ended.take(number(3), now).is_some());
        assert!(ended.take(number(3), now).is_none());
    }

    #[test]
    fn a_cell_that_was_closed_is_not_closed_again() {
        let now = Instant::now();
        let limits = Limits::default().max_ended_cells(1);
        let mut ended = Ended::default();
        ended.keep(number(1), result(1), (now, true), &limits);
        assert_eq!(ended.keep(number(2), result(2), (now, false), &limits), []);
        assert_eq!(ended.clear(), [number(2)]);
    }
}
