//! The servers behind this one, as the files say that clients already have.

mod entry;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::expand::{self, Place};
use crate::login::LoginOptions;
use crate::secrets::Secrets;
use entry::EntryReader;

/// How long a server may take to start.
pub(crate) const STARTUP: Duration = Duration::from_secs(10);
/// How long a call may go without news.
pub(crate) const CALL: Duration = Duration::from_secs(60);
/// Set in the environment of every server that is started here.
pub const MARKER: &str = "CODE_MODE_MCP";

/// One server.
#[derive(Clone, Debug)]
pub(crate) struct ServerConfig {
    pub(crate) name: String,
    pub(crate) transport: Transport,
    pub(crate) startup_timeout: Duration,
    pub(crate) call_timeout: Duration,
    pub(crate) enabled_tools: Option<Vec<String>>,
    pub(crate) disabled_tools: Vec<String>,
    /// Whether the clients of one gateway share it. Default yes.
    pub(crate) is_shared: bool,
    /// Why it is not started, where its configuration cannot be used.
    pub(crate) unusable: Option<String>,
}

/// How a server is reached.
#[derive(Clone, Debug)]
pub(crate) enum Transport {
    /// A program on this machine.
    Stdio {
        command: String,
        args: Vec<String>,
        env: BTreeMap<String, String>,
        cwd: Option<PathBuf>,
    },
    /// Streamable HTTP.
    Http(Address),
    /// The transport with two addresses, of the first revision.
    Sse(Address),
    /// A script of a test, at the other end of a stream in memory.
    #[cfg(test)]
    Memory(crate::upstream::scripted::Script),
}

/// A server's address, and the credentials for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Address {
    pub(crate) url: String,
    pub(crate) headers: BTreeMap<String, String>,
    /// A command that prints more headers, for each connection.
    pub(crate) headers_helper: Option<String>,
    pub(crate) login: LoginOptions,
}

impl Address {
    /// Whether the configuration has credentials. Such a server needs no login.
    pub(crate) fn has_credentials(&self) -> bool {
        let mut names = self.headers.keys();
        self.headers_helper.is_some()
            || names.any(|name| name.eq_ignore_ascii_case("authorization"))
    }
}

impl ServerConfig {
    /// Its address, where it has one.
    pub(crate) fn address(&self) -> Option<&Address> {
        match &self.transport {
            Transport::Http(address) | Transport::Sse(address) => Some(address),
            _ => None,
        }
    }

    /// Whether a tool of the server is wanted.
    pub(crate) fn wants(&self, tool: &str) -> bool {
        let is_in = |list: &[String]| list.iter().any(|name| name == tool);
        self.enabled_tools.as_deref().is_none_or(is_in) && !is_in(&self.disabled_tools)
    }
}

/// Why a configuration cannot be used. The text names the file and the place.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// The servers of all files and options; for one name the later wins, with a
/// warning.
pub(crate) fn read(
    files: &[PathBuf],
    options: &[String],
    secrets: &Secrets,
    warnings: &mut Vec<String>,
) -> Result<Vec<ServerConfig>, ConfigError> {
    let mut servers: Vec<ServerConfig> = Vec::new();
    let mut add = |server: ServerConfig, from: &str| {
        if let Some(known) = servers.iter_mut().find(|known| known.name == server.name) {
            warnings.push(format!(
                "the server {:?} is defined again in {from}, which is used",
                server.name
            ));
            *known = server;
        } else {
            servers.push(server);
        }
    };
    for path in files {
        for server in of_file(path, secrets)? {
            add(server, &path.display().to_string());
        }
    }
    for option in options {
        add(of_option(option, secrets)?, "--server");
    }
    Ok(servers)
}

