//! Clients' files, read and changed. A change keeps everything else in a file as it is.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::clients::{ClientFile, Format};
use crate::expand::workspace_of;

/// The largest file.
const MAX_BYTES: u64 = 64 << 20;

/// Why a client's file cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The system's reason.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not what the client would read.
    #[error("{}: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The problem, without a value of the file.
        why: String,
    },
    /// A backup is there already.
    #[error("{} is there already: the client's file was changed before, and `--undo` takes that back", .0.display())]
    Backup(PathBuf),
    /// The file's format cannot be changed here.
    #[error("{} is changed by hand: its entry is above", .0.display())]
    ByHand(PathBuf),
}

impl ImportError {
    pub(super) fn of(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::File { path, source }
    }

    fn content(path: &Path, why: impl Into<String>) -> Self {
        let (path, why) = (path.to_owned(), why.into());
        Self::Content { path, why }
    }
}

fn text_of(path: &Path) -> Result<String, ImportError> {
    let failed = |source| ImportError::of(path, source);
    let file = std::fs::File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(ImportError::content(path, "not a file"));
    }
    let mut text = String::new();
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 == MAX_BYTES {
        return Err(ImportError::content(path, "too large"));
    }
    Ok(text)
}

/// The servers of a client's file, in its order.
pub(super) fn servers(file: &ClientFile) -> Result<Vec<(String, Value)>, ImportError> {
    let text = text_of(&file.path)?;
    let wrong = |why: &str| ImportError::content(&file.path, why);
    let document: Value = match file.format {
        Format::Json => {
            let text = stripped(&text).ok_or_else(|| wrong("not JSON"))?;
            match text.trim().is_empty() {
                true => Value::Null,
                false => serde_json::from_str(&text)
                    .map_err(|error| wrong(&format!("not JSON at line {}", error.line())))?,
            }
        }
        Format::Toml => toml::from_str(&text).map_err(|_| wrong("not TOML"))?,
        Format::Yaml => serde_saphyr::from_str(&text).map_err(|_| wrong("not YAML"))?,
    };
    let servers = match document.get(file.key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(servers)) => servers.clone(),
        Some(_) => return Err(wrong(&format!("{}: not an object", file.key))),
    };
    Ok(servers.into_iter().collect())
}

/// JSON with spaces in place of comments and trailing commas.
fn stripped(text: &str) -> Option<String> {
    let mut text = text.to_owned();
    json_strip_comments::strip(&mut text).ok()?;
    Some(text)
}

/// Names the folder of a client's file instead of `${workspaceFolder}`, which is another one elsewhere.
pub(super) fn without_workspace(entry: &mut Value, file: &Path) {
    const WORKSPACE: &str = "${workspaceFolder}";
    match entry {
        Value::String(text) if text.contains(WORKSPACE) => {
            *text = text.replace(WORKSPACE, &workspace_of(file).display().to_string());
        }
        Value::Array(values) => values
            .iter_mut()
            .for_each(|value| without_workspace(value, file)),
        Value::Object(object) => {
            object
                .values_mut()
                .for_each(|value| without_workspace(value, file));
        }
        _ => {}
    }
}

