//! Sessions: a registry of cells and the values they store.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_protocol::native::WireTool;
use code_mode_protocol::{
    BoxFuture, CellId, CodeModeSession, CodeModeSessionDelegate, ExecuteRequest, Json, Limit,
    Limits, NestedToolCall, PendingOutcome, RuntimeToolCallId, SessionError, StartedCell,
    StartedPendingCell, ToolSet, Unclaimed, WaitOutcome, WaitRequest,
};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::actor::{Actor, Observe, Parts, Reply, Request};
use crate::cell::{CellShared, Job, ScriptError};
use crate::driven::Driven;
use crate::{Engine, StoredValues, ToolTable};

/// What the cells of a session reach outside it: a delegate that speaks JSON
/// text and places instead of definitions.
pub trait Callbacks: Send + Sync {
    /// Answers one tool call. The future ends soon after `cancelled` fires.
    fn call_tool(
        &self,
        cell_id: &CellId,
        id: RuntimeToolCallId,
        tool: u32,
        input: Option<String>,
        cancelled: CancellationToken,
    ) -> BoxFuture<Result<String, String>>;

    /// Delivers one notification. The future ends soon after `cancelled` fires.
    fn notify(&self, cell_id: &CellId, text: String, cancelled: CancellationToken)
    -> BoxFuture<()>;

    /// The cell completed, and these values are the session's now.
    fn committed(&self, cell_id: &CellId, writes: &[(String, Arc<str>)]);

    /// The cell is gone; called last, exactly once for each admitted cell.
    fn closed(&self, cell_id: &CellId) -> BoxFuture<()>;

    /// Calls `work`, in which methods of this trait and [`Reply`]s are called. What
    /// they send may be kept until its end, to go together.
    fn together(&self, work: &mut dyn FnMut()) {
        work();
    }
}

/// A cell to admit.
pub struct CellSpec {
    /// Its name; the session's next one where absent.
    pub cell_id: Option<CellId>,
    /// Its source.
    pub source: String,
    /// Its tools.
    pub tools: Arc<ToolTable>,
    /// Its first observation.
    pub first: Observe,
}

/// A session in this process.
///
/// Its methods must be called within a tokio runtime, which also runs the actors
/// of its cells. Dropping the last handle stops every cell.
pub struct Session {
    inner: Arc<Inner>,
    /// For [`CodeModeSession`]: the adapter to the agent core's delegate.
    delegate: Option<Arc<DelegateCallbacks>>,
}

struct Inner {
    engine: Engine,
    callbacks: Arc<dyn Callbacks>,
    limits: Arc<Limits>,
    state: Mutex<State>,
    shutdown: CancellationToken,
    actors: TaskTracker,
    span: tracing::Span,
}

#[derive(Default)]
struct State {
    cells: HashMap<CellId, UnboundedSender<Request>>,
    last_cell: u64,
    stored: StoredValues,
    unclaimed: Unclaimed,
    /// The tools of the last cell and their table: they seldom change.
    tools: Option<(ToolSet, Arc<ToolTable>)>,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self, tools: &ToolSet) -> Arc<ToolTable> {
        let mut state = self.state();
        match &state.tools {
            Some((last, table)) if Arc::ptr_eq(last, tools) || last == tools => table.clone(),
            _ => {
                let table = tools.iter().map(WireTool::from).collect();
                let table = Arc::new(ToolTable::new(table));
                state.tools = Some((tools.clone(), table.clone()));
                table
            }
        }
    }

    fn commit(&self, cell_id: &CellId, writes: Vec<(String, Arc<str>)>) -> Result<(), ScriptError> {
        if writes.is_empty() {
            return Ok(());
        }
        {
            let mut state = self.state();
            let mut merged = state.stored.clone();
            for (key, json) in &writes {
                merged.set(key, json.clone());
            }
            let limit = self.limits.max_stored_bytes;
            if merged.bytes() > limit {
                return Err(ScriptError {
                    text: Limit::StoredBytes.exceeded(limit as u64).to_string(),
                    position: None,
                });
            }
            state.stored = merged;
        }
        self.callbacks.committed(cell_id, &writes);
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.inner.shutdown.cancel();
    }
}

