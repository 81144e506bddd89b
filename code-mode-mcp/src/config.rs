//! The servers behind this one, as the files say that clients already have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::expand::{self, Place};
use crate::secrets::Secrets;

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
    Http {
        url: String,
        headers: BTreeMap<String, String>,
    },
    /// The transport with two addresses, of the first revision.
    Sse {
        url: String,
        headers: BTreeMap<String, String>,
    },
    /// A script of a test, at the other end of a stream in memory.
    #[cfg(test)]
    Memory(crate::upstream::scripted::Script),
}

impl ServerConfig {
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
        Transport::Http {
            url: command.to_owned(),
            headers: BTreeMap::new(),
        }
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

/// One entry of a file.
struct EntryReader<'a> {
    place: &'a str,
    name: &'a str,
    entry: &'a Value,
    secrets: &'a Secrets,
}

impl EntryReader<'_> {
    fn wrong(&self, what: impl std::fmt::Display) -> ConfigError {
        ConfigError(format!("{}: {what}", self.place))
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.entry.get(field).filter(|value| !value.is_null())
    }

    fn text(&self, field: &str) -> Result<Option<&str>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(format!("{field}: not a string"))),
        }
    }

    fn flag(&self, field: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(format!("{field}: not true or false"))),
        }
    }

    fn texts(&self, field: &str) -> Result<Option<Vec<String>>, ConfigError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let list = value
            .as_array()
            .ok_or_else(|| self.wrong(format!("{field}: not an array")))?;
        list.iter()
            .map(|element| match element {
                Value::String(text) => Ok(text.clone()),
                _ => Err(self.wrong(format!("{field}: not all strings"))),
            })
            .collect::<Result<_, _>>()
            .map(Some)
    }

    fn map(&self, field: &str) -> Result<BTreeMap<String, String>, ConfigError> {
        let none = Map::new();
        let map = match self.get(field) {
            None => &none,
            Some(value) => value
                .as_object()
                .ok_or_else(|| self.wrong(format!("{field}: not an object")))?,
        };
        map.iter()
            .map(|(key, value)| {
                let text = match value {
                    Value::String(text) => text.clone(),
                    Value::Number(number) => number.to_string(),
                    Value::Bool(flag) => flag.to_string(),
                    _ => return Err(self.wrong(format!("{field}.{key}: not a string"))),
                };
                Ok((key.clone(), text))
            })
            .collect()
    }

    fn seconds(&self, field: &str) -> Result<Option<Duration>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(seconds) if seconds > 0.0 && seconds < 1e6 => {
                    Ok(Some(Duration::from_secs_f64(seconds)))
                }
                _ => Err(self.wrong(format!("{field}: not a number of seconds"))),
            },
        }
    }

    /// The server; `None` where it is switched off.
    fn read<'p>(
        &self,
        place_of: &dyn Fn(&str) -> Place<'p>,
    ) -> Result<Option<ServerConfig>, ConfigError> {
        if !self.entry.is_object() {
            return Err(self.wrong("not an object"));
        }
        if self.flag("disabled")? == Some(true) || self.flag("enabled")? == Some(false) {
            return Ok(None);
        }
        let command = self.text("command")?;
        let urls = ["url", "httpUrl", "serverUrl"];
        let mut url = None;
        for field in urls {
            if let Some(text) = self.text(field)? {
                url = Some((field, text));
            }
        }
        let mut missing = None;
        let mut expanded =
            |field: &str, text: &str| match expand::expand(text, &place_of(field), self.secrets) {
                Ok(text) => text,
                Err(what) => {
                    missing.get_or_insert(what);
                    String::new()
                }
            };
        let transport = match (command, url) {
            (Some(_), Some((field, _))) => {
                return Err(self.wrong(format!("both command and {field}: write one")));
            }
            (None, None) => return Err(self.wrong("neither command nor url")),
            (Some(command), None) if command.trim().is_empty() => {
                return Err(self.wrong("command: empty"));
            }
            (None, Some((field, url))) if !url.contains("${") && url::Url::parse(url).is_err() => {
                return Err(self.wrong(format!("{field}: no address")));
            }
            (Some(command), None) => {
                let mut env = BTreeMap::new();
                if let Some(file) = self.text("envFile")? {
                    let file = expanded("envFile", file);
                    if !file.is_empty() {
                        env.extend(expand::env_file(Path::new(&file)).map_err(|e| self.wrong(e))?);
                    }
                }
                for (key, value) in self.map("env")? {
                    env.insert(key.clone(), expanded(&format!("env.{key}"), &value));
                }
                for name in self.texts("env_vars")?.unwrap_or_default() {
                    if let Ok(value) = std::env::var(&name) {
                        env.insert(name, value);
                    }
                }
                env.values().for_each(|value| self.secrets.add(value));
                let args = self.texts("args")?.unwrap_or_default();
                let args = args.iter().map(|arg| expanded("args", arg)).collect();
                Transport::Stdio {
                    command: expanded("command", command),
                    args,
                    env,
                    cwd: self.text("cwd")?.map(|cwd| expanded("cwd", cwd).into()),
                }
            }
            (None, Some((field, url))) => {
                let url = expanded(field, url);
                let mut headers = BTreeMap::new();
                for field in ["headers", "http_headers"] {
                    for (key, value) in self.map(field)? {
                        headers.insert(key.clone(), expanded(&format!("{field}.{key}"), &value));
                    }
                }
                for (key, name) in self.map("env_http_headers")? {
                    headers.extend(std::env::var(&name).ok().map(|value| (key, value)));
                }
                if let Some(name) = self.text("bearer_token_env_var")? {
                    match std::env::var(name) {
                        Ok(token) => {
                            headers.insert("Authorization".to_owned(), format!("Bearer {token}"));
                            self.secrets.add(&token);
                        }
                        Err(_) => {
                            missing.get_or_insert(format!(
                                "bearer_token_env_var: the variable {name} is not set"
                            ));
                        }
                    }
                }
                headers.values().for_each(|value| self.secrets.add(value));
                expand::add_secrets_of_url(&url, self.secrets);
                match (self.text("type")?, field) {
                    (Some("sse"), _) => Transport::Sse { url, headers },
                    _ => Transport::Http { url, headers },
                }
            }
        };
        let wrong_kind = match self.text("type")? {
            None | Some("stdio" | "http" | "streamable-http" | "streamableHttp" | "sse") => None,
            Some(other) => Some(format!("type: {other:?} is not spoken here")),
        };
        // Milliseconds in most files, seconds in a few; below a thousand it can only be
        // the latter.
        let timeout = match self.get("timeout").map(Value::as_f64) {
            None => None,
            Some(Some(number)) if number >= 1000.0 => Some(Duration::from_secs_f64(number / 1e3)),
            Some(Some(number)) if number >= 1.0 => Some(Duration::from_secs_f64(number)),
            Some(_) => return Err(self.wrong("timeout: not a number")),
        };
        let tools = |fields: [&str; 3]| -> Result<Option<Vec<String>>, ConfigError> {
            for field in fields {
                if let Some(names) = self.texts(field)? {
                    return Ok(Some(names));
                }
            }
            Ok(None)
        };
        let mut server = ServerConfig {
            name: self.name.to_owned(),
            transport,
            startup_timeout: self.seconds("startup_timeout_sec")?.unwrap_or(STARTUP),
            call_timeout: self
                .seconds("tool_timeout_sec")?
                .or(timeout)
                .unwrap_or(CALL),
            enabled_tools: tools(["enabledTools", "includeTools", "enabled_tools"])?,
            disabled_tools: tools(["disabledTools", "excludeTools", "disabled_tools"])?
                .unwrap_or_default(),
            is_shared: self.flag("shared")?.unwrap_or(true),
            unusable: missing.or(wrong_kind),
        };
        refuse_itself(&mut server);
        Ok(Some(server))
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
