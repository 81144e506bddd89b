//! JSON that stays text.

use std::fmt;

use serde::de::{self, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::gather::{LARGE, Text};

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
        let mut short = InShort::default();
        if text.len() >= LARGE {
            short.push(text.as_bytes());
        }
        Self::parse_seen(text, &short)
    }

    /// As [`parse`](Self::parse), of a text that was seen in short already.
    pub(crate) fn parse_seen(text: String, short: &InShort) -> Result<Self, InvalidJson> {
        if short.is_json_of(&text) {
            // SAFETY: it is one JSON value and neither begins nor ends with white space,
            // by what `is_json_of` promises.
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

/// Text that its sender says is one JSON value.
#[derive(Default)]
pub struct ClaimedJson {
    text: String,
    /// What was seen of it as it came.
    short: InShort,
}

impl ClaimedJson {
    /// The text as JSON.
    ///
    /// # Errors
    /// [`InvalidJson`] where it is not, with the place of the first mistake.
    pub fn check(self) -> Result<Json, InvalidJson> {
        Json::parse_seen(self.text, &self.short)
    }

    /// The text, whatever it is.
    pub fn into_string(self) -> String {
        self.text
    }
}

/// To be sent: nothing of it is seen.
impl From<String> for ClaimedJson {
    fn from(text: String) -> Self {
        Self {
            text,
            short: InShort::default(),
        }
    }
}

/// Prints the length only, so that a log line never shows a user's data.
impl fmt::Debug for ClaimedJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClaimedJson({} bytes)", self.text.len())
    }
}

impl Serialize for ClaimedJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for ClaimedJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

impl Text for ClaimedJson {
    fn as_str(&self) -> &str {
        &self.text
    }

    fn take(&mut self) -> String {
        self.text.take()
    }

    fn in_short(&self) -> Option<InShort> {
        Some(InShort::default())
    }

    fn put(&mut self, text: String, short: Option<InShort>) -> Result<(), InvalidJson> {
        let short = short.unwrap_or_default();
        *self = Self { text, short };
        Ok(())
    }

    fn is_plain(&self) -> bool {
        false
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

/// A large text in short, made as it comes.
///
/// Most of large JSON is in strings, of which nothing is escaped. So this has one
/// character for each piece without quotes, backslashes and control characters: one
/// that JSON knows in strings only, and not after a backslash. Where this is JSON,
/// each piece was inside of a string, had nothing that ends one or begins an escape,
/// and completed none; so the whole is JSON too.
#[derive(Debug)]
pub(crate) struct InShort {
    /// `None` where too much is left of the text.
    short: Option<Vec<u8>>,
    seen: usize,
}

impl InShort {
    /// How much of the text was seen.
    pub(crate) fn seen(&self) -> usize {
        self.seen
    }

    /// A text is looked at as it is where more than this part of it is left.
    const LEFT: usize = 4;

    /// Sees what comes next of the text.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE) {
            self.seen += piece.len();
            let Some(short) = &mut self.short else {
                continue;
            };
            if is_plain_piece(piece) {
                short.push(b'~');
            } else if short.len() < LARGE + self.seen / Self::LEFT {
                short.extend_from_slice(piece);
            } else {
                self.short = None;
            }
        }
    }

    /// Whether this is all of `text`, and that is one JSON value without white space
    /// around it. `false` where it is not, or where this does not tell.
    fn is_json_of(&self, text: &str) -> bool {
        let Some(short) = &self.short else {
            return false;
        };
        self.seen == text.len()
            && !text.starts_with(is_space)
            && !text.ends_with(is_space)
            && serde_json::from_slice::<IgnoredAny>(short).is_ok()
    }
}

impl Default for InShort {
    fn default() -> Self {
        Self {
            short: Some(Vec::new()),
            seen: 0,
        }
    }
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

    /// Whether a text is known to be JSON in short, seen in parts of this length.
    fn is_known(text: &str, part: usize) -> bool {
        let mut short = InShort::default();
        for part in text.as_bytes().chunks(part) {
            short.push(part);
        }
        short.is_json_of(text)
    }

    #[test]
    fn a_large_text_in_quotes_is_known_to_be_json_in_short_however_it_comes() {
        let text = "é".repeat(LARGE);
        let json = format!("{{\"a\":\"{text}\\n{text}\"}}");
        for part in [1 << 30, LARGE, PIECE + 1, 7] {
            assert!(is_known(&json, part), "{part}");
        }
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
            assert!(!is_known(&text, 1 << 30), "{end}");
        }
        assert!(!is_known(&"1".repeat(LARGE), 1 << 30));
        assert!(!is_known(&"x".repeat(LARGE), 1 << 30));
    }

    #[test]
    fn of_a_text_with_much_to_escape_nothing_is_left_out() {
        let escaped = "\\n".repeat(4 * LARGE);
        let text = format!("\"{escaped}{}\"", "x".repeat(64 * LARGE));
        assert!(!is_known(&text, LARGE));
        assert!(Json::parse(text).is_ok());
        let no_json = format!("\"{escaped}\"\"{}\"", "x".repeat(64 * LARGE));
        assert!(Json::parse(no_json).is_err());
    }

    #[test]
    fn what_was_seen_of_another_text_says_nothing() {
        let json = format!("\"{}\"", "x".repeat(LARGE));
        let mut short = InShort::default();
        short.push(json.as_bytes());
        assert!(short.is_json_of(&json));
        assert!(!short.is_json_of(&format!("{json}{{")));
        assert!(!short.is_json_of(&json[1..]));
        assert!(!InShort::default().is_json_of(""));
    }
}
