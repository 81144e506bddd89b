//! Names of hosts in a program that is linked statically.
//!
//! **What it does.** glibc asks the modules that `/etc/nsswitch.conf` names for the address of
//! a host. A static program would load these modules, and a second C library beside its own
//! with them, which ends well only where both have the same version. So such a program asks
//! only its own means: `/etc/hosts` and DNS. A program with shared libraries is not
//! concerned.
//!
//! **Gain.** The release is one file that runs on every Linux distribution.
//!
//! **Risk.** The function is glibc's own and documented in `nss.h`, but seldom used. Names
//! that only another module knows (mDNS, LDAP) are not found by the release.
//!
//! **When to remove it.** A release with shared libraries, or a resolver of names that is
//! worth its weight: delete this module.
#![cfg_attr(
    all(target_env = "gnu", target_feature = "crt-static"),
    allow(unsafe_code, reason = "a function of the C library")
)]

/// Makes a static program ask `/etc/hosts` and DNS only. Called before a client looks a name
/// up, and not at every start, because it reads `/etc/nsswitch.conf`. A second call does
/// nothing.
pub fn prepare_name_lookup() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            // SAFETY: both texts end with a zero and outlive the call, which copies what it
            // keeps and locks what it changes.
            let failed =
                unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
            // glibc knows both names; it fails only without memory for a few bytes.
            debug_assert_eq!(failed, 0);
        });
    }
}

#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
unsafe extern "C" {
    /// Of glibc's `nss.h`: for names of this kind, asks those sources from now on.
    fn __nss_configure_lookup(
        names: *const std::ffi::c_char,
        sources: *const std::ffi::c_char,
    ) -> std::ffi::c_int;
}
