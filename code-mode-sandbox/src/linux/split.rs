//! The first worker, split off the program right after its start.
//!
//! **What it does.** Before it has read an option, the program makes a copy of itself, which becomes its first
//! worker. Then it starts itself anew from its file, while the worker gets ready.
//!
//! **The gain.** The program is loaded for its worker and for itself at the same time instead of one
//! after the other. `docs/PERFORMANCE.md` says how much that is.
//!
//! **The risk.** A copy has all that the program has. So the copy overwrites the arguments and the environment, and closes
//! every descriptor; and it must be made before the program copies any of them elsewhere. The program then
//! loads at another address, with another guard value of its stack, so the copy knows neither.
//!
//! **When to remove it.** Programs that load in no time: with [`template`](super::template).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use code_mode_protocol::wire::template::NewWorker;

use super::process::close_others;
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
    // The program does not wait for the worker here: waking up again would take the worker's processor.
    if let Some((pid, pidfd)) = fork(flags)? {
        return Ok(Split::Program(pid, pidfd));
    }
    forget();
    if settle(worker, uid.as_raw(), gid.as_raw(), connection, stderr).is_err() {
        crate::exit_now(127);
    }
    Ok(Split::Worker)
}

/// In the worker, closes what the program had open. The worker's own must be dropped. Where the kernel refuses, the worker
/// ends: with the program's end of the connection open, it would never see that the program has gone.
pub fn close_inherited() {
    if close_others().is_err() {
        crate::exit_now(127);
    }
}
