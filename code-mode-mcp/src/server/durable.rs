//! Sessions of a gateway that outlive it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use code_mode_host::{Journal, JournalError, JournalOptions};

use crate::kept_question::approvals_command;

/// A folder with the sessions of a gateway, which has it alone.
#[derive(Clone)]
pub struct DurableFolder {
    path: PathBuf,
    journal: Journal,
    /// Seals what clients of the stateless era carry from one request to the next.
    pub(super) key: Vec<u8>,
}

impl std::fmt::Debug for DurableFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DurableFolder").finish_non_exhaustive()
    }
}

/// A folder for durable sessions cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DurableError {
    /// Its journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Its key cannot be read or made.
    #[error("{}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The bytes of the key.
const KEY: usize = 32;

impl DurableFolder {
    /// The file of the journal in a folder.
    pub fn journal_in(folder: &Path) -> PathBuf {
        folder.join("sessions.journal")
    }

    /// Opens a folder, or makes one: for this user alone. It blocks while the journal is read.
    ///
    /// # Errors
    /// [`DurableError`].
    pub fn open(folder: &Path, options: JournalOptions) -> Result<Self, DurableError> {
        let journal = Journal::open(Self::journal_in(folder), options)?;
        let path = folder.join("seal.key");
        let key = key(&path).map_err(|source| DurableError::Key { path, source })?;
        let path = folder.to_owned();
        Ok(Self { path, journal, key })
    }

    /// How a person answers questions from another terminal.
    pub(super) fn way_to_answer(&self) -> String {
        let command = approvals_command("--durable", &self.path);
        format!("the user can answer with `{command}`")
    }

    /// The journal.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }
}

/// The key in a file, which is made where it is missing or damaged. Whoever opens the journal has it alone.
fn key(path: &Path) -> io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Ok(key) if key.len() == KEY => return Ok(key),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Two random UUIDs have 244 random bits.
    let key = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
    let key = key.map(uuid::Uuid::into_bytes).concat();
    let folder = path.parent().unwrap_or(Path::new("."));
    // For this user alone, as every temporary file.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&key)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(key)
}
