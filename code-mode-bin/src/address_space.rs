//! Address-space limits (`ulimit -v`).
//!
//! **What it does.** V8 and its allocator reserve far more addresses than they use memory,
//! and abort the process where the limit is too low. This module checks the limit twice: a
//! function in `.preinit_array` before the allocator starts, and [`make_room`] before V8
//! starts in a worker. Both report the required number.
//!
//! **The gain.** A person reads one sentence with the number instead of an abort with a
//! stack trace. A worker runs under limits from 256 GiB; V8 alone takes the largest power
//! of two and may leave too little for the rest.
//!
//! **The risk.** The first check runs before `main`, so it may use system calls only. In the
//! static program of `cargo dist-build` the C library allocates before it: below 56 GiB
//! that program ends with the allocator's own message.
//!
//! **When to remove it.** An allocator that reports the failure: delete
//! [`check_before_main`]. V8 that reserves within the limit: delete the rest.
#![allow(
    unsafe_code,
    reason = "code that runs before `main`, and its system calls"
)]

use std::io;

use rlimit::{Resource, getrlimit, setrlimit};

const GIB: u64 = 1 << 30;

/// What the allocator, which is that of V8 for the whole program, reserves before
/// `main`.
#[cfg(target_os = "linux")]
const PROGRAM: u64 = 56 * GIB;
/// What a worker reserves: the heap sandbox at its smallest, and the allocator.
const WORKER: u64 = 256 * GIB;
/// V8 takes the largest power of two it gets for its heap sandbox, and may leave
/// too little for the rest. A limit up to this is lowered to [`WORKER`] meanwhile.
const AMPLE: u64 = 4096 * GIB;

#[cfg(target_os = "linux")]
static TOO_LOW: [u8; 159] = *b"code-mode: the address-space limit (ulimit -v) is too low: this program needs 56 GiB of addresses, and a worker 256 GiB; they are reserved, not used as memory\n";
#[cfg(target_os = "linux")]
const FAILED: i32 = crate::RUNTIME_FAILED as i32;

/// Says why the program cannot run at all. It must not allocate, so it is called
/// before anything does.
#[cfg(target_os = "linux")]
extern "C" fn check_before_main() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for the call to write; `write` gets a static text and
    // its length; `_exit` runs nothing. Nothing here allocates or needs the C library
    // to be set up.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_AS, &mut limit) == 0 && limit.rlim_cur < PROGRAM {
            libc::write(2, TOO_LOW.as_ptr().cast(), TOO_LOW.len());
            libc::_exit(FAILED);
        }
    }
}

// SAFETY: the section is an array of functions that the C runtime calls before
// any constructor; this one takes no arguments and needs nothing of the runtime.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".preinit_array")]
static CHECK_BEFORE_MAIN: extern "C" fn() = check_before_main;

/// The lowered limit while V8 starts.
pub(crate) struct Room {
    /// The limit to go back to.
    before: Option<(u64, u64)>,
}

/// Sees to it that V8 can start under the limit that is set.
///
/// # Errors
/// A sentence with the number needed, where the limit is too low.
pub(crate) fn make_room() -> Result<Room, String> {
    let (soft, hard) = match getrlimit(Resource::AS) {
        Ok(limits) => limits,
        // Nothing known, nothing to do.
        Err(_) => return Ok(Room { before: None }),
    };
    if soft < WORKER {
        return Err(format!(
            "the address-space limit (ulimit -v) is too low: V8 needs {} GiB of addresses, reserved and not used as memory, and may have {:.1}",
            WORKER / GIB,
            soft as f64 / GIB as f64
        ));
    }
    let before =
        (soft < AMPLE && setrlimit(Resource::AS, WORKER, hard).is_ok()).then_some((soft, hard));
    Ok(Room { before })
}

impl Room {
    /// Sets the limit back, once V8 has reserved what it wants.
    pub(crate) fn restore(self) -> io::Result<()> {
        match self.before {
            Some((soft, hard)) => setrlimit(Resource::AS, soft, hard),
            None => Ok(()),
        }
    }
}
