//! The messages of the stdio wire, version 1: JSON objects in
//! [frames](super::frame) of at most 64 MiB.
//!
//! The wire is that of the Codex CLI's code-mode host. Field names are camelCase
//! in the envelope and snake_case in the payloads; an unknown message type,
//! method or field is an error. Every message is read in one pass, and a tool's
//! result and the tool definitions stay text until somebody needs them.

mod client;
mod guided;
mod host;

pub use client::{
    CellExecutionLimits, ClientMessage, DelegateAnswer, Hello, MessageError, Operation,
    OutputTruncation,
};
pub use guided::{
    GUIDED, GuidedDefinition, GuidedEnd, GuidedExecute, GuidedLimits, GuidedOpen, SessionEvent,
};
pub use host::{DelegateRequest, HostMessage, Invocation, Rejection, TimedResponse, Value};

/// The version this module speaks.
pub const VERSION: u64 = 1;

/// The largest frame: 64 MiB.
pub const MAX_FRAME_BYTES: usize = 64 << 20;

/// The capabilities this program knows, sorted.
pub const CAPABILITIES: [&str; 5] = [
    "bounded-output-v1",
    "delegate-capacity-4096",
    GUIDED,
    "session-cell-execution-resource-limits",
    "yield-observation",
];
