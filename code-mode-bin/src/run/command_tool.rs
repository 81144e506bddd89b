//! Running a tool's command.

use std::ffi::OsString;
use std::process::Stdio;

use code_mode_protocol::{Json, ToolKind};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::tools_file::CommandTool;
use code_mode_system::{Processes, inherited_environment};

/// How much of a failed command's standard error its error shows.
const STDERR_BYTES: usize = 2000;

/// Why a tool call failed; the text is the cell's `ToolError`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("{0}")]
    Input(String),
    #[error("cannot run {program}: {error}")]
    Start {
        program: String,
        error: std::io::Error,
    },
    #[error("{program} did not end within {ms} ms")]
    TimedOut { program: String, ms: u128 },
    #[error("{program} put out more than {max} bytes")]
    TooMuchOutput { program: String, max: usize },
    #[error("{program} {how}{stderr}")]
    Failed {
        program: String,
        how: String,
        stderr: String,
    },
}

/// Runs the command of a tool with an input.
pub(crate) async fn run(tool: &CommandTool, input: Option<&Json>) -> Result<Json, CommandError> {
    let arguments = arguments(tool, input)?;
    let [program, arguments @ ..] = arguments.as_slice() else {
        return Err(CommandError::Input("the command is empty".to_owned()));
    };
    let failed = |error| CommandError::Start {
        program: program.clone(),
        error,
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment(&tool.env))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut processes = match tool.asks_user {
        true => Processes::start_in_own_group(command),
        false => Processes::start(command),
    }
    .map_err(failed)?;
    let text = input.map_or("null", Json::as_str).to_owned();
    let (stdin, stdout, stderr) = processes.streams();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A command need not read its input.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
    };
    let max = tool.max_output_bytes;
    let stdout = read(stdout, max + 1);
    let stderr = read_tail(stderr);
    let work = async {
        let (stdout, stderr, ()) = tokio::join!(stdout, stderr, feed);
        let stdout = stdout.map_err(failed)?;
        if stdout.len() > max {
            return Err(CommandError::TooMuchOutput {
                program: program.clone(),
                max,
            });
        }
        let status = processes.wait().await.map_err(failed)?;
        if !status.success() {
            let how = match status.code() {
                Some(code) => format!("exited with status {code}"),
                None => status.to_string(),
            };
            let stderr = match stderr.trim() {
                "" => String::new(),
                text => format!(": {text}"),
            };
            return Err(CommandError::Failed {
                program: program.clone(),
                how,
                stderr,
            });
        }
        Ok(stdout)
    };
    let stdout = tokio::time::timeout(tool.timeout(), work)
        .await
        .map_err(|_| CommandError::TimedOut {
            program: program.clone(),
            ms: tool.timeout().as_millis(),
        })??;
    let text = String::from_utf8_lossy(&stdout).into_owned();
    if tool.json
        && let Ok(json) = Json::parse(text.trim().to_owned())
    {
        return Ok(json);
    }
    Ok(Json::string(&text))
}

/// The environment of a command: the common variables, and those that its tool names,
/// as `NAME` (with this program's value) or `NAME=VALUE`.
fn environment(named: &[String]) -> Vec<(String, OsString)> {
    let common = inherited_environment().map(|(name, value)| (name.to_owned(), value));
    let named = named
        .iter()
        .filter_map(|variable| match variable.split_once('=') {
            Some((name, value)) => Some((name.to_owned(), value.into())),
            None => Some((variable.clone(), std::env::var_os(variable)?)),
        });
    common.chain(named).collect()
}

/// The beginning of a stream. Nothing beyond it is read, so that a command
/// which never stops is stopped by its own pipe.
async fn read(
    stream: Option<impl AsyncRead + Unpin>,
    max: usize,
) -> Result<Vec<u8>, std::io::Error> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(max as u64).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// The end of a stream, as text.
async fn read_tail(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut tail = Vec::new();
    if let Some(mut stream) = stream {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            tail.extend_from_slice(&buffer[..read]);
            let excess = tail.len().saturating_sub(STDERR_BYTES);
            tail.drain(..excess);
        }
    }
    String::from_utf8_lossy(&tail).into_owned()
}

