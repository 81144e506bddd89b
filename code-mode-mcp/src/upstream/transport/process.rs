//! A server that is a program on this machine: its process, and its two pipes.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use code_mode_system::{Processes, inherited_with_network};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::{MARKER, ServerConfig, Transport};
use crate::secrets::Secrets;
use crate::upstream::error::StartError;

/// How long the client waits for the answer to the probe before it greets in the older way. A
/// server that starts slowly answers later; [`Lines`](super::Lines) drops that answer.
const PROBE: Duration = Duration::from_secs(3);
/// How many bytes a server may write before that answer.
const PROBE_BYTES: u64 = 1 << 20;
const PROBE_ID: &str = "code-mode-probe";
/// How much of a server's standard error is kept.
const STDERR: usize = 2048;
/// How long a server may take for each step of its end.
const STEP: Duration = Duration::from_secs(1);

/// Which lifecycle a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Era {
    /// `initialize`, up to 2025-11-25.
    Legacy,
    /// The stateless era, from 2026-07-28 on.
    Modern,
}

/// A server's process.
pub(crate) struct ServerProcess {
    processes: Processes,
    stderr: Arc<Mutex<Vec<u8>>>,
    secrets: Secrets,
    /// Done when the program, and what it started, have closed their standard error.
    stderr_read: Option<JoinHandle<()>>,
}

impl ServerProcess {
    /// Starts a server's program; returns its streams.
    pub(crate) fn start(
        server: &ServerConfig,
        secrets: &Secrets,
    ) -> Result<(Self, ChildStdin, BufReader<ChildStdout>), StartError> {
        let Transport::Stdio {
            command,
            args,
            env,
            cwd,
        } = &server.transport
        else {
            return Err(StartError::NotFound("it is no program".to_owned()));
        };
        let mut program = Command::new(command);
        program
            .args(args)
            .env_clear()
            .envs(inherited_with_network())
            .envs(env)
            .env(MARKER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(cwd) = cwd {
            program.current_dir(cwd);
        }
        let mut processes = Processes::start(program).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => StartError::NotFound(secrets.hide(command)),
            _ => StartError::Spawn(error),
        })?;
        let (Some(stdin), Some(stdout), stderr) = processes.streams() else {
            let error = std::io::Error::other("its streams are missing");
            return Err(StartError::Spawn(error));
        };
        let kept = Arc::default();
        let stderr_read = stderr.map(|stderr| tokio::spawn(keep_end(stderr, Arc::clone(&kept))));
        let process = Self {
            processes,
            stderr: kept,
            secrets: secrets.clone(),
            stderr_read,
        };
        Ok((process, stdin, BufReader::new(stdout)))
    }

    /// What this program calls the process, until it has ended.
    pub(crate) fn id(&self) -> Option<u32> {
        self.processes.id()
    }

    /// The standard error of the process.
    pub(crate) fn last_words(&self) -> LastWords {
        LastWords {
            stderr: self.stderr.clone(),
            secrets: self.secrets.clone(),
        }
    }

    /// Waits for the program's end, and for what it last said.
    pub(crate) async fn ended(&mut self) -> Option<ExitStatus> {
        /// Another process may hold the stream open.
        const LAST_WORDS: Duration = Duration::from_millis(300);
        let status = self.processes.wait().await.ok();
        if let Some(read) = self.stderr_read.take() {
            let _ = tokio::time::timeout(LAST_WORDS, read).await;
        }
        status
    }

    /// Ends the program, whose standard input was closed, and all it started.
    pub(crate) async fn end(mut self) {
        self.processes.end(STEP).await;
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // A launcher may have ended before what it has launched.
        self.processes.end_rest();
    }
}

/// The end of a server's standard error.
#[derive(Clone, Debug)]
pub(crate) struct LastWords {
    stderr: Arc<Mutex<Vec<u8>>>,
    secrets: Secrets,
}

