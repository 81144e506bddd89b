//! The servers of other clients in one file, and `code-mode mcp` in place of them.
//!
//! [`Imported::find`] reads clients' files and joins equal servers. [`Imported::install`] puts one entry
//! into a client's file in place of the servers that were imported from it, and [`undo`] takes that back.

mod clients;
mod files;

use std::path::{Path, PathBuf};

use code_mode_protocol::text::line;
use serde_json::{Map, Value};

use crate::config::problem_of_entry;
use crate::folders;

pub use clients::Folders;
use clients::{ClientFile, Skipped};
pub use files::ImportError;

/// How much of a foreign text is shown.
const SHOWN: usize = 200;
/// What one entry is called in a client's file.
const NAME: &str = "code-mode";

/// The servers of all clients.
#[derive(Debug, Default)]
pub struct Imported {
    /// The file of an earlier import: what it has stays as it is.
    earlier: Map<String, Value>,
    /// Servers that are in none of its entries.
    servers: Vec<Server>,
    /// Files with servers.
    clients: Vec<Found>,
    /// A line for each entry that was left out, with the reason.
    notes: Vec<String>,
}

/// A server, under a name that no other has.
#[derive(Debug)]
struct Server {
    name: String,
    entry: Value,
    from: Vec<String>,
}

/// A client's file that has servers.
#[derive(Debug)]
struct Found {
    file: ClientFile,
    /// The names there of the servers that were imported.
    imported: Vec<String>,
}

impl Imported {
    /// Reads the files of all clients. `servers` is the file that an earlier import wrote: what it has
    /// stays as it is, and keeps its name. A client's file that cannot be read is noted.
    ///
    /// # Errors
    /// [`ImportError`] where `servers` is there and is not such a file.
    pub fn find(folders: &Folders, servers: &Path) -> Result<Self, ImportError> {
        let mut imported = Self {
            earlier: files::earlier(servers)?,
            ..Self::default()
        };
        for file in clients::files(folders) {
            if file.path.exists() {
                let names = imported.read(&file);
                if !names.is_empty() {
                    let imported = &mut imported.clients;
                    imported.push(Found {
                        file,
                        imported: names,
                    });
                }
            }
        }
        Ok(imported)
    }

    /// The entries of an earlier import.
    fn earlier(&self) -> impl Iterator<Item = (&String, &Value)> {
        let servers = self.earlier.get("mcpServers").and_then(Value::as_object);
        servers.into_iter().flatten()
    }

    /// Adds the servers of a file; returns their names there.
    fn read(&mut self, file: &ClientFile) -> Vec<String> {
        let shown = format!("{} ({})", file.client, file.path.display());
        let entries = match files::servers(file) {
            Ok(entries) => entries,
            Err(error) => {
                self.notes.push(error.to_string());
                return Vec::new();
            }
        };
        let mut names = Vec::new();
        for (name, entry) in entries {
            let note = |why: &str| format!("{} of {shown}: {why}", line(&name, SHOWN));
            match file.dialect.common(&entry) {
                Err(Skipped::Off) => self.notes.push(note("left out, it is switched off")),
                Err(Skipped::OfClient) => {
                    self.notes
                        .push(note("left out, it is a part of the client"));
                }
                Ok(entry) if is_this_program(&entry) => {}
                Ok(mut entry) => {
                    files::without_workspace(&mut entry, &file.path);
                    if let Some(why) = problem_of_entry(&name, &entry) {
                        self.notes
                            .push(note(&format!("left out: {}", line(&why, SHOWN))));
                        continue;
                    }
                    self.add(&name, entry, &shown);
                    names.push(name);
                }
            }
        }
        names
    }

    fn add(&mut self, name: &str, entry: Value, from: &str) {
        if self.earlier().any(|(_, known)| is_same(known, &entry)) {
            return;
        }
        let same = self
            .servers
            .iter_mut()
            .find(|known| is_same(&known.entry, &entry));
        if let Some(known) = same {
            known.from.push(from.to_owned());
            return;
        }
        let is_taken = |name: &str| {
            let is_earlier = self.earlier().any(|(known, _)| known == name);
            is_earlier || self.servers.iter().any(|known| known.name == name)
        };
        let others = (2..).map(|number| format!("{name}-{number}"));
        let mut names = std::iter::once(name.to_owned()).chain(others);
        let Some(free) = names.find(|name| !is_taken(name)) else {
            return;
        };
        self.servers.push(Server {
            name: free,
            entry,
            from: vec![from.to_owned()],
        });
    }

    /// How many servers there are, with those of an earlier import.
    pub fn count(&self) -> usize {
        self.servers.len() + self.earlier().count()
    }

