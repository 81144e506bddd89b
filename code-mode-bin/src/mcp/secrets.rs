//! Values that must not leave the program.

use std::sync::{Arc, RwLock};

/// A shorter value is no secret that could be told from other text.
const SHORTEST: usize = 8;
const STAND_IN: &str = "[secret]";

/// The secrets of a configuration: what it says of environments, headers and addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets(Arc<RwLock<Vec<String>>>);

impl Secrets {
    /// Adds a value.
    pub(super) fn add(&self, value: &str) {
        let value = value.trim();
        if value.len() < SHORTEST {
            return;
        }
        let mut known = self.0.write().unwrap_or_else(|e| e.into_inner());
        if !known.iter().any(|secret| secret == value) {
            known.push(value.to_owned());
            // The longest first, so that no part of one is left beside its stand-in.
            known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        }
    }

    /// The text with a stand-in for each secret in it.
    pub(super) fn hide(&self, text: &str) -> String {
        let known = self.0.read().unwrap_or_else(|e| e.into_inner());
        let mut hidden = text.to_owned();
        for secret in known.iter() {
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
    }
}
