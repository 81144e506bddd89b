//! The vocabulary of code-mode: what an agent core, the provider and a worker
//! say to each other.
//!
//! Nothing here knows V8, processes or sockets. The crate holds
//!
//! - the types of a session: [`ExecuteRequest`], [`CellResponse`],
//!   [`ToolDefinition`], [`ContentItem`], [`Limits`], ...;
//! - the traits an agent core programs against: [`CodeModeSessionProvider`],
//!   [`CodeModeSession`] and [`CodeModeSessionDelegate`];
//! - what a model is told: [`describe`];
//! - what a caller does around a cell: [`pragma`] and [`truncate`];
//! - the wires: [`frame`], [`message`], [`native`] and [`stdio`].

pub mod describe;
pub mod frame;
pub mod message;
pub mod native;
pub mod pragma;
pub mod stdio;
pub mod truncate;

mod content;
mod gather;
mod ids;
mod json;
mod limits;
mod request;
mod session;
mod tool;
mod unclaimed;

pub use content::{ContentItem, ImageDetail};
pub use ids::{CellId, RuntimeToolCallId};
pub use json::{ClaimedJson, InvalidJson, Json, push_escaped};
pub use limits::{Limit, LimitExceeded, Limits};
pub use request::{
    CellResponse, ExecuteRequest, PendingOutcome, SourcePosition, WaitOutcome, WaitRequest,
};
pub use session::{
    BoxFuture, CodeModeSession, CodeModeSessionDelegate, CodeModeSessionProvider, NestedToolCall,
    SessionError, StartedCell, StartedPendingCell, cell_not_found,
};
pub use tool::{ToolDefinition, ToolKind, ToolName, ToolSet, normalize_tool_name};
pub use unclaimed::Unclaimed;
