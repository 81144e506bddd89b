//! The first worker, split off the program right after its start.
//!
//! **What it does.** Before it has read an option, the program makes a copy of itself, which becomes its first
//! worker. Then it starts itself anew from its file, while the worker gets ready.
//!
//! **The gain.** The program is loaded for its worker and for itself at the same time instead of one
//! after the other: a tenth of the time to a first result (`docs/PERFORMANCE.md`).
//!
//! **The risk.** A copy has all that the program had: it overwrites the arguments and the environment and closes what
//! is open, so it must be made before anything has read them. Of the program itself it knows nothing after
//! that: no address, because the program is loaded anew elsewhere, and no secret of its stack.
//!
//! **When to remove it.** Programs that load in no time: with [`template`](super::template).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use code_mode_protocol::wire::template::NewWorker;

use super::template::{Namespaces, fork, settle};

/// What this process is after [`split`].
#[derive(Debug)]
pub enum Split {
    /// The program. It calls its worker by this number, has a descriptor of it, and must wait for its end.
    Program(u32, OwnedFd),
    /// The worker.
    Worker,
}

/// Makes a worker of a copy of this process, which must have one thread. Before anything else the copy
/// calls `forget`. The worker has these ends of its connection and of its standard error. Where it cannot become one, it ends.
///
/// # Errors
/// The kernel refuses the namespaces, or lacks memory or room for a process.
pub fn split(
    worker: &NewWorker,
    connection: BorrowedFd<'_>,
    stderr: BorrowedFd<'_>,
    forget: impl FnOnce(),
) -> io::Result<Split> {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let flags = libc::SIGCHLD | Namespaces::default().take();
    // Nobody waits for the worker here: that would wake the program on the worker's processor.
    if let Some((pid, pidfd)) = fork(flags)? {
        return Ok(Split::Program(pid, pidfd));
    }
    forget();
    if settle(worker, uid.as_raw(), gid.as_raw(), connection, stderr).is_err() {
        crate::exit_now(127);
    }
    Ok(Split::Worker)
}
