//! Sockets in the file system that only their user can reach.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// A socket that can be connected to, by its user alone, from the moment that
/// its name is there: between `bind` and `listen` it refuses, and until its
/// permissions are set it is anybody's.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] where the name is taken.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let hidden = path.with_file_name(format!(".{}", std::process::id()));
    let listener = UnixListener::bind(&hidden)?;
    let shown = std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))
        // Unlike a renaming, a link never takes the name of what is there.
        .and_then(|()| std::fs::hard_link(&hidden, path));
    std::fs::remove_file(&hidden)?;
    shown?;
    Ok(listener)
}

/// As [`listen`], in the place of a socket that nobody listens on any more.
pub(crate) fn listen_again(path: &Path) -> io::Result<UnixListener> {
    let is_left_behind = std::fs::symlink_metadata(path)
        .is_ok_and(|metadata| metadata.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if is_left_behind {
        std::fs::remove_file(path)?;
    }
    listen(path)
}

/// Whether who connected is this program's user, or root.
#[cfg(target_os = "linux")]
pub(crate) fn is_own(stream: impl AsFd) -> bool {
    let own = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid == own || peer.uid.is_root())
}

/// Elsewhere the socket's permissions keep others away.
#[cfg(not(target_os = "linux"))]
pub(crate) fn is_own(_: impl AsFd) -> bool {
    true
}
