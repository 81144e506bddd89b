//! What the process itself may still become, see or use up.
#![allow(unsafe_code, reason = "system calls that no library wraps")]

use std::io;

use code_mode_protocol::SandboxLayer;
use code_mode_protocol::wire::template::NAMESPACES_HELD;
use rlimit::Resource;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::{holds, missing};

pub(super) fn no_new_privileges() -> SandboxLayer {
    let name = "no new privileges";
    match rustix::thread::set_no_new_privs(true) {
        Ok(()) => holds(name, "no program it could start would have more rights"),
        Err(error) => missing(name, error.to_string()),
    }
}

pub(super) fn not_dumpable() -> SandboxLayer {
    let name = "not dumpable";
    let set =
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    match set {
        Ok(()) => holds(name, "no core files, and no debugger of the same user"),
        Err(error) => missing(name, error.to_string()),
    }
}

/// Closes every descriptor but the connection (standard input) and standard
/// error; standard output becomes standard error, so that nothing breaks that
/// prints.
pub(super) fn descriptors() -> SandboxLayer {
    let name = "descriptors";
    // SAFETY: the call changes a descriptor of this process only, which nothing owns.
    unsafe { libc::dup2(2, 1) };
    match close_others() {
        Ok(()) => holds(name, "none but the connection and standard error"),
        Err(error) => missing(name, error.to_string()),
    }
}

/// Closes every descriptor above the standard streams. Nothing may own one.
pub(super) fn close_others() -> io::Result<()> {
    // SAFETY: the call closes descriptors of this process only. A process calls this at its start, while it has
    // one thread, which has opened none to keep.
    let closed = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            0 as libc::c_uint,
        )
    };
    match closed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(super) fn namespaces(state: Option<&str>) -> SandboxLayer {
    let name = "namespaces";
    match state {
        Some(NAMESPACES_HELD) => holds(
            name,
            "private user, PID, mount, network, IPC and UTS namespaces",
        ),
        Some(why) => missing(name, why),
        None => missing(name, "this worker was not started by a provider"),
    }
}

/// Gives up every capability, which within its own user namespace it has.
pub(super) fn capabilities() -> SandboxLayer {
    let name = "capabilities";
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    match rustix::thread::set_capabilities(None, none) {
        Ok(()) => holds(name, "none"),
        Err(error) => missing(name, error.to_string()),
    }
}

/// Descriptors a worker needs: the connection, standard error, and those of its
/// event loop.
const MAX_DESCRIPTORS: u64 = 64;
/// Threads a worker may have: one for each live cell and each ready isolate, and those
/// of V8. A session that opens with more live cells than this leaves room for gets the
/// error of a thread that cannot be made.
const MAX_THREADS: u64 = 4_096;

/// How much a worker may add to a log that is a file.
const MAX_LOG_BYTES: u64 = 16 << 20;

/// How large a file may become by what this process writes: none but a log, which
/// a worker with `--listen` may have for its standard error.
fn max_file_size() -> u64 {
    // SAFETY: the signal is only ignored, which runs no code of this process; a
    // write past the limit then fails instead of ending the process.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    match rustix::fs::fstat(std::io::stderr()) {
        Ok(log) if rustix::fs::FileType::from_raw_mode(log.st_mode).is_file() => {
            u64::try_from(log.st_size).unwrap_or(0) + MAX_LOG_BYTES
        }
        _ => 0,
    }
}

/// Limits its resources. Threads count as processes of the user; only in a user
/// private namespace are they this process's alone.
pub(super) fn resource_limits(in_namespaces: bool) -> SandboxLayer {
    let name = "resource limits";
    let mut limits = vec![
        (Resource::CORE, 0),
        (Resource::FSIZE, max_file_size()),
        (Resource::MEMLOCK, 0),
        (Resource::NOFILE, MAX_DESCRIPTORS),
    ];
    if in_namespaces {
        limits.push((Resource::NPROC, MAX_THREADS));
    }
    for (resource, limit) in limits {
        let set = rlimit::getrlimit(resource)
            .and_then(|(_, hard)| rlimit::setrlimit(resource, limit.min(hard), limit.min(hard)));
        if let Err(error) = set {
            return missing(name, format!("{}: {error}", resource.as_name()));
        }
    }
    holds(
        name,
        if in_namespaces {
            "on processes, descriptors, file size, locked memory and core files"
        } else {
            "on descriptors, file size, locked memory and core files"
        },
    )
}

/// Makes this process the first that the kernel ends when memory is short: it costs one
/// session's cells, where another process may be the agent.
pub(super) fn first_to_go() -> SandboxLayer {
    let name = "first to go";
    match std::fs::write("/proc/self/oom_score_adj", "1000") {
        Ok(()) => holds(
            name,
            "when memory is short, the kernel ends this process first",
        ),
        Err(error) => missing(name, error.to_string()),
    }
}

/// Turns off speculation across this process's own borders, on processors that leak by
/// it. The kernel refuses where there is nothing to turn off.
pub(super) fn no_speculation() {
    const PR_SET_SPECULATION_CTRL: libc::c_int = 53;
    const PR_SPEC_STORE_BYPASS: libc::c_ulong = 0;
    const PR_SPEC_INDIRECT_BRANCH: libc::c_ulong = 1;
    const PR_SPEC_FORCE_DISABLE: libc::c_ulong = 8;
    for what in [PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH] {
        // SAFETY: no pointers; it changes how this process is scheduled and nothing
        // else.
        unsafe { libc::prctl(PR_SET_SPECULATION_CTRL, what, PR_SPEC_FORCE_DISABLE, 0, 0) };
    }
}

/// Limits the memory this process may have writable, which is what stops one
/// allocation that V8 would only count afterwards.
pub fn limit_memory(bytes: u64) {
    let set = rlimit::getrlimit(Resource::DATA)
        .and_then(|(_, hard)| rlimit::setrlimit(Resource::DATA, bytes.min(hard), bytes.min(hard)));
    if let Err(error) = set {
        tracing::warn!(%error, "the worker's memory is not limited");
    }
}