impl Session {
    /// A session whose tool calls and notifications go to an agent core's
    /// delegate.
    pub fn new(engine: Engine, delegate: Arc<dyn CodeModeSessionDelegate>, limits: Limits) -> Self {
        let delegate = Arc::new(DelegateCallbacks {
            delegate,
            cells: Mutex::default(),
        });
        let mut session =
            Self::with_callbacks(engine, delegate.clone(), limits, StoredValues::default());
        session.delegate = Some(delegate);
        session
    }

    /// A session that starts with stored values, and whose callbacks speak JSON
    /// text.
    pub fn with_callbacks(
        engine: Engine,
        callbacks: Arc<dyn Callbacks>,
        limits: Limits,
        stored: StoredValues,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                engine,
                callbacks,
                limits: Arc::new(limits),
                state: Mutex::new(State {
                    stored,
                    ..State::default()
                }),
                shutdown: CancellationToken::new(),
                actors: TaskTracker::new(),
                span: tracing::info_span!("session"),
            }),
            delegate: None,
        }
    }

    /// Admits a cell and starts its first observation.
    ///
    /// # Errors
    /// [`SessionError::ShuttingDown`], or [`SessionError::Limit`] where the
    /// session has as many live cells as it may. `spec.first.reply` is not called
    /// then.
    pub fn start(&self, spec: CellSpec) -> Result<CellId, SessionError> {
        let inner = &self.inner;
        let (requests_in, requests) = unbounded_channel();
        let (events_in, events) = unbounded_channel();
        let (commands, commands_out) = mpsc::channel();
        let shared = Arc::new(CellShared::new(inner.limits.clone()));
        let (cell_id, stored) = {
            let mut state = inner.state();
            if inner.shutdown.is_cancelled() {
                return Err(SessionError::ShuttingDown);
            }
            let max = inner.limits.max_live_cells;
            if state.cells.len() >= max {
                return Err(Limit::LiveCells.exceeded(max as u64).into());
            }
            state.last_cell += 1;
            let cell_id = spec.cell_id.unwrap_or_else(|| CellId::nth(state.last_cell));
            state.cells.insert(cell_id.clone(), requests_in);
            (cell_id, state.stored.clone())
        };
        let span = tracing::info_span!(parent: &inner.span, "cell", cell = %cell_id);
        let driven = Driven::new(Handle::current());
        inner.engine.pool.run(Job {
            actor: driven.clone(),
            callbacks: inner.callbacks.clone(),
            source: spec.source,
            tools: spec.tools,
            stored,
            shared: shared.clone(),
            events: events_in,
            commands: commands_out,
            to_pending: spec.first.to_pending,
            span: span.clone(),
        });
        let actor = Actor::run(Parts {
            cell_id: cell_id.clone(),
            callbacks: inner.callbacks.clone(),
            shared,
            commands,
            events,
            requests,
            cancelled: inner.shutdown.clone(),
            first: spec.first,
            commit: {
                let (inner, cell_id) = (inner.clone(), cell_id.clone());
                Box::new(move |writes| inner.commit(&cell_id, writes))
            },
        });
        let (inner_, id) = (inner.clone(), cell_id.clone());
        let life = async move {
            actor.await;
            inner_.state().cells.remove(&id);
            inner_.callbacks.closed(&id).await;
        };
        let task = driven.task(Box::pin(life.instrument(span)));
        inner.actors.spawn(task);
        Ok(cell_id)
    }

    /// Observes a cell; one that does not exist is reported missing.
    pub fn observe(&self, cell_id: &CellId, observe: Observe) {
        let sent = {
            let mut state = self.inner.state();
            if let Some(response) = state.unclaimed.take_final(cell_id) {
                drop(state);
                let outcome = WaitOutcome::LiveCell(response);
                return (observe.reply)(Ok(PendingOutcome::Observed(outcome)));
            }
            match state.cells.get(cell_id) {
                Some(cell) => cell.send(Request::Observe(observe)).map_err(|e| e.0),
                None => Err(Request::Observe(observe)),
            }
        };
        if let Err(Request::Observe(observe)) = sent {
            (observe.reply)(Ok(PendingOutcome::missing(cell_id)));
        }
    }

    /// Stops a cell; `reply` is called once it has stopped.
    pub fn terminate_with(&self, cell_id: &CellId, reply: Reply) {
        let sent = {
            let mut state = self.inner.state();
            if let Some(response) = state.unclaimed.take_final(cell_id) {
                drop(state);
                let outcome = WaitOutcome::LiveCell(response);
                return reply(Ok(PendingOutcome::Observed(outcome)));
            }
            match state.cells.get(cell_id) {
                Some(cell) => cell.send(Request::Terminate(reply)).map_err(|e| e.0),
                None => Err(Request::Terminate(reply)),
            }
        };
        if let Err(Request::Terminate(reply)) = sent {
            reply(Ok(PendingOutcome::missing(cell_id)));
        }
    }

    /// Stops every cell; returns when no isolate of the session runs.
    pub async fn stop(&self) {
        {
            // Under the lock, so that an admission either sees this or is seen by
            // the tracker below.
            let _state = self.inner.state();
            self.inner.shutdown.cancel();
            self.inner.actors.close();
        }
        self.inner.actors.wait().await;
    }

    /// An observation as a future that may be dropped, and what to admit or ask
    /// with.
    fn observation(
        &self,
        yield_time: Option<Duration>,
        to_pending: bool,
        yield_now: CancellationToken,
    ) -> (Observe, ObservationFuture) {
        let (reply, receiver) = oneshot::channel();
        let dropped = CancellationToken::new();
        let inner = Arc::downgrade(&self.inner);
        let observe = Observe {
            yield_time: self.inner.limits.yield_time(yield_time),
            to_pending,
            yield_now,
            dropped: dropped.clone(),
            reply: Box::new({
                let inner = inner.clone();
                move |outcome| {
                    if let Err(unclaimed) = reply.send(outcome) {
                        keep(&inner, unclaimed);
                    }
                }
            }),
        };
        let future = ObservationFuture {
            receiver,
            dropped,
            inner,
        };
        (observe, future)
    }

    fn admit(
        &self,
        request: ExecuteRequest,
        to_pending: bool,
    ) -> Result<(CellId, ObservationFuture), SessionError> {
        let (first, future) = self.observation(request.yield_time, to_pending, request.yield_now);
        let spec = CellSpec {
            cell_id: None,
            source: request.source,
            tools: self.inner.table(&request.enabled_tools),
            first,
        };
        let Some(delegate) = &self.delegate else {
            return Ok((self.start(spec)?, future));
        };
        // Held until the cell is known, because its first call may come before
        // `start` returns.
        let mut cells = delegate.cells();
        let cell_id = self.start(spec)?;
        cells.insert(
            cell_id.clone(),
            (request.tool_call_id, request.enabled_tools),
        );
        Ok((cell_id, future))
    }
}

