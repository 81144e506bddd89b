//! The traits an agent core programs against.

use std::error::Error;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::{
    CellEnded, CellId, CellResponse, CellStarted, ExecuteRequest, Json, LimitExceeded, Limits,
    Observers, RuntimeToolCallId, SessionObserver, SourcePosition, TerminateRequest,
    ToolCallFinished, ToolError, ToolKind, ToolName, TraceContext, Turn, WaitRequest,
};

/// A future that can be moved between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a session starts with. The default has the provider's limits and nothing
/// stored.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SessionOptions {
    /// What its cells may use; default the provider's limits.
    pub limits: Option<Limits>,
    /// Values that its cells find stored: key and value.
    pub stored: Vec<(String, Json)>,
    /// Whether its cells get what programs for Node and the web expect, and a model
    /// errors that it can act on; default false. See [`guided`](Self::guided()).
    pub guided: bool,
    /// Whether a tool's input is checked against its schema before the delegate is
    /// called; default false. See [`check_inputs`](Self::check_inputs()).
    pub check_inputs: bool,
    /// Whether a tool whose input schema cannot be read is left out; default false. See
    /// [`require_readable_schemas`](Self::require_readable_schemas()).
    pub require_readable_schemas: bool,
    /// The observers of the session; default none.
    pub observers: Observers,
}

impl SessionOptions {
    /// Sets what the session's cells may use.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// Sets the values that the session's cells find stored.
    #[must_use]
    pub fn stored(mut self, stored: Vec<(String, Json)>) -> Self {
        self.stored = stored;
        self
    }

    /// Sets whether the session is guided. Its cells then have `console`, `URL`,
    /// `TextEncoder`, `structuredClone` and the other globals that `docs/cells.md`
    /// lists, `search_tools` and `describe_tool`; TypeScript is accepted; and an
    /// uncaught error's text has the line it points at and a line of help where the
    /// cause is a common one.
    #[must_use]
    pub fn guided(mut self, guided: bool) -> Self {
        self.guided = guided;
        self
    }

    /// Sets whether inputs are checked. A call whose input does not fit the tool's
    /// input schema then fails in the cell with the path, the rule and the value's
    /// type, and the delegate never sees it. A schema that cannot be read lets every input
    /// through, unless [`require_readable_schemas`](Self::require_readable_schemas()) is set; a
    /// part that refers to another document takes every value.
    #[must_use]
    pub fn check_inputs(mut self, check: bool) -> Self {
        self.check_inputs = check;
        self
    }

    /// Sets whether cells are offered only tools whose inputs can be checked: one whose input schema
    /// cannot be read is left out, and a warning in the log names it. Without [`check_inputs`](Self::check_inputs()) it changes nothing.
    #[must_use]
    pub fn require_readable_schemas(mut self, require: bool) -> Self {
        self.require_readable_schemas = require;
        self
    }

    /// Adds an observer of the session, its cells and their calls.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn SessionObserver>) -> Self {
        self.observers.add(observer);
        self
    }
}

/// Makes sessions. An agent core holds one provider for as long as it runs cells.
#[async_trait]
pub trait CodeModeSessionProvider: Send + Sync {
    /// Opens a session whose tool calls and notifications go to `delegate`.
    ///
    /// # Errors
    /// [`SessionError::Unavailable`] where no runtime can be had, with the reason as
    /// its source; [`SessionError::ShuttingDown`] once the provider was shut down;
    /// [`SessionError::Limit`] where the values are more than may be stored.
    async fn open_session(
        &self,
        delegate: Arc<dyn CodeModeSessionDelegate>,
        options: SessionOptions,
    ) -> Result<Arc<dyn CodeModeSession>, SessionError>;

    /// Opens a session with the default options.
    ///
    /// # Errors
    /// Those of [`open_session`](Self::open_session).
    async fn create_session(
        &self,
        delegate: Arc<dyn CodeModeSessionDelegate>,
    ) -> Result<Arc<dyn CodeModeSession>, SessionError> {
        self.open_session(delegate, SessionOptions::default()).await
    }
}

/// One agent's cells and the values they store.
///
/// Dropping the last handle shuts the session down. Dropping the future of an
/// observation ends that observation only: the cell continues, and what it would
/// have returned is kept for the next one.
#[async_trait]
pub trait CodeModeSession: Send + Sync {
    /// Admits a cell. Its id is known at once; its first observation is a future.
    ///
    /// The cell runs from then on: its first tool call may reach the delegate before
    /// this returns. [`NestedToolCall::tool_call_id`] says which execute a call
    /// belongs to.
    ///
    /// # Errors
    /// [`SessionError::ShuttingDown`], [`SessionError::Limit`] where the session
    /// has too many live cells or the source is too large,
    /// [`SessionError::Unavailable`] where no process can be had for the cell.
    async fn execute(&self, request: ExecuteRequest) -> Result<RunningCell, SessionError>;

