//! Clients' files, read and changed. A change keeps everything else in a file as it is.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::clients::{ClientFile, Format};
use crate::expand::workspace_of;
use crate::folders::text_of_file;

/// The largest file.
const MAX_BYTES: u64 = 64 << 20;
/// What some editors begin a file with.
const BOM: char = '\u{feff}';

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
    /// An entry that was not imported has the name.
    #[error("{} has another entry of the name: it stays as it is", .0.display())]
    Taken(PathBuf),
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
    text_of_file(path, MAX_BYTES).map_err(|source| ImportError::of(path, source))
}

/// The file of an earlier import, whole. An empty object where the file does not exist.
///
/// # Errors
/// [`ImportError`], also for a file with something else: it must not be overwritten.
pub(super) fn earlier(path: &Path) -> Result<Map<String, Value>, ImportError> {
    if !path.exists() {
        return Ok(Map::new());
    }
    let wrong = |why: &str| {
        let why = format!("{why}: it stays as it is; correct it, or write to another file (--out)");
        ImportError::content(path, why)
    };
    let text = text_of(path)?;
    match json(&text).map_err(|why| wrong(&why))? {
        Value::Null => Ok(Map::new()),
        Value::Object(all) if all.get("mcpServers").is_some_and(Value::is_object) => Ok(all),
        _ => Err(wrong("it has no mcpServers")),
    }
}

/// JSON with comments and trailing commas. Null where the text is empty.
fn json(text: &str) -> Result<Value, String> {
    let text = stripped(text.trim_start_matches(BOM)).ok_or("not JSON")?;
    match text.trim().is_empty() {
        true => Ok(Value::Null),
        false => serde_json::from_str(&text)
            .map_err(|error| format!("not JSON at line {}", error.line())),
    }
}

