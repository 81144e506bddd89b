//! A command, and everything that it starts.
//!
//! A tool's command whose time is over, or an MCP server that is not needed any more,
//! must end, and so must whatever it has started: the group of processes it leads (a job on Windows), and on
//! Linux also processes that left the group, which are known by a mark in their
//! environment.

use std::io;
use std::process::ExitStatus;

use process_wrap::tokio::{ChildWrapper, CommandWrap};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout, Command};

/// The variable that marks the processes of one call.
const MARK: &str = "CODE_MODE_TOOL_CALL";

/// A command that runs. Dropping it before it has ended ends it and all it started.
#[derive(Debug)]
pub struct Processes {
    child: Box<dyn ChildWrapper>,
    mark: String,
    has_ended: bool,
}

impl Processes {
    /// Starts a command as the leader of a new process group.
    pub fn start(mut command: Command) -> io::Result<Self> {
        let mark = mark();
        command.env(MARK, &mark).kill_on_drop(true);
        #[cfg(target_os = "linux")]
        die_with_parent(&mut command);
        let mut command = CommandWrap::from(command);
        #[cfg(unix)]
        command.wrap(process_wrap::tokio::ProcessGroup::leader());
        #[cfg(windows)]
        command.wrap(process_wrap::tokio::JobObject);
        Ok(Self {
            child: command.spawn()?,
            mark,
            has_ended: false,
        })
    }

    /// The command's three streams; once.
    pub fn streams(&mut self) -> (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>) {
        (
            self.child.stdin().take(),
            self.child.stdout().take(),
            self.child.stderr().take(),
        )
    }

    /// Asks the command, and what it has started, to end.
    #[cfg(unix)]
    pub fn ask_to_end(&self) {
        let _ = self.child.signal(libc::SIGTERM);
    }

    /// This system cannot tell.
    #[cfg(not(unix))]
    pub fn ask_to_end(&self) {}

    /// Waits for the command's end. Processes that it left behind continue.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.has_ended = true;
        status
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let _ = self.child.start_kill();
        #[cfg(target_os = "linux")]
        stragglers::kill(&self.mark);
    }
}

/// The command ends where this program does, however that ends.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "what runs between fork and exec is set so only")]
fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only this function runs, and it makes one system call
    // that takes no pointers: it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
}

/// A mark that no other call has.
fn mark() -> String {
    format!("{:x}-{}", std::process::id(), uuid::Uuid::new_v4().simple())
}

#[cfg(target_os = "linux")]
mod stragglers {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    use super::MARK;

    /// How often processes are looked for: one that is looked at may have just started
    /// another.
    const ROUNDS: usize = 8;

    /// Ends every process that has this mark in its environment.
    pub(super) fn kill(mark: &str) {
        let wanted = format!("{MARK}={mark}");
        for _ in 0..ROUNDS {
            let Ok(processes) = std::fs::read_dir("/proc") else {
                return;
            };
            let mut found = false;
            for process in processes.flatten() {
                let name = process.file_name();
                let pid = name.to_str().and_then(|name| name.parse().ok());
                if let Some(pid) = pid.and_then(Pid::from_raw) {
                    found |= kill_if_marked(pid, wanted.as_bytes());
                }
            }
            if !found {
                return;
            }
        }
    }

    /// Ends a process if it has the mark. The descriptor is taken first, so that the
    /// process which is looked at is the one which is ended.
    fn kill_if_marked(pid: Pid, wanted: &[u8]) -> bool {
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            return false;
        };
        let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()));
        // A process that has ended and that nobody has waited for has none.
        let is_marked = environment
            .is_ok_and(|variables| variables.split(|byte| *byte == 0).any(|v| v == wanted));
        is_marked && pidfd_send_signal(&process, Signal::KILL).is_ok()
    }
}
