//! Workers on Linux: in namespaces of their own where the kernel lets an
//! ordinary user have them, known by a process descriptor, killed with this
//! process.
//!
//! A worker is made by `clone` with the namespaces' flags, so that it is the
//! first process of its PID namespace without another in between. Its parent
//! death signal follows the *thread* that made it, so one thread that lives as
//! long as this process makes all of them, but for one that is made ahead (`ahead.rs`) by the first thread, which lives as
//! long too, also when the program starts itself anew.
#![allow(unsafe_code, reason = "`clone` with namespaces has no safe form")]

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use code_mode_protocol::wire::template::{NAMESPACES_HELD, WorkerSettings};
use rustix::pipe::PipeFlags;
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::ahead;
use super::cgroup::Group;
use super::template::Templates;
use super::{ExitReason, Purpose, SpawnError, Started, arguments, environment, refused, settings};
use crate::{ProviderOptions, Sandbox};

/// The namespaces of a worker.
const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

/// Room in the connection to a worker, each way.
const SOCKET_BUFFER: usize = 1 << 20;

/// Starts a worker, connected by a socket pair that no other process has an end
/// of.
pub(crate) async fn start(
    program: &Path,
    options: &ProviderOptions,
    purpose: Purpose,
) -> Result<Started, SpawnError> {
    let error = |error| refused(program, error);
    let mut namespaces = options.sandbox != Sandbox::Off;
    let mut missing = None;
    let mut repeats = 0;
    let (child, ours, stderr, was_ahead) = loop {
        let mut settings = settings(options, purpose);
        settings.namespaces = match &missing {
            _ if options.sandbox == Sandbox::Off => None,
            None => Some(NAMESPACES_HELD.to_owned()),
            Some(why) => Some(format!("{why}")),
        };
        if options.cgroup.is_none()
            && let Some((process, ours, stderr)) = ahead::take_worker(program, &settings)
        {
            let child = Child::adopt(process).map_err(error)?;
            break (child, ours.into(), stderr, true);
        }
        let ends = Ends::new().map_err(error)?;
        let spec = Spec {
            program: c_string(program.as_os_str()).map_err(error)?,
            arguments: [OsStr::from_bytes(OWN_NAME.to_bytes()).to_owned()]
                .iter()
                .chain(&arguments(&settings))
                .map(|argument| c_string(argument))
                .collect::<Result<_, _>>()
                .map_err(error)?,
            environment: environment()
                .iter()
                .map(|(name, value)| {
                    let mut pair = name.clone();
                    pair.push("=");
                    pair.push(value);
                    c_string(&pair)
                })
                .collect::<Result<_, _>>()
                .map_err(error)?,
            socket: ends.theirs.into(),
            stderr: ends.stderr_in,
            namespaces,
            group: options
                .cgroup
                .clone()
                .map(|group| (group, options.limits.heap_bytes() as u64)),
        };
        match spawn(spec, Box::new(settings)).await {
            Ok(child) => break (child, ends.ours, ends.stderr, false),
            Err(Failure::ConnectionUsed) if repeats < MAX_REPEATS => repeats += 1,
            Err(Failure::ConnectionUsed) => {
                return Err(error(io::Error::other(
                    "its template fails again and again",
                )));
            }
            Err(Failure::Namespaces(why)) if namespaces => {
                tracing::debug!(%why, "no namespaces for workers");
                namespaces = false;
                missing = Some(why);
            }
            Err(Failure::Namespaces(why) | Failure::Process(why)) => return Err(error(why)),
        }
    };
    let stderr = tokio::net::unix::pipe::Receiver::from_owned_fd(stderr).map_err(error)?;
    let said = super::log_stderr(stderr);
    ours.set_nonblocking(true).map_err(error)?;
    let socket =
        interprocess::os::unix::uds_local_socket::tokio::Stream::try_from(OwnedFd::from(ours))
            .map_err(error)?;
    Ok(Started {
        child,
        socket: socket.into(),
        said,
        was_ahead,
    })
}

/// How often the start of one worker is repeated with another connection.
const MAX_REPEATS: usize = 3;

/// The name by which a worker and a template know themselves. A link to this program may have a name
/// that means a command.
pub(super) const OWN_NAME: &CStr = c"code-mode";

/// The ends of a new worker's streams.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) ours: UnixStream,
    pub(super) theirs: UnixStream,
    pub(super) stderr: OwnedFd,
    pub(super) stderr_in: OwnedFd,
}

impl Ends {
    pub(super) fn new() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        for end in [&ours, &theirs] {
            // As much as an ordinary user may have, so that a large message takes few
            // turns; less works too.
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(end, SOCKET_BUFFER);
        }
        let (stderr, stderr_in) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self {
            ours,
            theirs,
            stderr,
            stderr_in,
        })
    }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

