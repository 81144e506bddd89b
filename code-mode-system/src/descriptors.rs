//! Descriptors: those that this program was started with, and how many it may have.
#![cfg_attr(
    target_os = "linux",
    allow(unsafe_code, reason = "numbers of descriptors are looked up")
)]

/// Lets this program have as many descriptors as it may: each worker has some, and the
/// usual 1024 are few for hundreds of sessions.
pub fn allow_many() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

        const ENOUGH: u64 = 1 << 16;
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let allowed = maximum.unwrap_or(ENOUGH).min(ENOUGH);
        if current.is_some_and(|current| current < allowed) {
            let current = Some(allowed);
            // The program can serve with fewer.
            let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
        }
    }
}

/// Keeps descriptors that this program was started with from every command it starts.
pub fn close_inherited_on_exec() {
    #[cfg(target_os = "linux")]
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        use std::os::fd::BorrowedFd;

        use rustix::io::{FdFlags, fcntl_setfd};

        let numbers = open.flatten().filter_map(|entry| {
            let number: i32 = entry.file_name().to_str()?.parse().ok()?;
            (number > 2).then_some(number)
        });
        for number in numbers.collect::<Vec<_>>() {
            // SAFETY: the descriptor is used for one call only, which changes a flag of
            // it that concerns programs started later; where the number is not open any
            // more the call fails.
            let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
            let _ = fcntl_setfd(descriptor, FdFlags::CLOEXEC);
        }
    }
}