fn keep(inner: &Weak<Inner>, outcome: Result<PendingOutcome, SessionError>) {
    if let Ok(outcome) = outcome
        && let Some(inner) = inner.upgrade()
    {
        inner.state().unclaimed.keep(outcome);
    }
}

/// The outcome of an observation. Dropped before it is ready, it ends the
/// observation and loses nothing.
struct ObservationFuture {
    receiver: oneshot::Receiver<Result<PendingOutcome, SessionError>>,
    dropped: CancellationToken,
    inner: Weak<Inner>,
}

impl Future for ObservationFuture {
    type Output = Result<PendingOutcome, SessionError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver)
            .poll(context)
            .map(|received| match received {
                Ok(Ok(outcome)) => Ok(match self.inner.upgrade() {
                    Some(inner) => inner.state().unclaimed.join(outcome),
                    None => outcome,
                }),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(SessionError::ShuttingDown),
            })
    }
}

impl Drop for ObservationFuture {
    fn drop(&mut self) {
        self.dropped.cancel();
        self.receiver.close();
        if let Ok(outcome) = self.receiver.try_recv() {
            keep(&self.inner, outcome);
        }
    }
}

#[async_trait]
impl CodeModeSession for Session {
    async fn execute(&self, request: ExecuteRequest) -> Result<StartedCell, SessionError> {
        let (cell_id, future) = self.admit(request, false)?;
        Ok(StartedCell {
            cell_id,
            initial_response: Box::pin(async move {
                Ok(future.await?.into_wait_outcome().into_response())
            }),
        })
    }

