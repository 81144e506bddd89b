//! `${VARIABLES}` in a configuration, and the environment that a server gets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::folders::text_of_file;
use crate::secrets::Secrets;

/// Where a text stands.
pub(crate) struct Place<'a> {
    /// The workspace's folder.
    pub(crate) folder: &'a Path,
    /// The field, for errors.
    pub(crate) field: String,
}

/// The folder that `${workspaceFolder}` names: that of the file, above an editor's own.
pub(crate) fn workspace_of(file: &Path) -> PathBuf {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let folder = file.parent().unwrap_or(Path::new("/"));
    match folder.file_name().and_then(|name| name.to_str()) {
        Some(".vscode" | ".cursor" | ".codex" | ".roo" | ".gemini") => {
            folder.parent().unwrap_or(folder).to_owned()
        }
        _ => folder.to_owned(),
    }
}

/// Replaces `${NAME}` and its like, once. Other text in braces stays as it is.
///
/// # Errors
/// The field and the variable that is not set and has no default.
pub(crate) fn expand(text: &str, place: &Place, secrets: &Secrets) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, from) = rest.split_at(start);
        expanded.push_str(before);
        let Some(end) = from.find('}') else {
            rest = from;
            break;
        };
        let inside = &from[2..end];
        match value(inside, place)? {
            Some((value, is_secret)) => {
                if is_secret {
                    secrets.add(&value);
                }
                expanded.push_str(&value);
            }
            None => expanded.push_str(&from[..=end]),
        }
        rest = &from[end + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// What stands for the inside of a pair of braces, and whether it must be hidden.
fn value(inside: &str, place: &Place) -> Result<Option<(String, bool)>, String> {
    let plain = |text: String| Ok(Some((text, false)));
    match inside {
        "workspaceFolder" => return plain(place.folder.display().to_string()),
        "workspaceFolderBasename" => {
            let name = place.folder.file_name().unwrap_or_default();
            return plain(name.to_string_lossy().into_owned());
        }
        "userHome" => return plain(std::env::var("HOME").unwrap_or_default()),
        "pathSeparator" | "/" => return plain(std::path::MAIN_SEPARATOR.to_string()),
        _ => {}
    }
    if let Some(id) = inside.strip_prefix("input:") {
        let name: String = id
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_uppercase()
                } else {
                    '_'
                }
            })
            .collect();
        let name = format!("MCP_INPUT_{name}");
        return match std::env::var(&name) {
            Ok(value) => Ok(Some((value, true))),
            Err(_) => Err(format!(
                "{}: this command cannot ask for the input {id:?}; set the variable {name}",
                place.field
            )),
        };
    }
    let inside = inside.strip_prefix("env:").unwrap_or(inside);
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let is_name = !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !name.starts_with(|c: char| c.is_ascii_digit());
    if !is_name {
        return Ok(None);
    }
    match (std::env::var(name), default) {
        (Ok(value), _) if !value.is_empty() || default.is_none() => Ok(Some((value, true))),
        (_, Some(default)) => Ok(Some((default.to_owned(), false))),
        _ => Err(format!("{}: the variable {name} is not set", place.field)),
    }
}

/// The variables of a file with a `NAME=VALUE` on each line.
pub(crate) fn env_file(path: &Path) -> Result<BTreeMap<String, String>, String> {
    const MAX_BYTES: u64 = 1 << 20;
    let text = text_of_file(path, MAX_BYTES)
        .map_err(|error| format!("envFile {}: {error}", path.display()))?;
    let mut variables = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        if let Some((name, value)) = line.split_once('=') {
            let value = value.trim();
            let unquoted = ['"', '\'']
                .iter()
                .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
            let value = unquoted.unwrap_or(value);
            variables.insert(name.trim().to_owned(), value.to_owned());
        }
    }
    Ok(variables)
}

/// A URL's password and query are secrets, and so is what looks like a token in its path: many
/// servers are reached by an address that alone lets in.
pub(crate) fn add_secrets_of_url(url: &str, secrets: &Secrets) {
    let Ok(url) = url::Url::parse(url) else {
        return;
    };
    secrets.add(url.username());
    secrets.add(url.password().unwrap_or_default());
    /// Names of paths are shorter, or have no digits.
    const TOKEN: usize = 16;
    for part in url.path_segments().into_iter().flatten() {
        if part.len() >= TOKEN && part.bytes().any(|byte| byte.is_ascii_digit()) {
            secrets.add(part);
        }
    }
    for (_, value) in url.query_pairs() {
        secrets.add(&value);
    }
    for pair in url.query().unwrap_or_default().split('&') {
        // As it is written, too.
        secrets.add(pair.split_once('=').map_or(pair, |(_, value)| value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_token_in_an_address_is_a_secret() {
        let secrets = Secrets::default();
        add_secrets_of_url(
            "https://h/api/streamable-http-server/a1b2c3d4e5f6a7b8/mcp",
            &secrets,
        );
        let shown = secrets.hide("/api/streamable-http-server/a1b2c3d4e5f6a7b8/mcp");
        assert_eq!(shown, "/api/streamable-http-server/[secret]/mcp");
    }

    #[test]
    fn variables_are_expanded_once_and_oddities_stay() {
        let place = Place {
            folder: Path::new("/w/project"),
            field: "args".to_owned(),
        };
        let expand = |text: &str| expand(text, &place, &Secrets::default());
        let path = std::env::var("PATH").expect("a path");
        assert_eq!(expand("a${PATH}b"), Ok(format!("a{path}b")));
        assert_eq!(expand("${env:PATH}"), Ok(path));
        assert_eq!(expand("${NO_SUCH_VARIABLE:-x${y}"), Ok("x${y".to_owned()));
        assert_eq!(
            expand("$HOME ${x%y} ${unclosed"),
            Ok("$HOME ${x%y} ${unclosed".to_owned())
        );
        assert_eq!(
            expand("${workspaceFolder}/x"),
            Ok("/w/project/x".to_owned())
        );
        assert!(
            expand("${NO_SUCH_VARIABLE}")
                .is_err_and(|e| e.contains("args") && e.contains("NO_SUCH_VARIABLE"))
        );
        assert!(expand("${input:api key}").is_err_and(|e| e.contains("MCP_INPUT_API_KEY")));
    }
}
