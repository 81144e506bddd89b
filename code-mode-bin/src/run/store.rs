//! Stored values in a JSON file between runs.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use code_mode_protocol::Json;

/// Why a file of stored values cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("cannot read {path}: {error}")]
    Read { path: String, error: io::Error },
    #[error("{path} is not a JSON object of stored values: {error}")]
    Json {
        path: String,
        error: serde_json::Error,
    },
}

/// The values in a file; empty while the file does not exist.
pub(crate) fn read(path: &Path) -> Result<Vec<(String, Json)>, StoreError> {
    // A device could be read for ever.
    let is_odd = std::fs::metadata(path).is_ok_and(|file| !file.is_file());
    let text = match is_odd {
        true => Err(io::Error::other("it is not a file")),
        false => std::fs::read_to_string(path),
    };
    let text = match text {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            let path = path.display().to_string();
            return Err(StoreError::Read { path, error });
        }
    };
    let values: BTreeMap<String, Json> =
        serde_json::from_str(&text).map_err(|error| StoreError::Json {
            path: path.display().to_string(),
            error,
        })?;
    Ok(values.into_iter().collect())
}

/// Writes the values so that a reader, or a crash, finds the old file or the new
/// one and nothing in between.
pub(crate) fn write(path: &Path, values: &[(String, Json)]) -> io::Result<()> {
    let sorted: BTreeMap<&str, &Json> = values.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&mut file, &sorted)?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
