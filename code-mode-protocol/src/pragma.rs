//! The optional first line of a cell's source: `// @exec: {"yield_time_ms": 10000}`.
//!
//! Reading it is the caller's job; to V8 the line is a comment. The source that
//! comes out still has the line, so that line numbers stay the author's.

use std::time::Duration;

use serde::Deserialize;

const PREFIX: &str = "// @exec:";
const SUPPORTED: &str =
    "supported keys are yield_time_ms and max_output_tokens, both non-negative safe integers";
/// `Number.MAX_SAFE_INTEGER`.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// What a source asks for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pragma {
    /// How long the first observation should last.
    pub yield_time: Option<Duration>,
    /// How much output its author wants to read.
    pub max_output_tokens: Option<u64>,
}

/// Why a source is refused before it runs.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PragmaError {
    /// Nothing to run.
    #[error("exec expects JavaScript source, got none")]
    EmptySource,
    /// A pragma and nothing after it.
    #[error("the exec pragma must be followed by JavaScript source on the next lines")]
    NoSourceAfterPragma,
    /// Not a JSON object with the supported keys.
    #[error("invalid exec pragma: {0}; {SUPPORTED}")]
    Invalid(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default, deserialize_with = "safe_integer")]
    yield_time_ms: Option<u64>,
    #[serde(default, deserialize_with = "safe_integer")]
    max_output_tokens: Option<u64>,
}

fn safe_integer<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let value = u64::deserialize(d)?;
    if value > MAX_SAFE_INTEGER {
        return Err(serde::de::Error::custom(format!(
            "{value} is past the largest safe integer, {MAX_SAFE_INTEGER}"
        )));
    }
    Ok(Some(value))
}

/// Reads the pragma of a source, if it begins with one.
///
/// ```
/// # use code_mode_protocol::pragma;
/// let found = pragma::parse("// @exec: {\"max_output_tokens\": 50}\ntext(1)")?;
/// assert_eq!(found.max_output_tokens, Some(50));
/// # Ok::<(), pragma::PragmaError>(())
/// ```
///
/// # Errors
/// [`PragmaError`]: an empty source, a pragma alone, or one that asks for
/// anything but the supported keys.
pub fn parse(source: &str) -> Result<Pragma, PragmaError> {
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    if source.trim().is_empty() {
        return Err(PragmaError::EmptySource);
    }
    let (first, rest) = source.split_once('\n').unwrap_or((source, ""));
    let Some(json) = first.trim().strip_prefix(PREFIX) else {
        return Ok(Pragma::default());
    };
    if rest.trim().is_empty() {
        return Err(PragmaError::NoSourceAfterPragma);
    }
    // serde would also take the keys' values as an array.
    if !json.trim_start().starts_with('{') {
        return Err(PragmaError::Invalid("expected a JSON object".to_owned()));
    }
    let keys: Keys =
        serde_json::from_str(json.trim()).map_err(|e| PragmaError::Invalid(e.to_string()))?;
    Ok(Pragma {
        yield_time: keys.yield_time_ms.map(Duration::from_millis),
        max_output_tokens: keys.max_output_tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_without_a_pragma_asks_for_nothing() {
        assert_eq!(parse("text(1)"), Ok(Pragma::default()));
        assert_eq!(parse("text(1)\n// @exec: {}"), Ok(Pragma::default()));
    }

    #[test]
    fn both_keys_are_read() {
        let source = "// @exec: {\"yield_time_ms\": 0, \"max_output_tokens\": 7}\r\ntext(1)";
        assert_eq!(
            parse(source),
            Ok(Pragma {
                yield_time: Some(Duration::ZERO),
                max_output_tokens: Some(7)
            })
        );
    }

    #[test]
    fn anything_else_is_refused_and_the_refusal_says_what_is_supported() {
        for json in [
            "",
            "{",
            "[]",
            "7",
            "{\"timeout\": 1}",
            "{\"yield_time_ms\": -1}",
            "{\"yield_time_ms\": 1.5}",
            "{\"yield_time_ms\": \"1\"}",
            "{\"yield_time_ms\": null}",
            "{\"yield_time_ms\": 9007199254740992}",
            "{\"yield_time_ms\": 1, \"yield_time_ms\": 2}",
        ] {
            let error = parse(&format!("// @exec: {json}\ntext(1)")).expect_err(json);
            assert!(
                error
                    .to_string()
                    .contains("yield_time_ms and max_output_tokens")
            );
        }
    }

    #[test]
    fn a_pragma_with_no_source_is_refused() {
        assert_eq!(
            parse("// @exec: {}\n  \n"),
            Err(PragmaError::NoSourceAfterPragma)
        );
        assert_eq!(parse("// @exec: {}"), Err(PragmaError::NoSourceAfterPragma));
    }

    #[test]
    fn an_empty_source_is_refused() {
        assert_eq!(parse(" \n\t"), Err(PragmaError::EmptySource));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(// @exec:)?\\PC{0,40}\n?\\PC{0,10}") {
            let _ = parse(&text);
        }
    }
}
