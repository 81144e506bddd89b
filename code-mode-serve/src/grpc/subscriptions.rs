//! Which subscription gets a tool call.

use code_mode_host::ToolName;
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

/// The most subscriptions of a session, and filters of a subscription.
pub(super) const MAX_SUBSCRIPTIONS: usize = 128;
pub(super) const MAX_FILTERS: usize = 64;

/// The namespace that counts as none.
const FUNCTIONS: &str = "functions";

/// The subscriptions of one session.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    all: Vec<Subscription>,
    last_id: u64,
    /// The subscription that got the last call.
    last_served: u64,
}

#[derive(Debug)]
struct Subscription {
    id: u64,
    filters: Vec<ToolName>,
    /// Takes the ids of calls.
    calls: UnboundedSender<Uuid>,
}

impl Subscriptions {
    /// Adds a subscription; its number, or `None` where there are too many.
    pub(super) fn add(
        &mut self,
        filters: Vec<ToolName>,
        calls: UnboundedSender<Uuid>,
    ) -> Option<u64> {
        if self.all.len() >= MAX_SUBSCRIPTIONS {
            return None;
        }
        self.last_id += 1;
        let id = self.last_id;
        self.all.push(Subscription { id, filters, calls });
        Some(id)
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.all.retain(|subscription| subscription.id != id);
    }

    /// Ends all.
    pub(super) fn clear(&mut self) {
        self.all.clear();
    }

    /// The subscription whose turn it is for this tool. Those that match take turns, in
    /// the order of their subscribing, from the one after the last that was served.
    pub(super) fn next(&mut self, tool: &ToolName) -> Option<(u64, UnboundedSender<Uuid>)> {
        let split = self.all.partition_point(|s| s.id <= self.last_served);
        let (before, after) = self.all.split_at(split);
        let chosen = after
            .iter()
            .chain(before)
            .find(|subscription| subscription.takes(tool))?;
        self.last_served = chosen.id;
        Some((chosen.id, chosen.calls.clone()))
    }
}

impl Subscription {
    fn takes(&self, tool: &ToolName) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| is_same(filter, tool))
    }
}

fn is_same(a: &ToolName, b: &ToolName) -> bool {
    let namespace = |name: &ToolName| {
        let namespace = name.namespace.clone().unwrap_or_default();
        if namespace == FUNCTIONS {
            String::new()
        } else {
            namespace
        }
    };
    a.name == b.name && namespace(a) == namespace(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str, namespace: Option<&str>) -> ToolName {
        ToolName {
            name: name.to_owned(),
            namespace: namespace.map(str::to_owned),
        }
    }

    #[test]
    fn those_that_match_take_turns_after_the_last_that_was_served() {
        let mut subscriptions = Subscriptions::default();
        let mut receivers = Vec::new();
        for filters in [vec![], vec![name("a", None)], vec![name("b", Some("x"))]] {
            let (calls, receiver) = tokio::sync::mpsc::unbounded_channel();
            receivers.push(receiver);
            subscriptions.add(filters, calls);
        }
        let mut next = |tool: ToolName| subscriptions.next(&tool).map(|(id, _)| id);
        assert_eq!(next(name("a", Some("functions"))), Some(1));
        assert_eq!(next(name("a", Some(""))), Some(2));
        assert_eq!(next(name("b", Some("x"))), Some(3));
        assert_eq!(next(name("a", None)), Some(1));
        assert_eq!(next(name("b", None)), Some(1));
    }
}
