//! Sockets in the file system that only their user can reach.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// The longest path that can be connected to, in bytes.
const MAX_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// A socket that can be connected to, by its user alone, from the moment that
/// its name is there: between `bind` and `listen` it refuses, and until its
/// permissions are set it is anybody's.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] where the name is taken, and
/// [`io::ErrorKind::InvalidInput`] where it is too long to be connected to.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if path.as_os_str().as_bytes().len() > MAX_PATH {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a socket's path has at most {MAX_PATH} bytes"),
        ));
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // Its first name goes when it has its own.
    let hidden = tempfile::Builder::new()
        .prefix(".s")
        .make_in(folder, |path| UnixListener::bind(path))?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    // Unlike a renaming, a link never replaces an existing file.
    std::fs::hard_link(&hidden, path)?;
    let (listener, _hidden) = hidden.into_parts();
    Ok(listener)
}

/// As [`listen`], in the place of a socket that nobody listens on any more.
pub async fn listen_again(path: &Path) -> io::Result<UnixListener> {
    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    // Not waited for: one whose listener has no room for more is in use.
    let is_left_behind = is_socket
        && tokio::net::UnixStream::connect(path)
            .await
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if is_left_behind {
        std::fs::remove_file(path)?;
    }
    listen(path)
}

/// Whether who connected is this program's user, or root.
#[cfg(target_os = "linux")]
pub fn is_own(stream: impl AsFd) -> bool {
    let own = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid == own || peer.uid.is_root())
}

/// Elsewhere the socket's permissions keep others away.
#[cfg(not(target_os = "linux"))]
pub fn is_own(_: impl AsFd) -> bool {
    true
}
