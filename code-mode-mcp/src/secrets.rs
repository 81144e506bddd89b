//! Values that must not leave the program.

use std::collections::VecDeque;
use std::sync::{Arc, RwLock};

use serde_json::Value;

/// A shorter value cannot be distinguished from other text.
const SHORTEST: usize = 8;
const STAND_IN: &str = "[secret]";

/// The secrets of a configuration: what it says of environments, headers and addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Secrets {
    lasting: Arc<RwLock<Vec<String>>>,
    passing: Arc<RwLock<VecDeque<String>>>,
}

/// Secrets that are replaced from time to time: so many are hidden.
const MAX_PASSING: usize = 256;
const SHORTEST_PASSING: usize = 16;

impl Secrets {
    /// Adds a secret that will be replaced, such as the token of a login. The oldest makes room. A server
    /// chose it: a short one is not hidden, because it may be a word that other texts have.
    pub(crate) fn add_passing(&self, value: &str) {
        if value.len() < SHORTEST_PASSING {
            return;
        }
        let mut known = self.passing.write().unwrap_or_else(|e| e.into_inner());
        if !known.iter().any(|secret| secret == value) {
            known.push_back(value.to_owned());
            if known.len() > MAX_PASSING {
                known.pop_front();
            }
        }
    }

    /// Adds a value: in the forms in which texts may have it, by its lines, and without
    /// the scheme of a header.
    pub(crate) fn add(&self, value: &str) {
        let words = value.split_once(' ').map(|(_, rest)| rest);
        let lines = value.lines().filter(|_| value.contains('\n'));
        for part in [value].into_iter().chain(words).chain(lines) {
            let json = serde_json::Value::from(part).to_string();
            let escaped = &json[1..json.len() - 1];
            let encoded: String = url::form_urlencoded::byte_serialize(part.as_bytes()).collect();
            for form in [part, escaped, &encoded] {
                self.add_form(form);
            }
        }
    }

    fn add_form(&self, value: &str) {
        let value = value.trim();
        if value.len() < SHORTEST {
            return;
        }
        let mut known = self.lasting.write().unwrap_or_else(|e| e.into_inner());
        if !known.iter().any(|secret| secret == value) {
            known.push(value.to_owned());
            // The longest first, so that no part of one is left beside its stand-in.
            known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        }
    }

    /// The value with every text and every key in it hidden.
    pub(crate) fn hide_json(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.hide(text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.hide_json(value)),
            Value::Object(object) => {
                object.values_mut().for_each(|value| self.hide_json(value));
                if object.keys().any(|key| self.hide(key) != *key) {
                    *object = std::mem::take(object)
                        .into_iter()
                        .map(|(key, value)| (self.hide(&key), value))
                        .collect();
                }
            }
            _ => {}
        }
    }

    /// The text with a stand-in for each secret in it.
    pub(crate) fn hide(&self, text: &str) -> String {
        let known = self.lasting.read().unwrap_or_else(|e| e.into_inner());
        let passing = self.passing.read().unwrap_or_else(|e| e.into_inner());
        let mut hidden = text.to_owned();
        for secret in passing.iter().chain(known.iter()) {
            if hidden.contains(secret.as_str()) {
                hidden = hidden.replace(secret.as_str(), STAND_IN);
            }
        }
        hidden
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_short_values_are_not() {
        let secrets = Secrets::default();
        for value in ["token-123", "token-123-long", "dev"] {
            secrets.add(value);
        }
        assert_eq!(
            secrets.hide("dev token-123-long token-123"),
            "dev [secret] [secret]"
        );
        secrets.add("Bearer abcdefghij");
        secrets.add("line-one-secret\nline two \"secret\"");
        assert_eq!(secrets.hide("abcdefghij"), "[secret]");
        assert_eq!(secrets.hide("x line-one-secret"), "x [secret]");
        assert_eq!(secrets.hide(r#"line two \"secret\""#), "[secret]");
        let mut value = serde_json::json!({"a": ["token-123"]});
        secrets.hide_json(&mut value);
        assert_eq!(value, serde_json::json!({"a": ["[secret]"]}));
        let mut keyed = serde_json::json!({"of token-123": {"b": 1}});
        secrets.hide_json(&mut keyed);
        assert_eq!(keyed, serde_json::json!({"of [secret]": {"b": 1}}));
    }
}
