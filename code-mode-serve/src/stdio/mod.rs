//! `code-mode serve --listen stdio`: the stdio wire, version 1.
//!
//! An adapter over the provider: it has no rules for cells, only for
//! messages.

mod connection;
mod delegate;
mod durable;
mod handshake;
mod outbound;
mod session;

pub use connection::{ServeError, serve};