    /// Observes a cell until it yields, ends, or the request's time is over. A nonexistent
    /// cell is a response too: [`CellResponse::is_missing`].
    ///
    /// # Errors
    /// [`SessionError::ObserverBusy`] while another observation of the cell runs.
    async fn wait(&self, request: WaitRequest) -> Result<CellResponse, SessionError>;

    /// Stops a cell and waits until it has really stopped and its callbacks are
    /// cancelled. A waiting observer gets the same response.
    ///
    /// The cell's callbacks are cancelled at once. A cell that has ended already and
    /// whose result nobody has taken gives its result instead. A cell that V8 cannot
    /// interrupt is answered for within about a second, and its process is ended.
    ///
    /// # Errors
    /// [`SessionError::ShuttingDown`] where the session ended meanwhile.
    async fn terminate(&self, request: TerminateRequest) -> Result<CellResponse, SessionError>;

    /// Like [`execute`](Self::execute), but freezes the cell whenever it has no
    /// immediately runnable work.
    ///
    /// # Errors
    /// Those of [`execute`](Self::execute).
    async fn execute_to_pending(
        &self,
        request: ExecuteRequest,
    ) -> Result<RunningCell, SessionError>;

    /// Like [`wait`](Self::wait), but lets a frozen cell have what came for it,
    /// and freezes it again when its work is done.
    ///
    /// # Errors
    /// Those of [`wait`](Self::wait).
    async fn wait_to_pending(&self, request: WaitRequest) -> Result<CellResponse, SessionError>;

    /// Lets the deadlines of the session, or of one cell, stand still: no yield and no
    /// wall time runs out while any pause is held, and afterwards the rest of them
    /// runs. Processor limits, explicit yields, terminate and shutdown work all the
    /// same. A pause of the session outlives its worker, and holds cells that come later.
    /// Returns how many pauses of the session, or of the cell, are held now. [`Pause`] resumes by
    /// itself.
    ///
    /// # Errors
    /// [`SessionError::MissingCell`], and [`SessionError::TooManyPauses`] after `u32::MAX`.
    fn pause(&self, cell: Option<&CellId>) -> Result<u32, SessionError>;

    /// Lets one pause go. Returns how many are still held.
    ///
    /// # Errors
    /// [`SessionError::NotPaused`] where none is held, and
    /// [`SessionError::MissingCell`].
    fn resume(&self, cell: Option<&CellId>) -> Result<u32, SessionError>;

    /// The cells that were admitted and have not ended, in order of admission.
    fn live_cells(&self) -> Vec<CellId>;

    /// The values that cells have stored: key and value, in order of the keys.
    fn stored_values(&self) -> Vec<(String, Json)>;

    /// Whether cells can still be admitted.
    fn is_alive(&self) -> bool;

    /// Waits until the session has shut down: nothing of it runs any more. A session continues
    /// after the loss of its worker.
    async fn closed(&self);

    /// Stops every cell. When it returns, no isolate of the session runs; a
    /// callback that ignores its cancellation is given a short grace and left
    /// behind. Later calls return at once.
    async fn shutdown(&self);
}

/// A pause that is held until this is dropped.
///
/// ```
/// # use std::sync::Arc;
/// # use code_mode_protocol::*;
/// # async fn ask_a_person() {}
/// async fn approve(session: Arc<dyn CodeModeSession>, cell: CellId) -> Result<(), SessionError> {
///     let _pause = Pause::begin(session, Some(cell))?;
///     ask_a_person().await;
///     Ok(())
/// }
/// ```
pub struct Pause {
    resume: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Pause {
    /// Pauses a session, or one of its cells.
    ///
    /// # Errors
    /// Those of [`CodeModeSession::pause`].
    pub fn begin(
        session: Arc<dyn CodeModeSession>,
        cell: Option<CellId>,
    ) -> Result<Self, SessionError> {
        session.pause(cell.as_ref())?;
        Ok(Self::held(move || {
            // A cell that has ended meanwhile needs no resuming.
            let _ = session.resume(cell.as_ref());
        }))
    }

    /// A pause that calls `resume` when it is dropped; for implementations of
    /// [`CodeModeSession`].
    pub fn held(resume: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self {
            resume: Some(Box::new(resume)),
        }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        if let Some(resume) = self.resume.take() {
            resume();
        }
    }
}

impl fmt::Debug for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pause").finish_non_exhaustive()
    }
}

/// What an agent core does for the cells of one session. A method that panics, or
/// that never returns, costs that call alone.
#[async_trait]
pub trait CodeModeSessionDelegate: Send + Sync {
    /// Runs one tool call. `Err` is what the cell's `ToolError` carries.
    /// `cancelled` fires when the answer is no longer wanted: the cell has ended, or
    /// must terminate. A call may come before the `execute` that started its
    /// cell has returned.
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError>;

