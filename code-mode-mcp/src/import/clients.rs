//! Where clients keep their servers, and how each writes an entry.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// The folders in which clients keep their files.
#[derive(Clone, Debug)]
pub struct Folders {
    home: PathBuf,
    /// Of desktop programs.
    desktop: PathBuf,
    /// Of programs of the terminal.
    terminal: PathBuf,
    /// Of the current project.
    project: PathBuf,
}

impl Folders {
    /// The folders of this user and this working folder; `None` without a home.
    pub fn of_user() -> Option<Self> {
        let folder = |name: &str| {
            let folder = PathBuf::from(std::env::var_os(name)?);
            folder.is_absolute().then_some(folder)
        };
        let home = folder(if cfg!(windows) { "USERPROFILE" } else { "HOME" })?;
        let terminal = match cfg!(windows) {
            true => folder("APPDATA")?,
            false => folder("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")),
        };
        let desktop = match cfg!(target_os = "macos") {
            true => home.join("Library/Application Support"),
            false => terminal.clone(),
        };
        Some(Self {
            desktop,
            terminal,
            home,
            project: std::env::current_dir().ok()?,
        })
    }

    /// Where the servers of all clients are written by default.
    pub fn servers(&self) -> PathBuf {
        self.terminal.join("code-mode").join("servers.json")
    }
}

/// How a client writes its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// With comments and trailing commas.
    Json,
    Toml,
    Yaml,
}

/// How a client writes an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `command`, `args`, `env`, or `url` and `headers`.
    Common,
    /// The same, where `$NAME` stands for a variable too.
    Gemini,
    VsCode,
    Zed,
    Goose,
    OpenCode,
}

/// A file of a client.
#[derive(Clone, Debug)]
pub(super) struct ClientFile {
    pub(super) client: &'static str,
    pub(super) path: PathBuf,
    pub(super) format: Format,
    /// The key of the servers.
    pub(super) key: &'static str,
    pub(super) dialect: Dialect,
    /// It belongs to a project, whose other users have it too.
    pub(super) is_of_project: bool,
}

/// The files of all clients that are known, whether they exist or not.
pub(super) fn files(folders: &Folders) -> Vec<ClientFile> {
    use Dialect::{Common, Gemini, Goose, OpenCode, VsCode, Zed};
    use Format::{Json, Toml, Yaml};
    let Folders {
        home,
        desktop,
        terminal,
        project,
    } = folders;
    let codex = std::env::var_os("CODEX_HOME").map_or_else(|| home.join(".codex"), PathBuf::from);
    let goose = match cfg!(windows) {
        true => terminal.join("Block/goose/config/config.yaml"),
        false => terminal.join("goose/config.yaml"),
    };
    let of_user = [
        (
            "Claude Code",
            home.join(".claude.json"),
            Json,
            "mcpServers",
            Common,
        ),
        (
            "Claude Desktop",
            desktop.join("Claude/claude_desktop_config.json"),
            Json,
            "mcpServers",
            Common,
        ),
        (
            "Cursor",
            home.join(".cursor/mcp.json"),
            Json,
            "mcpServers",
            Common,
        ),
        (
            "VS Code",
            desktop.join("Code/User/mcp.json"),
            Json,
            "servers",
            VsCode,
        ),
        (
            "Codex",
            codex.join("config.toml"),
            Toml,
            "mcp_servers",
            Common,
        ),
        (
            "Gemini CLI",
            home.join(".gemini/settings.json"),
            Json,
            "mcpServers",
            Gemini,
        ),
        (
            "Qwen Code",
            home.join(".qwen/settings.json"),
            Json,
            "mcpServers",
            Gemini,
        ),
        (
            "Zed",
            terminal.join("zed/settings.json"),
            Json,
            "context_servers",
            Zed,
        ),
        ("goose", goose, Yaml, "extensions", Goose),
        (
            "opencode",
            terminal.join("opencode/opencode.json"),
            Json,
            "mcp",
            OpenCode,
        ),
    ];
    let of_project = [
        (
            "Claude Code",
            project.join(".mcp.json"),
            Json,
            "mcpServers",
            Common,
        ),
        (
            "Cursor",
            project.join(".cursor/mcp.json"),
            Json,
            "mcpServers",
            Common,
        ),
        (
            "VS Code",
            project.join(".vscode/mcp.json"),
            Json,
            "servers",
            VsCode,
        ),
    ];
    let file = |is_of_project| {
        move |(client, path, format, key, dialect)| ClientFile {
            client,
            path,
            format,
            key,
            dialect,
            is_of_project,
        }
    };
    let mut files: Vec<_> = of_user.into_iter().map(file(false)).collect();
    for file in of_project.into_iter().map(file(true)) {
        // A person who works at home has one file only.
        if files.iter().all(|known| known.path != file.path) {
            files.push(file);
        }
    }
    files
}