/// A process that was started and has not been waited for. Wherever it is
/// dropped, on a way that nobody thought of too, it is killed and waited for.
#[derive(Debug)]
pub(super) struct Process {
    pidfd: Arc<OwnedFd>,
    /// What this program calls it. It may be another's once this one was waited for, so
    /// nothing is done to it by this.
    id: u32,
    /// Whether it is a copy of a template.
    is_copy: bool,
    /// Removed once the process is gone.
    group: Option<Group>,
}

impl Process {
    pub(super) fn new(id: u32, pidfd: Arc<OwnedFd>) -> Self {
        Self {
            pidfd,
            id,
            is_copy: false,
            group: None,
        }
    }

    pub(super) fn new_copy(id: u32, pidfd: Arc<OwnedFd>) -> Self {
        let mut copy = Self::new(id, pidfd);
        copy.is_copy = true;
        copy
    }

    /// Whether it has ended; asked without waiting.
    pub(super) fn has_ended(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::PidFd(self.pidfd.as_fd()), look), Ok(None))
    }

    /// What this program calls it.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    fn kill(&self) -> rustix::io::Result<()> {
        rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL)
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl AsRawFd for Process {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has been waited for can no longer be sent a signal.
        if self.kill().is_ok() {
            // Waiting for a killed process takes a moment that a destructor does
            // not have.
            let task = Task::Reap(self.pidfd.clone(), self.group.take());
            let _ = nursery().send(task);
        }
    }
}

/// A worker process. Dropping it kills it.
pub(crate) struct Child {
    process: Option<AsyncFd<Process>>,
}

impl Child {
    fn adopt(process: Process) -> io::Result<Self> {
        // SAFETY: a `Process` keeps its descriptor open, and the same, for as long
        // as it lives, and it is only read through the `AsyncFd`.
        let process = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE)? };
        Ok(Self {
            process: Some(process),
        })
    }

    /// What this program calls the process, while it has not been waited for.
    pub(crate) fn id(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.get_ref().id)
    }

    /// Whether it is a copy of a template, and was not started from the program's file.
    pub(crate) fn is_copy(&self) -> bool {
        self.process
            .as_ref()
            .is_some_and(|process| process.get_ref().is_copy)
    }

    /// Ends the process at once.
    pub(crate) fn kill(&mut self) {
        if let Some(process) = &self.process {
            let _ = process.get_ref().kill();
        }
    }

    /// Whether it has ended; asked without waiting.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.process
            .as_ref()
            .is_none_or(|process| process.get_ref().has_ended())
    }

    /// Waits for its end.
    pub(crate) async fn wait(&mut self) -> ExitReason {
        let Some(process) = &self.process else {
            return ExitReason::Unknown;
        };
        if process.readable().await.is_err() {
            return ExitReason::Unknown;
        }
        let reason = reap(&process.get_ref().pidfd);
        self.process = None;
        reason
    }
}

fn reap(pidfd: &OwnedFd) -> ExitReason {
    let wait = || waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    match rustix::io::retry_on_intr(wait) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(status), _) => ExitReason::Exited(status),
            (_, Some(signal)) => ExitReason::Signalled(signal),
            _ => ExitReason::Unknown,
        },
        _ => ExitReason::Unknown,
    }
}

/// Why a process did not start.
pub(super) enum Failure {
    /// There would be one without namespaces.
    Namespaces(io::Error),
    /// The connection may have another worker at its end already.
    ConnectionUsed,
    Process(io::Error),
}

pub(super) struct Spec {
    pub(super) program: CString,
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    /// The worker's end of the connection; its standard input.
    pub(super) socket: OwnedFd,
    /// Where its standard error goes.
    pub(super) stderr: OwnedFd,
    pub(super) namespaces: bool,
    /// The control group below which it gets one, and the heap of one of its cells.
    pub(super) group: Option<(PathBuf, u64)>,
}

/// Somebody who starts workers. When the last one goes, the templates end: an agent that has
/// dropped its providers has none of their processes left.
pub(crate) struct Starter(());

/// How many there are.
static STARTERS: AtomicUsize = AtomicUsize::new(0);

impl Starter {
    pub(crate) fn new() -> Self {
        STARTERS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        if STARTERS.fetch_sub(1, Ordering::Relaxed) == 1 {
            let _ = nursery().send(Task::EndTemplates);
        }
    }
}

/// Loads this program into a process of which workers are copies, before a provider asks for the
/// first: a program that will start workers calls it when that is certain. Without it the second
/// worker does so. Elsewhere than on Linux it does nothing.
pub fn load_ahead() {
    if let Ok(program) = std::env::current_exe()
        && let Ok(program) = c_string(program.as_os_str())
    {
        let _ = nursery().send(Task::Load(program));
    }
}

