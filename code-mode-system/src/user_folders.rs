//! This program's own folders of a user.

use std::path::PathBuf;

/// The folder for what can be made again; `None` where the user has none.
///
/// `$XDG_CACHE_HOME/code-mode`, or as the operating system has it.
pub fn cache_folder() -> Option<PathBuf> {
    of_user("XDG_CACHE_HOME", ".cache", "Library/Caches")
}

/// The folder for what must last; `None` where the user has none.
///
/// `$XDG_STATE_HOME/code-mode`, or as the operating system has it.
pub fn state_folder() -> Option<PathBuf> {
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
