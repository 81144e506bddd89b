//! The values that cells of a session keep.

use std::sync::Arc;

use code_mode_protocol::Limits;

/// Stored values: key to JSON text.
///
/// Cloning is cheap and shares all values, so that a cell can start from the
/// session's values as they are at its admission and a cell that reads none of
/// them pays for none.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoredValues {
    values: imbl::HashMap<Arc<str>, Arc<str>>,
    bytes: usize,
}

impl StoredValues {
    /// The JSON text under `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&Arc<str>> {
        self.values.get(key)
    }

    /// Sets the JSON text under `key`.
    pub(crate) fn set(&mut self, key: &Arc<str>, json: Arc<str>) {
        self.bytes = self.bytes_with(key, &json);
        self.values.insert(key.clone(), json);
    }

    /// What [`bytes`](Self::bytes) would be with `json` under `key`.
    pub(crate) fn bytes_with(&self, key: &str, json: &str) -> usize {
        let old = self
            .values
            .get(key)
            .map_or(0, |old| Limits::stored_value_bytes(key, old));
        self.bytes - old + Limits::stored_value_bytes(key, json)
    }

    /// What all values count against
    /// [`Limits::max_stored_bytes`](field@Limits::max_stored_bytes).
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_what_is_kept_now() {
        let mut stored = StoredValues::default();
        stored.set(&"key".into(), "123".into());
        stored.set(&"key".into(), "1".into());
        stored.set(&"b".into(), "22".into());
        assert_eq!(stored.bytes(), 4 + 3 + 2 * Limits::STORED_VALUE_OVERHEAD);
    }

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut stored = StoredValues::default();
        let before = stored.clone();
        stored.set(&"k".into(), "1".into());
        assert_eq!(before.get("k"), None);
        assert_eq!(stored.get("k").map(AsRef::as_ref), Some("1"));
    }
}
