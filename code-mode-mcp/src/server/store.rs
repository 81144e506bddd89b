//! Stored values that outlive a session: one file a name, in a folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use code_mode_protocol::Json;
use sha2::{Digest, Sha256};

use crate::texts::hex;

/// A folder of stored values. Two programs may use one: a file is replaced whole.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

impl Store {
    /// A store in a folder, which is made where it is missing.
    ///
    /// # Errors
    /// What the system says where the folder cannot be made.
    pub fn open(folder: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self(folder.to_owned()))
    }

    /// Every value. A malformed file is left alone and logged.
    pub(crate) fn read(&self) -> Vec<(String, Json)> {
        let Ok(files) = std::fs::read_dir(&self.0) else {
            return Vec::new();
        };
        let mut values = Vec::new();
        for path in files.flatten().map(|file| file.path()) {
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read = std::fs::read_to_string(&path)
                .ok()
                .and_then(|text| serde_json::from_str::<(String, Json)>(&text).ok());
            match read {
                Some(value) => values.push(value),
                None => tracing::warn!(file = %path.display(), "no stored value"),
            }
        }
        values.sort_by(|(a, _), (b, _)| a.cmp(b));
        values
    }

    /// Writes what differs from `known`, which becomes the present values.
    pub(crate) fn write(
        &self,
        values: Vec<(String, Json)>,
        known: &mut HashMap<String, Json>,
    ) -> std::io::Result<()> {
        for (key, json) in values {
            if known
                .get(&key)
                .is_some_and(|known| known.as_str() == json.as_str())
            {
                continue;
            }
            let text = serde_json::to_string(&(&key, &json))?;
            let mut file = tempfile::NamedTempFile::new_in(&self.0)?;
            std::io::Write::write_all(&mut file, text.as_bytes())?;
            file.persist(self.0.join(file_name(&key)))?;
            known.insert(key, json);
        }
        Ok(())
    }
}

/// The file of a key: readable where the key is, and never another key's.
fn file_name(key: &str) -> String {
    const READABLE: usize = 40;
    let readable: String = key
        .chars()
        .take(READABLE)
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' {
                c
            } else {
                '_'
            }
        })
        .collect();
    let digest = Sha256::digest(key.as_bytes());
    format!("{readable}.{}.json", hex(&digest[..8]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_whatever_their_keys() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("opened");
        let keys = ["a", "A", "../x", "__proto__", "", "ä/b", &"k".repeat(5000)];
        let values: Vec<_> = keys
            .iter()
            .map(|key| ((*key).to_owned(), Json::string(key)))
            .collect();
        store
            .write(values.clone(), &mut HashMap::new())
            .expect("written");
        std::fs::write(folder.path().join("odd.json"), "garbage").expect("written");
        let mut read = store.read();
        let mut values = values;
        read.sort_by(|(a, _), (b, _)| a.cmp(b));
        values.sort_by(|(a, _), (b, _)| a.cmp(b));
        let texts = |values: Vec<(String, Json)>| {
            values
                .into_iter()
                .map(|(k, j)| (k, j.into_string()))
                .collect::<Vec<_>>()
        };
        assert_eq!(texts(read), texts(values));
    }
}
