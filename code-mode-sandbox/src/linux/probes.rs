//! Forbidden things, tried natively from inside a locked-in worker.
//!
//! `code-mode doctor` and the attack corpus start workers with `--probe` and have
//! each tried in a separate process, because most end it. Each is what code that
//! has taken over the process could do without any library.
#![allow(
    unsafe_code,
    reason = "system calls without their wrappers are the point"
)]

use std::io;

use crate::Expected::{self, Killed, Refused};

/// Every probe and what it must meet.
pub const PROBES: &[(&str, Expected)] = &[
    ("open-etc-passwd", Killed),
    ("open-proc-self-mem", Killed),
    ("open-create-file", Killed),
    ("openat2", Killed),
    ("unlink", Killed),
    ("mkdir", Killed),
    ("rename", Killed),
    ("symlink", Killed),
    ("memfd-create", Killed),
    ("socket-inet", Killed),
    ("socket-inet6", Killed),
    ("socket-unix", Killed),
    ("socket-netlink", Killed),
    ("socketpair", Killed),
    ("connect", Killed),
    ("bind", Killed),
    ("execve", Killed),
    ("execveat", Killed),
    ("fork", Killed),
    ("clone-process", Killed),
    ("ptrace-parent", Killed),
    ("process-vm-readv", Killed),
    ("process-vm-writev", Killed),
    ("kill-parent", Killed),
    ("kill-everyone", Killed),
    ("pidfd-open", Killed),
    ("bpf", Killed),
    ("io-uring", Killed),
    ("userfaultfd", Killed),
    ("perf-event-open", Killed),
    ("keyctl", Killed),
    ("add-key", Killed),
    ("init-module", Killed),
    ("mount", Killed),
    ("umount", Killed),
    ("pivot-root", Killed),
    ("chroot", Killed),
    ("unshare-user", Killed),
    ("setns", Killed),
    ("setuid-root", Killed),
    ("setgid-root", Killed),
    ("capset", Killed),
    ("clone3-process", Refused),
    ("seccomp-relax", Refused),
    ("set-dumpable", Refused),
    ("raise-limits", Refused),
    ("tgkill-other", Refused),
    ("inotify", Refused),
    ("timer-create", Refused),
    ("shmget", Refused),
    ("mlockall", Refused),
    ("personality", Refused),
    ("stat-root", Refused),
    ("readlink-proc-self-exe", Refused),
    ("chdir", Refused),
    ("getdents", Refused),
    ("sethostname", Refused),
    ("ioctl-tiocsti", Refused),
    ("dup-many", Refused),
    ("uname", Refused),
    ("mmap-shared", Refused),
    ("mmap-growsdown", Refused),
    ("mmap-locked", Refused),
    ("fcntl-setown", Refused),
    ("fcntl-setsig", Refused),
    ("fcntl-dupfd", Refused),
    ("send-out-of-band", Refused),
    ("recv-out-of-band", Refused),
    ("sendmsg", Refused),
    ("recvmsg", Refused),
    ("readv", Refused),
    ("writev", Refused),
    ("epoll-create", Refused),
    ("eventfd", Refused),
    ("futex-pi", Refused),
    ("madvise-poison", Refused),
    ("clone-new-namespace", Refused),
];

/// Tries one; returns what the kernel said, where the process lives to tell.
/// `None` for an unknown probe.
pub fn probe(name: &str) -> Option<String> {
    PROBES.iter().find(|(known, _)| *known == name)?;
    let returned = attempt(name)?;
    Some(if returned < 0 {
        io::Error::last_os_error().to_string()
    } else {
        format!("allowed: returned {returned}")
    })
}

