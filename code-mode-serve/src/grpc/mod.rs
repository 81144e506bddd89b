//! `code-mode serve --listen grpc+stdio://`, `grpc://IP:PORT` and `unix:PATH`: the gRPC wire.
//!
//! An adapter over the provider, like the stdio wire: it has own rules only for
//! messages, ids and subscriptions, and none for cells.

mod accept;
mod address;
mod auth;
mod check;
mod codec;
mod delegate;
#[cfg(fuzzing)]
mod fuzzed;
mod guard;
mod listen;
mod metrics;
mod ops;
mod outcome;
mod service;
mod session;
mod standard;
mod subscriptions;
mod withdrawn;
mod workers;

pub use address::{Address, InvalidAddress};
#[cfg(fuzzing)]
pub use fuzzed::decode_and_check;
pub use guard::{GuardError, GuardOptions};
pub use listen::{HostOptions, ListenError, serve};
pub use ops::OpsError;
pub use outcome::MAX_MESSAGE;

/// The messages and the service, as `proto/workers.proto` defines them.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    reason = "generated from proto/workers.proto, which has the documentation"
)]
mod workers_wire {
    tonic::include_proto!("code_mode.v1");
}

/// The messages and the service, as `proto/code_mode.proto` defines them.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    reason = "generated from proto/code_mode.proto, which has the documentation"
)]
mod wire {
    tonic::include_proto!("codex.code_mode.v1");

    /// The interface for reflection.
    pub(super) const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/code_mode.bin"));
}
