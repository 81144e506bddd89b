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

/// How programs reach the network where it is not open: proxies, and who signs certificates. Names
/// of proxies are written in both cases.
const NETWORK: &[&str] = &[
    "ALL_PROXY",
    "CURL_CA_BUNDLE",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NODE_EXTRA_CA_CERTS",
    "NO_PROXY",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// What a child process inherits that reaches the network for its user: an MCP server, as it would
/// without this program. A proxy's address may have a password.
pub fn inherited_with_network() -> impl Iterator<Item = (&'static str, OsString)> {
    let network = NETWORK.iter();
    inherited_environment().chain(network.filter_map(|name| Some((*name, std::env::var_os(name)?))))
}

/// What a child process inherits, as far as this program has it. An exported shell function
/// is code, and is left out.
pub fn inherited_environment() -> impl Iterator<Item = (&'static str, OsString)> {
    INHERITED.iter().filter_map(|name| {
        let value = std::env::var_os(name)?;
        (!value.as_encoded_bytes().starts_with(b"() {")).then_some((*name, value))
    })
}
