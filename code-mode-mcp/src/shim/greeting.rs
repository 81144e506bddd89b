//! The first line of each side of a connection between a shim and its gateway.
//!
//! Shim and gateway are one program: the name of the socket depends on its file. So these lines
//! have no versions.

use std::io;

use crate::pending::TerminalAnswer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "wants")]
pub(crate) enum Wants {
    /// To relay the messages of a client, which this process started.
    Serve { process: u32 },
    /// What the gateway logs, for people who look where its clients log.
    Log,
    /// The gateway's status.
    Status,
    /// The calls that wait for a person.
    Approvals,
    /// To answer some of these.
    Answer {
        numbers: Vec<u64>,
        answer: TerminalAnswer,
    },
    /// The gateway's end.
    Stop,
}

/// The gateway lets a client in, or says that it ends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Greeted {
    /// The gateway's process.
    pub(crate) process: u32,
    /// It has as many clients as it may have, and does not let this one in.
    pub(crate) is_full: bool,
}

/// How a gateway is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// Its process.
    pub process: u32,
    /// Its working folder.
    pub folder: String,
    /// For how many seconds it has run.
    pub seconds: u64,
    /// Its clients.
    pub clients: Vec<ClientStatus>,
    /// Its servers.
    pub servers: Vec<ServerStatus>,
}

/// A client of a gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClientStatus {
    /// The process that the client has started.
    pub process: u32,
    /// What the client calls itself.
    pub name: Option<String>,
    /// For how many seconds it has been connected.
    pub seconds: u64,
}

/// A server of a gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its name in the configuration.
    pub name: String,
    /// `ready`, or what else it is.
    pub status: String,
    /// The process that was started for it.
    pub process: Option<u32>,
    /// The memory of that process and of those that it has started, in bytes, with what several of
    /// them share counted in each. Known on Linux.
    pub memory: Option<u64>,
    /// Calls that wait for its answers.
    pub calls: usize,
    /// The client whose own it is, by the process that the client has started; `None` where all
    /// clients share it.
    pub client: Option<u32>,
}

/// The longest line that says what a connection is for.
pub(crate) const MAX_GREETING: u64 = 64 << 10;
/// The longest status: it has as many servers as are configured.
pub(crate) const MAX_STATUS: u64 = 16 << 20;

/// Writes a value as a line.
pub(crate) async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    value: &impl Serialize,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line).await?;
    to.flush().await
}

/// Reads a value that is a line of at most so many bytes.
pub(crate) async fn read<T: DeserializeOwned>(
    from: &mut (impl AsyncBufRead + Unpin),
    most: u64,
) -> io::Result<T> {
    let mut line = Vec::new();
    from.take(most).read_until(b'\n', &mut line).await?;
    match line.ends_with(b"\n") {
        true => Ok(serde_json::from_slice(&line)?),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
