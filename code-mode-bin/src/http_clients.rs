//! What clients of HTTP need before one is made.

/// Prepares this program for them. A second call finds that done.
pub(crate) fn prepare() {
    crate::name_lookup::load_nothing();
    // An error says that a provider of cryptography is installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