/// The servers of a client's file, in its order.
pub(super) fn servers(file: &ClientFile) -> Result<Vec<(String, Value)>, ImportError> {
    let text = text_of(&file.path)?;
    let wrong = |why: &str| ImportError::content(&file.path, why);
    let document: Value = match file.format {
        Format::Json => json(&text).map_err(|why| wrong(&why))?,
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
    let there = servers(file)?;
    let there = there
        .into_iter()
        .find(|(known, _)| known == name && !imported.contains(known));
    let entry = match there {
        None => entry.clone(),
        // What the person has set of it stays.
        Some((_, own)) => {
            with_config(own, entry).ok_or_else(|| ImportError::Taken(file.path.clone()))?
        }
    };
    let changed = match file.format {
        Format::Json => in_json(&text, file.key, imported, name, &entry),
        Format::Toml => in_toml(&text, file.key, imported, name, &entry),
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

/// An entry of this program with the configuration of another beside what it has. `None` where it is
/// not an entry of this program.
fn with_config(mut own: Value, entry: &Value) -> Option<Value> {
    /// The words after the program.
    fn words(entry: &mut Value) -> Option<&mut Vec<Value>> {
        let words = match entry.get("args").is_some() {
            true => entry.get_mut("args")?,
            false => match entry.get_mut("command")? {
                command if command.is_array() => command,
                command => command.get_mut("args")?,
            },
        };
        words.as_array_mut()
    }
    let mut entry = entry.clone();
    let config = words(&mut entry)?.last()?.clone();
    let text = own.get("command").map(Value::to_string)?;
    let own_words = words(&mut own)?;
    if !text.contains("code-mode") || !own_words.contains(&Value::from("mcp")) {
        return None;
    }
    if !own_words.contains(&config) {
        own_words.extend([Value::from("--config"), config]);
    }
    Some(own)
}

/// Gives a client its file back. `None` where it was not changed.
pub(super) fn undo(file: &ClientFile) -> Result<Option<String>, ImportError> {
    let backup = backup_of(&file.path);
    match std::fs::symlink_metadata(&backup) {
        Err(_) => return Ok(None),
        Ok(found) if found.is_file() => {}
        Ok(_) => {
            return Err(ImportError::content(
                &backup,
                "not a file that was written here",
            ));
        }
    }
    let failed = |source| ImportError::of(&file.path, source);
    let target = file
        .path
        .canonicalize()
        .unwrap_or_else(|_| file.path.clone());
    let endings = (2..).map(|number| format!(".with-code-mode-{number}"));
    let mut endings = std::iter::once(".with-code-mode".to_owned()).chain(endings);
    let is_free = |path: &PathBuf| std::fs::symlink_metadata(path).is_err();
    let names = endings
        .by_ref()
        .map(|ending| with_ending(&file.path, &ending));
    let changed = names
        .into_iter()
        .find(is_free)
        .unwrap_or_else(|| with_ending(&file.path, ".with-code-mode"));
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
    let like = std::fs::metadata(like)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        // Only root can, and only root has to: it may change the file of another user.
        let _ = std::os::unix::fs::fchown(new.as_file(), Some(like.uid()), Some(like.gid()));
    }
    new.as_file().set_permissions(like.permissions())?;
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
    let (bom, text) = text.split_at(text.len() - text.trim_start_matches(BOM).len());
    // Comments become spaces, so that places are the same in both texts.
    let stripped = stripped(text)?;
    let place_of =
        |raw: &RawValue| (raw.get().as_ptr() as usize).checked_sub(stripped.as_ptr() as usize);
    let top: HashMap<String, &RawValue> = serde_json::from_str(&stripped).ok()?;
    let servers = top.get(key)?;
    let start = place_of(servers)?;
    let end = start + servers.get().len();
    // Each member with what stands before it, without the comma between.
    let Members(members) = serde_json::from_str(servers.get()).ok()?;
    let mut kept: Vec<String> = Vec::new();
    let mut from = start + 1;
    for (member, raw) in members {
        let until = place_of(raw)? + raw.get().len();
        let comma = stripped
            .get(from..until)?
            .find(|c: char| !c.is_whitespace())?;
        let comma = from + comma;
        let is_comma = stripped.as_bytes().get(comma) == Some(&b',');
        let (before, rest) = match is_comma {
            true => (text.get(from..comma)?, text.get(comma + 1..until)?),
            false => ("", text.get(from..until)?),
        };
        if member != name && !imported.contains(&member) {
            kept.push(format!("{before}{rest}"));
        }
        from = until;
    }
    let entry = serde_json::to_string_pretty(entry)
        .ok()?
        .replace('\n', "\n    ");
    kept.push(format!("\n    {}: {entry}", Value::from(name)));
    let tail = text.get(from..end)?;
    let gap = if tail.contains('\n') { "" } else { "\n  " };
    let (before, after) = (text.get(..start)?, text.get(end..)?);
    let changed = format!("{before}{{{}{gap}{tail}{after}", kept.join(","));
    serde_json::from_str::<Value>(&self::stripped(&changed)?).ok()?;
    Some(format!("{bom}{changed}"))
}

/// The members of an object in their order, each as it is written.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
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
    fn entries_that_stay_in_json_stay_letter_by_letter() {
        let text = "\u{feff}{\"mcpServers\": {\n    // one\n    \"off\": {\"disabled\": true, \"n\": 123456789012345678901234567890},\n    \"a\": {\"command\": \"x\"}, /* two */\n    \"last\": {} // three\n  }}";
        let entry = json!({"command": "code-mode"});
        let imported = ["a".to_owned()];
        let changed = in_json(text, "mcpServers", &imported, "code-mode", &entry).expect("changed");
        for kept in [
            "// one\n    \"off\": {\"disabled\": true, \"n\": 123456789012345678901234567890}",
            "\"last\": {}",
            "// three",
            "/* two */",
        ] {
            assert!(changed.contains(kept), "{kept}: {changed}");
        }
        assert!(
            changed.starts_with(BOM) && !changed.contains("\"a\""),
            "{changed}"
        );
        let one_line = in_json(
            "{\"mcpServers\":{}}",
            "mcpServers",
            &[],
            "code-mode",
            &entry,
        );
        assert_eq!(
            json(&one_line.expect("changed")).expect("JSON"),
            json!({"mcpServers": {"code-mode": entry}})
        );
    }

    #[test]
    fn an_entry_of_this_program_keeps_what_a_person_has_set() {
        let entry = json!({"command": "/new/code-mode", "args": ["mcp", "--config", "/s.json"]});
        let own = json!({"command": "code-mode", "args": ["mcp", "--policy", "/p.json"], "env": {"A": "1"}});
        assert_eq!(
            with_config(own, &entry),
            Some(
                json!({"command": "code-mode", "args": ["mcp", "--policy", "/p.json", "--config", "/s.json"], "env": {"A": "1"}})
            )
        );
        let words = json!({"command": ["code-mode", "mcp"]});
        let of_opencode =
            json!({"type": "local", "command": ["/new/code-mode", "mcp", "--config", "/s.json"]});
        assert_eq!(
            with_config(words, &of_opencode),
            Some(json!({"command": ["code-mode", "mcp", "--config", "/s.json"]}))
        );
        assert_eq!(
            with_config(json!({"command": "other", "args": ["mcp"]}), &entry),
            None
        );
        assert_eq!(
            with_config(json!({"url": "https://e.invalid"}), &entry),
            None
        );
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
