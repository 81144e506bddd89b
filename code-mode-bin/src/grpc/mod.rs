//! `code-mode serve --listen grpc+stdio://`, `grpc://IP:PORT` and `unix:PATH`: the gRPC wire.
//!
//! An adapter over the provider, like the stdio wire: it has rules of its own for
//! messages, ids and subscriptions, and none for cells.

mod accept;
mod address;
mod check;
mod codec;
mod delegate;
mod front;
#[cfg(fuzzing)]
mod fuzzed;
mod guard;
mod listen;
mod metrics;
mod observations;
mod ops;
mod outcome;
mod service;
mod session;
mod standard;
mod subscriptions;
mod workers;

pub(crate) use address::Address;
#[cfg(fuzzing)]
pub use fuzzed::decode_and_check;
pub(crate) use listen::{HostArgs, serve};

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
