//! A program's first worker, made before the program started itself anew.
//!
//! `split.rs` of `code-mode-sandbox` makes it, with the gain and the risk. Here the program makes the connection to
//! it, hands that over to itself, and takes it again: the process stays its child, and the
//! descriptors stay open. A variable has their numbers.
//!
//! This module is the programs' own: it promises nothing to an agent core.
#![allow(
    unsafe_code,
    reason = "descriptors are handed over by their numbers, in a variable"
)]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use code_mode_protocol::wire::template::WorkerSettings;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::linux::{Ends, Process};

/// The variable has the number of the program's process, the worker's number, its descriptor, its connection and
/// its standard error, and the program's name for itself.
const VARIABLE: &str = "CODE_MODE_MADE_AHEAD";

/// The connection to a first worker that is not there yet.
#[derive(Debug)]
pub struct Ahead(Ends);

impl Ahead {
    /// A new connection.
    ///
    /// # Errors
    /// Those of the system.
    pub fn new() -> io::Result<Self> {
        Ends::new().map(Self)
    }

    /// The worker's ends: of the connection, and of its standard error.
    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.0.theirs.as_fd(), self.0.stderr_in.as_fd()]
    }

    /// Starts this program anew, with these arguments, and hands the worker over to it. Returns only where that
    /// fails; then the worker is ended.
    pub fn start_anew<'a>(
        self,
        (id, pidfd): (u32, OwnedFd),
        mut arguments: impl Iterator<Item = &'a OsStr>,
    ) -> io::Error {
        let worker = Process::new_copy(id, Arc::new(pidfd));
        let kept = [
            worker.as_raw_fd(),
            self.0.ours.as_raw_fd(),
            self.0.stderr.as_raw_fd(),
        ];
        for descriptor in kept {
            // SAFETY: the values above own it for longer than this.
            let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
            if let Err(error) = fcntl_setfd(descriptor, FdFlags::empty()) {
                return error.into();
            }
        }
        let name = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
        let [of_worker, to_worker, stderr] = kept;
        let own = std::process::id();
        let handed = format!(
            "{own} {id} {of_worker} {to_worker} {stderr} {}",
            name.trim_end()
        );
        let mut command = Command::new("/proc/self/exe");
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        command.args(arguments).env(VARIABLE, handed).exec()
    }
}

/// The worker that was made ahead, until somebody takes it.
static WORKER: Mutex<Option<Worker>> = Mutex::new(None);

/// Whether there was one.
static WAS_MADE: AtomicBool = AtomicBool::new(false);

struct Worker {
    settings: WorkerSettings,
    process: Process,
    ours: OwnedFd,
    stderr: OwnedFd,
}

/// Takes the worker, with these settings, that this program has made before it started itself anew. Whether it
/// was started so. It must have one thread.
pub fn take_over(settings: &WorkerSettings) -> bool {
    let Some(handed) = std::env::var_os(VARIABLE) else {
        return false;
    };
    // SAFETY: this process has one thread, so nobody else reads the environment.
    unsafe { std::env::remove_var(VARIABLE) };
    if let Some(worker) = handed.to_str().and_then(|handed| take(handed, settings)) {
        WAS_MADE.store(true, Ordering::Relaxed);
        *WORKER.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker);
    }
    true
}

fn take(handed: &str, settings: &WorkerSettings) -> Option<Worker> {
    let mut fields = handed.splitn(6, ' ');
    let mut number = || fields.next()?.parse::<u32>().ok();
    // A process that has inherited the variable is another.
    if number()? != std::process::id() {
        return None;
    }
    let (id, pidfd, ours, stderr) = (number()?, number()?, number()?, number()?);
    let name = fields.next()?;
    let [pidfd, ours, stderr] = [own(pidfd)?, own(ours)?, own(stderr)?];
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if waitid(WaitId::PidFd(pidfd.as_fd()), look).is_err() {
        return None;
    }
    // A process is called after the file that it was started from, which has another name now.
    let _ = rustix::thread::set_name(&CString::new(name).ok()?);
    Some(Worker {
        settings: settings.clone(),
        process: Process::new_copy(id, Arc::new(pidfd)),
        ours,
        stderr,
    })
}

/// The descriptor with this number, which no program that is started from here gets.
fn own(number: u32) -> Option<OwnedFd> {
    let number = RawFd::try_from(number).ok().filter(|number| *number > 2)?;
    // SAFETY: where nothing is open at this number, the call says so.
    fcntl_setfd(unsafe { BorrowedFd::borrow_raw(number) }, FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, and was opened for this, because the variable has the number of this very process. Nothing
    // in a process that has just started owns a descriptor above those of the standard streams.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The worker that was made ahead, if it is what somebody wants: its process, the connection to it, and what it
/// says on its standard error.
pub(super) fn take_worker(
    program: &Path,
    settings: &WorkerSettings,
) -> Option<(Process, OwnedFd, OwnedFd)> {
    let mut worker = WORKER.lock().unwrap_or_else(PoisonError::into_inner);
    let is_it = worker.as_ref().is_some_and(|worker| {
        worker.settings == *settings && std::env::current_exe().is_ok_and(|own| own == program)
    });
    let worker = worker.take_if(|_| is_it)?;
    // It ends where it could not become a worker; the next one says why.
    (!worker.process.has_ended()).then_some((worker.process, worker.ours, worker.stderr))
}

/// Whether this program has had a first worker that was made ahead.
pub(super) fn was_made() -> bool {
    WAS_MADE.load(Ordering::Relaxed)
}

/// Ends the worker that was made ahead, where nobody has taken it.
pub(super) fn end_worker() {
    drop(WORKER.lock().unwrap_or_else(PoisonError::into_inner).take());
}
