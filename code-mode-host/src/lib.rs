//! The provider an agent core uses to run JavaScript cells outside its own
//! process.
//!
//! A [`Provider`] starts worker processes (`code-mode worker`), one for each
//! session and one more kept ready, speaks the native wire with them and
//! dispatches the tool calls of cells to the agent core. It trusts nothing a
//! worker says. A worker that dies costs its session the running cells, each of
//! which gets a result that says so; the session's stored values are kept here
//! and given to the worker that replaces it.
//!
//! This crate links no V8.
//!
//! ```no_run
//! use std::sync::Arc;
//! use code_mode_host::{Provider, ProviderOptions};
//! use code_mode_protocol::*;
//! use tokio_util::sync::CancellationToken;
//!
//! /// What an agent core does for its cells.
//! struct Agent;
//!
//! #[async_trait::async_trait]
//! impl CodeModeSessionDelegate for Agent {
//!     async fn invoke_tool(&self, call: NestedToolCall, _: CancellationToken) -> Result<Json, String> {
//!         match call.tool_name.name.as_str() {
//!             "add" => {
//!                 let input = call.input.ok_or("add takes two numbers")?;
//!                 let [a, b]: [f64; 2] = input.to().map_err(|e| e.to_string())?;
//!                 Json::from_value(&(a + b)).map_err(|e| e.to_string())
//!             }
//!             other => Err(format!("no tool {other}")),
//!         }
//!     }
//!     async fn notify(&self, _: String, cell: CellId, text: String, _: CancellationToken) {
//!         eprintln!("cell {cell}: {text}");
//!     }
//!     async fn cell_closed(&self, _: CellId) {}
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let provider = Provider::new(ProviderOptions::default())?;
//!     let session = provider.create_session(Arc::new(Agent)).await?;
//!     let mut request = ExecuteRequest::new("call-1", "text(await tools.add([19, 23]))");
//!     request.enabled_tools = ToolSet::from([ToolDefinition {
//!         name: "add".into(),
//!         tool_name: ToolName { name: "add".into(), namespace: None },
//!         description: "Adds two numbers".into(),
//!         kind: ToolKind::Function,
//!         input_schema: None,
//!         output_schema: None,
//!     }]);
//!     let response = session.execute(request).await?.initial_response.await?;
//!     assert_eq!(response.content_items(), [ContentItem::text("42")]);
//!     provider.shutdown().await;
//!     Ok(())
//! }
//! ```

mod backoff;
mod calls;
mod connection;
mod locate;
mod options;
mod process;
mod provider;
mod session;
mod state;
mod worker;

pub use connection::ConnectionError;
pub use locate::PROGRAM_NAME;
pub use options::{ProviderOptions, Sandbox, WorkerSource};
pub use process::{ExitReason, SpawnError};
pub use provider::{Provider, ProviderError};
pub use session::HostSession;
