//! Calls and notifications that a session holds for its cells.

use std::collections::{HashMap, VecDeque};

use code_mode_protocol::RuntimeToolCallId;

/// The most that a session holds for its cells together. A call beyond it fails; each cell's
/// own limits are reached before, unless many cells call at once.
const MAX: Held = Held {
    calls: 65_536,
    bytes: 1 << 30,
};

/// A number of calls and notifications, and the bytes of their inputs and texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) calls: usize,
    pub(crate) bytes: usize,
}

impl Held {
    fn one(bytes: usize) -> Self {
        Self { calls: 1, bytes }
    }

    /// Whether one more call of `bytes` fits the bounds of a session.
    pub(super) fn has_room(self, bytes: usize) -> bool {
        self.calls < MAX.calls && self.bytes.saturating_add(bytes) <= MAX.bytes
    }

    pub(super) fn add(&mut self, more: Self) {
        self.calls += more.calls;
        self.bytes += more.bytes;
    }

    pub(super) fn release(&mut self, less: Self) {
        self.calls -= less.calls;
        self.bytes -= less.bytes;
    }
}

/// The callbacks of one cell that are not finished. Every method that changes these amounts
/// returns the difference, for the books of the session.
#[derive(Default)]
pub(super) struct Callbacks {
    /// The bytes of the input of each tool call.
    calls: HashMap<RuntimeToolCallId, usize>,
    notifications: VecDeque<String>,
    /// The delegate has the first notification.
    delivering: bool,
    held: Held,
}

impl Callbacks {
    /// The amounts held for the cell.
    pub(super) fn held(&self) -> Held {
        self.held
    }

    /// Tool calls that are not finished.
    pub(super) fn calls(&self) -> usize {
        self.calls.len()
    }

    /// Whether the delegate has callbacks of the cell that it has not finished.
    pub(super) fn is_busy(&self) -> bool {
        self.delivering || !self.calls.is_empty()
    }

    /// Whether notifications are waiting or being delivered.
    pub(super) fn has_notifications(&self) -> bool {
        self.delivering || !self.notifications.is_empty()
    }

    /// Whether the delegate has this tool call.
    pub(super) fn has_call(&self, call: RuntimeToolCallId) -> bool {
        self.calls.contains_key(&call)
    }

    /// The notifications that the delegate has not finished.
    pub(super) fn notifications(&self) -> Vec<String> {
        self.notifications.iter().cloned().collect()
    }

    /// The delegate gets a tool call.
    pub(super) fn call(&mut self, call: RuntimeToolCallId, bytes: usize) -> Held {
        self.calls.insert(call, bytes);
        self.more(Held::one(bytes))
    }

    /// The delegate has finished a tool call; `None` where the cell has no such call.
    pub(super) fn finish_call(&mut self, call: RuntimeToolCallId) -> Option<Held> {
        let bytes = self.calls.remove(&call)?;
        Some(self.less(Held::one(bytes)))
    }

    /// The cell notifies.
    pub(super) fn notify(&mut self, text: String) -> Held {
        let held = Held::one(text.len());
        self.notifications.push_back(text);
        self.more(held)
    }

    /// The oldest notification, to be delivered; `None` where one is being delivered or none
    /// is left.
    pub(super) fn deliver(&mut self) -> Option<String> {
        if self.delivering {
            return None;
        }
        let text = self.notifications.front()?.clone();
        self.delivering = true;
        Some(text)
    }

    /// The delegate has taken the notification; `None` where it had none.
    pub(super) fn delivered(&mut self) -> Option<Held> {
        if !std::mem::take(&mut self.delivering) {
            return None;
        }
        let bytes = self.notifications.pop_front().map_or(0, |text| text.len());
        Some(self.less(Held::one(bytes)))
    }

    /// Drops the notifications that the delegate does not have.
    pub(super) fn drop_undelivered(&mut self) -> Held {
        let undelivered = self.notifications.split_off(usize::from(self.delivering));
        let held = Held {
            calls: undelivered.len(),
            bytes: undelivered.iter().map(String::len).sum(),
        };
        self.less(held)
    }

    fn more(&mut self, held: Held) -> Held {
        self.held.add(held);
        held
    }

    fn less(&mut self, held: Held) -> Held {
        self.held.release(held);
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_what_was_added_and_not_released() {
        let (mut session, mut cell) = (Held::default(), Callbacks::default());
        session.add(cell.call(RuntimeToolCallId(1), 10));
        for text in ["ab", "cde", "f"] {
            session.add(cell.notify(text.to_owned()));
        }
        assert_eq!(cell.deliver().as_deref(), Some("ab"));
        assert_eq!(cell.deliver(), None, "one at a time");
        session.release(cell.delivered().expect("it was being delivered"));
        assert!(cell.delivered().is_none());
        assert_eq!(cell.deliver().as_deref(), Some("cde"));
        session.release(cell.drop_undelivered());
        assert_eq!(
            session,
            Held {
                calls: 2,
                bytes: 13
            }
        );
        session.release(cell.finish_call(RuntimeToolCallId(1)).expect("a call"));
        assert!(cell.finish_call(RuntimeToolCallId(1)).is_none());
        session.release(cell.delivered().expect("the second"));
        assert_eq!(session, Held::default());
        assert_eq!(cell.held(), session);
        assert!(!cell.is_busy());
    }
}
