//! JSON that stays text.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// One JSON value as text that every JSON parser accepts: valid by RFC 8259, no
/// escape of half a surrogate pair, and at most [`Json::MAX_DEPTH`] arrays and
/// objects inside one another.
///
/// A tool's input and result and a stored value are produced and consumed by
/// `JSON.stringify` and `JSON.parse` inside V8; in between they travel as this type
/// and are never turned into a tree. In a human-readable format a `Json`
/// (de)serialises as the value itself, elsewhere as a string; both ways the text is
/// checked on the way in.
///
/// ```
/// # use code_mode_protocol::Json;
/// let json: Json = r#"{"a": [1, 2]}"#.parse()?;
/// assert_eq!(json.to_string(), r#"{"a": [1, 2]}"#);
/// assert!(r#""\ud800""#.parse::<Json>().is_err());
/// # Ok::<(), code_mode_protocol::InvalidJson>(())
/// ```
#[derive(Clone)]
pub struct Json(Box<RawValue>);

/// The text is not a [`Json`].
#[derive(Debug, thiserror::Error)]
pub enum InvalidJson {
    /// The text is not one JSON value, or not of the shape asked for.
    #[error("not valid JSON: {0}")]
    Syntax(#[from] serde_json::Error),
    /// A string has one half of a surrogate pair, which no Unicode text has.
    #[error("half of a surrogate pair in a string, at byte {0}")]
    LoneSurrogate(usize),
    /// More arrays and objects are inside one another than parsers take.
    #[error("nested deeper than {} levels", Json::MAX_DEPTH)]
    TooDeep,
}

impl Json {
    /// The most arrays and objects inside one another. Many parsers stop at 128; a
    /// message around the value needs some levels too.
    pub const MAX_DEPTH: usize = 120;

    /// Takes text that must be exactly one JSON value.
    ///
    /// # Errors
    /// [`InvalidJson`], with the place of the first mistake.
    pub fn parse(text: String) -> Result<Self, InvalidJson> {
        let raw = RawValue::from_string(text)?;
        check_portable(raw.get())?;
        Ok(Self(raw))
    }

    /// Writes any serialisable value as JSON text.
    ///
    /// # Errors
    /// [`InvalidJson`] where the value's own `Serialize` fails, it has a map whose
    /// keys are not strings, or it is nested too deep.
    pub fn from_value<T: Serialize + ?Sized>(value: &T) -> Result<Self, InvalidJson> {
        let raw = serde_json::value::to_raw_value(value)?;
        check_portable(raw.get())?;
        Ok(Self(raw))
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

impl FromStr for Json {
    type Err = InvalidJson;

    fn from_str(text: &str) -> Result<Self, InvalidJson> {
        Self::parse(text.to_owned())
    }
}

impl TryFrom<serde_json::Value> for Json {
    type Error = InvalidJson;

    fn try_from(value: serde_json::Value) -> Result<Self, InvalidJson> {
        Self::from_value(&value)
    }
}

/// The JSON text itself.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Prints the length only, so that a log line never shows a user's data.
impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.as_str().len())
    }
}

impl PartialEq for Json {
    /// Equal text; `1` and `1.0` differ.
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Json {}

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
            let raw = Box::<RawValue>::deserialize(deserializer)?;
            check_portable(raw.get()).map_err(D::Error::custom)?;
            Ok(Self(raw))
        } else {
            let text = String::deserialize(deserializer)?;
            Self::parse(text).map_err(de::Error::custom)
        }
    }
}