/// Why an entry is not imported.
pub(super) enum Skipped {
    /// It is switched off.
    Off,
    /// It is a part of the client.
    OfClient,
}

impl Dialect {
    /// An entry as `code-mode mcp` reads it.
    pub(super) fn common(self, entry: &Value) -> Result<Value, Skipped> {
        let mut entry = entry.as_object().cloned().unwrap_or_default();
        if entry.get("enabled") == Some(&json!(false))
            || entry.get("disabled") == Some(&json!(true))
        {
            return Err(Skipped::Off);
        }
        entry.remove("enabled");
        entry.remove("disabled");
        match self {
            Self::Common | Self::VsCode => {}
            Self::Gemini => entry.values_mut().for_each(with_braces),
            Self::Zed => {
                entry.remove("source");
                if let Some(Value::Object(command)) = entry.get("command").cloned() {
                    rename(
                        &mut entry,
                        &command,
                        &[("path", "command"), ("args", "args"), ("env", "env")],
                    );
                }
                if !entry.contains_key("command") && !entry.contains_key("url") {
                    return Err(Skipped::OfClient);
                }
            }
            Self::Goose => {
                let kind = entry
                    .get("type")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                if !["stdio", "sse", "streamable_http"].contains(&kind) {
                    return Err(Skipped::OfClient);
                }
                let kind = if kind == "sse" { "sse" } else { "" };
                let names = [
                    ("cmd", "command"),
                    ("args", "args"),
                    ("envs", "env"),
                    ("uri", "url"),
                    ("headers", "headers"),
                    ("timeout", "tool_timeout_sec"),
                ];
                let goose = std::mem::take(&mut entry);
                rename(&mut entry, &goose, &names);
                if kind == "sse" {
                    entry.insert("type".to_owned(), kind.into());
                }
                // Their values are in goose's keyring.
                let keys = goose.get("env_keys").and_then(Value::as_array);
                for key in keys.into_iter().flatten().filter_map(Value::as_str) {
                    let env = entry.entry("env").or_insert_with(|| json!({}));
                    if let Some(env) = env.as_object_mut() {
                        env.entry(key)
                            .or_insert_with(|| format!("${{{key}}}").into());
                    }
                }
            }
            Self::OpenCode => {
                entry.remove("type");
                if let Some(env) = entry.remove("environment") {
                    entry.insert("env".to_owned(), env);
                }
                if let Some(Value::Array(words)) = entry.get("command").cloned() {
                    let mut words = words.into_iter();
                    entry.insert("command".to_owned(), words.next().unwrap_or_default());
                    entry.insert("args".to_owned(), words.collect());
                }
                entry.values_mut().for_each(of_opencode);
            }
        }
        Ok(Value::Object(entry))
    }

