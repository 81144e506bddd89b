//! The arguments of `exec` and `wait`.

use std::time::Duration;

use code_mode_host::pragma;
use serde_json::{Map, Value};

use crate::caller::Approval;

/// The budget of an answer, where the model names none: clients cut at about as much.
const OUTPUT_TOKENS: u64 = 10_000;

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
    /// The longest time until an answer, where the model names one.
    pub(crate) yield_time: Option<Duration>,
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
                yield_time: asked.yield_time.or(yield_time),
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
    /// `None` means whichever of the session's has news first.
    pub(crate) cell: Option<String>,
    pub(crate) decision: Option<Approval>,
    /// The byte of the cell's output to show it from, instead of waiting.
    pub(crate) from: Option<u64>,
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
            "from",
        ])?;
        let cell = arguments.text("cell_id")?;
        let from = arguments.number("from")?;
        if from.is_some() {
            arguments
                .known(&["cell_id", "from", "max_output_tokens"])
                .map_err(|_| "from goes with cell_id and max_output_tokens only")?;
            cell.ok_or("from needs cell_id: the cell whose output to show")?;
        }
        let decision = match arguments.text("decision")? {
            None => None,
            Some("allow" | "once") => Some(Approval::Once),
            Some("program") => Some(Approval::ForProgram),
            Some("session") => Some(Approval::ForSession),
            Some("deny" | "no") => Some(Approval::No),
            Some(_) => return Err("decision is allow, program, session or deny".to_owned()),
        };
        Ok(Self {
            cell: cell.map(str::to_owned),
            decision,
            from,
            how: How {
                yield_time: arguments
                    .number("yield_time_ms")?
                    .map(Duration::from_millis),
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
            yield_time: number("yield_time_ms").map(Duration::from_millis),
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
        assert!(wait(json!({"cell_id": 1})).is_err_and(|e| e == "cell_id must be a string"));
        let odd = json!({"cell_id": "1", "decision": "maybe"});
        assert!(wait(odd).is_err_and(|e| e.contains("allow, program, session or deny")));
        let odd = json!({"cell_id": "1", "from": 5, "terminate": true});
        assert!(wait(odd).is_err_and(|e| e.starts_with("from goes with")));
        assert!(wait(json!({"from": 5})).is_err_and(|e| e.contains("needs cell_id")));
        let odd = json!({"cell_id": "1", "terminate": "yes"});
        assert!(wait(odd).is_err_and(|e| e.contains("true or false")));
    }

    #[test]
    fn a_programs_own_line_wins_over_the_arguments() {
        let code = "// @exec: {\"yield_time_ms\": 5}\ntext(1)";
        let exec = Exec::read(&object(json!({"code": code, "yield_time_ms": 70.0})));
        let asked = exec.expect("read").how.yield_time;
        assert_eq!(asked, Some(Duration::from_millis(5)));
    }
}
