//! What clients of HTTP need before one is made.

/// Prepares this program for them. A second call finds that done.
pub fn prepare_http_clients() {
    crate::prepare_name_lookup();
    // An error says that a provider of cryptography is installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
