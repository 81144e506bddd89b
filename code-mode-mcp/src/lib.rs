//! `code-mode mcp`: the tools of many MCP servers as one tool that runs programs.
//!
//! A [`Gateway`] serves clients: each client's programs are cells of a session. Every call of
//! a cell goes through a [`Broker`], which has the servers and decides, sends and records; a
//! broker alone serves `code-mode run`, `mcp check` and `mcp policy`. Arrows go downward only:
//!
//! ```text
//! shim      what a client starts: it relays to the gateway that all clients of a user share
//! server    clients, sessions, exec and wait
//! broker    one call: policy, approval, send, audit
//! tools     what can be called now: an immutable snapshot with its texts
//! upstream  one server, alive or not
//! login     the logins to servers over HTTP
//! config    and other leaves: policy, audit, secrets, texts
//! ```
#![forbid(unsafe_code)]
#![expect(
    deprecated,
    reason = "protocol logging goes with the revision of 2026-07-28; clients of the eras before it get notifications of cells by it"
)]

mod address;
mod audit;
mod broker;
#[cfg(test)]
mod broker_tests;
mod caller;
mod check;
mod command;
mod config;
mod decide;
mod elicitation;
mod expand;
mod folders;
mod hook;
pub mod import;
mod kept_question;
pub mod login;
mod names;
mod pending;
mod policy;
mod resources;
#[cfg(test)]
mod resources_tests;
mod rule;
mod secrets;
mod server;
#[cfg(unix)]
pub mod shim;
mod shown;
mod texts;
mod tools;
mod upstream;

pub use audit::{AuditLog, AuditRecord, CallIds, Outcome};
pub use broker::{Broker, BrokerError, BrokerOptions, Loaded};
pub use caller::{
    Approval, ApprovalRequest, Approvals, CallContext, Elicitation, NotAsked, ProgramApprovals,
};
pub use check::{Checked, Decided, check, decided};
pub use config::{ConfigError, MARKER};
pub use kept_question::{KeptQuestion, QuestionKeeper, approvals_command};
pub use pending::{PendingApproval, TerminalAnswer};
pub use policy::{Pattern, Policy, PolicyError};
pub use server::{
    DurableError, DurableFolder, Gateway, GatewayOptions, MAX_HTTP_CONNECTIONS, Store,
};
pub use upstream::{read_events, read_lines, read_listing};