/// The error of an entry, if it has one. A variable that is not set may be set elsewhere: that counts as right.
pub(crate) fn problem_of_entry(name: &str, entry: &Value) -> Option<String> {
    let secrets = Secrets::default();
    let place_of = |field: &str| Place {
        folder: Path::new("/"),
        field: field.to_owned(),
    };
    let place = "its entry";
    let reader = EntryReader {
        place,
        entry,
        name,
        secrets: &secrets,
    };
    reader.read(&place_of).err().map(|error| error.to_string())
}

/// Adds a warning for each server that cannot be used.
pub(crate) fn warn_of_unusable(
    servers: &[ServerConfig],
    secrets: &Secrets,
    warnings: &mut Vec<String>,
) {
    for server in servers {
        if let Some(why) = &server.unusable {
            warnings.push(format!(
                "the server {:?} is left out: {}",
                server.name,
                secrets.hide(why)
            ));
        }
    }
}

/// `NAME=COMMAND`, where the command is split as a shell splits words, or a URL.
fn of_option(option: &str, secrets: &Secrets) -> Result<ServerConfig, ConfigError> {
    let wrong = |what: &str| ConfigError(format!("--server {option:?}: {what}"));
    let (name, command) = option
        .split_once('=')
        .ok_or_else(|| wrong("write NAME=COMMAND"))?;
    if name.is_empty() {
        return Err(wrong("the name is empty"));
    }
    let transport = if command.starts_with("http://") || command.starts_with("https://") {
        expand::add_secrets_of_url(command, secrets);
        Transport::Http(Address {
            url: command.to_owned(),
            ..Address::default()
        })
    } else {
        let words = shlex::split(command).ok_or_else(|| wrong("a quote is not closed"))?;
        let mut words = words.into_iter();
        Transport::Stdio {
            command: words.next().ok_or_else(|| wrong("the command is empty"))?,
            args: words.collect(),
            env: BTreeMap::new(),
            cwd: None,
        }
    };
    let mut server = ServerConfig {
        name: name.to_owned(),
        transport,
        startup_timeout: STARTUP,
        call_timeout: CALL,
        enabled_tools: None,
        disabled_tools: Vec::new(),
        is_shared: true,
        unusable: None,
    };
    refuse_itself(&mut server);
    Ok(server)
}

fn of_file(path: &Path, secrets: &Secrets) -> Result<Vec<ServerConfig>, ConfigError> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError(format!("cannot read {shown}: {error}")))?;
    let document = match path
        .extension()
        .is_some_and(|extension| extension == "toml")
    {
        true => toml::from_str::<Value>(&text)
            .map_err(|error| ConfigError(format!("{shown}: {}", toml_error(&text, &error))))?,
        false => json(&text).map_err(|error| ConfigError(format!("{shown}: {error}")))?,
    };
    let keys = ["mcpServers", "servers", "mcp_servers"];
    let found = keys.iter().find_map(|key| Some((key, document.get(key)?)));
    let Some((key, servers)) = found else {
        return Err(ConfigError(format!(
            "{shown}: no servers: the keys mcpServers, servers and mcp_servers are all missing"
        )));
    };
    let Some(servers) = servers.as_object() else {
        return Err(ConfigError(format!("{shown}: {key}: not an object")));
    };
    let folder = expand::workspace_of(path);
    let mut read = Vec::new();
    for (name, entry) in servers {
        let place = format!("{shown}: {key}.{name}");
        let place_of = |field: &str| Place {
            folder: &folder,
            field: field.to_owned(),
        };
        let server = EntryReader {
            place: &place,
            entry,
            name,
            secrets,
        }
        .read(&place_of)?;
        read.extend(server);
    }
    Ok(read)
}

/// The error of a TOML file, with its line's number; not the line, which may have a secret.
fn toml_error(text: &str, error: &toml::de::Error) -> String {
    let at = error.span().map_or(0, |span| span.start);
    let line = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
    format!("{} at line {line}", error.message())
}

