//! How a worker process locks itself in, and native probes that try to get out.
//!
//! It is entered in two steps before the first request is read. First, while the
//! process has one thread: everything outside is taken away. Then V8 starts, with
//! nothing to find; and at last the system calls it needed only for that are
//! taken away too, from every thread.

use code_mode_protocol::SandboxLayer;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::{PROBES, filter_system_calls, limit_memory, lock_in, probe, split, template};

#[cfg(not(target_os = "linux"))]
mod none;
#[cfg(not(target_os = "linux"))]
pub use none::{PROBES, filter_system_calls, limit_memory, lock_in, probe};

use code_mode_protocol::LayerState;

/// The end that a forbidden system call must come to.
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "nothing is probed elsewhere")
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The process is killed.
    Killed,
    /// The call fails and the process continues.
    Refused,
}

#[cfg(target_os = "linux")]
fn holds(name: &str, how: impl Into<String>) -> SandboxLayer {
    SandboxLayer {
        name: name.to_owned(),
        state: LayerState::Holds(how.into()),
    }
}

fn missing(name: &str, why: impl Into<String>) -> SandboxLayer {
    SandboxLayer {
        name: name.to_owned(),
        state: LayerState::Missing(why.into()),
    }
}

/// The layers of a worker that was started with `--no-sandbox`.
pub fn turned_off() -> Vec<SandboxLayer> {
    vec![missing("sandbox", "turned off with --no-sandbox")]
}

/// The IANA name of this machine's time zone. ICU would look for it itself, but
/// in files that are gone by then.
pub fn time_zone() -> String {
    let of_environment = std::env::var("TZ").ok();
    let of_system = || {
        let target = std::fs::read_link("/etc/localtime").ok()?;
        let (_, name) = target.to_str()?.split_once("/zoneinfo/")?;
        Some(name.to_owned())
    };
    of_environment
        .map(|zone| zone.trim_start_matches(':').to_owned())
        .filter(|zone| !zone.is_empty())
        .or_else(of_system)
        .unwrap_or_else(|| "UTC".to_owned())
}

/// Ends the process without running anything of it: other threads may be in the
/// middle of JavaScript.
#[cfg_attr(unix, allow(unsafe_code, reason = "`_exit` has no safe form"))]
pub fn exit_now(status: i32) -> ! {
    #[cfg(unix)]
    // SAFETY: `_exit` is always sound; what it leaves undone belongs to this
    // process alone.
    unsafe {
        libc::_exit(status)
    }
    #[cfg(not(unix))]
    std::process::exit(status)
}
