//! The tools that a server listed last, kept on disk: a client that asks while the server starts
//! gets these.
//!
//! The file is in the user's folder for caches, for this user alone, under a hash of the server's
//! configuration. Whoever can write it could change the configuration as well; it is read with the
//! same care as a listing all the same.

use std::io::Read;
use std::path::PathBuf;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::UpstreamTool;
use super::listing::tool_of;
use crate::config::{ServerConfig, Transport};
use crate::folders;
use crate::texts::{clean_definition, hex};

/// The largest file.
const MAX_BYTES: u64 = 8 << 20;

/// The tools of the server's last listing; empty where none is known.
pub(super) fn known_tools(config: &ServerConfig) -> Vec<UpstreamTool> {
    let read = || {
        let file = std::fs::File::open(file_of(config)?).ok()?;
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
        serde_json::from_str::<Vec<Value>>(&text).ok()
    };
    let definitions = read().unwrap_or_default().into_iter();
    let tools = definitions.filter_map(|mut definition| {
        clean_definition(&mut definition);
        tool_of(definition).filter(|tool| config.wants(&tool.name))
    });
    tools.collect()
}

/// Keeps the tools of a listing. A server is as good without the file, so a failure is only logged.
pub(super) fn keep(config: &ServerConfig, tools: &[UpstreamTool]) {
    let Some(file) = file_of(config) else {
        return;
    };
    let definitions: Vec<&Value> = tools.iter().map(|tool| &tool.definition).collect();
    let kept = || {
        let text = serde_json::to_vec(&definitions)?;
        folders::replace(&file, &text)
    };
    if let Err(error) = kept() {
        tracing::debug!(%error, "the tools of a server cannot be kept");
    }
}

/// The file of a server's tools.
fn file_of(config: &ServerConfig) -> Option<PathBuf> {
    cache_file(config, "json")
}

/// The file with this ending that is kept for a server in the folder for caches; `None` where the user
/// has none, or the server is a script of a test.
pub(super) fn cache_file(config: &ServerConfig, ending: &str) -> Option<PathBuf> {
    let parts: Vec<String> = match &config.transport {
        Transport::Stdio {
            command,
            args,
            env,
            cwd,
        } => {
            let env = env.iter().map(|(name, value)| format!("{name}={value}"));
            let cwd = cwd.as_ref().map(|cwd| cwd.display().to_string());
            let words = [command].into_iter().chain(args).cloned();
            words.chain([cwd.unwrap_or_default()]).chain(env).collect()
        }
        Transport::Http(address) | Transport::Sse(address) => {
            let headers = address.headers.iter();
            let headers = headers.map(|(name, value)| format!("{name}: {value}"));
            let url_and_helper = [Some(&address.url), address.headers_helper.as_ref()];
            let url_and_helper = url_and_helper.into_iter().flatten().cloned();
            url_and_helper.chain(headers).collect()
        }
        #[cfg(test)]
        Transport::Memory(_) => return None,
    };
    let mut hash = Sha256::new();
    for part in [&config.name].into_iter().chain(&parts) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let name = hex(&hash.finalize()[..16]);
    Some(
        code_mode_system::cache_folder()?
            .join("mcp")
            .join(format!("{name}.{ending}")),
    )
}
