//! Copies of this process that become workers.
//!
//! **What it does.** A template is this program right after its start, with one thread and without
//! V8. For each worker it copies itself (`clone` without an `exec`), into namespaces of the copy's
//! own; the copy continues as a worker. After a
//! copy with namespaces, the template moves into new network, IPC and UTS namespaces; the next copy stays there.
//!
//! **The gain.** A worker has no program to load, and shares the addresses that loading made: 1.3
//! MiB less and 3 ms sooner for each. The second and each later worker that comes after a pause
//! does not wait for its network namespace: 0.7 ms.
//!
//! **The risk.** The workers of a provider have one layout of the program and of the C library's
//! first memory: read in one worker, it is known in all. V8 makes its heap
//! and its cage after the copy, elsewhere in each. The C library does not know of the
//! copy: its record of the first thread's number is the template's, so nothing that uses it may run
//! on that thread; a copy that is a worker runs on a new one.
//!
//! **When to remove it.** Programs that load in no time: delete this file and `process/template.rs`
//! of `code-mode-host`.
#![allow(unsafe_code, reason = "`clone` without an `exec` has no safe form")]

use std::ffi::CStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use code_mode_protocol::wire::native;
use code_mode_protocol::wire::template::{
    FromTemplate, MAX_PACKET, NewWorker, WorkerSettings, decode, encode,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use rustix::thread::UnshareFlags;

/// The namespaces that are made with each worker.
const MADE_WITH_WORKER: libc::c_int = libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS;

/// Those that the template may make before the worker exists.
const MADE_AHEAD: UnshareFlags = UnshareFlags::NEWNET
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS);

/// What this process is after [`serve`].
#[derive(Debug)]
pub enum Role {
    /// The template, whose provider has gone.
    Template,
    /// A copy: the worker with these settings.
    Worker(WorkerSettings),
}

/// Serves the provider on standard input until it goes; returns in each copy too.
pub fn serve() -> Role {
    block_signals();
    name(c"code-mode-templ");
    let mut namespaces = Namespaces::default();
    let provider = io::stdin();
    let ready = FromTemplate::Ready {
        version: native::VERSION,
    };
    if send(&provider, &ready, None).is_err() {
        return Role::Template;
    }
    while let Some((request, descriptors)) = receive(&provider) {
        let made = match <[OwnedFd; 2]>::try_from(descriptors) {
            Ok(descriptors) => copy(&request, descriptors, &mut namespaces),
            Err(_) => Err(io::ErrorKind::InvalidInput.into()),
        };
        let sent = match made {
            Ok(Copied::Worker) => return Role::Worker(request.settings),
            Ok(Copied::Made(pid, pidfd)) => {
                namespaces.were_made |= request.in_namespaces;
                send(&provider, &FromTemplate::Made { pid }, Some(&pidfd))
            }
            Ok(Copied::Failed(why, pidfd)) => {
                send(&provider, &FromTemplate::Failed(why), Some(&pidfd))
            }
            Err(error) => send(&provider, &FromTemplate::Failed(error.to_string()), None),
        };
        if sent.is_err() || namespaces.make_ready().is_err() {
            break;
        }
    }
    Role::Template
}

/// The namespaces of the template, in which the next copy stays.
#[derive(Default)]
pub(super) struct Namespaces {
    /// Whether the template has left its provider's user namespace, and so may make others.
    has_user: bool,
    /// Whether the template is in network, IPC and UTS namespaces that no copy has.
    are_ready: bool,
    /// Whether a copy has shown that this user may have namespaces.
    were_made: bool,
}

impl Namespaces {
    /// What a copy has to make for itself. It takes those that are ready, so no other gets them.
    pub(super) fn take(&mut self) -> libc::c_int {
        match std::mem::take(&mut self.are_ready) {
            true => MADE_WITH_WORKER,
            false => MADE_WITH_WORKER | MADE_AHEAD.bits().cast_signed(),
        }
    }

    /// Makes those of the next copy, while nobody waits. Where the kernel refuses, the next copy makes them
    /// with itself.
    ///
    /// # Errors
    /// The template has an unknown user now, and must end.
    fn make_ready(&mut self) -> io::Result<()> {
        if self.are_ready || !self.were_made {
            return Ok(());
        }
        if self.has_user {
            self.are_ready = move_to(MADE_AHEAD).is_ok();
            return Ok(());
        }
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        if move_to(UnshareFlags::NEWUSER | MADE_AHEAD).is_ok() {
            map_user(uid.as_raw(), gid.as_raw())?;
            (self.has_user, self.are_ready) = (true, true);
        }
        Ok(())
    }
}

fn move_to(namespaces: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the call is unsafe for the table of descriptors (`FILES`), which nobody asks for here.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }
}

