//! JSON that stays text.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

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

/// Whether JSON has a text between quotes as it is: nothing of it is escaped.
pub(crate) fn is_plain(text: &str) -> bool {
    // Without a way out of the middle of a piece, the compiler looks at many
    // bytes at a time.
    text.as_bytes().chunks(4 << 10).all(|piece| {
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