    async fn wait(&self, request: WaitRequest) -> Result<WaitOutcome, SessionError> {
        let (observe, future) = self.observation(request.yield_time, false, request.yield_now);
        self.observe(&request.cell_id, observe);
        future.await.map(PendingOutcome::into_wait_outcome)
    }

    async fn terminate(&self, cell_id: CellId) -> Result<WaitOutcome, SessionError> {
        let (observe, future) = self.observation(None, false, CancellationToken::new());
        self.terminate_with(&cell_id, observe.reply);
        future.await.map(PendingOutcome::into_wait_outcome)
    }

    async fn execute_to_pending(
        &self,
        request: ExecuteRequest,
    ) -> Result<StartedPendingCell, SessionError> {
        let (cell_id, future) = self.admit(request, true)?;
        Ok(StartedPendingCell {
            cell_id,
            initial_outcome: Box::pin(future),
        })
    }

    async fn wait_to_pending(&self, request: WaitRequest) -> Result<PendingOutcome, SessionError> {
        let (observe, future) = self.observation(request.yield_time, true, request.yield_now);
        self.observe(&request.cell_id, observe);
        future.await
    }

    fn is_alive(&self) -> bool {
        !self.inner.shutdown.is_cancelled()
    }

    async fn shutdown(&self) {
        self.stop().await;
    }
}

/// An agent core's delegate behind [`Callbacks`].
struct DelegateCallbacks {
    delegate: Arc<dyn CodeModeSessionDelegate>,
    /// The `tool_call_id` and tools of each live cell.
    cells: Mutex<HashMap<CellId, (String, ToolSet)>>,
}

impl DelegateCallbacks {
    fn cells(&self) -> MutexGuard<'_, HashMap<CellId, (String, ToolSet)>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Callbacks for DelegateCallbacks {
    fn call_tool(
        &self,
        cell_id: &CellId,
        id: RuntimeToolCallId,
        tool: u32,
        input: Option<String>,
        cancelled: CancellationToken,
    ) -> BoxFuture<Result<String, String>> {
        let call = self.cells().get(cell_id).and_then(|(_, tools)| {
            let tool = tools.get(tool as usize)?;
            Some(NestedToolCall {
                cell_id: cell_id.clone(),
                runtime_tool_call_id: id,
                tool_name: tool.tool_name.clone(),
                tool_kind: tool.kind,
                input: None,
            })
        });
        let delegate = self.delegate.clone();
        Box::pin(async move {
            let mut call = call.ok_or("there is no such tool")?;
            call.input = match input.map(Json::parse).transpose() {
                Ok(input) => input,
                Err(error) => return Err(error.to_string()),
            };
            let result = delegate.invoke_tool(call, cancelled).await?;
            Ok(result.into_string())
        })
    }

    fn notify(
        &self,
        cell_id: &CellId,
        text: String,
        cancelled: CancellationToken,
    ) -> BoxFuture<()> {
        let tool_call_id = self.cells().get(cell_id).map(|(id, _)| id.clone());
        let (delegate, cell_id) = (self.delegate.clone(), cell_id.clone());
        Box::pin(async move {
            let tool_call_id = tool_call_id.unwrap_or_default();
            delegate
                .notify(tool_call_id, cell_id, text, cancelled)
                .await;
        })
    }

    fn committed(&self, _: &CellId, _: &[(String, Arc<str>)]) {}

    fn closed(&self, cell_id: &CellId) -> BoxFuture<()> {
        self.cells().remove(cell_id);
        let (delegate, cell_id) = (self.delegate.clone(), cell_id.clone());
        Box::pin(async move { delegate.cell_closed(cell_id).await })
    }
}
