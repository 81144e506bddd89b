//! The memory of a waiting thread's stack.

/// Gives back the memory of the calling thread's stack that no frame is using: V8
/// goes deep while it makes an isolate and compiles, and a cell that then waits
/// would keep those pages. Used again, they are zero.
#[cfg(target_os = "linux")]
#[inline(never)]
pub(crate) fn release_unused() {
    /// More than the frames of the call that releases, which are below this one's.
    const IN_USE: usize = 4096;
    const PAGE: usize = 4096;
    let marker = 0_u8;
    let here = std::hint::black_box(&raw const marker).addr();
    let Some(lowest) = lowest_address() else {
        return;
    };
    let end = (here - IN_USE) & !(PAGE - 1);
    if end > lowest {
        // SAFETY: `lowest..end` is part of the calling thread's own stack, and stacks
        // grow down: all frames that live are above `here`, and the frame of this very
        // call is less than `IN_USE` below it. No code of this thread runs while the
        // call does; a signal's handler runs before it, and is done, or after it. Where
        // pages are larger than `PAGE` the kernel refuses a start that is not aligned.
        unsafe { libc::madvise(lowest as *mut _, end - lowest, libc::MADV_DONTNEED) };
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn release_unused() {}

/// Where the calling thread's stack can grow to.
#[cfg(target_os = "linux")]
fn lowest_address() -> Option<usize> {
    let mut attributes = std::mem::MaybeUninit::uninit();
    let mut lowest = std::ptr::null_mut();
    let mut bytes = 0;
    // SAFETY: the first call initialises `attributes`, and only where it succeeded
    // are they read and destroyed; the other pointers are valid to write to.
    let read = unsafe {
        libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) == 0 && {
            let read = libc::pthread_attr_getstack(attributes.as_ptr(), &mut lowest, &mut bytes);
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
            read == 0
        }
    };
    read.then_some(lowest.addr())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Fills a good part of the stack, and says where.
    #[inline(never)]
    fn go_deep() -> usize {
        let deep = [1_u8; 256 << 10];
        std::hint::black_box(&deep).as_ptr().addr()
    }

    fn is_resident(address: usize) -> bool {
        let mut resident = 0_u8;
        let page = (address & !4095) as *mut libc::c_void;
        // SAFETY: the page is one of this thread's stack, which stays mapped, and
        // `resident` has room for the one page asked for.
        let error = unsafe { libc::mincore(page, 4096, &mut resident) };
        assert_eq!(error, 0);
        resident & 1 == 1
    }

    #[test]
    fn what_a_stack_no_longer_uses_is_given_back_and_the_rest_is_kept() {
        let kept = std::hint::black_box([7_u8; 4096]);
        let deep = go_deep();
        assert!(is_resident(deep));
        release_unused();
        assert!(!is_resident(deep));
        assert_eq!(std::hint::black_box(&kept), &[7; 4096]);
        go_deep();
    }
}
