//! `code-mode serve`: the wires of the Codex CLI's code-mode host, stdio and gRPC.
//!
//! Both wires are adapters over a [`Provider`](code_mode_host::Provider). They have rules of
//! their own for messages, ids and subscriptions, and none for cells.
#![forbid(unsafe_code)]

mod core;
mod grpc;
mod stdio;
mod telemetry;

#[cfg(fuzzing)]
pub use grpc::decode_and_check;
pub use grpc::{
    Address, GuardError, GuardOptions, HostOptions, InvalidAddress, ListenError, MAX_MESSAGE,
    OpsError, serve as serve_grpc,
};
pub use stdio::{ServeError, serve as serve_stdio};
pub use telemetry::{NoTelemetry, Telemetry};