    /// The servers as the file of `code-mode mcp`.
    pub fn document(&self) -> Value {
        let servers = self.servers.iter();
        let servers = servers.map(|server| (server.name.clone(), server.entry.clone()));
        let mut document = self.earlier.clone();
        let all = document
            .entry("mcpServers")
            .or_insert_with(|| Value::from(Map::new()));
        if let Some(all) = all.as_object_mut() {
            all.extend(servers);
        }
        Value::from(document)
    }

    /// A line for each server with its clients, and for each entry that was left out.
    pub fn lines(&self) -> Vec<String> {
        let servers = self.servers.iter();
        let servers =
            servers.map(|one| format!("{}  {}", line(&one.name, SHOWN), one.from.join(", ")));
        let earlier = self.earlier();
        let earlier = earlier.map(|(name, _)| format!("{}  an earlier import", line(name, SHOWN)));
        let notes = self.notes.iter().map(|note| format!("note: {note}"));
        earlier.chain(servers).chain(notes).collect()
    }

    /// What to write into each client's file in place of its servers: a line each.
    pub fn entries(&self, program: &Path, servers: &Path) -> Vec<String> {
        let entries = self.clients.iter().map(|Found { file, .. }| {
            let entry = file.dialect.entry(program, servers);
            let path = file.path.display();
            format!(
                "{} ({path}), {}: \"{NAME}\": {entry}",
                file.client, file.key
            )
        });
        entries.collect()
    }

    /// Writes the servers, for this user alone: some have secrets.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn write(&self, servers: &Path) -> Result<(), ImportError> {
        let text = serde_json::to_string_pretty(&self.document()).unwrap_or_default() + "\n";
        // The link stays one, where the file is linked to.
        let target = servers
            .canonicalize()
            .unwrap_or_else(|_| servers.to_owned());
        folders::replace(&target, text.as_bytes())
            .map_err(|source| ImportError::of(servers, source))
    }

    /// Puts one entry into each client's file in place of the servers that were imported from it, and
    /// keeps the file as it was beside it. Returns what became of each client, or why nothing did. Files
    /// of a project stay as they are: other people have them too.
    pub fn install(&self, program: &Path, servers: &Path) -> Vec<Result<String, ImportError>> {
        let of_user = self
            .clients
            .iter()
            .filter(|found| !found.file.is_of_project);
        let done = of_user.map(|Found { file, imported }| {
            let entry = file.dialect.entry(program, servers);
            let backup = files::install(file, imported, NAME, &entry)?;
            Ok(format!(
                "{}: changed {}; as it was: {}",
                file.client,
                file.path.display(),
                backup.display()
            ))
        });
        done.collect()
    }
}

/// Gives clients their files back as they were before [`Imported::install`]. Returns what became of each.
pub fn undo(folders: &Folders) -> Vec<Result<String, ImportError>> {
    let files = clients::files(folders).into_iter();
    // What lies in a project's folder may be anybody's.
    files
        .filter(|file| !file.is_of_project)
        .filter_map(|file| files::undo(&file).transpose())
        .collect()
}

/// Whether two entries start the same server with the same tools: they differ in nothing but
/// empty values, defaults and keys for a client alone.
fn is_same(one: &Value, other: &Value) -> bool {
    const OF_CLIENTS: [&str; 10] = [
        "alwaysAllow",
        "autoApprove",
        "description",
        "gallery",
        "icon",
        "metadata",
        "preferences",
        "trust",
        "version",
        "$schema",
    ];
    let essence = |entry: &Value| {
        let mut essence = Map::new();
        for (key, value) in entry.as_object().into_iter().flatten() {
            let is_empty = value.is_null()
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(Map::is_empty);
            let is_default = key == "type" && value != "sse";
            if is_empty || is_default || OF_CLIENTS.contains(&key.as_str()) {
                continue;
            }
            let key = match key.as_str() {
                "httpUrl" | "serverUrl" => "url",
                key => key,
            };
            essence.insert(key.to_owned(), value.clone());
        }
        essence
    };
    essence(one) == essence(other)
}

/// Whether an entry is the one that [`Imported::install`] writes.
fn is_this_program(entry: &Value) -> bool {
    let command = entry
        .get("command")
        .and_then(Value::as_str)
        .map(PathBuf::from);
    let stem = command.as_deref().and_then(Path::file_stem);
    let first = entry.get("args").and_then(|args| args.get(0));
    stem.is_some_and(|stem| stem == "code-mode") && first.and_then(Value::as_str) == Some("mcp")
}