/// Where a client's file is kept as it was.
fn backup_of(path: &Path) -> PathBuf {
    with_ending(path, ".before-code-mode")
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Puts an entry into a client's file in place of these servers. Returns where the file is as it was.
pub(super) fn install(
    file: &ClientFile,
    imported: &[String],
    name: &str,
    entry: &Value,
) -> Result<PathBuf, ImportError> {
    let backup = backup_of(&file.path);
    if backup.exists() {
        return Err(ImportError::Backup(backup));
    }
    let text = text_of(&file.path)?;
    let wrong = |why: &str| ImportError::content(&file.path, why);
    let changed = match file.format {
        Format::Json => in_json(&text, file.key, imported, name, entry),
        Format::Toml => in_toml(&text, file.key, imported, name, entry),
        Format::Yaml => return Err(ImportError::ByHand(file.path.clone())),
    };
    let changed = changed.ok_or_else(|| wrong("cannot be changed"))?;
    // The link stays one, where the file is linked to.
    let target = file.path.canonicalize();
    let target = target.map_err(|source| ImportError::of(&file.path, source))?;
    let write = |path: &Path, text: &str| {
        let replaced = replace(path, text, &target);
        replaced.map_err(|source| ImportError::of(path, source))
    };
    write(&backup, &text)?;
    write(&target, &changed)?;
    Ok(backup)
}

/// Gives a client its file back. `None` where it was not changed.
pub(super) fn undo(file: &ClientFile) -> Result<Option<String>, ImportError> {
    let backup = backup_of(&file.path);
    if !backup.exists() {
        return Ok(None);
    }
    let failed = |source| ImportError::of(&file.path, source);
    let target = file
        .path
        .canonicalize()
        .unwrap_or_else(|_| file.path.clone());
    let changed = with_ending(&file.path, ".with-code-mode");
    if target.exists() {
        let now = text_of(&target)?;
        replace(&changed, &now, &target).map_err(failed)?;
    }
    let before = text_of(&backup)?;
    replace(&target, &before, &backup).map_err(failed)?;
    std::fs::remove_file(&backup).map_err(failed)?;
    Ok(Some(format!(
        "{}: {} is as it was before; what it was until now: {}",
        file.client,
        file.path.display(),
        changed.display()
    )))
}

/// Replaces a file in one step, with the permissions of another.
fn replace(path: &Path, text: &str, like: &Path) -> io::Result<()> {
    let mut new = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(path))?;
    new.write_all(text.as_bytes())?;
    new.as_file()
        .set_permissions(std::fs::metadata(like)?.permissions())?;
    new.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// The text with other servers; the rest of it stays, with its comments.
fn in_json(
    text: &str,
    key: &str,
    imported: &[String],
    name: &str,
    entry: &Value,
) -> Option<String> {
    let stripped = stripped(text)?;
    let top: HashMap<String, &RawValue> = serde_json::from_str(&stripped).ok()?;
    let raw = top.get(key)?.get();
    let start = (raw.as_ptr() as usize).checked_sub(stripped.as_ptr() as usize)?;
    let mut servers: Map<String, Value> = serde_json::from_str(raw).ok()?;
    servers.retain(|name, _| !imported.contains(name));
    servers.insert(name.to_owned(), entry.clone());
    let servers = serde_json::to_string_pretty(&servers).ok()?;
    // As deep as the key, which is in the first object.
    let servers = servers.replace('\n', "\n  ");
    // Comments became spaces, so that places are the same in both texts.
    let (before, rest) = text.split_at_checked(start)?;
    let (_, after) = rest.split_at_checked(raw.len())?;
    let changed = format!("{before}{servers}{after}");
    serde_json::from_str::<Value>(&self::stripped(&changed)?).ok()?;
    Some(changed)
}

fn in_toml(
    text: &str,
    key: &str,
    imported: &[String],
    name: &str,
    entry: &Value,
) -> Option<String> {
    let mut document: toml_edit::DocumentMut = text.parse().ok()?;
    let servers = document.get_mut(key)?.as_table_like_mut()?;
    for name in imported {
        servers.remove(name);
    }
    let mut table = toml_edit::Table::new();
    for (key, value) in entry.as_object()? {
        let value = match value {
            Value::String(text) => toml_edit::value(text.as_str()),
            Value::Array(words) => {
                let words = words.iter().filter_map(Value::as_str);
                toml_edit::value(words.collect::<toml_edit::Array>())
            }
            _ => return None,
        };
        table.insert(key, value);
    }
    servers.insert(name, toml_edit::Item::Table(table));
    Some(document.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_of_json_leaves_everything_else_as_it_is() {
        let text = "// mine\n{\n  \"theme\": \"dark\", // of course\n  \"mcpServers\": {\n    \"a\": {\"command\": \"x\"}, /* ü */\n    \"off\": {\"disabled\": true},\n  },\n  \"last\": [1, 2,],\n}\n";
        let imported = ["a".to_owned()];
        let entry = json!({"command": "code-mode"});
        let changed = in_json(text, "mcpServers", &imported, "code-mode", &entry).expect("changed");
        assert!(
            changed.starts_with(
                "// mine\n{\n  \"theme\": \"dark\", // of course\n  \"mcpServers\": {"
            )
        );
        assert!(
            changed.ends_with("},\n  \"last\": [1, 2,],\n}\n"),
            "{changed}"
        );
        let read: Value = serde_json::from_str(&stripped(&changed).expect("JSON")).expect("JSON");
        let servers = json!({"off": {"disabled": true}, "code-mode": {"command": "code-mode"}});
        assert_eq!(read["mcpServers"], servers);
    }

    #[test]
    fn a_change_of_toml_leaves_everything_else_as_it_is() {
        let text = "model = \"m\" # mine\n\n[mcp_servers.a]\ncommand = \"x\"\n\n[mcp_servers.a.env]\nT = \"1\"\n\n[tui]\nx = 1\n";
        let imported = ["a".to_owned()];
        let entry = json!({"command": "code-mode", "args": ["mcp"]});
        let changed =
            in_toml(text, "mcp_servers", &imported, "code-mode", &entry).expect("changed");
        assert!(changed.starts_with("model = \"m\" # mine\n"), "{changed}");
        assert!(changed.contains("[mcp_servers.code-mode]\n"), "{changed}");
        assert!(
            changed.contains("[tui]\nx = 1") && !changed.contains("[mcp_servers.a"),
            "{changed}"
        );
    }
}
