//! Who is asked for the address of a name.
//!
//! The C library asks the modules that `/etc/nsswitch.conf` names, and a program that is
//! linked statically would load them for that, and a second C library beside its own with
//! them. That ends well only where both have the same version. So such a program asks
//! what it has in it: `/etc/hosts` and DNS, and `/etc/passwd` for users.
#![cfg_attr(
    linked_statically,
    allow(unsafe_code, reason = "a function of the C library")
)]

/// Asks no module that would have to be loaded. Call before anything looks a name up.
pub(crate) fn load_nothing() {
    #[cfg(linked_statically)]
    for (names, asked) in [(c"hosts", c"files dns"), (c"passwd", c"files")] {
        // SAFETY: both texts end with a zero and outlive the call, which copies what it
        // keeps. It may be called at any time, by its contract.
        let failed = unsafe { __nss_configure_lookup(names.as_ptr(), asked.as_ptr()) };
        // It knows both names, and no memory for a few bytes is the end of any program.
        debug_assert_eq!(failed, 0);
    }
}

#[cfg(linked_statically)]
unsafe extern "C" {
    /// Of glibc's `nss.h`: for names of this kind, asks those sources from now on.
    fn __nss_configure_lookup(
        names: *const std::ffi::c_char,
        asked: *const std::ffi::c_char,
    ) -> std::ffi::c_int;
}
