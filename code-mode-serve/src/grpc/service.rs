//! The methods of the service.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use code_mode_host::{
    CellId, CellResponse, ExecuteRequest, Json, LentWorker, Limits, Provider, Session as Cells,
    SessionError, SessionOptions, ToolDefinition, ToolError, TraceContext, WaitRequest,
};
use futures::{Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::delegate::Delegate;
use super::outcome::{Timed, outcome};
use super::session::{Capacities, Execution, Lease, Session};
use super::subscriptions::MAX_FILTERS;
use super::wire::code_mode_host_server::CodeModeHost;
use super::wire::execute_event::Event as ExecuteEventKind;
use super::wire::session_event::Event;
use super::wire::wait_response::State as WaitState;
use super::{check, metrics, wire};
use crate::Telemetry;
use crate::core::{Over, TruncatedBy, session_limits};
use tracing::Instrument;

/// Callbacks without an answer: of a session by default, and the most of a session and
/// of the host.
const DEFAULT_CAPACITY: u32 = 1024;
const MAX_CAPACITY: u32 = 4096;

/// The most cells of the host that are not closed.
const MAX_ACTIVE_CELLS: usize = 2048;

/// The header that says how long a result had lain ready.
const BUFFERED_FOR: &str = "codex-code-mode-result-buffered-for-ns";

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The host: the sessions of all connections.
#[derive(Clone)]
pub(super) struct Service {
    shared: Arc<Shared>,
}

struct Shared {
    session_places: Arc<Semaphore>,
    /// Cancelled when no new sessions and cells are taken any more.
    draining: CancellationToken,
    provider: Arc<Provider>,
    telemetry: Arc<dyn Telemetry>,
    limits: Limits,
    sessions: Mutex<HashMap<Uuid, Arc<Session>>>,
    capacity: Arc<Semaphore>,
    active_cells: Arc<Semaphore>,
    /// Parent of the sessions' tokens.
    token: CancellationToken,
    tasks: TaskTracker,
    /// What carries the bytes of workers that were lent.
    lent: TaskTracker,
}

impl Shared {
    fn sessions(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops a session's cells and ends its streams. Safe to call again.
    async fn close(&self, session: &Arc<Session>) {
        self.sessions().remove(&session.id);
        session.closed.cancel();
        if let Some(cells) = session.cells.get() {
            cells.shutdown().await;
        }
        session.end_streams();
    }

    /// Closes a session from a place that cannot wait.
    fn close_soon(self: &Arc<Self>, session: Arc<Session>) {
        let shared = self.clone();
        self.tasks
            .spawn(async move { shared.close(&session).await });
    }
}

impl Service {
    pub(super) fn new(
        provider: Arc<Provider>,
        limits: Limits,
        max_sessions: usize,
        telemetry: Arc<dyn Telemetry>,
    ) -> Self {
        let service = Self {
            shared: Arc::new(Shared {
                session_places: Arc::new(Semaphore::new(max_sessions)),
                draining: CancellationToken::new(),
                provider,
                telemetry,
                limits,
                sessions: Mutex::default(),
                capacity: Arc::new(Semaphore::new(MAX_CAPACITY as usize)),
                active_cells: Arc::new(Semaphore::new(MAX_ACTIVE_CELLS)),
                token: CancellationToken::new(),
                tasks: TaskTracker::new(),
                lent: TaskTracker::new(),
            }),
        };
        let shared = Arc::downgrade(&service.shared);
        service.shared.telemetry.watch_sessions(Box::new(move || {
            Some(shared.upgrade()?.sessions().len() as u64)
        }));
        service
    }

    /// Cancelled where new sessions and cells are refused, by who drains the host.
    pub(super) fn draining(&self) -> CancellationToken {
        self.shared.draining.clone()
    }

    /// Completes when no cell is left, nor a worker that was lent.
    pub(super) async fn without_cells(&self) {
        const ALL: u32 = MAX_ACTIVE_CELLS as u32;
        let _ = self.shared.active_cells.acquire_many(ALL).await;
        self.shared.lent.close();
        self.shared.lent.wait().await;
    }

    /// A place among the host's sessions.
    pub(super) fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.takes_more()?;
        let place = self.shared.session_places.clone().try_acquire_owned();
        place.map_err(|_| Status::resource_exhausted("code-mode host has too many sessions"))
    }

    /// Starts a worker for a provider elsewhere.
    pub(super) async fn lend(&self) -> Result<LentWorker, Status> {
        let lent = self.shared.provider.lend().await;
        lent.map_err(|error| Status::unavailable(error.to_string()))
    }

    /// Cancelled when the host stops everything.
    pub(super) fn stopping(&self) -> CancellationToken {
        self.shared.token.clone()
    }

    /// Runs what carries the bytes of a worker that was lent.
    pub(super) fn spawn_lent(&self, carry: impl Future<Output = ()> + Send + 'static) {
        self.shared.lent.spawn(carry);
    }

    fn takes_more(&self) -> Result<(), Status> {
        match self.shared.draining.is_cancelled() {
            true => Err(Status::unavailable("code-mode host is draining")),
            false => Ok(()),
        }
    }

    /// Closes every session and ends every process.
    pub(super) async fn shut_down(&self) {
        self.shared.token.cancel();
        let sessions: Vec<_> = self.shared.sessions().values().cloned().collect();
        futures::future::join_all(sessions.iter().map(|session| self.shared.close(session))).await;
        self.shared.provider.shutdown().await;
        self.shared.lent.close();
        self.shared.lent.wait().await;
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn session(&self, id: &str) -> Result<Arc<Session>, Status> {
        let known = check::uuid(id, "session ID")?;
        let session = self.shared.sessions().get(&known).cloned();
        // The end of a drain removes sessions: its client tries another host.
        session.ok_or_else(|| match self.takes_more() {
            Err(draining) => draining,
            Ok(()) => unknown_session(id),
        })
    }
}

/// The provider's session behind an open session of this wire.
fn cells_of(session: &Session) -> Result<Cells, Status> {
    let cells = session.cells.get().cloned();
    cells.ok_or_else(|| unknown_session(session.id))
}

fn unknown_session(id: impl std::fmt::Display) -> Status {
    Status::not_found(format!("unknown code-mode session {id}"))
}

fn status(error: SessionError) -> Status {
    let text = error.to_string();
    match error {
        SessionError::ObserverBusy(_) => Status::failed_precondition(text),
        SessionError::Limit(_) => Status::resource_exhausted(text),
        SessionError::ShuttingDown => Status::cancelled("code-mode session is closing"),
        _ => Status::unavailable(text),
    }
}

/// A tool's output, which must be one JSON value. A large one is looked at where it holds
/// nobody else up.
async fn json_of(bytes: Vec<u8>) -> Result<Json, String> {
    const LARGE: usize = 256 << 10;
    if bytes.len() < LARGE {
        return check::json_of(bytes);
    }
    let looking = tokio::task::spawn_blocking(move || check::json_of(bytes));
    looking.await.map_err(|error| error.to_string())?
}

/// The client's span, as it says in its metadata.
fn trace_context<T>(request: &Request<T>) -> Option<TraceContext> {
    let text = |name| request.metadata().get(name)?.to_str().ok();
    TraceContext::new(text("traceparent"), text("tracestate"))
}

fn wait_cancelled() -> Status {
    Status::cancelled("code-mode wait was cancelled")
}

/// A cell's id, which a client may write as it likes: one that no cell has is missing.
fn cell_id(text: String) -> Result<CellId, Status> {
    let id = check::id(text, "cell ID")?;
    CellId::try_from(id).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// What `Wait` and `Terminate` answer.
fn wait_response(response: CellResponse, timed: Timed) -> Response<wire::WaitResponse> {
    let is_live = !response.is_missing();
    let (message, buffered_for) = outcome(response, timed);
    let state = match is_live {
        true => WaitState::LiveCell(message),
        false => WaitState::MissingCell(message),
    };
    let mut response = Response::new(wire::WaitResponse { state: Some(state) });
    if let Some(buffered_for) = buffered_for.filter(|_| is_live)
        && let Ok(value) = buffered_for.as_nanos().to_string().parse()
    {
        response.metadata_mut().insert(BUFFERED_FOR, value);
    }
    response
}

#[tonic::async_trait]
impl CodeModeHost for Service {
    type OpenSessionStream = Events<wire::SessionEvent>;
    type SubscribeToToolCallsStream = Events<wire::ToolCall>;
    type ExecuteStream = Events<wire::ExecuteEvent>;

    async fn get_process_metrics(
        &self,
        _: Request<wire::GetProcessMetricsRequest>,
    ) -> Result<Response<wire::GetProcessMetricsResponse>, Status> {
        metrics::process(&self.shared.provider).map(Response::new)
    }

    async fn open_session(
        &self,
        request: Request<wire::OpenSessionRequest>,
    ) -> Result<Response<Self::OpenSessionStream>, Status> {
        let context = trace_context(&request);
        let request = request.into_inner();
        let truncated_by = match wire::OutputTruncation::try_from(request.output_truncation) {
            Ok(wire::OutputTruncation::Server) => TruncatedBy::Server,
            Ok(_) => TruncatedBy::Client,
            Err(_) => {
                let message = "unknown code-mode output truncation mode";
                return Err(Status::invalid_argument(message));
            }
        };
        let capacity = request
            .max_pending_delegate_calls
            .unwrap_or(DEFAULT_CAPACITY)
            .min(MAX_CAPACITY);
        if capacity == 0 {
            let message = "callback capacity must be positive";
            return Err(Status::invalid_argument(message));
        }
        let asked = request.cell_execution_limits.unwrap_or_default();
        let limits = session_limits(
            &self.shared.limits,
            asked.max_heap_size_bytes,
            asked.max_yield_time_ms,
        );
        let place = self.place()?;
        let (lease, events) = mpsc::unbounded_channel();
        let session = Arc::new(Session::new(
            truncated_by,
            Lease {
                events: lease.clone(),
                _place: place,
            },
            Capacities::new(capacity as usize, self.shared.capacity.clone()),
            self.shared.token.child_token(),
        ));
        let delegate = Arc::new(Delegate {
            session: Arc::downgrade(&session),
            telemetry: self.shared.telemetry.clone(),
        });
        let options = SessionOptions::default().limits(limits);
        let span = tracing::info_span!(parent: None, "code_mode_host.grpc.open_session");
        if let Some(parent) = &context {
            self.shared.telemetry.set_parent(&span, parent);
        }
        let opening = self.shared.provider.open_session(delegate, options);
        let opened = opening.instrument(span).await;
        let _ = session.cells.set(opened.map_err(status)?);
        self.shared.sessions().insert(session.id, session.clone());
        let opened = wire::SessionOpened {
            session_id: session.id.to_string(),
            output_truncation: match truncated_by {
                TruncatedBy::Server => wire::OutputTruncation::Server,
                TruncatedBy::Client => wire::OutputTruncation::Unspecified,
            }
            .into(),
        };
        session.event(Event::Opened(opened));
        // The session lives as long as its lease.
        let (shared, leased) = (self.shared.clone(), Arc::downgrade(&session));
        self.shared.tasks.spawn(async move {
            tokio::select! {
                () = lease.closed() => shared.close_soon(session),
                () = session.given_up.cancelled() => {
                    tracing::warn!("a client does not read its lease; its session is closed");
                    shared.close_soon(session);
                }
                () = session.closed.cancelled() => {}
            }
        });
        let events = stream_of(events).filter_map(move |event| {
            let session = leased.upgrade();
            std::future::ready(session.map(|session| Ok(session.taken(event))))
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn close_session(
        &self,
        request: Request<wire::CloseSessionRequest>,
    ) -> Result<Response<wire::CloseSessionResponse>, Status> {
        let session = self.session(&request.into_inner().session_id)?;
        let span = tracing::info_span!(
            parent: None,
            "code_mode_host.grpc.close_session",
            "session.id" = %session.id,
        );
        self.shared.close(&session).instrument(span).await;
        Ok(Response::new(wire::CloseSessionResponse {}))
    }

    async fn subscribe_to_tool_calls(
        &self,
        request: Request<wire::SubscribeToToolCallsRequest>,
    ) -> Result<Response<Self::SubscribeToToolCallsStream>, Status> {
        let request = request.into_inner();
        let session = self.session(&request.session_id)?;
        if request.tool_names.len() > MAX_FILTERS {
            let message = format!("code-mode tool subscription exceeds {MAX_FILTERS} filters");
            return Err(Status::invalid_argument(message));
        }
        let filters = request.tool_names.into_iter().map(check::tool_name);
        let filters = filters.collect::<Result<_, _>>()?;
        let (calls, receiver) = mpsc::unbounded_channel();
        let added = session.state().subscriptions.add(filters, calls.clone());
        let Some(id) = added else {
            let message = "code-mode session has too many tool subscriptions";
            return Err(Status::resource_exhausted(message));
        };
        let (shared, watched) = (self.shared.clone(), session.clone());
        self.shared.tasks.spawn(async move {
            tokio::select! {
                () = calls.closed() => {
                    // A call may or may not have been seen: nobody can tell.
                    if watched.unsubscribed(id) {
                        shared.close_soon(watched);
                    }
                }
                () = watched.closed.cancelled() => {}
            }
        });
        let closed = session.closed.clone().cancelled_owned();
        let calls = stream_of(receiver).filter_map(move |id| {
            let call = session.take_queued(id);
            std::future::ready(call.map(Ok))
        });
        let stream = calls.take_until(closed);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn complete_tool_call(
        &self,
        request: Request<wire::CompleteToolCallRequest>,
    ) -> Result<Response<wire::CompleteToolCallResponse>, Status> {
        use wire::complete_tool_call_request::Outcome;
        let request = request.into_inner();
        let session = self.session(&request.session_id)?;
        let id = check::uuid(&request.invocation_id, "tool invocation ID")?;
        let result = match request.outcome {
            None => {
                let message = "tool completion is missing its outcome";
                return Err(Status::invalid_argument(message));
            }
            Some(Outcome::Failed(failed)) => Err(ToolError::new(failed.message)),
            Some(Outcome::Succeeded(succeeded)) => {
                let json = json_of(succeeded.output_json).await.map_err(|why| {
                    let message = format!("invalid code-mode tool output JSON: {why}");
                    Status::invalid_argument(message)
                })?;
                Ok(json)
            }
        };
        if !session.state().calls.knows(id) {
            let message = format!("unknown code-mode tool invocation {id}");
            return Err(Status::not_found(message));
        }
        session.state().calls.answer(id, result);
        Ok(Response::new(wire::CompleteToolCallResponse {}))
    }

    async fn acknowledge_notification(
        &self,
        request: Request<wire::AcknowledgeNotificationRequest>,
    ) -> Result<Response<wire::AcknowledgeNotificationResponse>, Status> {
        let request = request.into_inner();
        self.session(&request.session_id)?;
        check::uuid(&request.notification_id, "notification ID")?;
        Ok(Response::new(wire::AcknowledgeNotificationResponse {}))
    }

    async fn execute(
        &self,
        request: Request<wire::ExecuteRequest>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let received = Instant::now();
        let context = trace_context(&request);
        let request = request.into_inner();
        let session = self.session(&request.session_id)?;
        let id = check::id(request.execution_id, "execution ID")?;
        let tool_call_id = check::id(request.tool_call_id, "tool call ID")?;
        let tools = request.enabled_tools.into_iter().map(check::definition);
        let tools: Vec<ToolDefinition> = tools.collect::<Result<_, _>>()?;
        self.takes_more()?;
        let active = self.shared.active_cells.clone().try_acquire_owned();
        let active = active
            .map_err(|_| Status::resource_exhausted("code-mode host has too many active cells"))?;
        let begun = session.state().executions.begin(&id);
        let Some(tokens) = begun else {
            let message = format!("code-mode execution ID `{id}` was reused");
            return Err(Status::already_exists(message));
        };
        let over = Over(tokens.clone());
        let cells = cells_of(&session)?;
        let span = tracing::info_span!(
            parent: None,
            "code_mode_host.grpc.execute",
            "session.id" = %session.id,
            "execution.id" = %id,
            call_id = %tool_call_id,
        );
        if let Some(parent) = &context {
            self.shared.telemetry.set_parent(&span, parent);
        }
        let admission = session.begin(Execution::new(
            id.clone(),
            tool_call_id,
            span.clone(),
            active,
        ));
        // Callbacks come with the execution's id, by which the session finds the rest.
        let mut execute = ExecuteRequest::new(id.clone(), request.source)
            .tools(tools)
            .yield_now(tokens.yield_now);
        execute.yield_time = request.yield_time_ms.map(Duration::from_millis);
        execute.trace_context = self.shared.telemetry.context(&span).or(context);
        let started = match cells.execute(execute).instrument(span).await {
            Ok(started) => started,
            Err(error) => return Err(status(error)),
        };
        let running = started.id().clone();
        admission.started(running.clone());
        let timed = Timed {
            budget: session.budget(request.max_output_tokens),
            received,
        };
        let (events, receiver) = mpsc::unbounded_channel();
        let event = wire::ExecutionStarted {
            execution_id: id,
            cell_id: running.to_string(),
        };
        let _ = events.send(Ok(execute_event(ExecuteEventKind::Started(event))));
        self.shared.tasks.spawn(async move {
            let _over = over;
            tokio::select! {
                response = started.outcome() => {
                    let event = match response {
                        Ok(response) => Ok(first_outcome(response, timed)),
                        Err(SessionError::ShuttingDown) => return,
                        Err(error) => Err(status(error)),
                    };
                    // The client is gone just now: as if it had gone before.
                    if events.send(event).is_err() {
                        let _ = cells.terminate(running).await;
                    }
                }
                // The client is gone before the outcome: its cell runs for nobody.
                () = events.closed() => {
                    let _ = cells.terminate(running).await;
                }
                // Ends the stream without an outcome.
                () = session.closed.cancelled() => {}
            }
        });
        Ok(Response::new(Box::pin(stream_of(receiver))))
    }

    async fn wait(
        &self,
        request: Request<wire::WaitRequest>,
    ) -> Result<Response<wire::WaitResponse>, Status> {
        let received = Instant::now();
        let request = request.into_inner();
        let session = self.session(&request.session_id)?;
        let cell_id = cell_id(request.cell_id)?;
        let id = check::id(request.wait_id, "wait ID")?;
        let begun = session.state().waits.begin(&id);
        let Some(tokens) = begun else {
            let message = format!("code-mode wait ID `{id}` was reused");
            return Err(Status::already_exists(message));
        };
        let _over = Over(tokens.clone());
        let cells = cells_of(&session)?;
        let span = tracing::info_span!(
            parent: None,
            "code_mode_host.grpc.wait",
            "session.id" = %session.id,
            "cell.id" = %cell_id,
            "wait.id" = %id,
        );
        let wait = WaitRequest::new(cell_id)
            .yield_time(Duration::from_millis(request.yield_time_ms))
            .yield_now(tokens.yield_now);
        let timed = Timed {
            budget: session.budget(request.max_output_tokens),
            received,
        };
        tokio::select! {
            biased;
            () = tokens.cancel.cancelled() => Err(wait_cancelled()),
            () = session.closed.cancelled() => Err(wait_cancelled()),
            outcome = cells.wait(wait).instrument(span) => match outcome {
                Ok(outcome) => Ok(wait_response(outcome, timed)),
                Err(SessionError::ShuttingDown) => Err(wait_cancelled()),
                Err(error) => Err(status(error)),
            },
        }
    }

    async fn yield_observation(
        &self,
        request: Request<wire::YieldObservationRequest>,
    ) -> Result<Response<wire::YieldObservationResponse>, Status> {
        use wire::yield_observation_request::Observation;
        let request = request.into_inner();
        let session = self.session(&request.session_id)?;
        let tokens = match request.observation {
            None => {
                let message = "missing code-mode observation ID";
                return Err(Status::invalid_argument(message));
            }
            Some(Observation::ExecutionId(id)) => {
                let id = check::id(id, "execution ID")?;
                session.state().executions.of(&id).0
            }
            Some(Observation::WaitId(id)) => {
                let id = check::id(id, "wait ID")?;
                session.state().waits.of(&id).0
            }
        };
        tokens.yield_now.cancel();
        Ok(Response::new(wire::YieldObservationResponse {}))
    }

    async fn cancel_wait(
        &self,
        request: Request<wire::CancelWaitRequest>,
    ) -> Result<Response<wire::CancelWaitResponse>, Status> {
        let request = request.into_inner();
        let session = self.session(&request.session_id)?;
        let id = check::id(request.wait_id, "wait ID")?;
        let (tokens, has_begun) = session.state().waits.of(&id);
        tokens.cancel.cancel();
        if has_begun {
            // The cell is free for the next wait when this is answered.
            tokens.is_over.cancelled().await;
        }
        Ok(Response::new(wire::CancelWaitResponse {}))
    }

    async fn terminate(
        &self,
        request: Request<wire::TerminateRequest>,
    ) -> Result<Response<wire::WaitResponse>, Status> {
        let received = Instant::now();
        let request = request.into_inner();
        let session = self.session(&request.session_id)?;
        let cell_id = cell_id(request.cell_id)?;
        let cells = cells_of(&session)?;
        let outcome = cells.terminate(cell_id).await.map_err(status)?;
        let timed = Timed {
            budget: session.budget(request.max_output_tokens),
            received,
        };
        Ok(wait_response(outcome, timed))
    }
}

fn execute_event(event: ExecuteEventKind) -> wire::ExecuteEvent {
    wire::ExecuteEvent { event: Some(event) }
}

fn first_outcome(response: CellResponse, timed: Timed) -> wire::ExecuteEvent {
    execute_event(ExecuteEventKind::Outcome(outcome(response, timed).0))
}

fn stream_of<T: Send + 'static>(
    receiver: mpsc::UnboundedReceiver<T>,
) -> impl Stream<Item = T> + Send {
    futures::stream::unfold(receiver, async |mut receiver| {
        let item = receiver.recv().await?;
        Some((item, receiver))
    })
}
