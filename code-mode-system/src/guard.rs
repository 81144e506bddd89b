//! A process beside this program that ends what this program has started, when this program was
//! killed and can end nothing any more.
//!
//! A child that this program started directly ends with it, by its own wish (`PR_SET_PDEATHSIG`);
//! what that child started does not. The guard waits for the end of a pipe whose other end this
//! program alone has. Then it ends every process with this program's mark, and every process that
//! it has seen below this program: it looks once a second, for those that clear their environment.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::children::descendants;
use crate::marks::{PROGRAM, is_anywhere, signal};

/// The argument that makes the program a guard.
const GUARD: &str = "guard";

static PROGRAM_FILE: OnceLock<PathBuf> = OnceLock::new();
static PIPE: Mutex<Option<ChildStdin>> = Mutex::new(None);

/// Names the program that becomes a guard when it is started with the argument `guard` and a mark:
/// it must call [`guard`]. The guard is started with the first command, and only after this call.
pub fn guard_with(program: PathBuf) {
    let _ = PROGRAM_FILE.set(program);
}

/// Starts the guard, once.
pub(crate) fn start() {
    let Some(program) = PROGRAM_FILE.get() else {
        return;
    };
    let mut pipe = PIPE.lock().unwrap_or_else(PoisonError::into_inner);
    if pipe.is_some() {
        return;
    }
    // It has no mark itself, and the terminal's signals do not reach it.
    let started = Command::new(program)
        .args([GUARD, &PROGRAM])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    match started {
        Ok(mut child) => *pipe = child.stdin.take(),
        Err(error) => tracing::warn!(%error, "nothing guards the processes that are started"),
    }
}

/// Waits until the program that has started this one is gone, and ends every process with its
/// mark, or that was seen below it.
pub fn guard(mark: &str) {
    /// How long it looks for processes that start others meanwhile.
    const TIME: Duration = Duration::from_secs(5);
    const LOOK_EVERY: Duration = Duration::from_millis(20);
    let below = watch_until_the_end();
    for process in below.values() {
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
    if mark.is_empty() {
        return;
    }
    let began = Instant::now();
    while began.elapsed() < TIME && is_anywhere(mark) {
        signal(mark, Signal::KILL);
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The processes below the program at its end, as far as they were there a second before. Each is
/// known by a descriptor, so that none is taken for another with its number.
fn watch_until_the_end() -> HashMap<Pid, OwnedFd> {
    const LOOK_EVERY: Timespec = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    let program = rustix::process::getppid();
    let mut below = HashMap::new();
    let mut nothing = [0; 64];
    let input = std::io::stdin();
    loop {
        let mut waiting = [PollFd::new(&input, PollFlags::IN)];
        match rustix::event::poll(&mut waiting, Some(&LOOK_EVERY)) {
            Ok(0) => {}
            Ok(_) => match (&input).read(&mut nothing) {
                Ok(1..) => continue,
                _ => return below,
            },
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return below,
        }
        let Some(program) = program else {
            continue;
        };
        let now = descendants(program);
        below.retain(|pid, _| now.contains(pid));
        for pid in now {
            if pid != rustix::process::getpid()
                && let Entry::Vacant(place) = below.entry(pid)
                && let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
            {
                place.insert(process);
            }
        }
    }
}
