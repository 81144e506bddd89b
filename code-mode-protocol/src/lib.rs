//! The vocabulary of code-mode: what an agent core, the provider and a worker say to
//! each other.
//!
//! Nothing here knows V8, processes or sockets. An agent core names the crate
//! `code-mode-host`, which re-exports everything here that an agent core needs. The
//! crate holds
//!
//! - the types of a session: [`ExecuteRequest`], [`CellResponse`],
//!   [`ToolDefinition`], [`ContentItem`], [`Limits`], ...;
//! - the traits an agent core programs against: [`CodeModeSessionProvider`],
//!   [`CodeModeSession`] and [`CodeModeSessionDelegate`];
//! - the texts that describe the tools to a model: [`describe`];
//! - what a caller does around a cell: [`pragma`] and [`truncate`];
//! - texts of strangers made harmless: [`text`];
//! - the wires, which promise nothing: [`wire`].

#![forbid(unsafe_code)]

pub mod describe;
pub mod pragma;
pub mod text;
pub mod truncate;
pub mod wire;

mod content;
mod ids;
mod json;
mod lifecycle;
mod limits;
mod observer;
mod request;
mod sandbox;
mod session;
mod tool;
mod trace_context;

pub use content::{ContentItem, ImageDetail, Note};
pub use ids::{CellId, EmptyCellId, InvalidCallId, RuntimeToolCallId};
pub use json::{InvalidJson, Json, check_portable, push_escaped};
pub use lifecycle::{
    CallOutcome, CellEnded, CellOutcome, CellStarted, CellStats, Determinism, ToolCallFinished,
    Turn, TurnCause,
};
pub use limits::{Limit, LimitExceeded, Limits};
pub use observer::{Observers, SessionObserver};
pub use request::{CellResponse, ExecuteRequest, SourcePosition, TerminateRequest, WaitRequest};
pub use sandbox::{LayerState, SandboxLayer};
pub use session::{
    BoxFuture, CellNotification, CodeModeSession, CodeModeSessionDelegate, CodeModeSessionProvider,
    NestedToolCall, Pause, RunningCell, SessionError, SessionOptions, UnknownCall, cell_not_found,
};
pub use tool::{
    ToolAnswer, ToolDefinition, ToolError, ToolFailure, ToolKind, ToolName, ToolSet,
    normalize_tool_name,
};
pub use trace_context::TraceContext;
