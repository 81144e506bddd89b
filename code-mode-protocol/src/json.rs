//! JSON that stays text.

use std::fmt;

use serde::de::{self, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::gather::LARGE;

/// One JSON value as validated text.
///
/// A tool's input and result and a stored value are produced and consumed by
/// `JSON.stringify` and `JSON.parse` inside V8; in between they travel as this
/// type and are never turned into a tree. In a human-readable format it
/// (de)serialises as the value itself, elsewhere as a string; both ways the text
/// is checked on the way in.
#[derive(Clone)]
pub struct Json(Box<RawValue>);

/// The text handed to [`Json::parse`] is not one JSON value.
#[derive(Debug, thiserror::Error)]
#[error("not valid JSON: {0}")]
pub struct InvalidJson(#[from] serde_json::Error);

impl Json {
    /// Takes text that must be exactly one JSON value.
    ///
    /// # Errors
    /// [`InvalidJson`] where it is not, with the place of the first mistake.
    pub fn parse(text: String) -> Result<Self, InvalidJson> {
        if is_json_in_short(&text) {
            // SAFETY: it is one JSON value and neither begins nor ends with white space,
            // by what `is_json_in_short` promises.
            return Ok(Self(unsafe { RawValue::from_string_unchecked(text) }));
        }
        Ok(Self(RawValue::from_string(text)?))
    }

    /// Writes any serialisable value as JSON text.
    ///
    /// # Errors
    /// [`InvalidJson`] where the value's own `Serialize` fails, or it has a map
    /// whose keys are not strings.
    pub fn from_value<T: Serialize + ?Sized>(value: &T) -> Result<Self, InvalidJson> {
        Ok(Self(serde_json::value::to_raw_value(value)?))
    }

    /// The value `null`.
    pub fn null() -> Self {
        Self(RawValue::NULL.to_owned())
    }

    /// A JSON string of this text.
    pub fn string(text: &str) -> Self {
        Self::from_value(text).unwrap_or_else(|_| Self::null())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// The text, without a copy.
    pub fn into_string(self) -> String {
        Box::<str>::from(self.0).into_string()
    }

    /// Reads the value into a Rust type.
    ///
    /// # Errors
    /// [`InvalidJson`] where the value does not have the shape of `T`.
    pub fn to<'a, T: Deserialize<'a>>(&'a self) -> Result<T, InvalidJson> {
        Ok(serde_json::from_str(self.as_str())?)
    }
}

impl PartialEq for Json {
    /// Equal text; `1` and `1.0` differ.
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Json {}

/// Prints the length only, so that a log line never shows a user's data.
impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.as_str().len())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            self.0.serialize(serializer)
        } else {
            serializer.serialize_str(self.as_str())
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            Box::<RawValue>::deserialize(deserializer).map(Self)
        } else {
            let text = String::deserialize(deserializer)?;
            Self::parse(text).map_err(de::Error::custom)
        }
    }
}

/// What is looked at in one go for what must be escaped.
const PIECE: usize = 4 << 10;

/// Whether a large text is one JSON value without white space around it. `false`
/// where it is not, or where looking at it in short does not tell.
///
/// Most of such a text is in strings, of which nothing is escaped. So a text is made
/// that has one character for each piece without quotes, backslashes and control
/// characters: one that JSON knows in strings only, and not after a backslash. Where
/// that text is JSON, each piece was inside of a string, had nothing that ends one or
/// begins an escape, and completed none; so the whole is JSON too.
fn is_json_in_short(text: &str) -> bool {
    if text.len() < LARGE || text.starts_with(is_space) || text.ends_with(is_space) {
        return false;
    }
    let mut short = Vec::new();
    for piece in text.as_bytes().chunks(PIECE) {
        if is_plain_piece(piece) {
            short.push(b'~');
        } else {
            short.extend_from_slice(piece);
        }
    }
    serde_json::from_slice::<IgnoredAny>(&short).is_ok()
}

fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r')
}

fn is_plain_piece(piece: &[u8]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { is_plain_piece_avx2(piece) };
    }
    has_nothing_to_escape(piece)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn is_plain_piece_avx2(piece: &[u8]) -> bool {
    has_nothing_to_escape(piece)
}

#[inline(always)]
fn has_nothing_to_escape(piece: &[u8]) -> bool {
    // Without a way out of the middle, the compiler looks at many bytes at a time.
    !piece.iter().fold(false, |found, byte| {
        found | (*byte < b' ') | (*byte == b'"') | (*byte == b'\\')
    })
}

/// Whether JSON has a text between quotes as it is: nothing of it is escaped.
pub(crate) fn is_plain(text: &str) -> bool {
    text.as_bytes().chunks(PIECE).all(is_plain_piece)
}

/// Appends a text as JSON has it between quotes, escaped as `JSON.stringify` does.
pub fn push_escaped(json: &mut String, text: &str) {
    if is_plain(text) {
        json.push_str(text);
    } else {
        let quoted = serde_json::Value::from(text).to_string();
        json.push_str(quoted.get(1..quoted.len() - 1).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_text_in_quotes_is_known_to_be_json_in_short() {
        let text = "é".repeat(LARGE);
        assert!(is_json_in_short(&format!("{{\"a\":\"{text}\\n{text}\"}}")));
    }

    #[test]
    fn what_is_outside_of_quotes_or_ends_an_escape_is_not_taken_for_a_part_of_a_string() {
        let piece = "x".repeat(PIECE);
        let before = "y".repeat(LARGE);
        // The last piece begins after the backslash or in the digits.
        let pad = |text: String, end: &str| {
            let missing = text.len().next_multiple_of(PIECE) - text.len();
            format!("\"{}{}{end}", &text[1..], "z".repeat(missing - end.len()))
        };
        for end in ["\\", "\\u", "\\u12"] {
            let text = pad(format!("\"{before}"), end) + &piece + "\"";
            assert!(!is_json_in_short(&text), "{end}");
        }
        assert!(!is_json_in_short(&"1".repeat(LARGE)));
        assert!(!is_json_in_short(&"x".repeat(LARGE)));
    }
}
