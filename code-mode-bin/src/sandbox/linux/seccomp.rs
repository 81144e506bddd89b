//! The system calls that are left.
//!
//! Three filters, of which the strictest answer counts: what running cells need
//! is allowed and the rest refused with `EPERM`; what an exploit would want ends
//! the process; `clone3`, whose flags a filter cannot see, does not exist, so
//! that the C library falls back to `clone`.

use std::collections::BTreeMap;

use code_mode_protocol::wire::native::SandboxLayer;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

use super::super::{holds, missing};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Error = seccompiler::Error;

/// What V8, tokio and the allocator use while cells run, whatever the arguments.
const ALLOWED: &[libc::c_long] = &[
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_membarrier,
    // Threads and time.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrusage,
    libc::SYS_getcpu,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // The connection, standard error and the event loop.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_getrandom,
    // Signals of its own: a crash must be able to be one.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Refused with another error by the third filter.
    libc::SYS_clone3,
];

#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[libc::c_long] = &[];

/// What code that has taken the process over would want first.
const DEADLY: &[libc::c_long] = &[
    // Programs and other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    // Files.
    libc::SYS_openat2,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_mknodat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_renameat2,
    libc::SYS_memfd_create,
    // The network.
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    // The kernel's own large surfaces.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    // Its own walls.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_capset,
];

#[cfg(target_arch = "x86_64")]
const DEADLY_HERE: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_unlink,
    libc::SYS_mkdir,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
];
#[cfg(not(target_arch = "x86_64"))]
const DEADLY_HERE: &[libc::c_long] = &[libc::SYS_renameat];

const PR_SET_VMA: u64 = 0x5356_4d41;

/// Installs the filters on every thread.
pub(crate) fn filter_system_calls() -> SandboxLayer {
    let name = "seccomp";
    let Ok(architecture) = TargetArch::try_from(std::env::consts::ARCH) else {
        return missing(name, "no filter for this processor");
    };
    match install(architecture) {
        Ok(()) => holds(name, "only what running cells need, on every thread"),
        Err(error) => missing(name, error.to_string()),
    }
}

fn install(architecture: TargetArch) -> Result<(), Error> {
    let errno = |errno: i32| SeccompAction::Errno(u32::try_from(errno).unwrap_or_default());
    let program = |rules, otherwise, matching| -> Result<BpfProgram, Error> {
        let filter = SeccompFilter::new(rules, otherwise, matching, architecture)?;
        Ok(BpfProgram::try_from(filter)?)
    };
    let deadly = program(deadly()?, SeccompAction::Allow, SeccompAction::KillProcess)?;
    let no_clone3 = program(
        Rules::from([(libc::SYS_clone3, vec![])]),
        SeccompAction::Allow,
        errno(libc::ENOSYS),
    )?;
    let allowed = program(allowed()?, errno(libc::EPERM), SeccompAction::Allow)?;
    // The allow-list comes last, because it lacks the call that installs filters.
    apply_filter_all_threads(&no_clone3)?;
    apply_filter_all_threads(&deadly)?;
    apply_filter_all_threads(&allowed)
}

/// One argument compared with a value.
fn argument(index: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(
        index,
        SeccompCmpArgLen::Qword,
        op,
        value,
    )?)
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, Error> {
    Ok(SeccompRule::new(conditions)?)
}

fn allowed() -> Result<Rules, Error> {
    let mut rules: Rules = ALLOWED
        .iter()
        .chain(ALLOWED_HERE)
        .map(|call| (*call, vec![]))
        .collect();
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(
        libc::SYS_clone,
        vec![rule(vec![argument(
            0,
            SeccompCmpOp::MaskedEq(thread),
            thread,
        )?])?],
    );
    // V8 and the allocator name their mappings; threads have names.
    let prctl = [PR_SET_VMA, libc::PR_SET_NAME as u64]
        .into_iter()
        .map(|what| rule(vec![argument(0, SeccompCmpOp::Eq, what)?]))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_prctl, prctl);
    // Reading a limit of its own, such as the size of a thread's stack, and
    // lowering how much memory it may have, once a session says how much.
    rules.insert(
        libc::SYS_prlimit64,
        vec![
            rule(vec![
                argument(0, SeccompCmpOp::Eq, 0)?,
                argument(2, SeccompCmpOp::Eq, 0)?,
            ])?,
            rule(vec![
                argument(0, SeccompCmpOp::Eq, 0)?,
                argument(1, SeccompCmpOp::Eq, u64::from(libc::RLIMIT_DATA))?,
            ])?,
        ],
    );
    // `abort` and `raise`.
    rules.insert(
        libc::SYS_tgkill,
        vec![rule(vec![argument(
            0,
            SeccompCmpOp::Eq,
            u64::from(std::process::id()),
        )?])?],
    );
    Ok(rules)
}

fn deadly() -> Result<Rules, Error> {
    let mut rules: Rules = DEADLY
        .iter()
        .chain(DEADLY_HERE)
        .map(|call| (*call, vec![]))
        .collect();
    rules.insert(
        libc::SYS_clone,
        vec![rule(vec![argument(
            0,
            SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64),
            0,
        )?])?],
    );
    // The C library counts processors by reading a file, which V8 asks it for
    // time and again, and makes do where it cannot: with just these flags the
    // call is refused like any other. Nothing else in a worker opens a file.
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    rules.insert(
        libc::SYS_openat,
        vec![rule(vec![SeccompCondition::new(
            2,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Ne,
            flags,
        )?])?],
    );
    Ok(rules)
}
