//! Runs a command of the configuration, which reads JSON and prints JSON.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use code_mode_protocol::text::line;
use code_mode_system::Processes;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// The most that it may print.
const MAX_OUTPUT: u64 = 1 << 20;
/// How much of its standard error is shown.
const SHOWN: usize = 300;

/// Why a command gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("cannot be started: {0}")]
    Start(#[source] std::io::Error),
    #[error("{0}{1}")]
    Failed(ExitStatus, String),
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("prints more than {} KiB", MAX_OUTPUT >> 10)]
    TooMuch,
    #[error("prints no JSON")]
    NotJson,
    #[error("prints JSON that is not an object")]
    NotAnObject,
}

/// Runs a command, gives it `input`, and returns the JSON object that it prints. Variables that
/// `command` sets are added to this program's environment. Ends the command and its children after `limit`.
pub(crate) async fn ask(
    mut command: Command,
    input: &[u8],
    limit: Duration,
) -> Result<Printed, CommandError> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut processes = Processes::start(command).map_err(CommandError::Start)?;
    let answered = tokio::time::timeout(limit, answer(&mut processes, input)).await;
    processes.end_rest();
    let printed = answered.unwrap_or(Err(CommandError::TimedOut(limit)))?;
    let value: Value = serde_json::from_slice(&printed).map_err(|_| CommandError::NotJson)?;
    match value.is_object() {
        true => Ok(Printed(printed)),
        false => Err(CommandError::NotAnObject),
    }
}

/// The JSON object that a command has printed, as it is written: of two members with one name a reader
/// may take the other one.
pub(crate) struct Printed(Vec<u8>);

impl Printed {
    /// Reads it into a type; `None` where it does not fit.
    pub(crate) fn to<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.0).ok()
    }
}

async fn answer(processes: &mut Processes, input: &[u8]) -> Result<Vec<u8>, CommandError> {
    let (stdin, stdout, stderr) = processes.streams();
    let write = async {
        if let Some(mut stdin) = stdin {
            // A command need not read it.
            let _ = stdin.write_all(input).await;
        }
    };
    let complained = async {
        let mut words = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = (&mut stderr).take(MAX_OUTPUT).read_to_end(&mut words).await;
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        }
        words
    };
    let printed = async {
        let mut printed = Vec::new();
        if let Some(stdout) = stdout {
            let _ = stdout.take(MAX_OUTPUT + 1).read_to_end(&mut printed).await;
        }
        match printed.len() as u64 > MAX_OUTPUT {
            true => Err(CommandError::TooMuch),
            false => Ok(printed),
        }
    };
    let others = async { Ok(tokio::join!(write, complained).1) };
    let (printed, complained) = tokio::try_join!(printed, others)?;
    let status = processes.wait().await.map_err(CommandError::Start)?;
    if !status.success() {
        let words = line(&String::from_utf8_lossy(&complained), SHOWN);
        let colon = if words.is_empty() { "" } else { ": " };
        return Err(CommandError::Failed(status, format!("{colon}{words}")));
    }
    Ok(printed)
}

/// A line for the shell.
pub(crate) fn shell(shell_line: &str) -> Command {
    #[cfg(windows)]
    {
        let mut command = Command::new("cmd");
        command.arg("/C").raw_arg(shell_line);
        command
    }
    #[cfg(not(windows))]
    {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(shell_line);
        command
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    async fn ask_for(shell_line: &str) -> Result<Value, String> {
        let limit = Duration::from_secs(20);
        let asked = ask(shell(shell_line), b"{\"a\": 2}", limit).await;
        let printed = asked.map_err(|error| error.to_string())?;
        Ok(printed.to().expect("an object"))
    }

    #[tokio::test]
    async fn a_command_reads_its_input_and_prints_its_answer() {
        assert_eq!(ask_for("cat").await, Ok(serde_json::json!({"a": 2})));
    }

    #[tokio::test]
    async fn a_command_that_fails_says_why() {
        let failed = ask_for("echo no >&2; exit 3").await.expect_err("failed");
        assert_eq!(failed, "exit status: 3: no");
        assert_eq!(ask_for("echo x").await, Err("prints no JSON".to_owned()));
        let array = "prints JSON that is not an object";
        assert_eq!(ask_for("echo []").await, Err(array.to_owned()));
        let flood = ask_for("yes").await.expect_err("too much");
        assert_eq!(flood, "prints more than 1024 KiB");
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_ended() {
        let limit = Duration::from_millis(50);
        let asked = ask(shell("sleep 600"), b"", limit).await;
        assert!(matches!(asked, Err(CommandError::TimedOut(_))));
    }
}
