//! This program's own folders of a user, and files there that are for the user alone.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The folder for what can be made again; `None` where the user has none.
pub(crate) fn caches() -> Option<PathBuf> {
    of_user("XDG_CACHE_HOME", ".cache", "Library/Caches")
}

/// The folder for what must last; `None` where the user has none.
pub(crate) fn state() -> Option<PathBuf> {
    let state = "Library/Application Support";
    of_user("XDG_STATE_HOME", ".local/state", state)
}

fn of_user(variable: &str, below_home: &str, on_macos: &str) -> Option<PathBuf> {
    let folder = |name: &str| {
        let folder = PathBuf::from(std::env::var_os(name)?);
        folder.is_absolute().then_some(folder)
    };
    let below_home = match cfg!(target_os = "macos") {
        true => on_macos,
        false => below_home,
    };
    let folder = match cfg!(windows) {
        true => folder("LOCALAPPDATA"),
        false => folder(variable).or_else(|| Some(folder("HOME")?.join(below_home))),
    };
    Some(folder?.join("code-mode"))
}

/// Makes a folder, and those above it, for this user alone.
pub(crate) fn make(folder: &Path) -> io::Result<()> {
    let mut make = std::fs::DirBuilder::new();
    make.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut make, 0o700);
    make.create(folder)
}

/// The text of a file, which must be one and no larger than that: what another names may be a pipe that
/// nobody writes to, or a device without an end.
pub(crate) fn text_of_file(file: &Path, max_bytes: u64) -> io::Result<String> {
    let odd = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    // Opening a pipe would wait.
    if !std::fs::metadata(file)?.is_file() {
        return Err(odd("it is not a file"));
    }
    let mut text = String::new();
    let file = std::fs::File::open(file)?;
    file.take(max_bytes + 1).read_to_string(&mut text)?;
    match text.len() as u64 > max_bytes {
        true => Err(odd("it is too large")),
        false => Ok(text),
    }
}

/// Replaces a file in one step: a reader finds the old text or the new one. Only its owner may read
/// it, as with temporary files. Makes the folder if it does not exist.
pub(crate) fn replace(file: &Path, text: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(file);
    make(folder)?;
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(text)?;
    new.persist(file).map_err(|error| error.error)?;
    Ok(())
}
