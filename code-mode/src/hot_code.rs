//! The code of V8 that every cell runs, fetched before it is run.
//!
//! A processor that slept has lost its caches, and a cell that starts then waits
//! for one line of code after the other: compiling `text("hi")` takes 130 us instead
//! of 20. Asked for all at once, the lines take 26 us, and the cell some 100 us less.
//!
//! The linker places that code side by side, between two functions that are linked
//! by their names (`third_party/v8/hot-functions.txt`). Where it did not, they are
//! far from each other and nothing is fetched.

use std::time::Duration;

/// After a shorter pause, the code is still where it was.
pub(crate) const COLD_AFTER: Duration = Duration::from_millis(1);

/// Asks for the code, and does not wait for it.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn fetch() {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

    /// What lies side by side is not larger.
    const MAX_BYTES: usize = 1 << 19;
    const LINE: usize = 64;

    unsafe extern "C" {
        /// `v8::Module::Evaluate`, the first. Never called from here.
        #[link_name = "_ZN2v86Module8EvaluateENS_5LocalINS_7ContextEEE"]
        fn first();
        /// `v8::ScriptCompiler::CompileModule`, the last.
        #[link_name = "_ZN2v814ScriptCompiler13CompileModuleEPNS_7IsolateEPNS0_6SourceENS0_14CompileOptionsENS0_13NoCacheReasonE"]
        fn last();
    }

    let (first, last) = (first as *const i8, last as *const i8);
    let bytes = last.addr().wrapping_sub(first.addr());
    if bytes > MAX_BYTES {
        return;
    }
    for at in (0..bytes).step_by(LINE) {
        // SAFETY: a prefetch reads nothing and never faults, whatever the address;
        // every x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(first.wrapping_add(at)) };
    }
}

/// The order of the code is known for one target only.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(crate) fn fetch() {}