enum Task {
    /// Workers of this program are expected.
    Load(CString),
    /// Nobody starts workers any more, unless somebody has come since.
    EndTemplates,
    Spawn(
        Spec,
        Box<WorkerSettings>,
        oneshot::Sender<Result<Process, Failure>>,
    ),
    Reap(Arc<OwnedFd>, Option<Group>),
}

/// The thread that makes all workers.
fn nursery() -> Sender<Task> {
    static NURSERY: OnceLock<Mutex<Sender<Task>>> = OnceLock::new();
    NURSERY
        .get_or_init(|| {
            let (sender, tasks) = channel();
            let spawned = std::thread::Builder::new()
                .name("code-mode-nursery".to_owned())
                .spawn(move || {
                    let mut templates = Templates::default();
                    for task in tasks {
                        match task {
                            Task::Spawn(spec, settings, reply) => {
                                // Where nobody waits for it any more, it is dropped here.
                                let _ = reply.send(make(&mut templates, &spec, &settings));
                            }
                            Task::Load(program) => templates.load(program),
                            Task::EndTemplates => {
                                if STARTERS.load(Ordering::Relaxed) == 0 {
                                    templates = Templates::default();
                                    ahead::end_worker();
                                }
                            }
                            Task::Reap(pidfd, group) => {
                                reap(&pidfd);
                                drop(group);
                            }
                        }
                    }
                });
            if let Err(error) = spawned {
                // Every spawn fails then: its reply is dropped with the channel.
                tracing::error!(%error, "no thread to start workers from");
            }
            Mutex::new(sender)
        })
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

async fn spawn(spec: Spec, settings: Box<WorkerSettings>) -> Result<Child, Failure> {
    let (reply, child) = oneshot::channel();
    let gone = || Failure::Process(io::Error::other("no thread to start workers from"));
    nursery()
        .send(Task::Spawn(spec, settings, reply))
        .map_err(|_| gone())?;
    let process = child.await.map_err(|_| gone())??;
    Child::adopt(process).map_err(Failure::Process)
}

/// What the new process could not do.
enum Unable {
    MapUser(io::Error),
    Exec(io::Error),
}

/// A copy of a descriptor above those of the standard streams. Where an agent runs with
/// its standard streams closed, new descriptors have their numbers, and putting one in
/// its place for the worker would overwrite another.
fn above_standard(descriptor: impl AsFd) -> Result<OwnedFd, Failure> {
    rustix::io::fcntl_dupfd_cloexec(descriptor, 3).map_err(|error| Failure::Process(error.into()))
}

/// Room for what the child does before it is the worker program.
const CHILD_STACK: usize = 64 << 10;

/// Makes a worker, in its own control group where it gets one.
fn make(
    templates: &mut Templates,
    spec: &Spec,
    settings: &WorkerSettings,
) -> Result<Process, Failure> {
    let mut process = match templates.copy(spec, settings)? {
        Some(process) => process,
        None => clone_worker(spec)?,
    };
    if let Some((parent, heap_bytes)) = &spec.group {
        let held = Group::hold(parent, process.id, *heap_bytes);
        process.group = Some(held.map_err(Failure::Process)?);
    }
    Ok(process)
}

pub(super) fn clone_worker(spec: &Spec) -> Result<Process, Failure> {
    let socket = above_standard(&spec.socket)?;
    let stderr = above_standard(&spec.stderr)?;
    // Everything the child needs is made before it exists: it may not allocate.
    let arguments = pointers(&spec.arguments);
    let environment = pointers(&spec.environment);
    // SAFETY: both calls take no arguments and cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let uid_map = format!("0 {uid} 1\n");
    let gid_map = format!("0 {gid} 1\n");
    let mut plan = Plan {
        program: &spec.program,
        arguments: &arguments,
        environment: &environment,
        socket: socket.as_raw_fd(),
        stderr: stderr.as_raw_fd(),
        maps: spec.namespaces.then_some([
            (c"/proc/self/setgroups", b"deny".as_slice()),
            (c"/proc/self/uid_map", uid_map.as_bytes()),
            (c"/proc/self/gid_map", gid_map.as_bytes()),
        ]),
        unable: None,
    };
    let mut flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    if spec.namespaces {
        flags |= NAMESPACES;
    }
    let mut stack = vec![0_u128; CHILD_STACK / size_of::<u128>()];
    let mut pidfd: RawFd = -1;
    let blocked = BlockedSignals::all();
    // SAFETY: this is `vfork` on a stack of the child's own, whose end, aligned for any
    // type, is given: the calling thread stands still until the child has become another
    // program or ended, so all that `plan` and this frame hold outlives what the child
    // does with it, and nobody else touches it meanwhile. `become_worker` only makes
    // system calls, fills in `plan.unable` and never unwinds. No signal is taken on the
    // memory that both share: all are blocked until the child has no handlers. The kernel
    // writes one descriptor to `pidfd`.
    let pid = unsafe {
        libc::clone(
            become_worker,
            stack.as_mut_ptr_range().end.cast(),
            flags,
            (&raw mut plan).cast(),
            &raw mut pidfd,
        )
    };
    let cloned = match pid {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    };
    drop(blocked);
    let pid = cloned.map_err(
        |error| match spec.namespaces && forbids_namespaces(&error) {
            true => Failure::Namespaces(error),
            false => Failure::Process(error),
        },
    )?;
    // SAFETY: the call above succeeded, so the kernel made this descriptor for
    // this process and nothing else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if let Some(unable) = plan.unable.take() {
        reap(&pidfd);
        return Err(match unable {
            Unable::MapUser(error) => {
                let says = io::Error::new(
                    error.kind(),
                    format!("cannot map its user by way of /proc: {error}"),
                );
                match forbids_namespaces(&error) {
                    true => Failure::Namespaces(says),
                    false => Failure::Process(says),
                }
            }
            Unable::Exec(error) => Failure::Process(error),
        });
    }
    let id = u32::try_from(pid).unwrap_or_default();
    Ok(Process::new(id, Arc::new(pidfd)))
}

