//! A program's first worker, made before the program started itself anew.
//!
//! `split.rs` of `code-mode-sandbox` makes the worker; its comment has the gain and the risk. This module makes the
//! connection, starts the program anew, and takes the worker over in the new program. The worker stays a child of this
//! process, whose number an exec keeps, and the descriptors stay open. An environment variable has their numbers.
//!
//! This module is the programs' own: it promises nothing to an agent core.
#![allow(
    unsafe_code,
    reason = "descriptors are handed over by their numbers, in a variable"
)]

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use code_mode_protocol::wire::template::WorkerSettings;
use rustix::fs::{FileType, fstat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::linux::{Ends, Process};

/// Its value, separated by spaces: the number of the program's process; the worker's; the descriptors of the worker, of
/// the connection to it and of its standard error; the program's name.
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

    /// Starts this program anew, with these arguments and this environment, and hands the worker over to it. Returns
    /// only where that fails; then the worker is ended.
    pub fn start_anew<'a>(
        self,
        (id, pidfd): (u32, OwnedFd),
        arguments: impl Iterator<Item = &'a CStr>,
        environment: impl Iterator<Item = &'a CStr>,
    ) -> io::Error {
        let worker = Process::new_copy(id, Arc::new(pidfd));
        match self.exec(&worker, arguments, environment) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn exec<'a>(
        &self,
        worker: &Process,
        arguments: impl Iterator<Item = &'a CStr>,
        environment: impl Iterator<Item = &'a CStr>,
    ) -> io::Result<Infallible> {
        let kept = [worker.as_fd(), self.0.ours.as_fd(), self.0.stderr.as_fd()];
        for descriptor in kept {
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        let [of_worker, to_worker, stderr] = kept.map(|descriptor| descriptor.as_raw_fd());
        let (own, id) = (std::process::id(), worker.id());
        let mut handed =
            format!("{VARIABLE}={own} {id} {of_worker} {to_worker} {stderr} ").into_bytes();
        let name = std::fs::read("/proc/self/comm").unwrap_or_default();
        handed.extend_from_slice(name.strip_suffix(b"\n").unwrap_or(&name));
        let handed = CString::new(handed)?;
        let others = environment.filter(|pair| !is_variable(pair));
        let arguments: Vec<_> = arguments
            .map(CStr::as_ptr)
            .chain([std::ptr::null()])
            .collect();
        let environment: Vec<_> = others
            .map(CStr::as_ptr)
            .chain([handed.as_ptr(), std::ptr::null()])
            .collect();
        // The standard library's way would change what SIGPIPE does, also where it fails, and sort the environment.
        // SAFETY: both lists end with a null pointer, and their strings live until this returns.
        unsafe {
            libc::execve(
                c"/proc/self/exe".as_ptr(),
                arguments.as_ptr(),
                environment.as_ptr(),
            );
        }
        Err(io::Error::last_os_error())
    }
}

fn is_variable(pair: &CStr) -> bool {
    let value = pair.to_bytes().strip_prefix(VARIABLE.as_bytes());
    value.is_some_and(|value| value.starts_with(b"="))
}

/// The worker that was made ahead, until somebody takes it.
static WORKER: Mutex<Option<Worker>> = Mutex::new(None);

/// Whether there was one.
static WAS_MADE: AtomicBool = AtomicBool::new(false);

struct Worker {
    settings: WorkerSettings,
    handed: Handed,
}

/// A worker that this program has handed over to itself.
#[derive(Debug)]
pub struct Handed {
    process: Process,
    ours: OwnedFd,
    stderr: OwnedFd,
}

/// How a process has been started.
#[derive(Debug)]
pub enum Origin {
    /// By a user.
    User,
    /// By this program, after it had made a worker; the worker, unless it cannot be had.
    Itself(Option<Handed>),
}

/// How this process has been started. After this it has its name again, and owns the descriptors that were handed over.
///
/// # Safety
/// The process has one thread, and nothing owns a descriptor above the standard streams.
pub unsafe fn origin() -> Origin {
    let Some(handed) = std::env::var_os(VARIABLE) else {
        return Origin::User;
    };
    // SAFETY: this process has one thread, so nobody else reads the environment.
    unsafe { std::env::remove_var(VARIABLE) };
    let mut fields = handed.as_bytes().splitn(6, |byte| *byte == b' ');
    let mut number = || str::from_utf8(fields.next()?).ok()?.parse::<u32>().ok();
    // A process that has inherited the variable is another.
    if number() != Some(std::process::id()) {
        return Origin::User;
    }
    let numbers = [number(), number(), number(), number()];
    // The kernel calls a process after the file that it was started from, which was `exe`.
    if let Some(name) = fields.next().and_then(|name| CString::new(name).ok()) {
        let _ = rustix::thread::set_name(&name);
    }
    let [Some(id), Some(pidfd), Some(ours), Some(stderr)] = numbers else {
        return Origin::Itself(None);
    };
    Origin::Itself(take(id, [pidfd, ours, stderr]))
}

/// The worker with this number and these descriptors: its own, the connection to it, and its standard error.
fn take(id: u32, numbers: [u32; 3]) -> Option<Handed> {
    let [pidfd, ours, stderr] = numbers;
    if pidfd == ours || ours == stderr || stderr == pidfd {
        return None;
    }
    let [pidfd, ours, stderr] = [own(pidfd)?, own(ours)?, own(stderr)?];
    // Another program may have set the variable, so each is looked at.
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let is_it = |line: &str| line.strip_prefix("Pid:").map(str::trim) == Some(&id.to_string());
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let is_child = waitid(WaitId::PidFd(pidfd.as_fd()), look).is_ok();
    let is_connection = socket_domain(&ours) == Ok(AddressFamily::UNIX);
    let is_pipe = FileType::from_raw_mode(fstat(&stderr).ok()?.st_mode) == FileType::Fifo;
    (info.lines().any(is_it) && is_child && is_connection && is_pipe).then(|| Handed {
        process: Process::new_copy(id, Arc::new(pidfd)),
        ours,
        stderr,
    })
}

/// The descriptor with this number, which no program that is started from here gets.
fn own(number: u32) -> Option<OwnedFd> {
    let number = RawFd::try_from(number).ok().filter(|number| *number > 2)?;
    // SAFETY: the call changes a flag of a descriptor of this process, and fails where none is open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return None;
    }
    // SAFETY: it is open, and nothing in a process that has just started owns a descriptor above those of the
    // standard streams, which Rust's runtime opens before `main`. `take` asks for no number twice.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

impl Handed {
    /// Keeps the worker, which has these settings, for the first provider that wants such a worker.
    pub fn keep(self, settings: WorkerSettings) {
        WAS_MADE.store(true, Ordering::Relaxed);
        let worker = Worker {
            settings,
            handed: self,
        };
        *WORKER.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker);
    }
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
    let Handed {
        process,
        ours,
        stderr,
    } = worker.handed;
    // It ends where it could not become a worker; the next one says why.
    (!process.has_ended()).then_some((process, ours, stderr))
}

/// Whether this program has had a first worker that was made ahead.
pub(super) fn was_made() -> bool {
    WAS_MADE.load(Ordering::Relaxed)
}

/// Ends the worker that was made ahead, where nobody has taken it.
pub(super) fn end_worker() {
    drop(WORKER.lock().unwrap_or_else(PoisonError::into_inner).take());
}
