//! The values that cells of a session keep.

use std::sync::Arc;

/// Stored values: key to JSON text.
///
/// Cloning is cheap and shares all values, so that a cell can start from the
/// session's values as they are at its admission and a cell that reads none of
/// them pays for none.
#[derive(Clone, Debug, Default)]
pub struct StoredValues {
    values: imbl::HashMap<Arc<str>, Arc<str>>,
    bytes: usize,
}

impl StoredValues {
    /// The JSON text under `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(AsRef::as_ref)
    }

    /// Sets the JSON text under `key`.
    pub fn set(&mut self, key: &str, json: Arc<str>) {
        self.bytes += key.len() + json.len();
        if let Some(old) = self.values.insert(Arc::from(key), json) {
            self.bytes -= key.len() + old.len();
        }
    }

    /// What [`bytes`](Self::bytes) would be with a text of `json_bytes` under
    /// `key`.
    pub fn bytes_with(&self, key: &str, json_bytes: usize) -> usize {
        match self.values.get(key) {
            Some(old) => self.bytes - old.len() + json_bytes,
            None => self.bytes + key.len() + json_bytes,
        }
    }

    /// Keys and values together, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Every key and its JSON text, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(key, json)| (&**key, &**json))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

impl FromIterator<(String, String)> for StoredValues {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(values: I) -> Self {
        let mut stored = Self::default();
        for (key, json) in values {
            stored.set(&key, json.into());
        }
        stored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_what_is_kept_now() {
        let mut stored = StoredValues::default();
        stored.set("key", "123".into());
        stored.set("key", "1".into());
        stored.set("b", "22".into());
        assert_eq!(stored.bytes(), 4 + 3);
        assert_eq!(stored.len(), 2);
    }

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut stored = StoredValues::default();
        let before = stored.clone();
        stored.set("k", "1".into());
        assert_eq!(before.get("k"), None);
        assert_eq!(stored.get("k"), Some("1"));
    }
}