    /// The entry of `code-mode mcp` for this client.
    pub(super) fn entry(self, program: &Path, servers: &Path) -> Value {
        let program = program.display().to_string();
        let servers = servers.display().to_string();
        match self {
            Self::OpenCode => {
                json!({"type": "local", "command": [program, "mcp", "--config", servers]})
            }
            Self::VsCode => {
                json!({"type": "stdio", "command": program, "args": ["mcp", "--config", servers]})
            }
            Self::Goose => {
                json!({"name": "code-mode", "type": "stdio", "enabled": true, "cmd": program, "args": ["mcp", "--config", servers]})
            }
            Self::Common | Self::Gemini | Self::Zed => {
                json!({"command": program, "args": ["mcp", "--config", servers]})
            }
        }
    }
}

/// Puts values of one object into another, under other names.
fn rename(into: &mut Map<String, Value>, from: &Map<String, Value>, names: &[(&str, &str)]) {
    for (old, new) in names {
        if let Some(value) = from.get(*old).filter(|value| !value.is_null()) {
            into.insert((*new).to_owned(), value.clone());
        }
    }
}

/// Every text in a value, changed.
fn texts(value: &mut Value, change: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = change(text),
        Value::Array(values) => values.iter_mut().for_each(|value| texts(value, change)),
        Value::Object(object) => object.values_mut().for_each(|value| texts(value, change)),
        _ => {}
    }
}

/// `$NAME` as `${NAME}`.
fn with_braces(value: &mut Value) {
    texts(value, &|text| {
        let mut changed = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            changed.push_str(&rest[..=at]);
            rest = &rest[at + 1..];
            let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let name = rest.split(|c| !is_of_name(c)).next().unwrap_or_default();
            if !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) {
                changed.push_str(&format!("{{{name}}}"));
                rest = &rest[name.len()..];
            }
        }
        changed + rest
    });
}

/// `{env:NAME}` as `${NAME}`.
fn of_opencode(value: &mut Value) {
    texts(value, &|text| text.replace("{env:", "${env:"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_each_client_become_common_ones() {
        let common = |dialect: Dialect, entry: Value| dialect.common(&entry).ok();
        assert_eq!(
            common(
                Dialect::Gemini,
                json!({"command": "x", "env": {"A": "$A_1/$b ${C} $1 $"}})
            ),
            Some(json!({"command": "x", "env": {"A": "${A_1}/${b} ${C} $1 $"}}))
        );
        let goose = json!({"type": "stdio", "name": "g", "enabled": true, "cmd": "npx", "args": ["-y", "s"],
            "envs": {"A": "1"}, "env_keys": ["TOKEN"], "timeout": 300, "bundled": null});
        assert_eq!(
            common(Dialect::Goose, goose),
            Some(
                json!({"command": "npx", "args": ["-y", "s"], "env": {"A": "1", "TOKEN": "${TOKEN}"}, "tool_timeout_sec": 300})
            )
        );
        let http = json!({"type": "streamable_http", "uri": "https://e.invalid", "enabled": true});
        assert_eq!(
            common(Dialect::Goose, http),
            Some(json!({"url": "https://e.invalid"}))
        );
        assert_eq!(
            common(
                Dialect::Goose,
                json!({"type": "builtin", "name": "developer"})
            ),
            None
        );
        let zed = json!({"source": "custom", "command": {"path": "z", "args": ["1"], "env": null}});
        assert_eq!(
            common(Dialect::Zed, zed),
            Some(json!({"command": "z", "args": ["1"]}))
        );
        assert_eq!(common(Dialect::Zed, json!({"settings": {}})), None);
        let code = json!({"type": "local", "command": ["o", "1"], "environment": {"T": "{env:TOKEN}"}, "enabled": true});
        assert_eq!(
            common(Dialect::OpenCode, code),
            Some(json!({"command": "o", "args": ["1"], "env": {"T": "${env:TOKEN}"}}))
        );
        assert_eq!(
            common(Dialect::Common, json!({"command": "x", "disabled": true})),
            None
        );
    }
}