fn attempt(name: &str) -> Option<libc::c_long> {
    let path = c"/etc/passwd".as_ptr();
    let here = libc::AT_FDCWD;
    let null = std::ptr::null::<u8>();
    let mut buffer = [0u8; 256];
    let out = buffer.as_mut_ptr();
    // SAFETY: every pointer handed to the kernel is null, a C string, or `buffer`
    // with a length within it; a call that is allowed against all expectation
    // changes this process only, which exists to be tried this on. The child of a
    // process-making call that was let through ends at once.
    let returned = unsafe {
        match name {
            "open-etc-passwd" => libc::syscall(libc::SYS_openat, here, path, libc::O_RDONLY),
            "open-proc-self-mem" => libc::syscall(
                libc::SYS_openat,
                here,
                c"/proc/self/mem".as_ptr(),
                libc::O_RDWR,
            ),
            "open-create-file" => libc::syscall(
                libc::SYS_openat,
                here,
                c"/tmp/code-mode-probe".as_ptr(),
                libc::O_CREAT | libc::O_WRONLY,
                0o600,
            ),
            "openat2" => libc::syscall(libc::SYS_openat2, here, path, out, 24),
            "unlink" => libc::syscall(libc::SYS_unlinkat, here, path, 0),
            "mkdir" => libc::syscall(libc::SYS_mkdirat, here, c"/tmp/probe".as_ptr(), 0o700),
            "rename" => libc::syscall(libc::SYS_renameat2, here, path, here, path, 0),
            "symlink" => libc::syscall(libc::SYS_symlinkat, path, here, c"/tmp/probe".as_ptr()),
            "memfd-create" => libc::syscall(libc::SYS_memfd_create, c"probe".as_ptr(), 0),
            "socket-inet" => socket(libc::AF_INET),
            "socket-inet6" => socket(libc::AF_INET6),
            "socket-unix" => socket(libc::AF_UNIX),
            "socket-netlink" => {
                libc::syscall(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0)
            }
            "socketpair" => libc::syscall(
                libc::SYS_socketpair,
                libc::AF_UNIX,
                libc::SOCK_STREAM,
                0,
                out,
            ),
            "connect" => libc::syscall(libc::SYS_connect, 0, out, 16),
            "bind" => libc::syscall(libc::SYS_bind, 0, out, 16),
            "execve" => libc::syscall(libc::SYS_execve, c"/bin/sh".as_ptr(), null, null),
            "execveat" => {
                libc::syscall(libc::SYS_execveat, here, c"/bin/sh".as_ptr(), null, null, 0)
            }
            "fork" => process(fork()),
            "clone-process" => process(libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0)),
            "clone3-process" => process(libc::syscall(libc::SYS_clone3, out, 88)),
            "ptrace-parent" => {
                libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, libc::getppid(), 0, 0)
            }
            "process-vm-readv" => libc::syscall(libc::SYS_process_vm_readv, 1, null, 0, null, 0, 0),
            "process-vm-writev" => {
                libc::syscall(libc::SYS_process_vm_writev, 1, null, 0, null, 0, 0)
            }
            "kill-parent" => libc::syscall(libc::SYS_kill, libc::getppid(), 0),
            "kill-everyone" => libc::syscall(libc::SYS_kill, -1, 0),
            "pidfd-open" => libc::syscall(libc::SYS_pidfd_open, 1, 0),
            "bpf" => libc::syscall(libc::SYS_bpf, 0, out, 48),
            "io-uring" => libc::syscall(libc::SYS_io_uring_setup, 8, out),
            "userfaultfd" => libc::syscall(libc::SYS_userfaultfd, 0),
            "perf-event-open" => libc::syscall(libc::SYS_perf_event_open, out, 0, -1, -1, 0),
            "keyctl" => libc::syscall(libc::SYS_keyctl, 0, -3, 1, 0, 0),
            "add-key" => libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                c"k".as_ptr(),
                out,
                1,
                -3,
            ),
            "init-module" => libc::syscall(libc::SYS_init_module, out, 256, c"".as_ptr()),
            "mount" => libc::syscall(
                libc::SYS_mount,
                c"none".as_ptr(),
                c"/".as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                null,
            ),
            "umount" => libc::syscall(libc::SYS_umount2, c"/".as_ptr(), libc::MNT_DETACH),
            "pivot-root" => libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()),
            "chroot" => libc::syscall(libc::SYS_chroot, c"/".as_ptr()),
            "unshare-user" => libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER),
            "setns" => libc::syscall(libc::SYS_setns, 0, 0),
            "setuid-root" => libc::syscall(libc::SYS_setuid, 0),
            "setgid-root" => libc::syscall(libc::SYS_setgid, 0),
            "capset" => libc::syscall(libc::SYS_capset, out, out),
            "seccomp-relax" => {
                libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, out)
            }
            "set-dumpable" => libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0),
            "raise-limits" => libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, out, null),
            "tgkill-other" => libc::syscall(libc::SYS_tgkill, libc::getppid(), libc::getppid(), 0),
            "inotify" => libc::syscall(libc::SYS_inotify_init1, 0),
            "timer-create" => libc::syscall(libc::SYS_timer_create, 0, null, out),
            "shmget" => libc::syscall(libc::SYS_shmget, 0, 4096, libc::IPC_CREAT | 0o600),
            "mlockall" => libc::syscall(libc::SYS_mlockall, libc::MCL_CURRENT),
            "personality" => libc::syscall(libc::SYS_personality, 0xffff_ffffu32),
            "stat-root" => libc::syscall(libc::SYS_newfstatat, here, c"/".as_ptr(), out, 0),
            "readlink-proc-self-exe" => libc::syscall(
                libc::SYS_readlinkat,
                here,
                c"/proc/self/exe".as_ptr(),
                out,
                buffer.len(),
            ),
            "chdir" => libc::syscall(libc::SYS_chdir, c"/".as_ptr()),
            "getdents" => libc::syscall(libc::SYS_getdents64, 0, out, buffer.len()),
            "sethostname" => libc::syscall(libc::SYS_sethostname, out, 1),
            "ioctl-tiocsti" => libc::syscall(libc::SYS_ioctl, 2, libc::TIOCSTI, out),
            "dup-many" => libc::syscall(libc::SYS_dup, 0),
            "uname" => libc::syscall(libc::SYS_uname, out),
            "mmap-shared" => map(libc::MAP_SHARED | libc::MAP_ANONYMOUS),
            "mmap-growsdown" => map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN),
            "mmap-locked" => map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_LOCKED),
            "fcntl-setown" => libc::syscall(libc::SYS_fcntl, 0, libc::F_SETOWN, 1),
            "fcntl-setsig" => libc::syscall(libc::SYS_fcntl, 0, F_SETSIG, libc::SIGKILL),
            "fcntl-dupfd" => libc::syscall(libc::SYS_fcntl, 0, libc::F_DUPFD, 10),
            "send-out-of-band" => {
                libc::syscall(libc::SYS_sendto, 0, out, 1, libc::MSG_OOB, null, 0)
            }
            "recv-out-of-band" => {
                libc::syscall(libc::SYS_recvfrom, 0, out, 1, libc::MSG_OOB, null, null)
            }
            "sendmsg" => libc::syscall(libc::SYS_sendmsg, 0, out, libc::MSG_DONTWAIT),
            "recvmsg" => libc::syscall(libc::SYS_recvmsg, 0, out, libc::MSG_DONTWAIT),
            "readv" => libc::syscall(libc::SYS_readv, 0, null, 0),
            "writev" => libc::syscall(libc::SYS_writev, 2, null, 0),
            "epoll-create" => libc::syscall(libc::SYS_epoll_create1, 0),
            "eventfd" => libc::syscall(libc::SYS_eventfd2, 0, 0),
            "futex-pi" => libc::syscall(libc::SYS_futex, out, libc::FUTEX_LOCK_PI, 0, null),
            "madvise-poison" => libc::syscall(libc::SYS_madvise, null, 0, libc::MADV_HWPOISON),
            "clone-new-namespace" => libc::syscall(
                libc::SYS_clone,
                libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM | libc::CLONE_NEWUSER,
                0,
                0,
                0,
                0,
            ),
            _ => return None,
        }
    };
    Some(returned)
}

/// The command that chooses the signal of a descriptor.
const F_SETSIG: libc::c_int = 10;

/// # Safety
/// None: a mapping that is made after all is new memory, which nothing uses.
unsafe fn map(flags: libc::c_int) -> libc::c_long {
    // SAFETY: the kernel chooses the place.
    unsafe {
        libc::syscall(
            libc::SYS_mmap,
            std::ptr::null::<u8>(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    }
}

/// # Safety
/// None beyond that of making a descriptor that nothing closes.
unsafe fn socket(family: libc::c_int) -> libc::c_long {
    // SAFETY: no pointers.
    unsafe { libc::syscall(libc::SYS_socket, family, libc::SOCK_STREAM, 0) }
}

/// # Safety
/// The child must end at once, which [`process`] sees to.
unsafe fn fork() -> libc::c_long {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: no pointers.
    unsafe {
        libc::syscall(libc::SYS_fork)
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: no pointers; this is `fork` on architectures without that call.
    unsafe {
        libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0)
    }
}

/// Ends the child of a call that made a process after all.
fn process(returned: libc::c_long) -> libc::c_long {
    if returned == 0 {
        crate::exit_now(0);
    }
    returned
}
