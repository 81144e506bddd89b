//! A command, and everything that it starts.
//!
//! A tool's command whose time is over, or an MCP server that is not needed any more,
//! must end, and so must whatever it has started: the group of processes it leads (a job on
//! Windows), and on Linux also processes that left the group or outlived its leader, which are
//! known by a mark in their environment. A process that clears its environment and leaves its
//! group is found at this program's end only ([`Children`](crate::Children)).

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use process_wrap::tokio::{ChildWrapper, CommandWrap};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout, Command};

#[cfg(target_os = "linux")]
use crate::guard;
use crate::marks::{MARK, mark};
#[cfg(target_os = "linux")]
use crate::marks::{is_anywhere, signal};

/// A command that runs. Dropping it before it has ended ends it and all it started.
#[derive(Debug)]
pub struct Processes {
    child: Box<dyn ChildWrapper>,
    mark: String,
    has_ended: bool,
}

impl Processes {
    /// Starts a command as the leader of a new process group.
    pub fn start(command: Command) -> io::Result<Self> {
        Self::start_in(command, true)
    }

    /// Starts a command in this program's own process group: it may read from the terminal and
    /// gets the signals that are typed there. Off Linux, what it starts can outlive it.
    pub fn start_in_own_group(command: Command) -> io::Result<Self> {
        Self::start_in(command, false)
    }

    fn start_in(mut command: Command, is_leader: bool) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        guard::start();
        let mark = mark();
        command.env(MARK, &mark).kill_on_drop(true);
        #[cfg(target_os = "linux")]
        die_with_parent(&mut command);
        let mut command = CommandWrap::from(command);
        #[cfg(unix)]
        if is_leader {
            command.wrap(process_wrap::tokio::ProcessGroup::leader());
        }
        #[cfg(windows)]
        command.wrap(process_wrap::tokio::JobObject);
        #[cfg(not(unix))]
        let _ = is_leader;
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

    /// What this program calls the command's process, until it was waited for.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for the command's end. Processes that it left behind continue, at most until this
    /// program's end.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.has_ended = true;
        status
    }

    /// Ends the command, whose standard input was closed, and all it started: they have a `step`
    /// of time, get SIGTERM (on Unix), have a `step` again and are killed.
    pub async fn end(&mut self, step: Duration) {
        for is_asked in [false, true] {
            if is_asked {
                self.ask_to_end();
            }
            if tokio::time::timeout(step, self.all_ended()).await.is_ok() {
                return;
            }
        }
        self.kill();
    }

    /// Ends what the command has left behind.
    pub fn end_rest(&mut self) {
        self.kill();
    }

    async fn all_ended(&mut self) {
        /// How often stragglers are looked for: nobody tells when they end.
        const LOOK_EVERY: Duration = Duration::from_millis(50);
        let _ = self.wait().await;
        #[cfg(target_os = "linux")]
        while is_anywhere(&self.mark) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        #[cfg(not(target_os = "linux"))]
        let _ = LOOK_EVERY;
    }

    fn ask_to_end(&self) {
        #[cfg(target_os = "linux")]
        signal(&self.mark, rustix::process::Signal::TERM);
        #[cfg(all(unix, not(target_os = "linux")))]
        let _ = self.child.signal(libc::SIGTERM);
    }

    fn kill(&mut self) {
        // The group's number may be another's once its leader is gone.
        if !self.has_ended || cfg!(not(target_os = "linux")) {
            let _ = self.child.start_kill();
        }
        #[cfg(target_os = "linux")]
        signal(&self.mark, rustix::process::Signal::KILL);
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        if !self.has_ended {
            self.kill();
        }
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
