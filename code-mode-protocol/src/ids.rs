//! Names of things that outlive one message.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of a cell within its session: `"1"`, `"2"`, ... in the order of
/// admission, never used twice in one session, whatever happened to its process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CellId(String);

impl CellId {
    /// The name of the `n`-th cell of a session, counted from 1.
    pub fn nth(n: u64) -> Self {
        Self(n.to_string())
    }

    /// The name as text, as it stands in messages.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: Into<String>> From<T> for CellId {
    fn from(id: T) -> Self {
        Self(id.into())
    }
}

impl fmt::Display for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The place of a tool call within its cell, counted from 1; written `tool-1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuntimeToolCallId(pub u32);

impl fmt::Display for RuntimeToolCallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tool-{}", self.0)
    }
}