    /// Decides about a call of a durable session that may have run before a restart: its intent is on
    /// disk and its answer is not. Not called for [idempotent](crate::ToolDefinition::idempotent)
    /// tools, whose calls are repeated. By default the call fails with
    /// [`ToolError::unknown`] and "it may have run before the restart".
    async fn resolve_unknown(&self, call: &NestedToolCall) -> UnknownCall {
        let _ = call;
        UnknownCall::default()
    }

    /// Delivers a notification of a cell. A cell's notifications come one after the
    /// other, and the cell's end is not reported before the last of them returned.
    /// By default nothing is done.
    async fn notify(&self, notification: CellNotification, cancelled: CancellationToken) {
        let _ = (notification, cancelled);
    }

    /// A cell was admitted. This and the three that follow are for those who show, count
    /// and record: they are called in the order of what happens, while nothing else of
    /// the session does, so they must return at once. By default nothing is done.
    fn cell_started(&self, cell: &CellStarted) {
        let _ = cell;
    }

    /// A cell's program will not run again: called the moment it ends, observed or not,
    /// once for each admitted cell, and before its closing. By default nothing is done.
    fn cell_ended(&self, cell: &CellEnded) {
        let _ = cell;
    }

    /// A tool call is about to be handed to [`invoke_tool`](Self::invoke_tool), or to be
    /// refused because its input does not fit. By default nothing is done.
    fn tool_call_started(&self, call: &NestedToolCall) {
        let _ = call;
    }

    /// A tool call has ended; called once for each that started, also where its cell has
    /// ended before. By default nothing is done.
    fn tool_call_finished(&self, call: &ToolCallFinished) {
        let _ = call;
    }

    /// A turn of a cell: reported for cells that were executed with a
    /// [`Determinism`](crate::Determinism) without turns. By default nothing is done.
    fn turn(&self, cell_id: &CellId, turn: Turn) {
        let _ = (cell_id, turn);
    }

    /// The cell is gone: its last answer was handed over and its callbacks have
    /// ended. Called exactly once for each admitted cell. By default nothing is done.
    async fn cell_closed(&self, cell_id: CellId) {
        let _ = cell_id;
    }
}

/// What becomes of a call that may have run before a restart.
#[derive(Clone, Debug, Default)]
pub enum UnknownCall {
    /// The cell gets an error that says so.
    #[default]
    Fail,
    /// The delegate is called again, with the call's next
    /// [`attempt`](field@NestedToolCall::attempt).
    Repeat,
    /// The cell gets this answer.
    Answer(Result<Json, ToolError>),
}

/// One call of a tool by a cell.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NestedToolCall {
    /// The calling cell.
    pub cell_id: CellId,
    /// The `tool_call_id` of the execute that started the cell.
    pub tool_call_id: String,
    /// The call's place in the cell: `tool-1`, ...
    pub runtime_tool_call_id: RuntimeToolCallId,
    /// Which tool.
    pub tool_name: ToolName,
    /// Its kind, from the definition.
    pub tool_kind: ToolKind,
    /// Its input; `None` where the cell passed none.
    pub input: Option<Json>,
    /// Where in the source it was made, as the worker says; only in guided sessions.
    pub site: Option<SourcePosition>,
    /// 1, and one more each time that a durable session repeats the call after a restart.
    pub attempt: u32,
    /// The span of the call, for whoever continues the trace; where the provider exports none, the
    /// [`trace_context`](field@ExecuteRequest::trace_context) of the execute.
    pub trace_context: Option<TraceContext>,
    pauses: Pauses,
}

impl NestedToolCall {
    /// A call of a function without input, as a session makes it; for implementations of
    /// [`CodeModeSession`] and for tests of a delegate.
    pub fn new(
        cell_id: CellId,
        tool_call_id: impl Into<String>,
        runtime_tool_call_id: RuntimeToolCallId,
        tool_name: ToolName,
    ) -> Self {
        Self {
            cell_id,
            tool_call_id: tool_call_id.into(),
            runtime_tool_call_id,
            tool_name,
            tool_kind: ToolKind::Function,
            input: None,
            site: None,
            attempt: 1,
            trace_context: None,
            pauses: Pauses(None),
        }
    }

    /// Sets the tool's kind.
    #[must_use]
    pub fn kind(mut self, kind: ToolKind) -> Self {
        self.tool_kind = kind;
        self
    }

    /// Sets the input.
    #[must_use]
    pub fn input(mut self, input: Option<Json>) -> Self {
        self.input = input;
        self
    }