/// Checks that valid JSON is also what every parser accepts: its depth, and that its
/// strings are Unicode text. V8 writes JSON that fails this check.
///
/// # Errors
/// [`InvalidJson::TooDeep`] or [`InvalidJson::LoneSurrogate`].
pub fn check_portable(json: &str) -> Result<(), InvalidJson> {
    let bytes = json.as_bytes();
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at = check_string(bytes, at + 1)?,
            b'[' | b'{' => {
                depth += 1;
                if depth > Json::MAX_DEPTH {
                    return Err(InvalidJson::TooDeep);
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Where the string ends whose first character is at `at`.
fn check_string(bytes: &[u8], mut at: usize) -> Result<usize, InvalidJson> {
    loop {
        let Some(found) = memchr::memchr2(b'"', b'\\', bytes.get(at..).unwrap_or_default()) else {
            return Ok(bytes.len());
        };
        at += found;
        if bytes[at] == b'"' {
            return Ok(at);
        }
        match escaped_unit(bytes, at) {
            Some(0xD800..=0xDBFF) => match escaped_unit(bytes, at + 6) {
                Some(0xDC00..=0xDFFF) => at += 12,
                _ => return Err(InvalidJson::LoneSurrogate(at)),
            },
            Some(0xDC00..=0xDFFF) => return Err(InvalidJson::LoneSurrogate(at)),
            Some(_) => at += 6,
            None => at += 2,
        }
    }
}

/// The UTF-16 unit of the escape (`\u` and four digits) that begins at `at`.
fn escaped_unit(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// How much of a text is looked at in one go for what must be escaped.
const PIECE: usize = 4 << 10;

/// Whether JSON has a text between quotes as it is: nothing of it is escaped.
pub(crate) fn is_plain(text: &str) -> bool {
    text.as_bytes().chunks(PIECE).all(|piece| {
        // Without a way out of the middle, the compiler looks at many bytes at a time.
        !piece.iter().fold(false, |found, byte| {
            found | (*byte < b' ') | (*byte == b'"') | (*byte == b'\\')
        })
    })
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
    fn half_of_a_surrogate_pair_is_refused_wherever_it_stands() {
        for text in [
            r#""\ud800""#,
            r#""\udc00""#,
            r#""\ud800x""#,
            r#""\ud800\n""#,
            r#""\ud800\ud800""#,
            r#""\\\ud800""#,
            r#"{"\uDFFF":1}"#,
            r#"["a","\udbff\u0041"]"#,
        ] {
            let parsed = text.parse::<Json>();
            assert!(
                matches!(parsed, Err(InvalidJson::LoneSurrogate(_))),
                "{text}"
            );
        }
        for text in [
            r#""\ud83d\ude00""#,
            r#""\\ud800""#,
            r#""\\\\ud800\"""#,
            r#""\u0000""#,
        ] {
            assert!(text.parse::<Json>().is_ok(), "{text}");
        }
    }

    #[test]
    fn a_value_may_be_as_deep_as_its_limit_and_no_deeper() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(nested(Json::MAX_DEPTH).parse::<Json>().is_ok());
        let deeper = nested(Json::MAX_DEPTH + 1).parse::<Json>();
        assert!(matches!(deeper, Err(InvalidJson::TooDeep)));
        let shallow = "[".to_owned() + &"[],".repeat(1000) + "\"[[[[\"]";
        assert!(shallow.parse::<Json>().is_ok());
    }

    proptest::proptest! {
        /// serde_json's tree is a strict parser: 128 levels, no lone surrogates.
        #[test]
        fn what_is_accepted_a_strict_parser_accepts_too(
            pieces in proptest::collection::vec(
                proptest::prop_oneof![
                    "\\PC{0,4}", "\\\\u[dD][89abcdefAB][0-9a-f]{2}", "\\\\[\"\\\\/bfnrt]", "\\\\u00[0-9a-f]{2}"
                ].prop_map(|s: String| if s.starts_with('\\') { s } else { s.replace(['"', '\\'], "") }),
                0..8,
            )
        ) {
            let text = format!("\"{}\"", pieces.concat());
            let strict = serde_json::from_str::<String>(&text).is_ok();
            proptest::prop_assert_eq!(text.parse::<Json>().is_ok(), strict, "{}", text);
        }
    }

    use proptest::strategy::Strategy;
}
