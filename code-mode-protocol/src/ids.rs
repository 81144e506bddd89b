//! Names of things that outlive one message.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of a cell within its session: `"1"`, `"2"`, ... in the order of
/// admission. No name is used twice in one session, whatever happened to its
/// process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CellId(String);

/// A cell's name is never the empty string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cell id must not be empty")]
pub struct EmptyCellId;

impl CellId {
    /// The name of the `n`-th cell of a session, counted from 1.
    pub fn nth(n: u64) -> Self {
        Self(n.to_string())
    }

    /// The name as text, as messages carry it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Which cell of its session this is, counted from 1; `None` where no cell can
    /// have the name.
    pub fn number(&self) -> Option<u64> {
        let number = self.0.parse().ok()?;
        (number > 0 && Self::nth(number) == *self).then_some(number)
    }
}

impl TryFrom<String> for CellId {
    type Error = EmptyCellId;

    fn try_from(id: String) -> Result<Self, EmptyCellId> {
        if id.is_empty() {
            return Err(EmptyCellId);
        }
        Ok(Self(id))
    }
}

impl FromStr for CellId {
    type Err = EmptyCellId;

    fn from_str(id: &str) -> Result<Self, EmptyCellId> {
        Self::try_from(id.to_owned())
    }
}

impl From<CellId> for String {
    fn from(id: CellId) -> Self {
        id.0
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

/// A text is not the place of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the place of a call is written tool-N")]
pub struct InvalidCallId;

impl FromStr for RuntimeToolCallId {
    type Err = InvalidCallId;

    fn from_str(text: &str) -> Result<Self, InvalidCallId> {
        let number = text.strip_prefix("tool-").ok_or(InvalidCallId)?;
        let id = number.parse().map(Self).map_err(|_| InvalidCallId)?;
        match id.to_string() == text {
            true => Ok(id),
            false => Err(InvalidCallId),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_that_a_session_gives_has_a_number() {
        let number = |id: &str| id.parse::<CellId>().expect("not empty").number();
        assert_eq!(number("7"), Some(7));
        for odd in ["0", "07", "+7", " 7", "7.0", "x", "99999999999999999999"] {
            assert_eq!(number(odd), None, "{odd}");
        }
        assert_eq!("".parse::<CellId>(), Err(EmptyCellId));
    }

    #[test]
    fn the_place_of_a_call_is_read_as_it_is_written() {
        let place = RuntimeToolCallId(7);
        assert_eq!(place.to_string().parse(), Ok(place));
        for odd in ["", "7", "tool-", "tool-07", "tool-+7", "tool-4294967296"] {
            assert_eq!(
                odd.parse::<RuntimeToolCallId>(),
                Err(InvalidCallId),
                "{odd}"
            );
        }
    }
}
