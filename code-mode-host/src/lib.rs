//! The provider an agent core uses to run JavaScript cells outside its own process.
//!
//! A [`Provider`] starts worker processes (`code-mode worker`), at most one for each
//! session, and dispatches the tool calls of cells to the agent core. It trusts
//! nothing a worker says. A worker that dies costs its session the running cells, each
//! of which gets a result that says so; the session's stored values are kept here and
//! given to the worker that replaces it.
//!
//! This is the one crate that an agent core names. It links no V8. Two features are on by default:
//! `remote`, for workers of other machines, brings gRPC and TLS, and `check-inputs` a reader of
//! JSON Schema. Without both the crate builds with a third of its dependencies.
//!
//! ```no_run
//! use std::sync::Arc;
//! use code_mode_host::*;
//! use tokio_util::sync::CancellationToken;
//!
//! struct Agent;
//!
//! #[async_trait::async_trait]
//! impl CodeModeSessionDelegate for Agent {
//!     async fn invoke_tool(&self, call: NestedToolCall, _: CancellationToken) -> Result<Json, ToolError> {
//!         let input = call.input.ok_or("add takes two numbers")?;
//!         let [a, b]: [f64; 2] = input.to().map_err(|e| e.to_string())?;
//!         Ok(Json::from_value(&(a + b)).map_err(|e| e.to_string())?)
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let provider = Provider::new(ProviderOptions::default())?;
//!     let session = provider.create_session(Arc::new(Agent)).await?;
//!     let request = ExecuteRequest::new("call-1", "text(await tools.add([19, 23]))")
//!         .tools([ToolDefinition::function("add", "Adds two numbers")]);
//!     let response = session.execute(request).await?.outcome().await?;
//!     assert_eq!(response.content_items(), [ContentItem::text("42")]);
//!     provider.shutdown().await;
//!     Ok(())
//! }
//! ```

mod backoff;
mod error;
mod examine;
mod journal;
mod lend;
mod locate;
mod options;
mod process;
mod propagation;
mod provider;
#[cfg(feature = "remote")]
mod remote;
#[cfg(not(feature = "remote"))]
#[path = "remote_off.rs"]
mod remote;
mod session;
mod source;
mod spares;
mod trace;
mod worker;

pub use error::ProviderError;
pub use examine::{Examiner, WorkerReport};
pub use journal::{
    Answer, AskedQuestion, Decision, Journal, JournalError, JournalOptions, JournaledCall,
    JournaledCell, JournaledCut, JournaledQuestion, JournaledSession, Question, check_journal,
};
pub use lend::LentWorker;
pub use locate::PROGRAM_NAME;
pub use options::{InMemory, ProviderOptions, Sandbox, TraceFolder, WorkerSource};
#[cfg(target_os = "linux")]
pub use process::ahead;
pub use process::{ExitReason, SpawnError, load_ahead};
pub use propagation::Propagation;
pub use provider::Provider;
pub use remote::{RemoteError, RemoteHost};
pub use session::Session;
#[cfg(feature = "check-inputs")]
pub use session::input_fits;
pub use trace::{Recorder, TRACE_VERSION, TraceEvent, TraceLine, TracedProgram};
pub use worker::{ConnectionError, WorkerStats};

// What an agent core sends and receives.
pub use code_mode_protocol::{
    BoxFuture, CallOutcome, CellEnded, CellId, CellNotification, CellOutcome, CellResponse,
    CellStarted, CellStats, CodeModeSession, CodeModeSessionDelegate, CodeModeSessionProvider,
    ContentItem, Determinism, EmptyCellId, ExecuteRequest, ImageDetail, InvalidJson, Json,
    LayerState, Limit, LimitExceeded, Limits, NestedToolCall, Note, Observers, Pause, RunningCell,
    RuntimeToolCallId, SandboxLayer, SessionError, SessionObserver, SessionOptions, SourcePosition,
    TerminateRequest, ToolAnswer, ToolCallFinished, ToolDefinition, ToolError, ToolFailure,
    ToolKind, ToolName, ToolSet, TraceContext, Turn, TurnCause, UnknownCall, WaitRequest,
    cell_not_found, describe, normalize_tool_name, pragma, truncate,
};
