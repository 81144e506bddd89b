//! Who is asked for the address of a name.
//!
//! The C library asks the modules that `/etc/nsswitch.conf` names, and a program that is
//! linked statically would load them for that, and a second C library beside its own with
//! them. That ends well only where both have the same version. So such a program asks
//! what it has in it: `/etc/hosts` and DNS.
#![cfg_attr(
    linked_statically,
    allow(unsafe_code, reason = "a function of the C library")
)]

/// Asks no module that would have to be loaded. For all that makes clients to call before
/// those look a name up; not at every start, because it reads `/etc/nsswitch.conf`.
pub(crate) fn load_nothing() {
    #[cfg(linked_statically)]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            // SAFETY: both texts end with a zero and outlive the call, which copies what
            // it keeps. It locks what it changes.
            let failed =
                unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
            // It knows the names, and no memory for a few bytes is the end of any program.
            debug_assert_eq!(failed, 0);
        });
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
