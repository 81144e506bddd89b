//! The arguments of `exec` and `wait`.

use std::time::Duration;

use code_mode_host::pragma;
use serde_json::{Map, Value};

use crate::caller::Approval;

/// The budget of an answer, where the model names none: clients cut at about as much.
const OUTPUT_TOKENS: u64 = 10_000;
const YIELD: Duration = Duration::from_secs(10);

/// Reads the arguments of a request; an error names the argument.
struct Arguments<'a>(&'a Map<String, Value>);

impl Arguments<'_> {
    fn known(&self, names: &[&str]) -> Result<(), String> {
        match self.0.keys().find(|key| !names.contains(&key.as_str())) {
            Some(unknown) => Err(format!(
                "no argument is called {unknown:?}; the arguments are {}",
                names.join(", ")
            )),
            None => Ok(()),
        }
    }

    fn text(&self, name: &str) -> Result<Option<&str>, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("{name} must be a string")),
        }
    }

    fn number(&self, name: &str) -> Result<Option<u64>, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_u64()
                .or_else(|| value.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64))
                .map(Some)
                .ok_or_else(|| format!("{name} must be a number from 0")),
        }
    }

    fn flag(&self, name: &str) -> Result<bool, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(format!("{name} must be true or false")),
        }
    }
}

/// How a cell is observed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub(crate) yield_time: Duration,
    pub(crate) max_output_tokens: u64,
    pub(crate) terminate: bool,
}

/// The arguments of `exec`.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) code: String,
    pub(crate) how: How,
    pub(crate) session: Option<String>,
}

impl Exec {
    pub(crate) fn read(arguments: &Map<String, Value>) -> Result<Self, String> {
        let arguments = Arguments(arguments);
        arguments.known(&["code", "yield_time_ms", "max_output_tokens", "session_id"])?;
        let code = arguments
            .text("code")?
            .ok_or("code is missing: the program, as a string")?;
        let asked = pragma::parse(code).map_err(|error| error.to_string())?;
        let yield_time = arguments
            .number("yield_time_ms")?
            .map(Duration::from_millis);
        Ok(Self {
            code: code.to_owned(),
            how: How {
                yield_time: asked.yield_time.or(yield_time).unwrap_or(YIELD),
                max_output_tokens: asked
                    .max_output_tokens
                    .or(arguments.number("max_output_tokens")?)
                    .unwrap_or(OUTPUT_TOKENS),
                terminate: false,
            },
            session: arguments.text("session_id")?.map(str::to_owned),
        })
    }
}

/// The arguments of `wait`.
#[derive(Debug)]
pub(crate) struct Wait {
    pub(crate) cell: String,
    pub(crate) decision: Option<Approval>,
    pub(crate) how: How,
}

impl Wait {
    pub(crate) fn read(arguments: &Map<String, Value>) -> Result<Self, String> {
        let arguments = Arguments(arguments);
        arguments.known(&[
            "cell_id",
            "yield_time_ms",
            "max_output_tokens",
            "terminate",
            "decision",
        ])?;
        let cell = arguments
            .text("cell_id")?
            .ok_or("cell_id is missing: the one that exec gave")?;
        let decision = match arguments.text("decision")? {
            None => None,
            Some("allow" | "once") => Some(Approval::Once),
            Some("session") => Some(Approval::ForSession),
            Some("deny" | "no") => Some(Approval::No),
            Some(_) => return Err("decision is allow, session or deny".to_owned()),
        };
        Ok(Self {
            cell: cell.to_owned(),
            decision,
            how: How {
                yield_time: arguments
                    .number("yield_time_ms")?
                    .map_or(YIELD, Duration::from_millis),
                max_output_tokens: arguments
                    .number("max_output_tokens")?
                    .unwrap_or(OUTPUT_TOKENS),
                terminate: arguments.flag("terminate")?,
            },
        })
    }
}

impl How {
    /// How the repetition of a request observes its cell. Errors in its arguments
    /// were reported before.
    pub(crate) fn of_repeated(arguments: &Map<String, Value>) -> Self {
        let arguments = Arguments(arguments);
        let number = |name| arguments.number(name).ok().flatten();
        Self {
            yield_time: number("yield_time_ms").map_or(YIELD, Duration::from_millis),
            max_output_tokens: number("max_output_tokens").unwrap_or(OUTPUT_TOKENS),
            terminate: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn what_is_wrong_is_named() {
        let exec = |value| Exec::read(&object(value)).map(drop);
        let wait = |value| Wait::read(&object(value)).map(drop);
        assert!(exec(json!({})).is_err_and(|e| e.contains("code is missing")));
        assert!(exec(json!({"code": 1})).is_err_and(|e| e == "code must be a string"));
        assert!(exec(json!({"cod": ""})).is_err_and(|e| e.contains("\"cod\"")));
        assert!(wait(json!({})).is_err_and(|e| e.contains("cell_id is missing")));
        let odd = json!({"cell_id": "1", "decision": "maybe"});
        assert!(wait(odd).is_err_and(|e| e.contains("allow, session or deny")));
        let odd = json!({"cell_id": "1", "terminate": "yes"});
        assert!(wait(odd).is_err_and(|e| e.contains("true or false")));
    }

    #[test]
    fn a_programs_own_line_wins_over_the_arguments() {
        let code = "// @exec: {\"yield_time_ms\": 5}\ntext(1)";
        let exec = Exec::read(&object(json!({"code": code, "yield_time_ms": 70.0})));
        assert_eq!(exec.expect("read").how.yield_time, Duration::from_millis(5));
    }
}
