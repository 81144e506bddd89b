//! Workers without namespaces and process descriptors: macOS,
//! Windows, the BSDs.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use super::{ExitReason, Purpose, SpawnError, Started, arguments, environment, refused, settings};
use crate::ProviderOptions;

/// Somebody who starts workers.
pub(crate) struct Starter(());

impl Starter {
    pub(crate) fn new() -> Self {
        Self(())
    }
}

/// This system has no templates.
pub fn load_ahead() {}

/// Starts a worker and connects to it: on Unix by a socket pair that no other
/// process has an end of, elsewhere by a named pipe whose name is random.
pub(crate) async fn start(
    program: &Path,
    options: &ProviderOptions,
    purpose: Purpose,
) -> Result<Started, SpawnError> {
    let error = |error| refused(program, error);
    let mut command = Command::new(program);
    // A link to the program may have a name that means a command.
    #[cfg(unix)]
    command.arg0("code-mode");
    command
        .args(arguments(&settings(options, purpose)))
        .env_clear()
        .envs(environment())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let (mut child, socket) = connect::spawn(command).await.map_err(error)?;
    let no_stderr = || error(std::io::Error::other("the process has no standard error"));
    let said = super::log_stderr(child.stderr.take().ok_or_else(no_stderr)?);
    Ok(Started {
        child: Child { child },
        socket,
        said,
    })
}

/// A worker process. Dropping it kills it; where this program is killed, the
/// worker finds its connection closed and ends.
pub(crate) struct Child {
    child: tokio::process::Child,
}

impl Child {
    /// What the system calls it.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// This system has no templates.
    pub(crate) fn is_copy(&self) -> bool {
        false
    }

    /// Ends the process.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.start_kill();
    }

    /// Whether it has ended; asked without waiting.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub(crate) async fn wait(&mut self) -> ExitReason {
        let Ok(status) = self.child.wait().await else {
            return ExitReason::Unknown;
        };
        #[cfg(unix)]
        if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
            return ExitReason::Signalled(signal);
        }
        status
            .code()
            .map_or(ExitReason::Unknown, ExitReason::Exited)
    }
}

#[cfg(unix)]
mod connect {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use interprocess::local_socket::tokio::Stream;
    use interprocess::os::unix::uds_local_socket::tokio::Stream as UnixLocalStream;

    pub(super) async fn spawn(
        mut command: tokio::process::Command,
    ) -> io::Result<(tokio::process::Child, Stream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = command.stdin(OwnedFd::from(theirs)).spawn()?;
        let stream = UnixLocalStream::try_from(OwnedFd::from(ours))?;
        Ok((child, stream.into()))
    }
}

#[cfg(not(unix))]
mod connect {
    use std::io;
    use std::process::Stdio;

    use interprocess::local_socket::tokio::{Stream, prelude::*};
    use interprocess::local_socket::{GenericNamespaced, ListenerOptions, ToNsName};

    pub(super) async fn spawn(
        mut command: tokio::process::Command,
    ) -> io::Result<(tokio::process::Child, Stream)> {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).map_err(io::Error::other)?;
        let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("code-mode-{secret}");
        let listener = ListenerOptions::new()
            .name(name.as_str().to_ns_name::<GenericNamespaced>()?)
            .create_tokio()?;
        let child = command
            .stdin(Stdio::null())
            .args(["--connect", &name])
            .spawn()?;
        loop {
            let stream = listener.accept().await?;
            // Another process may have guessed the name in time.
            let pid = stream.peer_creds().ok().and_then(|peer| peer.pid());
            if pid.is_none() || pid.and_then(|p| u32::try_from(p).ok()) == child.id() {
                return Ok((child, stream));
            }
        }
    }
}
