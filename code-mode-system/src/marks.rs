//! Processes that are known by a mark in their environment: that of a call, which begins with
//! that of this program.

use std::sync::LazyLock;

/// The variable with the mark.
pub(crate) const MARK: &str = "CODE_MODE_TOOL_CALL";

/// What the marks of all calls of this program begin with.
pub(crate) static PROGRAM: LazyLock<String> =
    LazyLock::new(|| uuid::Uuid::new_v4().simple().to_string());

/// A mark that no other call has.
pub(crate) fn mark() -> String {
    format!("{}-{}", *PROGRAM, uuid::Uuid::new_v4().simple())
}

#[cfg(target_os = "linux")]
pub(crate) use linux::{is_anywhere, signal};

#[cfg(target_os = "linux")]
mod linux {
    use rustix::fd::OwnedFd;
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    use super::MARK;

    /// How often processes are looked for: one that is looked at may have just started
    /// another.
    const ROUNDS: usize = 8;

    /// Whether a process has a mark that begins so.
    pub(crate) fn is_anywhere(mark: &str) -> bool {
        marked(mark).next().is_some()
    }

    /// Sends a signal to every process with a mark that begins so.
    pub(crate) fn signal(mark: &str, signal: Signal) {
        for _ in 0..ROUNDS {
            let sent = marked(mark).filter(|process| pidfd_send_signal(process, signal).is_ok());
            // After SIGTERM a process may take its time; after SIGKILL it is gone.
            if sent.count() == 0 || signal != Signal::KILL {
                return;
            }
        }
    }

    fn marked(mark: &str) -> impl Iterator<Item = OwnedFd> {
        let wanted = format!("{MARK}={mark}").into_bytes();
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        processes.filter_map(move |process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let pid = Pid::from_raw(pid)?;
            // The descriptor is taken first, so that the process which is looked at is the one
            // which gets the signal.
            let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
            let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()));
            // A process that has ended and that nobody has waited for has none.
            let environment = environment.ok()?;
            let mut variables = environment.split(|byte| *byte == 0);
            variables
                .any(|variable| variable.starts_with(&wanted))
                .then_some(process)
        })
    }
}
