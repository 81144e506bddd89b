//! The provider's side of templates: processes that have loaded the program, and of which workers
//! are copies. `code-mode-sandbox` has the other side, with the gain and the risk.
//!
//! The first worker of a program is started from its file, so nobody waits for a template; the
//! second starts the template. Where a template cannot make a worker, the file can.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::CString;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use code_mode_protocol::wire::native;
use code_mode_protocol::wire::template::{FromTemplate, MAX_PACKET, NewWorker, decode, encode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::linux::{Process, Spec, clone_worker};

/// How long a template may take for an answer. It takes a millisecond.
const ANSWER: Duration = Duration::from_secs(2);

/// The templates of this process, by program.
#[derive(Default)]
pub(super) struct Templates(HashMap<CString, Kept>);

enum Kept {
    /// The program was started once.
    Known,
    Running(Template),
    /// It has no template, or one that failed.
    Unusable,
}

impl Templates {
    /// Workers of this program are copies of this template, the first one too.
    pub(super) fn adopt(&mut self, program: CString, template: Template) {
        self.0.insert(program, Kept::Running(template));
    }

    /// A worker that is a copy of its program's template; `None` where it must be started from the
    /// program's file.
    pub(super) fn copy(&mut self, spec: &Spec) -> Option<Process> {
        let kept = match self.0.get_mut(&spec.program) {
            Some(kept) => kept,
            None => {
                self.0.insert(spec.program.clone(), Kept::Known);
                return None;
            }
        };
        if matches!(kept, Kept::Known) {
            *kept = Template::start(&spec.program).map_or(Kept::Unusable, Kept::Running);
        }
        let Kept::Running(template) = kept else {
            return None;
        };
        match template.copy(spec) {
            Ok(process) => Some(process),
            Err(why) => {
                tracing::debug!(why, "a worker is started from the program's file");
                // One that was killed is started again; one that never worked is not.
                *kept = match template.has_worked.get() {
                    true => Kept::Known,
                    false => Kept::Unusable,
                };
                None
            }
        }
    }
}

/// A running template. Dropping it ends it.
pub(super) struct Template {
    socket: OwnedFd,
    _process: Process,
    /// Whether it has said what it is.
    is_ready: Cell<bool>,
    /// Whether it has made a worker.
    has_worked: Cell<bool>,
}

impl Template {
    /// A template that this program has made of itself.
    pub(super) fn adopt(socket: OwnedFd, pidfd: OwnedFd, pid: u32) -> Self {
        Self {
            socket,
            _process: Process::new(pid, Arc::new(pidfd)),
            is_ready: Cell::new(false),
            has_worked: Cell::new(false),
        }
    }

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
            arguments: vec![program.clone(), c"worker".into(), c"--template".into()],
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
            has_worked: Cell::new(false),
        })
    }

    fn copy(&self, spec: &Spec) -> Result<Process, String> {
        let request = NewWorker {
            arguments: text(spec.arguments.get(1..).unwrap_or_default()),
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
                _ => return Err("it is not a template of this version".to_owned()),
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
        .map_err(|error| error.to_string())?;
        match self.answer() {
            Some((FromTemplate::Made { pid }, Some(pidfd))) => {
                self.has_worked.set(true);
                Ok(Process::new(pid, Arc::new(pidfd)))
            }
            Some((FromTemplate::Failed(why), ended)) => {
                // Dropping it waits for its end.
                drop(ended.map(|pidfd| Process::new(0, Arc::new(pidfd))));
                Err(why)
            }
            _ => Err("the template does not answer".to_owned()),
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

fn text(strings: &[CString]) -> Vec<String> {
    let strings = strings.iter();
    strings
        .map(|string| string.to_string_lossy().into_owned())
        .collect()
}
