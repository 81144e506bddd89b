//! A process beside this program that ends what this program has started, when this program was
//! killed and can end nothing any more.
//!
//! A child that this program started directly ends with it, by its own wish (`PR_SET_PDEATHSIG`);
//! what that child started does not. The guard waits for the end of a pipe whose other end this
//! program alone has, and ends every process with this program's mark.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;

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
/// mark.
pub fn guard(mark: &str) {
    /// How long it looks for processes that start others meanwhile.
    const TIME: Duration = Duration::from_secs(5);
    const LOOK_EVERY: Duration = Duration::from_millis(20);
    let mut nothing = [0; 64];
    while let Ok(1..) = std::io::stdin().read(&mut nothing) {}
    if mark.is_empty() {
        return;
    }
    let began = Instant::now();
    while began.elapsed() < TIME && is_anywhere(mark) {
        signal(mark, Signal::KILL);
        std::thread::sleep(LOOK_EVERY);
    }
}
