//! The system calls that are left.
//!
//! Three filters, of which the strictest answer counts: what running cells need
//! is allowed and the rest refused with `EPERM`; what an exploit would want ends
//! the process; `clone3`, whose flags a filter cannot see, does not exist, so
//! that the C library falls back to `clone`.

use std::collections::BTreeMap;

use code_mode_protocol::SandboxLayer;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

use crate::{holds, missing};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Error = seccompiler::Error;

/// What V8, tokio and the allocators use while cells run, whatever the arguments. It is
/// what a trace of workers under load shows, and what a crash needs to be one.
const ALLOWED: &[libc::c_long] = &[
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_membarrier,
    // Threads and time.
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
    libc::SYS_write,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_getrandom,
    // Signals to itself: a crash must be able to be one.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Refused with another error by the third filter.
    libc::SYS_clone3,
];

#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_time];
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

/// The flags of a new thread, as the C library sets them.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

/// Without effect; musl still sets it.
const CLONE_DETACHED: u64 = 0x0040_0000;

/// Flags that make a mapping something other than private memory: shared, which no
/// limit on data counts; growing down, likewise; locked; or of a file.
const MAPPING: u64 =
    (libc::MAP_TYPE | libc::MAP_GROWSDOWN | libc::MAP_LOCKED | libc::MAP_HUGETLB) as u64;

/// Futex operations, less their flags for private memory and the clock: wait, wake,
/// requeue and their variants; none of priority inheritance, which has been a way into
/// the kernel before.
const FUTEX_FLAGS: u64 = !((libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) as u64);

/// Calls that are allowed with some arguments only: the call, which argument, what of it
/// counts, and the values it may have.
const CHECKED: &[(libc::c_long, u8, u64, &[u64])] = &[
    (
        libc::SYS_clone,
        0,
        u64::MAX,
        &[THREAD, THREAD | CLONE_DETACHED],
    ),
    (libc::SYS_mmap, 3, MAPPING, &[libc::MAP_PRIVATE as u64]),
    (
        libc::SYS_madvise,
        2,
        u64::MAX,
        &[
            libc::MADV_NORMAL as u64,
            libc::MADV_DONTNEED as u64,
            libc::MADV_FREE as u64,
            libc::MADV_DONTFORK as u64,
            libc::MADV_DONTDUMP as u64,
            libc::MADV_DODUMP as u64,
            libc::MADV_HUGEPAGE as u64,
            libc::MADV_NOHUGEPAGE as u64,
        ],
    ),
    (
        libc::SYS_futex,
        1,
        FUTEX_FLAGS,
        &[
            libc::FUTEX_WAIT as u64,
            libc::FUTEX_WAKE as u64,
            libc::FUTEX_REQUEUE as u64,
            libc::FUTEX_CMP_REQUEUE as u64,
            libc::FUTEX_WAKE_OP as u64,
            libc::FUTEX_WAIT_BITSET as u64,
            libc::FUTEX_WAKE_BITSET as u64,
        ],
    ),
    // The connection: no out-of-band data, no zero-copy, no address.
    (
        libc::SYS_sendto,
        3,
        u64::MAX,
        &[0, libc::MSG_NOSIGNAL as u64],
    ),
    (libc::SYS_recvfrom, 3, u64::MAX, &[0]),
    // Looking at a descriptor; above all not who gets which signal for it.
    (
        libc::SYS_fcntl,
        1,
        u64::MAX,
        &[libc::F_GETFD as u64, libc::F_GETFL as u64],
    ),
];

/// Installs the filters on every thread.
pub fn filter_system_calls() -> SandboxLayer {
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

/// One rule for each value that the masked argument may have. These arguments are of
/// 32 bits to the kernel, which ignores the upper bits.
fn one_of(index: u8, mask: u64, values: &[u64]) -> Result<Vec<SeccompRule>, Error> {
    let compare = |value: &u64| {
        let op = match mask {
            u64::MAX => SeccompCmpOp::Eq,
            mask => SeccompCmpOp::MaskedEq(mask & u64::from(u32::MAX)),
        };
        rule(vec![SeccompCondition::new(
            index,
            SeccompCmpArgLen::Dword,
            op,
            *value,
        )?])
    };
    values.iter().map(compare).collect()
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
    for (call, argument, masked, values) in CHECKED {
        rules.insert(*call, one_of(*argument, *masked, values)?);
    }
    // V8 and the allocator name their mappings; threads have names.
    let prctl = [PR_SET_VMA, libc::PR_SET_NAME as u64]
        .into_iter()
        .map(|what| rule(vec![argument(0, SeccompCmpOp::Eq, what)?]))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_prctl, prctl);
    // Reading its own limits, such as the size of a thread's stack, and
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
