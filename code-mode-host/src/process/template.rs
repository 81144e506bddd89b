//! The provider's side of templates: processes that have loaded the program, and of which workers
//! are copies. `code-mode-sandbox` has the other side, with the gain and the risk.
//!
//! The first worker of a program is started from its file, so nobody waits for a template; the
//! second starts the template, unless the program expects workers and has done so before
//! ([`load_ahead`](super::load_ahead)). Where a template cannot make a worker, the file can.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::CString;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use code_mode_protocol::wire::native;
use code_mode_protocol::wire::template::{
    FromTemplate, MAX_PACKET, NewWorker, WorkerSettings, decode, encode,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

use super::ahead;
use super::linux::{Failure, OWN_NAME, Process, Spec, clone_worker};

/// How long a template may take for an answer. It takes a millisecond.
const ANSWER: Duration = Duration::from_secs(1);

/// After so many failures in a row, workers of a program are started from its file.
const MAX_FAILURES: u32 = 3;

/// The templates of this process, by program.
#[derive(Default)]
pub(super) struct Templates(HashMap<CString, Kept>);

#[derive(Default)]
struct Kept {
    running: Option<Template>,
    /// Templates that failed since the last one that made a worker.
    failures: u32,
}

impl Kept {
    fn running(&mut self, program: &CString) -> Option<&Template> {
        if self.running.is_none() && self.failures < MAX_FAILURES {
            self.running = Template::start(program);
            self.failures += u32::from(self.running.is_none());
        }
        self.running.as_ref()
    }
}

impl Templates {
    /// Starts a program's template before its first worker.
    pub(super) fn load(&mut self, program: CString) {
        let kept = self.0.entry(program.clone()).or_default();
        kept.running(&program);
    }

    /// A worker that is a copy of its program's template; `None` where it must be started from the
    /// program's file.
    ///
    /// # Errors
    /// [`Failure::ConnectionUsed`] where a worker may have been made that nobody knows.
    pub(super) fn copy(
        &mut self,
        spec: &Spec,
        settings: &WorkerSettings,
    ) -> Result<Option<Process>, Failure> {
        let is_first = !self.0.contains_key(&spec.program) && !ahead::was_made();
        let kept = self.0.entry(spec.program.clone()).or_default();
        if is_first {
            return Ok(None);
        }
        let Some(template) = kept.running(&spec.program) else {
            return Ok(None);
        };
        match template.copy(spec, settings) {
            Ok(process) => {
                kept.failures = 0;
                Ok(Some(process))
            }
            Err(NoCopy::Refused(why)) => {
                tracing::debug!(why, "a worker is started from the program's file");
                Ok(None)
            }
            Err(NoCopy::NoTemplate(why)) => {
                tracing::debug!(why, "a worker is started from the program's file");
                kept.running = None;
                kept.failures += 1;
                Ok(None)
            }
            Err(NoCopy::Lost(why)) => {
                tracing::debug!(why, "a worker's start is repeated");
                kept.running = None;
                kept.failures += 1;
                Err(Failure::ConnectionUsed)
            }
            Err(NoCopy::Unheld(why)) => {
                tracing::debug!(why, "a worker's start is repeated");
                Err(Failure::ConnectionUsed)
            }
        }
    }
}

/// Why a template has made no copy that can be used.
enum NoCopy {
    /// The template says why.
    Refused(String),
    /// It has not been one.
    NoTemplate(&'static str),
    /// It has ended, or stands still, and may have made a copy before.
    Lost(&'static str),
    /// It made one, which had to be ended.
    Unheld(&'static str),
}

/// A running template. Dropping it ends it.
struct Template {
    socket: OwnedFd,
    _process: Process,
    /// Whether it has said what it is.
    is_ready: Cell<bool>,
}

impl Template {
    fn start(program: &CString) -> Option<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .ok()?;
        let nothing = std::fs::File::options()
            .write(true)
            .open("/dev/null")
            .ok()?;
        let process = clone_worker(&Spec {
            program: program.clone(),
            arguments: vec![OWN_NAME.into(), c"worker".into(), c"--template".into()],
            environment: Vec::new(),
            socket: theirs,
            stderr: nothing.into(),
            namespaces: false,
            group: None,
        })
        .ok()?;
        Some(Self {
            socket: ours,
            _process: process,
            is_ready: Cell::new(false),
        })
    }

    fn copy(&self, spec: &Spec, settings: &WorkerSettings) -> Result<Process, NoCopy> {
        let request = NewWorker {
            settings: settings.clone(),
            log: text(&spec.environment)
                .iter()
                .find_map(|pair| Some(pair.strip_prefix("RUST_LOG=")?.to_owned())),
            in_namespaces: spec.namespaces,
        };
        if !self.is_ready.get() {
            match self.answer() {
                Some((FromTemplate::Ready { version }, _)) if version == native::VERSION => {
                    self.is_ready.set(true);
                }
                _ => return Err(NoCopy::NoTemplate("it is not a template of this version")),
            }
        }
        let bytes = encode(&request);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [spec.socket.as_fd(), spec.stderr.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(
            &self.socket,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .map_err(|error| match error {
            // The request is too large, or the system is short of something.
            Errno::MSGSIZE | Errno::NOBUFS | Errno::NOMEM | Errno::TOOMANYREFS => {
                NoCopy::Refused(error.to_string())
            }
            _ => NoCopy::NoTemplate("the template has ended"),
        })?;
        match self.answer() {
            Some((FromTemplate::Made { pid }, Some(pidfd))) => {
                Ok(Process::new_copy(pid, Arc::new(pidfd)))
            }
            // Without room for a descriptor here, the system drops it.
            Some((FromTemplate::Made { pid }, None)) => match held(pid) {
                Some(pidfd) => Ok(Process::new_copy(pid, Arc::new(pidfd))),
                None => Err(NoCopy::Unheld(
                    "the provider cannot have another descriptor",
                )),
            },
            Some((FromTemplate::Failed(why), ended)) => {
                // Dropping it waits for its end.
                drop(ended.map(|pidfd| Process::new(0, Arc::new(pidfd))));
                Err(NoCopy::Refused(why))
            }
            _ => Err(NoCopy::Lost("the template does not answer")),
        }
    }

    /// The next message, with the descriptor that came with it.
    fn answer(&self) -> Option<(FromTemplate, Option<OwnedFd>)> {
        let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
        let limit = Timespec::try_from(ANSWER).ok();
        rustix::io::retry_on_intr(|| poll(&mut ready, limit.as_ref())).ok()?;
        let mut bytes = vec![0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(&self.socket, &mut parts, &mut control, flags).ok()?;
        let mut with = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let with = with.next();
        Some((decode(bytes.get(..received.bytes)?)?, with))
    }
}

/// The descriptor of a child that nobody has waited for, so that its number is its own; where there
/// can be none, the child is ended.
fn held(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(pid.cast_signed())?;
    let held = pidfd_open(pid, PidfdFlags::empty());
    if held.is_err() {
        let _ = kill_process(pid, Signal::KILL);
        let _ = rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
    }
    held.ok()
}

fn text(strings: &[CString]) -> Vec<String> {
    let strings = strings.iter();
    strings
        .map(|string| string.to_string_lossy().into_owned())
        .collect()
}
