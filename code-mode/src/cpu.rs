//! Processor time: of a thread, and of a cell against its limit.
#![allow(
    unsafe_code,
    reason = "clocks of the system, and V8's interrupts, take raw pointers"
)]

use std::time::Duration;

use code_mode_protocol::Limit;

use crate::cell::{CellShared, Stop};

/// Processor time the calling thread has used since it started; zero where the
/// platform does not say, so that nothing is ever charged for time not used.
#[cfg(unix)]
pub(crate) fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec for the call to write; the clock exists
    // on every Unix this builds for, and a failure leaves `time` at zero.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Processor time the calling thread has used since it started; zero where the
/// platform does not say, so that nothing is ever charged for time not used.
#[cfg(windows)]
pub(crate) fn thread_time() -> Duration {
    use windows_sys::Win32::Foundation::FILETIME;
    use windows_sys::Win32::System::Threading::{GetCurrentThread, GetThreadTimes};
    let zero = FILETIME {
        dwLowDateTime: 0,
        dwHighDateTime: 0,
    };
    let (mut created, mut exited, mut kernel, mut user) = (zero, zero, zero, zero);
    // SAFETY: the handle of the current thread is always valid, and all four
    // pointers refer to FILETIMEs of this frame.
    unsafe {
        GetThreadTimes(
            GetCurrentThread(),
            &mut created,
            &mut exited,
            &mut kernel,
            &mut user,
        )
    };
    let ticks = |t: FILETIME| (u64::from(t.dwHighDateTime) << 32) | u64::from(t.dwLowDateTime);
    // A tick is 100 ns.
    Duration::from_nanos((ticks(kernel) + ticks(user)).saturating_mul(100))
}

/// The processor-time clock of one thread, which other threads can read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadClock {
    #[cfg(target_os = "linux")]
    clock: libc::clockid_t,
}

impl ThreadClock {
    /// The clock of the calling thread; `None` where it has none that others can
    /// read.
    #[cfg(target_os = "linux")]
    pub(crate) fn of_this_thread() -> Option<Self> {
        let mut clock = 0;
        // SAFETY: `clock` is valid for the call to write; the calling thread is a
        // valid thread.
        let error = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
        (error == 0).then_some(Self { clock })
    }

    /// The clock of the calling thread; `None` where it has none that others can
    /// read.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn of_this_thread() -> Option<Self> {
        None
    }

    /// What the thread has used so far; zero once it has ended.
    #[cfg(target_os = "linux")]
    pub(crate) fn time(self) -> Duration {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `time` is valid for the call to write; a clock whose thread has
        // ended is an error that leaves it at zero.
        unsafe { libc::clock_gettime(self.clock, &mut time) };
        Duration::new(
            u64::try_from(time.tv_sec).unwrap_or(0),
            u32::try_from(time.tv_nsec).unwrap_or(0),
        )
    }

    /// What the thread has used so far; zero once it has ended.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn time(self) -> Duration {
        Duration::ZERO
    }
}

/// Compares the processor time a cell has used with its limit: here, or, where
/// no other thread can read it, on its own at the next point where V8 can be
/// interrupted.
pub(crate) fn check_cpu_time(shared: &CellShared) {
    if let Some(used) = shared.cpu_time() {
        limit_cpu_time(shared, used);
    } else if let Some(isolate) = shared.isolate() {
        let data = std::ptr::from_ref(shared).cast_mut().cast();
        isolate.request_interrupt(cpu_time_check, data);
    }
}

unsafe extern "C" fn cpu_time_check(_: v8::UnsafeRawIsolatePtr, data: *mut std::ffi::c_void) {
    // SAFETY: `data` is the `CellShared` of the cell whose isolate is running this;
    // `run` holds it until that isolate is disposed of.
    let shared = unsafe { &*data.cast::<CellShared>() };
    limit_cpu_time(shared, shared.own_cpu_time());
}

fn limit_cpu_time(shared: &CellShared, used: Duration) {
    if let Some(limit) = shared.limits.max_cpu_time
        && used >= limit
    {
        let exceeded = Limit::CpuTime.exceeded(limit.as_millis() as u64);
        shared.stop(Stop::Limit(exceeded));
    }
}
