//! JavaScript cells in V8.
//!
//! An [`Engine`] owns a process's V8 and its pool of ready isolates. A
//! [`Session`] runs cells on it: each in a fresh isolate on a thread of its own,
//! each owned by an actor that alone changes its state. [`Session`] is a
//! [`CodeModeSession`](code_mode_protocol::CodeModeSession) in this process; the
//! worker program puts the same session behind a socket.
//!
//! No process and no socket is known here.
//!
//! ```
//! use std::sync::Arc;
//! use code_mode::{Engine, Session};
//! use code_mode_protocol::*;
//! # use tokio_util::sync::CancellationToken;
//!
//! struct NoTools;
//! #[async_trait::async_trait]
//! impl CodeModeSessionDelegate for NoTools {
//!     async fn invoke_tool(&self, _: NestedToolCall, _: CancellationToken) -> Result<Json, String> {
//!         Err("there are no tools".to_owned())
//!     }
//!     async fn notify(&self, _: String, _: CellId, _: String, _: CancellationToken) {}
//!     async fn cell_closed(&self, _: CellId) {}
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let session = Session::new(Engine::new(), Arc::new(NoTools), Limits::default());
//! let started = session.execute(ExecuteRequest::new("call-1", "text(6 * 7)")).await?;
//! let response = started.initial_response.await?;
//! assert_eq!(response.content_items(), [ContentItem::text("42")]);
//! session.shutdown().await;
//! # Ok::<(), SessionError>(()) }).unwrap();
//! ```

mod actor;
mod bootstrap;
mod cell;
mod cpu;
mod driven;
mod engine;
mod hot_code;
mod natives;
mod pool;
mod runtime;
mod session;
mod stack;
mod stored;
mod tools;

pub use actor::{Observe, Reply};
pub use engine::{Engine, IsolateMemory};
pub use session::{Callbacks, CellSpec, Session};
pub use stored::StoredValues;
pub use tools::ToolTable;
