//! The traits an agent core programs against.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::{
    CellId, CellResponse, ExecuteRequest, Json, LimitExceeded, PendingOutcome, RuntimeToolCallId,
    ToolKind, ToolName, WaitOutcome, WaitRequest,
};

/// A future that can be moved between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Makes sessions. An agent core holds one for as long as it runs cells.
#[async_trait]
pub trait CodeModeSessionProvider: Send + Sync {
    /// Opens a session whose tool calls and notifications go to `delegate`.
    ///
    /// # Errors
    /// [`SessionError::Runtime`] where no runtime can be started, with the reason;
    /// [`SessionError::ShuttingDown`] once the provider was shut down.
    async fn create_session(
        &self,
        delegate: Arc<dyn CodeModeSessionDelegate>,
    ) -> Result<Arc<dyn CodeModeSession>, SessionError>;
}

/// One agent's cells and the values they store.
///
/// Dropping the last handle shuts the session down. Dropping the future of an
/// observation ends that observation only: the cell goes on, and what it would
/// have returned is kept for the next one.
#[async_trait]
pub trait CodeModeSession: Send + Sync {
    /// Admits a cell. Its id is known at once; its first observation is a future.
    ///
    /// # Errors
    /// [`SessionError::ShuttingDown`], [`SessionError::Limit`] where the session
    /// has too many live cells or the source does not fit a frame,
    /// [`SessionError::Runtime`] where no process can be had for it.
    async fn execute(&self, request: ExecuteRequest) -> Result<StartedCell, SessionError>;

    /// Observes a cell until it yields, ends, or the request's time is over.
    ///
    /// # Errors
    /// [`SessionError::ObserverBusy`] while another observation of the cell runs.
    async fn wait(&self, request: WaitRequest) -> Result<WaitOutcome, SessionError>;

    /// Stops a cell and waits until it has really stopped and its callbacks are
    /// cancelled. A waiting observer gets the same response.
    ///
    /// # Errors
    /// [`SessionError::Runtime`] where the outcome cannot be known.
    async fn terminate(&self, cell_id: CellId) -> Result<WaitOutcome, SessionError>;

    /// Like [`execute`](Self::execute), but freezes the cell whenever it has no
    /// immediately runnable work.
    ///
    /// # Errors
    /// Those of [`execute`](Self::execute).
    async fn execute_to_pending(
        &self,
        request: ExecuteRequest,
    ) -> Result<StartedPendingCell, SessionError>;

    /// Like [`wait`](Self::wait), but lets a frozen cell have what came for it,
    /// and freezes it again when it has no more work.
    ///
    /// # Errors
    /// Those of [`wait`](Self::wait).
    async fn wait_to_pending(&self, request: WaitRequest) -> Result<PendingOutcome, SessionError>;

    /// Whether cells can still be admitted.
    fn is_alive(&self) -> bool;

    /// Stops every cell. When it returns, no isolate of the session runs; a
    /// callback that ignores its cancellation is given a short grace and left
    /// behind. Later calls return at once.
    async fn shutdown(&self);
}

/// What an agent core does for the cells of one session.
#[async_trait]
pub trait CodeModeSessionDelegate: Send + Sync {
    /// Runs one tool call. `Err` is the text the cell's `ToolError` carries.
    /// `cancelled` fires when the answer is no longer wanted.
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, String>;

    /// Delivers a notification of a cell that still runs. The cell's end is not
    /// reported before this returns.
    async fn notify(
        &self,
        tool_call_id: String,
        cell_id: CellId,
        text: String,
        cancelled: CancellationToken,
    );

    /// The cell is gone: its last answer was handed over and its callbacks have
    /// ended. Called exactly once for each admitted cell.
    async fn cell_closed(&self, cell_id: CellId);
}

/// One call of a tool by a cell.
#[derive(Clone, Debug)]
pub struct NestedToolCall {
    /// The calling cell.
    pub cell_id: CellId,
    /// The call's place in the cell: `tool-1`, ...
    pub runtime_tool_call_id: RuntimeToolCallId,
    /// Which tool.
    pub tool_name: ToolName,
    /// Its kind, from the definition.
    pub tool_kind: ToolKind,
    /// Its input; `None` where the cell passed none.
    pub input: Option<Json>,
}

/// A cell that was admitted.
pub struct StartedCell {
    /// Its id.
    pub cell_id: CellId,
    /// Its first observation.
    pub initial_response: BoxFuture<Result<CellResponse, SessionError>>,
}

impl fmt::Debug for StartedCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StartedCell({})", self.cell_id)
    }
}

/// A cell that was admitted by `execute_to_pending`.
pub struct StartedPendingCell {
    /// Its id.
    pub cell_id: CellId,
    /// Its first observation.
    pub initial_outcome: BoxFuture<Result<PendingOutcome, SessionError>>,
}

impl fmt::Debug for StartedPendingCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StartedPendingCell({})", self.cell_id)
    }
}

/// Why a session refused a request. A cell's own failure is not an error of the
/// session but the `error_text` of its result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum SessionError {
    /// Shutdown has begun.
    #[error("the session is shutting down")]
    ShuttingDown,
    /// One observer at a time.
    #[error("exec cell {0} already has an active observer")]
    ObserverBusy(CellId),
    /// A limit of the session.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// The runtime behind the session failed; the text says how.
    #[error("{0}")]
    Runtime(String),
}

/// The error text of a cell that does not exist (any more).
pub fn cell_not_found(cell_id: &CellId) -> String {
    format!("exec cell {cell_id} not found")
}
