//! Finding the worker program.

use std::env;
use std::path::{Path, PathBuf};

/// The program that workers are started from.
pub const PROGRAM_NAME: &str = if cfg!(windows) {
    "code-mode.exe"
} else {
    "code-mode"
};

/// The worker program: beside the running one (or the running one itself, where it
/// has the name), else on `PATH`.
pub(crate) fn find() -> Option<PathBuf> {
    let running = env::current_exe().ok();
    let beside = running
        .as_deref()
        .and_then(Path::parent)
        .map(Path::to_owned);
    let on_path = env::var_os("PATH")
        .map(|path| env::split_paths(&path).collect::<Vec<_>>())
        .unwrap_or_default();
    beside
        .into_iter()
        .chain(on_path)
        .map(|folder| folder.join(PROGRAM_NAME))
        .find(|program| program.is_file())
}
