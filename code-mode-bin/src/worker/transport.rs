//! The worker's connection to its host, on standard input.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;

use interprocess::os::unix::uds_local_socket::tokio::Stream as UnixLocalStream;

use interprocess::local_socket::tokio::Stream;

use super::Args;
use code_mode_system::{is_own, listen, say};

/// Standard input, as the connection to the provider. It stays at its number
/// until the process has closed all others.
pub(super) struct Endpoint;

/// Sees to it that standard input is the connection to the provider; with
/// `--listen` that is the first that a process of the same user makes.
pub(super) fn open(args: &Args) -> io::Result<Endpoint> {
    let Some(path) = &args.listen else {
        let input = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
        if !input.metadata()?.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "standard input is not a provider's connection; --listen SOCKET waits for one",
            ));
        }
        return Ok(Endpoint);
    };
    let listener = listen(path)?;
    let stream = loop {
        let (stream, _) = listener.accept()?;
        if is_own(&stream) {
            break stream;
        }
        tracing::warn!("a stranger connected to the socket and was turned away");
    };
    // One session, so nobody else may find the socket.
    std::fs::remove_file(path)?;
    // Nothing has read standard input.
    rustix::stdio::dup2_stdin(&stream)?;
    Ok(Endpoint)
}

/// The connection, for the runtime that this runs on.
pub(super) async fn into_async(_: Endpoint) -> io::Result<Stream> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.set_nonblocking(true)?;
    Ok(UnixLocalStream::try_from(OwnedFd::from(stream))?.into())
}

/// Sees to it that this process has no terminal: code that took it over could write
/// there what the terminal obeys.
pub(super) fn leave_terminal() -> io::Result<()> {
    use std::io::IsTerminal;

    if !std::io::stderr().is_terminal() && !std::io::stdout().is_terminal() {
        return Ok(());
    }
    say!("code-mode worker: nothing is logged to a terminal; 2> FILE keeps a log");
    let nothing = std::fs::File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    Ok(())
}
