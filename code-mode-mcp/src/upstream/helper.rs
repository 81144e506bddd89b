//! Headers that a command prints for each connection: `headersHelper`, as Claude Code has it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::ConnectError;
use crate::command::{CommandError, ask, shell};
use crate::config::{Address, ServerConfig};
use crate::secrets::Secrets;

/// How long the command may take, as there.
const LIMIT: Duration = Duration::from_secs(10);

/// The reason for a command that gave no headers.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelperError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("prints no object of strings")]
    NotHeaders,
}

/// The headers for a connection: those of the configuration, and in place of them those that the
/// command prints. What it prints is hidden in all texts.
pub(super) async fn headers(
    server: &ServerConfig,
    address: &Address,
    secrets: &Secrets,
) -> Result<BTreeMap<String, String>, ConnectError> {
    let mut headers = address.headers.clone();
    let Some(command) = &address.headers_helper else {
        return Ok(headers);
    };
    let mut command = shell(command);
    command
        .env("CLAUDE_CODE_MCP_SERVER_NAME", &server.name)
        .env("CLAUDE_CODE_MCP_SERVER_URL", &address.url);
    let printed = ask(command, b"", LIMIT).await;
    let printed = printed.map_err(HelperError::from)?;
    let printed: BTreeMap<String, String> = printed.to().ok_or(HelperError::NotHeaders)?;
    for (name, value) in printed {
        secrets.add(&value);
        headers.retain(|known, _| !known.eq_ignore_ascii_case(&name));
        headers.insert(name, value);
    }
    Ok(headers)
}