impl LastWords {
    /// The last lines on one line, without secrets.
    pub(crate) fn text(&self) -> String {
        let kept = self.stderr.lock().unwrap_or_else(|e| e.into_inner());
        // Hidden before it is cut, so that no half of a secret is left.
        let text = self.secrets.hide(&String::from_utf8_lossy(&kept));
        let from = text.ceil_char_boundary(text.len().saturating_sub(STDERR));
        let lines = text[from..]
            .lines()
            .map(|line| code_mode_protocol::text::line(line, STDERR));
        let lines = lines.filter(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join(" | ")
    }
}

/// Reads a stream to its end and keeps the last of it.
async fn keep_end(mut stream: impl AsyncRead + Unpin, kept: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        let mut kept = kept.lock().unwrap_or_else(|e| e.into_inner());
        kept.extend_from_slice(&buffer[..read]);
        let excess = kept.len().saturating_sub(4 * STDERR);
        kept.drain(..excess);
    }
}

/// The result of a probe.
pub(crate) enum Probed {
    /// The server speaks this era.
    Speaks(Era),
    /// The server has not answered yet. The bytes are the beginning of its next message.
    Silent(Vec<u8>),
    /// The server ended, or cannot be written to.
    Ended,
}

/// Asks a server which revisions it speaks, and waits for the answer until `until` at most.
pub(crate) async fn probe(
    stdin: &mut ChildStdin,
    stdout: &mut BufReader<ChildStdout>,
    until: Instant,
) -> Probed {
    let request = json!({
        "jsonrpc": "2.0",
        "id": PROBE_ID,
        "method": "server/discover",
        "params": {"_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {
                "name": "code-mode", "version": env!("CARGO_PKG_VERSION"),
            },
        }},
    });
    let line = format!("{request}\n");
    if stdin.write_all(line.as_bytes()).await.is_err() || stdin.flush().await.is_err() {
        return Probed::Ended;
    }
    let until = until.min(Instant::now() + PROBE);
    let mut stdout = stdout.take(PROBE_BYTES);
    let mut line = Vec::new();
    loop {
        let more = tokio::time::timeout_at(until, stdout.read_until(b'\n', &mut line));
        match more.await {
            Err(_) => return Probed::Silent(line),
            Ok(_) if stdout.limit() == 0 => return Probed::Silent(line),
            Ok(Err(_) | Ok(0)) => return Probed::Ended,
            Ok(Ok(_)) => {}
        }
        let message = serde_json::from_slice(&line).ok();
        if let Some(era) = message.as_ref().and_then(era_of) {
            return Probed::Speaks(era);
        }
        line.clear();
    }
}

/// The era in the answer to a probe; `None` where the message answers something else.
pub(super) fn era_of(message: &Value) -> Option<Era> {
    /// The version is not spoken; the answer says which are.
    const OTHER_VERSION: i64 = -32022;
    if message.get("id")? != PROBE_ID || message.get("method").is_some() {
        return None;
    }
    let discovered = message.pointer("/result/supportedVersions").is_some();
    let other = message.pointer("/error/code").and_then(Value::as_i64) == Some(OTHER_VERSION);
    Some(match discovered || other {
        true => Era::Modern,
        false => Era::Legacy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_to_the_probe_tells_the_era() {
        let era = |line: &str| era_of(&serde_json::from_str(line).expect("JSON"));
        assert_eq!(era(r#"{"method": "notifications/message"}"#), None);
        assert_eq!(era(r#"{"id": 1, "result": {}}"#), None);
        let answer = |rest: &str| era(&format!(r#"{{"id": "{PROBE_ID}", {rest}}}"#));
        assert_eq!(
            answer(r#""result": {"supportedVersions": []}"#),
            Some(Era::Modern)
        );
        assert_eq!(answer(r#""error": {"code": -32022}"#), Some(Era::Modern));
        assert_eq!(answer(r#""error": {"code": -32601}"#), Some(Era::Legacy));
    }
}