    /// Sets where in the source it was made.
    #[must_use]
    pub fn site(mut self, site: Option<SourcePosition>) -> Self {
        self.site = site;
        self
    }

    /// Sets which attempt it is.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Sets the span of the call.
    #[must_use]
    pub fn trace_context(mut self, context: Option<TraceContext>) -> Self {
        self.trace_context = context;
        self
    }

    /// Sets what [`pause`](Self::pause) does; `pause` gets the calling cell.
    #[must_use]
    pub fn pauses(
        mut self,
        pause: impl Fn(&CellId) -> Result<Pause, SessionError> + Send + Sync + 'static,
    ) -> Self {
        self.pauses = Pauses(Some(Arc::new(pause)));
        self
    }

    /// Stops the deadlines of the calling cell until the returned value is dropped, as
    /// [`CodeModeSession::pause`] does: for a delegate that asks a person.
    ///
    /// # Errors
    /// [`SessionError::MissingCell`] where the cell has ended, and
    /// [`SessionError::ShuttingDown`] where its session has.
    pub fn pause(&self) -> Result<Pause, SessionError> {
        match &self.pauses.0 {
            Some(pause) => pause(&self.cell_id),
            None => Ok(Pause { resume: None }),
        }
    }
}

type PauseCell = dyn Fn(&CellId) -> Result<Pause, SessionError> + Send + Sync;

/// How the calling cell is paused.
#[derive(Clone)]
struct Pauses(Option<Arc<PauseCell>>);

impl fmt::Debug for Pauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pauses")
    }
}

/// What a cell said with `notify()`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CellNotification {
    /// The cell.
    pub cell_id: CellId,
    /// The `tool_call_id` of the execute that started the cell.
    pub tool_call_id: String,
    /// What it said.
    pub text: String,
    /// Its place among the notifications of its cell, from 1. After a crash a durable session may
    /// deliver the last one a second time.
    pub number: u64,
}

impl CellNotification {
    /// A notification as a session makes it, for tests of a delegate.
    pub fn new(cell_id: CellId, tool_call_id: String, text: String) -> Self {
        Self {
            cell_id,
            tool_call_id,
            text,
            number: 1,
        }
    }

    /// Sets its place among the notifications of its cell.
    #[must_use]
    pub fn number(mut self, number: u64) -> Self {
        self.number = number;
        self
    }
}

/// A cell that was admitted. Await [`outcome`](Self::outcome), or the value itself, for its
/// first observation. Dropping it ends that observation only: the cell continues.
pub struct RunningCell {
    id: CellId,
    observation: BoxFuture<Result<CellResponse, SessionError>>,
}

impl RunningCell {
    /// A running cell with its first observation; for implementations of
    /// [`CodeModeSession`].
    pub fn new(
        id: CellId,
        observation: impl Future<Output = Result<CellResponse, SessionError>> + Send + 'static,
    ) -> Self {
        Self {
            id,
            observation: Box::pin(observation),
        }
    }

    /// The cell's id, to wait for it, to terminate it, to pause it.
    pub fn id(&self) -> &CellId {
        &self.id
    }

    /// Waits until the cell yields, is frozen, or ends.
    ///
    /// # Errors
    /// [`SessionError::ShuttingDown`] where the session ended meanwhile.
    pub async fn outcome(self) -> Result<CellResponse, SessionError> {
        self.observation.await
    }
}

impl IntoFuture for RunningCell {
    type Output = Result<CellResponse, SessionError>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.observation
    }
}

impl fmt::Debug for RunningCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunningCell({})", self.id)
    }
}

/// Why a session refused a request. A cell's own failure is not an error of the
/// session but the `error_text` of its result.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Shutdown has begun.
    #[error("the session is shutting down")]
    ShuttingDown,
    /// One observer at a time.
    #[error("exec cell {0} already has an active observer")]
    ObserverBusy(CellId),
    /// The cell does not exist (any more).
    #[error("exec cell {0} not found")]
    MissingCell(CellId),
    /// No pause is held.
    #[error("nothing is paused")]
    NotPaused,
    /// No more pauses can be held.
    #[error("too many pauses are held")]
    TooManyPauses,
    /// A limit of the session.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// The journal of a durable session cannot be used. With `code-mode-host` the source is that
    /// crate's `JournalError`.
    #[error("the session's journal cannot be used: {0}")]
    Journal(#[source] Arc<dyn Error + Send + Sync>),
    /// No runtime can be had for the session's cells. The source says why; with
    /// `code-mode-host` it is that crate's `ProviderError`.
    #[error("no runtime for cells can be had: {0}")]
    Unavailable(#[source] Arc<dyn Error + Send + Sync>),
}

/// The error text of a cell that does not exist (any more).
pub fn cell_not_found(cell_id: &CellId) -> String {
    format!("exec cell {cell_id} not found")
}
