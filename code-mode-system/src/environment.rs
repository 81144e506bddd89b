//! The environment of a child process.

use std::ffi::OsString;

/// The variables that a child process gets of this program's environment: enough to find
/// programs, files and the language of the user, and nothing that may be a secret.
const INHERITED: &[&str] = if cfg!(windows) {
    &[
        "APPDATA",
        "COMSPEC",
        "HOMEDRIVE",
        "HOMEPATH",
        "LOCALAPPDATA",
        "PATH",
        "PATHEXT",
        "PROCESSOR_ARCHITECTURE",
        "PROGRAMFILES",
        "SYSTEMDRIVE",
        "SYSTEMROOT",
        "TEMP",
        "TMP",
        "USERNAME",
        "USERPROFILE",
    ]
} else {
    &[
        "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ",
        "USER",
    ]
};

/// What a child process inherits, as far as this program has it. An exported shell function
/// is code, and is left out.
pub fn inherited_environment() -> impl Iterator<Item = (&'static str, OsString)> {
    INHERITED.iter().filter_map(|name| {
        let value = std::env::var_os(name)?;
        (!value.as_encoded_bytes().starts_with(b"() {")).then_some((*name, value))
    })
}
