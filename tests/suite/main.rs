//! What the whole promises, at the borders its users touch.
//!
//! The program itself is built beside this binary by `cargo test --workspace`;
//! [`support::program`] finds it there.

mod attacks;
mod bad_input;
#[cfg(target_os = "linux")]
mod cgroups;
mod conformance;
mod crashes;
mod delegates;
mod durable;
mod durable_corpus;
mod durable_faults;
mod environments;
mod faults;
mod first_worker;
mod grpc_client;
mod grpc_host;
mod grpc_ops;
mod grpc_wire;
mod hostile_host;
mod hostile_worker;
mod idle;
mod large_inputs;
mod lifecycle;
mod limits;
mod listening;
mod mcp;
mod mcp_client;
mod mcp_durable;
mod mcp_ends;
mod mcp_hook;
mod mcp_http;
mod mcp_import;
mod mcp_login;
mod mcp_output;
mod mcp_questions;
mod mcp_shared;
mod mcp_starts;
mod model_cells;
mod observers;
mod parking;
mod pauses;
mod pending;
#[cfg(target_os = "linux")]
mod processes;
#[cfg(target_os = "linux")]
mod remote;
mod run_borders;
mod run_command;
mod run_durable;
mod sessions;
mod soak;
mod stdio_client;
mod stdio_wire;
mod stuck;
mod support;
mod telemetry;
mod templates;
mod terminal;
mod tool_inputs;
mod traces;
mod transcript;
mod waiting;