/// JSON with comments and trailing commas, as editors' files have them. They become
/// spaces, so that an error's line is the file's.
fn json(text: &str) -> Result<Value, String> {
    let mut text = text.trim_start_matches('\u{feff}').to_owned();
    json_strip_comments::strip(&mut text).map_err(|error| error.to_string())?;
    let value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let Pairs(top) = serde_json::from_str::<Pairs>(&text).unwrap_or_default();
    for (key, raw) in top {
        let Pairs(servers) = serde_json::from_str(raw.get()).unwrap_or_default();
        let names: Vec<&str> = servers.iter().map(|(name, _)| name.as_str()).collect();
        for (at, name) in names.iter().enumerate() {
            if names[..at].contains(name) && key.to_lowercase().contains("servers") {
                return Err(format!("{key}: two servers have the name {name:?}"));
            }
        }
    }
    Ok(value)
}

/// An object with its keys as they stand, the same twice too.
#[derive(Default)]
struct Pairs(Vec<(String, Box<serde_json::value::RawValue>)>);

impl<'de> serde::Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// This program is never behind itself.
fn refuse_itself(server: &mut ServerConfig) {
    let Transport::Stdio { command, args, .. } = &server.transport else {
        return;
    };
    let stem = Path::new(command)
        .file_stem()
        .and_then(|stem| stem.to_str());
    if stem == Some("code-mode") && args.first().is_some_and(|first| first == "mcp") {
        server.unusable = Some("it is this program, which cannot be behind itself".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(name: &str, text: &str) -> Result<Vec<ServerConfig>, ConfigError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        of_file(&path, &Secrets::default())
    }

    #[test]
    fn files_of_several_clients_are_read() {
        let code = r#"{ // comment
            "inputs": [], "servers": {"a": {"type": "stdio", "command": "x", "args": ["1"], "env": {"K": "v"},},
            "b": {"url": "https://e.invalid/mcp", "headers": {"X": "y"}}, "off": {"command": "x", "disabled": true}}}"#;
        let servers = read_text("mcp.json", code).expect("read");
        assert_eq!(servers.len(), 2);
        assert!(
            matches!(&servers[0].transport, Transport::Stdio { command, env, .. }
            if command == "x" && env["K"] == "v")
        );
        let codex =
            "[mcp_servers.c]\ncommand = \"y\"\nstartup_timeout_sec = 20\nenabled_tools = [\"t\"]\n";
        let servers = read_text("config.toml", codex).expect("read");
        assert_eq!(servers[0].startup_timeout, Duration::from_secs(20));
        assert!(servers[0].wants("t") && !servers[0].wants("u"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let said = |text: &str| read_text("x.json", text).expect_err("refused").to_string();
        assert!(said("{\n\"mcpServers\": {\n").contains("line 3"));
        assert!(
            said(r#"{"mcpServers": {"a": {}}}"#).contains("mcpServers.a: neither command nor url")
        );
        assert!(said(r#"{"mcpServers": {"a": {"command": 7}}}"#).contains("command: not a string"));
        assert!(said(r#"{"mcpServers": {"a": {"command": "x", "url": "y"}}}"#).contains("both"));
        assert!(said("{}").contains("no servers"));
    }

    #[test]
    fn a_server_that_cannot_be_used_is_left_out_with_its_reason() {
        let text = r#"{"mcpServers": {
            "a": {"command": "x", "env": {"T": "${CODE_MODE_NOT_SET_ANYWHERE}"}},
            "b": {"command": "/bin/code-mode", "args": ["mcp"]},
            "c": {"url": "ws://x", "type": "ws"}, "d": {"command": "ok"}}}"#;
        let servers = read_text("x.json", text).expect("read");
        let why: Vec<_> = servers.iter().map(|s| s.unusable.as_deref()).collect();
        assert!(why[0].is_some_and(|why| why.contains("CODE_MODE_NOT_SET_ANYWHERE")));
        assert!(why[1].is_some_and(|why| why.contains("this program")));
        assert!(why[2].is_some_and(|why| why.contains("ws")));
        assert_eq!(why[3], None);
    }
}