/// Whether an error means that this user has no namespaces here. A system that is short of something
/// for a moment has them: then a worker with less of a sandbox would be wrong.
fn forbids_namespaces(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    !matches!(
        code,
        Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOMEM | libc::EINTR)
    )
}

/// All signals blocked in the calling thread, until it is dropped.
struct BlockedSignals {
    before: libc::sigset_t,
}

impl BlockedSignals {
    fn all() -> Self {
        let mut all = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: both sets are valid for the calls to write, and `before` is written by
        // the second, which cannot fail with these arguments.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Self {
                before: before.assume_init(),
            }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set was written by the system.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

/// Everything the child needs, made before the child exists.
struct Plan<'a> {
    program: &'a CString,
    arguments: &'a [*const libc::c_char],
    environment: &'a [*const libc::c_char],
    socket: RawFd,
    stderr: RawFd,
    maps: Option<[(&'static std::ffi::CStr, &'a [u8]); 3]>,
    /// What the child could not do: its answer.
    unable: Option<Unable>,
}

/// The life of the child until it is the worker program.
extern "C" fn become_worker(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `clone_worker` gives its plan, which it leaves alone until this has ended.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    plan.unable = Some(match carry_out(plan) {
        Ok(never) => match never {},
        Err(unable) => unable,
    });
    // SAFETY: ends the child alone, and runs no destructors, which belong to the parent.
    unsafe { libc::_exit(127) }
}

/// Becomes the worker program. Only makes system calls.
fn carry_out(plan: &Plan<'_>) -> Result<Infallible, Unable> {
    if let Some(maps) = &plan.maps {
        for (path, content) in maps {
            // SAFETY: the path is a C string and the content valid for its length.
            let written = unsafe {
                let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                file >= 0
                    && libc::write(file, content.as_ptr().cast(), content.len())
                        == content.len() as isize
                    && libc::close(file) == 0
            };
            if !written {
                return Err(Unable::MapUser(io::Error::last_os_error()));
            }
        }
    }
    forget_handlers();
    // SAFETY: system calls on descriptors and constants of this process; the
    // arrays given to `execve` end in null and point to C strings that live on in
    // the parent, which waits.
    unsafe {
        // The worker ends with the thread that made it, and so with this program;
        // where that has happened already, it finds its connection closed.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::dup2(plan.socket, 0) < 0
            || libc::dup2(plan.stderr, 1) < 0
            || libc::dup2(plan.stderr, 2) < 0
        {
            return Err(Unable::Exec(io::Error::last_os_error()));
        }
        // Descriptors of the parent that were not meant for the worker; it closes
        // the rest once more when it locks itself in.
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        libc::execve(
            plan.program.as_ptr(),
            plan.arguments.as_ptr(),
            plan.environment.as_ptr(),
        );
    }
    Err(Unable::Exec(io::Error::last_os_error()))
}

/// Takes no signal to a handler any more, and then takes signals again: a handler would
/// run on the parent's memory.
fn forget_handlers() {
    // SAFETY: the calls read and write the structures given, which are valid and as the
    // system wants them when zero: the default action and an empty set. The actions are
    // this process's own copy. Signals that the C library keeps for itself are refused.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for signal in 1..=libc::SIGRTMAX() {
            let mut action = default;
            if libc::sigaction(signal, std::ptr::null(), &mut action) == 0
                && !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
            {
                libc::sigaction(signal, &default, std::ptr::null_mut());
            }
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &default.sa_mask, std::ptr::null_mut());
    }
}
