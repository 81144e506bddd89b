//! Files that are for one user alone.

use std::io::{self, Read, Write};
use std::path::Path;

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