/// Makes this process the root of its new user namespace, which has one user.
fn map_user(uid: u32, gid: u32) -> io::Result<()> {
    for (path, content) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {uid} 1\n")),
        ("/proc/self/gid_map", format!("0 {gid} 1\n")),
    ] {
        std::fs::write(path, content)?;
    }
    Ok(())
}

fn send(to: impl AsFd, message: &FromTemplate, with: Option<&OwnedFd>) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = with.map(|descriptor| [descriptor.as_fd()]);
    if let Some(descriptors) = &descriptors {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let bytes = encode(message);
    let parts = [IoSlice::new(&bytes)];
    sendmsg(to, &parts, &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// The next request; `None` where the provider has gone, or breaks the protocol.
fn receive(from: impl AsFd) -> Option<(NewWorker, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(&from, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    });
    let received = received.ok()?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.contains(ReturnFlags::TRUNC) {
        return None;
    }
    let request = decode(bytes.get(..received.bytes)?)?;
    Some((request, descriptors))
}

enum Copied {
    /// This process is the copy.
    Worker,
    /// It is there.
    Made(u32, OwnedFd),
    /// It could not become a worker, and its provider must wait for its end.
    Failed(String, OwnedFd),
}

/// Makes a copy of this process, which is its provider's child as this one is.
fn copy(
    request: &NewWorker,
    [connection, stderr]: [OwnedFd; 2],
    namespaces: &mut Namespaces,
) -> io::Result<Copied> {
    // The copy says here what it could not do, and closes it when it could.
    let (says, said) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    // In the template's own user namespace these are 0.
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let mut flags = libc::CLONE_PARENT;
    if request.in_namespaces {
        flags |= namespaces.take();
    } else if namespaces.has_user {
        return Err(io::Error::other(
            "this template has left its provider's namespaces",
        ));
    }
    match fork(flags)? {
        None => {
            drop(says);
            let (connection, stderr) = (connection.as_fd(), stderr.as_fd());
            if let Err(error) = settle(request, uid.as_raw(), gid.as_raw(), connection, stderr) {
                let _ = rustix::io::write(&said, error.to_string().as_bytes());
                crate::exit_now(127);
            }
            Ok(Copied::Worker)
        }
        Some((pid, pidfd)) => {
            drop(said);
            let mut why = [0; 512];
            let read = rustix::io::retry_on_intr(|| rustix::io::read(&says, &mut why))?;
            match why.get(..read) {
                Some(why) if !why.is_empty() => Ok(Copied::Failed(
                    String::from_utf8_lossy(why).into_owned(),
                    pidfd,
                )),
                _ => Ok(Copied::Made(pid, pidfd)),
            }
        }
    }
}

/// Copies this process; `None` in the copy.
pub(super) fn fork(flags: libc::c_int) -> io::Result<Option<(u32, OwnedFd)>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: without `CLONE_VM` and without a stack this is `fork`: the child has a copy of this
    // memory and continues here. This process has one thread, so no lock is held and nothing is
    // half changed. The kernel writes one descriptor to `pidfd`, which lives on.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags | libc::CLONE_PIDFD),
            0_usize,
            &raw mut pidfd,
            0_usize,
            0_usize,
        )
    };
    match u32::try_from(pid) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(0) => Ok(None),
        // SAFETY: the call succeeded, so the kernel made this descriptor for this process, and
        // nothing else knows it.
        Ok(pid) => Ok(Some((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))),
    }
}

/// Makes this process, a copy, what the program finds when it is started as a worker.
pub(super) fn settle(
    request: &NewWorker,
    uid: u32,
    gid: u32,
    connection: BorrowedFd<'_>,
    stderr: BorrowedFd<'_>,
) -> io::Result<()> {
    if request.in_namespaces {
        map_user(uid, gid).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot map its user by way of /proc: {error}"),
            )
        })?;
    }
    // Where its parent has ended already, it finds its connection closed.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // Nothing but a template has read from or written to the standard streams.
    rustix::stdio::dup2_stdin(connection)?;
    rustix::stdio::dup2_stdout(stderr)?;
    rustix::stdio::dup2_stderr(stderr)?;
    if let Some(log) = &request.log {
        // SAFETY: this process has one thread, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var("RUST_LOG", log) };
    }
    name(c"code-mode-worker");
    unblock_signals();
    Ok(())
}

fn name(name: &CStr) {
    let _ = rustix::thread::set_name(name);
}

/// A template ends with its provider; signals to its group are for others.
fn block_signals() {
    set_signals(true);
}

fn unblock_signals() {
    set_signals(false);
}

fn set_signals(blocked: bool) {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the first call makes the set whole, and the second reads it.
    unsafe {
        match blocked {
            true => libc::sigfillset(set.as_mut_ptr()),
            false => libc::sigemptyset(set.as_mut_ptr()),
        };
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}
