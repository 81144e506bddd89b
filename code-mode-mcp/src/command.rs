//! Runs a command of the configuration: a line for the shell, which reads JSON and prints JSON.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use code_mode_protocol::text::line;
use code_mode_system::Processes;
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
}

/// Runs a line of the shell with this program's environment and `variables`, gives it `input`, and
/// returns the JSON that it prints. It, and what it started, are ended after `limit`.
pub(crate) async fn ask(
    shell_line: &str,
    variables: &[(&str, &str)],
    input: &[u8],
    limit: Duration,
) -> Result<Value, CommandError> {
    let mut command = shell(shell_line);
    command
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut processes = Processes::start(command).map_err(CommandError::Start)?;
    let answered = tokio::time::timeout(limit, answer(&mut processes, input)).await;
    processes.end_rest();
    answered.unwrap_or(Err(CommandError::TimedOut(limit)))
}

async fn answer(processes: &mut Processes, input: &[u8]) -> Result<Value, CommandError> {
    let (stdin, stdout, stderr) = processes.streams();
    let write = async {
        if let Some(mut stdin) = stdin {
            // A command need not read it.
            let _ = stdin.write_all(input).await;
        }
    };
    let read = async |stream: Option<&mut (dyn tokio::io::AsyncRead + Send + Unpin)>| {
        let mut bytes = Vec::new();
        if let Some(stream) = stream {
            let _ = stream.take(MAX_OUTPUT + 1).read_to_end(&mut bytes).await;
        }
        bytes
    };
    let (mut stdout, mut stderr) = (stdout, stderr);
    let printed = read(stdout.as_mut().map(|stream| stream as _));
    let complained = read(stderr.as_mut().map(|stream| stream as _));
    let ended = async {
        let ((), printed, complained) = tokio::join!(write, printed, complained);
        (printed, complained)
    };
    let (printed, complained) = ended.await;
    if printed.len() as u64 > MAX_OUTPUT {
        return Err(CommandError::TooMuch);
    }
    let status = processes.wait().await.map_err(CommandError::Start)?;
    if !status.success() {
        let words = line(&String::from_utf8_lossy(&complained), SHOWN);
        let colon = if words.is_empty() { "" } else { ": " };
        return Err(CommandError::Failed(status, format!("{colon}{words}")));
    }
    serde_json::from_slice(&printed).map_err(|_| CommandError::NotJson)
}

fn shell(shell_line: &str) -> Command {
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
        let asked = ask(shell_line, &[("ONE", "1")], b"{\"a\": 2}", limit).await;
        asked.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_command_reads_its_input_and_prints_its_answer() {
        assert_eq!(ask_for("cat").await, Ok(serde_json::json!({"a": 2})));
        assert_eq!(ask_for("echo [$ONE]").await, Ok(serde_json::json!([1])));
    }

    #[tokio::test]
    async fn a_command_that_fails_says_why() {
        let failed = ask_for("echo no >&2; exit 3").await.expect_err("failed");
        assert_eq!(failed, "exit status: 3: no");
        assert_eq!(ask_for("echo x").await, Err("prints no JSON".to_owned()));
        let flood = ask_for("yes").await.expect_err("too much");
        assert_eq!(flood, "prints more than 1024 KiB");
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_ended() {
        let limit = Duration::from_millis(50);
        let asked = ask("sleep 600", &[], b"", limit).await;
        assert!(matches!(asked, Err(CommandError::TimedOut(_))));
    }
}
