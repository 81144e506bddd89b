//! The values that a session's cells have stored.

use std::collections::BTreeMap;

use code_mode_protocol::wire::native::ToWorker;
use code_mode_protocol::{Json, Limits};

/// How much of the values goes into one message.
const MESSAGE_BYTES: usize = 4 << 20;

/// Stored values, by their keys.
#[derive(Debug, Default)]
pub(super) struct Stored {
    values: BTreeMap<String, Json>,
    bytes: usize,
}

impl Stored {
    /// Sets a value.
    pub(super) fn set(&mut self, key: String, json: Json) {
        self.bytes += Limits::stored_value_bytes(&key, json.as_str());
        let key_bytes = key.len();
        if let Some(old) = self.values.insert(key, json) {
            let overhead = Limits::stored_value_bytes("", old.as_str());
            self.bytes -= key_bytes + overhead;
        }
    }

    /// What all values count against [`Limits::max_stored_bytes`].
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What [`bytes`](Self::bytes) would be with these writes; each counts by itself.
    pub(super) fn bytes_with(&self, writes: &[(String, Json)]) -> usize {
        writes.iter().fold(self.bytes, |bytes, (key, json)| {
            let old = self
                .values
                .get(key)
                .map_or(0, |old| Limits::stored_value_bytes(key, old.as_str()));
            (bytes + Limits::stored_value_bytes(key, json.as_str())).saturating_sub(old)
        })
    }

    /// Every value, in order of the keys.
    pub(super) fn to_vec(&self) -> Vec<(String, Json)> {
        let values = self.values.iter();
        values
            .map(|(key, json)| (key.clone(), json.clone()))
            .collect()
    }

    /// The messages that give a new worker all values.
    pub(super) fn messages(&self) -> Vec<ToWorker> {
        let parts = parts(self.to_vec()).into_iter();
        parts.map(|values| ToWorker::Store { values }).collect()
    }
}

/// Values in parts that each fit a message.
pub(super) fn parts(values: Vec<(String, Json)>) -> Vec<Vec<(String, String)>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut bytes = 0;
    for (key, json) in values {
        bytes += key.len() + json.as_str().len();
        part.push((key, json.into_string()));
        if bytes >= MESSAGE_BYTES {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_what_is_kept_now() {
        let mut stored = Stored::default();
        stored.set("key".to_owned(), Json::string("a long value"));
        stored.set("key".to_owned(), Json::null());
        stored.set("b".to_owned(), Json::null());
        assert_eq!(
            stored.bytes(),
            3 + 1 + 2 * 4 + 2 * Limits::STORED_VALUE_OVERHEAD
        );
        assert_eq!(stored.to_vec().len(), 2);
    }
}
