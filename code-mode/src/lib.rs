//! JavaScript cells in V8.
//!
//! An [`Engine`] owns a process's V8 and its pool of ready isolates. [`serve`] runs
//! the cells of one session on it, for a host at the other end of a stream: each cell
//! in a fresh isolate on a separate thread, which is the cell's actor. The rules of
//! a session (observers, kept results, when a cell is closed) are the host's, in
//! the crate `code-mode-host`; the program `code-mode` puts [`serve`] behind a socket
//! in a sandboxed process.
//!
//! An agent that wants no second process serves its provider from its own:
//!
//! ```
//! use std::sync::Arc;
//! use code_mode_host::*;
//! # use tokio_util::sync::CancellationToken;
//!
//! struct NoTools;
//! #[async_trait::async_trait]
//! impl CodeModeSessionDelegate for NoTools {
//!     async fn invoke_tool(&self, _: NestedToolCall, _: CancellationToken) -> Result<Json, ToolError> {
//!         Err("this session has no tools".into())
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let options = ProviderOptions::default().worker(WorkerSource::in_memory(code_mode::in_process));
//! let provider = Provider::new(options)?;
//! let session = provider.create_session(Arc::new(NoTools)).await?;
//! let running = session.execute(ExecuteRequest::new("call-1", "text(6 * 7)")).await?;
//! let response = running.outcome().await?;
//! assert_eq!(response.content_items(), [ContentItem::text("42")]);
//! provider.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
//! ```

mod bootstrap;
mod cell;
mod cpu;
mod determinism;
mod engine;
mod error_text;
mod forgotten;
mod guide;
mod heap_guard;
mod module;
mod natives;
mod pool;
mod runtime;
mod shapes;
mod stopped_at;
mod stored;
mod tool_search;
mod tools;
mod typescript;
mod worker;

use stored::StoredValues;

pub use engine::Engine;
pub use worker::{ServeError, WorkerEnvironment, in_process, refuse, serve};