fn arguments(tool: &CommandTool, input: Option<&Json>) -> Result<Vec<String>, CommandError> {
    let input: Value = match input {
        Some(json) => json.to().map_err(|e| CommandError::Input(e.to_string()))?,
        None => Value::Null,
    };
    tool.command
        .iter()
        .map(|argument| fill(argument, tool.kind, &input))
        .collect::<Result<_, _>>()
        .map_err(CommandError::Input)
}

/// A part of an argument: text, or a property of the input.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a str),
    Property(&'a str),
}

/// The properties an argument takes from the input.
pub(crate) fn placeholders(argument: &str) -> Result<Vec<&str>, String> {
    let parts = parts(argument)?;
    let properties = parts.into_iter().filter_map(|part| match part {
        Part::Property(name) => Some(name),
        Part::Text(_) => None,
    });
    Ok(properties.collect())
}

/// `{name}` is a property; `{{` and `}}` are braces. Anything else in braces is a
/// mistake, which the reader of the file reports.
fn parts(argument: &str) -> Result<Vec<Part<'_>>, String> {
    let mut parts = Vec::new();
    let mut rest = argument;
    while let Some(at) = rest.find(['{', '}']) {
        let (text, from) = rest.split_at(at);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        if from.starts_with("{{") || from.starts_with("}}") {
            parts.push(Part::Text(&from[..1]));
            rest = &from[2..];
            continue;
        }
        let name = from
            .strip_prefix('{')
            .and_then(|inner| inner.split_once('}'))
            .map(|(name, _)| name)
            .filter(|name| {
                !name.is_empty()
                    && name
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || "_-$.".contains(c))
            })
            .ok_or_else(|| {
                format!("argument `{argument}`: write {{name}} for a property of the input, {{{{ or }}}} for a brace")
            })?;
        parts.push(Part::Property(name));
        rest = &from[name.len() + 2..];
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest));
    }
    Ok(parts)
}

fn fill(argument: &str, kind: ToolKind, input: &Value) -> Result<String, String> {
    let mut filled = String::new();
    for part in parts(argument)? {
        match part {
            Part::Text(text) => filled.push_str(text),
            Part::Property(name) => {
                let value = match kind {
                    // Free text is its own only property.
                    ToolKind::Freeform if name == "input" => Some(input),
                    _ => input.get(name),
                };
                match value {
                    Some(Value::String(text)) => filled.push_str(text),
                    Some(value @ (Value::Number(_) | Value::Bool(_))) => {
                        filled.push_str(&value.to_string());
                    }
                    None => return Err(format!("the input lacks `{name}`")),
                    Some(_) => {
                        return Err(format!("`{name}` must be a string, a number or a boolean"));
                    }
                }
            }
        }
    }
    if filled.contains('\0') {
        return Err("an argument cannot contain a NUL character".to_owned());
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn properties_are_filled_in_and_doubled_braces_are_braces() {
        let input = json!({"a": "x y", "n": 5, "b": true});
        let filled = |argument| fill(argument, ToolKind::Function, &input);
        assert_eq!(filled("--a={a}"), Ok("--a=x y".to_owned()));
        assert_eq!(filled("{n}{b}"), Ok("5true".to_owned()));
        assert_eq!(filled("HEAD@{{{n}}}"), Ok("HEAD@{5}".to_owned()));
    }

    #[test]
    fn a_missing_or_structured_property_is_named() {
        let input = json!({"o": {}, "z": null});
        let filled = |argument| fill(argument, ToolKind::Function, &input);
        assert_eq!(filled("{a}"), Err("the input lacks `a`".to_owned()));
        let scalar = "must be a string, a number or a boolean";
        assert_eq!(filled("{o}"), Err(format!("`o` {scalar}")));
        assert_eq!(filled("{z}"), Err(format!("`z` {scalar}")));
    }

    #[test]
    fn free_text_is_the_property_input() {
        assert_eq!(
            fill("{input}", ToolKind::Freeform, &json!("*** Begin")),
            Ok("*** Begin".to_owned())
        );
    }

    #[test]
    fn stray_braces_are_mistakes_of_the_file() {
        for argument in ["{", "}", "{}", "{a b}", "a{b"] {
            assert!(placeholders(argument).is_err(), "{argument}");
        }
    }
}
