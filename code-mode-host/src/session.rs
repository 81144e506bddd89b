//! A session whose cells run in a worker process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use code_mode_protocol::native::{ToWorker, WireTool};
use code_mode_protocol::{
    CellId, CodeModeSession, CodeModeSessionDelegate, ExecuteRequest, Json, Limit, PendingOutcome,
    SessionError, StartedCell, StartedPendingCell, WaitOutcome, WaitRequest,
};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::ProviderOptions;
use crate::calls::Calls;
use crate::connection::Outbound;
use crate::provider::Workers;
use crate::state::{Answer, State};
use crate::worker::{self, supervise};

/// A session of a [`Provider`](crate::Provider).
pub struct HostSession {
    shared: Arc<Shared>,
}

/// What a session's handle, its supervisor and its observations share.
pub(crate) struct Shared {
    pub(crate) options: ProviderOptions,
    pub(crate) delegate: Arc<dyn CodeModeSessionDelegate>,
    workers: Arc<Workers>,
    state: Mutex<State>,
    /// Cancelled when the session or its provider shuts down.
    pub(crate) token: CancellationToken,
    /// The supervisor, and cells being closed.
    pub(crate) tasks: TaskTracker,
    /// The worker does not stop a cell.
    pub(crate) kill_worker: Notify,
    /// Held while a worker is started.
    starting: tokio::sync::Mutex<()>,
    span: tracing::Span,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an answer over; what nobody takes is kept for the next observer.
    pub(crate) fn reply(self: &Arc<Self>, reply: oneshot::Sender<Answer>, answer: Answer) {
        match answer {
            Ok(PendingOutcome::Observed(WaitOutcome::MissingCell(missing))) => {
                let session = self.clone();
                self.tasks.spawn(async move {
                    let outcome = session.too_late(missing.cell_id()).await;
                    session.send(reply, Ok(outcome));
                });
            }
            answer => self.send(reply, answer),
        }
    }

    /// What an observer gets that came too late for its cell: nothing, unless the
    /// observer that the cell's end is on its way to has gone.
    async fn too_late(&self, cell_id: &CellId) -> PendingOutcome {
        let last_answers = self.state().last_answers(cell_id);
        if let Some(last_answers) = last_answers {
            last_answers.wait().await;
        }
        let missing = PendingOutcome::missing(cell_id);
        self.state().unclaimed.join(missing)
    }

    fn send(&self, reply: oneshot::Sender<Answer>, answer: Answer) {
        if let Err(Ok(unclaimed)) = reply.send(answer) {
            self.state().unclaimed.keep(unclaimed);
        }
    }

    /// The way to the session's worker, which is started where there is none.
    async fn outbound(self: &Arc<Self>) -> Result<Outbound, SessionError> {
        if self.token.is_cancelled() {
            return Err(SessionError::ShuttingDown);
        }
        if let Some(outbound) = self.state().outbound.clone() {
            return Ok(outbound);
        }
        let _starting = self.starting.lock().await;
        if let Some(outbound) = self.state().outbound.clone() {
            return Ok(outbound);
        }
        let delay = self.state().backoff.delay();
        tokio::select! {
            () = self.token.cancelled() => return Err(SessionError::ShuttingDown),
            () = tokio::time::sleep(delay), if !delay.is_zero() => {}
            () = std::future::ready(()), if delay.is_zero() => {}
        }
        let mut worker = tokio::select! {
            () = self.token.cancelled() => return Err(SessionError::ShuttingDown),
            worker = self.workers.take() => {
                worker.map_err(|e| SessionError::Runtime(e.to_string()))?
            }
        };
        let limits = self.options.limits.clone();
        worker.connection.set_max_frame_bytes(
            limits
                .max_frame_bytes
                .saturating_add(limits.max_output_bytes),
        );
        let outbound = worker.connection.outbound.clone();
        {
            let mut state = self.state();
            let stored = state.stored();
            outbound.send(ToWorker::Open { limits, stored });
            state.outbound = Some(outbound.clone());
        }
        let supervisor = supervise(self.clone(), worker).instrument(self.span.clone());
        self.tasks.spawn(supervisor);
        Ok(outbound)
    }

    async fn execute(
        self: &Arc<Self>,
        request: ExecuteRequest,
        to_pending: bool,
    ) -> Result<(CellId, Observation), SessionError> {
        let limits = &self.options.limits;
        if request.source.len() > limits.max_frame_bytes {
            return Err(Limit::Frame.exceeded(limits.max_frame_bytes as u64).into());
        }
        let outbound = self.outbound().await?;
        let (reply, answer) = oneshot::channel();
        let mut state = self.state();
        if self.token.is_cancelled() {
            return Err(SessionError::ShuttingDown);
        }
        if state.cells.len() >= limits.max_live_cells {
            return Err(Limit::LiveCells
                .exceeded(limits.max_live_cells as u64)
                .into());
        }
        if state.outbound.is_none() {
            return Err(SessionError::Runtime(
                "the session's process has just ended; try again".to_owned(),
            ));
        }
        let cell_id = state.next_cell();
        let (tools, is_new) = state.tools(&request.enabled_tools);
        if is_new {
            let definition = ToWorker::Tools {
                id: tools,
                tools: request.enabled_tools.iter().map(WireTool::from).collect(),
            };
            outbound.send(definition);
        }
        let id = state.request(cell_id.clone(), reply);
        state.admit(
            Calls::new(
                cell_id.clone(),
                request.tool_call_id,
                self.token.child_token(),
            ),
            request.enabled_tools,
        );
        outbound.send(ToWorker::Execute {
            request: id,
            cell_id: cell_id.clone(),
            tools,
            source: request.source,
            yield_time: limits.yield_time(request.yield_time),
            to_pending,
        });
        drop(state);
        tracing::debug!(parent: &self.span, cell = %cell_id, "cell admitted");
        Ok((
            cell_id,
            self.observation(id, answer, request.yield_now, outbound),
        ))
    }

    async fn observe(self: &Arc<Self>, request: WaitRequest, to_pending: bool) -> Answer {
        let yield_time = self.options.limits.yield_time(request.yield_time);
        let observation = self.ask(request.cell_id, request.yield_now, |id, cell_id| {
            ToWorker::Wait {
                request: id,
                cell_id,
                yield_time,
                to_pending,
            }
        });
        match observation {
            Ok(observation) => observation.outcome().await,
            Err(late) => Ok(self.outcome_of(late).await),
        }
    }

    async fn outcome_of(&self, late: Late) -> PendingOutcome {
        match late {
            Late::Kept(outcome) => outcome,
            Late::Missing(cell_id) => self.too_late(&cell_id).await,
        }
    }

    async fn terminate(self: &Arc<Self>, cell_id: CellId) -> Answer {
        let observation = self.ask(cell_id, CancellationToken::new(), |id, cell_id| {
            ToWorker::Terminate {
                request: id,
                cell_id,
            }
        });
        let observation = match observation {
            Ok(observation) => observation,
            Err(late) => return Ok(self.outcome_of(late).await),
        };
        let mut outcome = std::pin::pin!(observation.outcome());
        tokio::select! {
            outcome = &mut outcome => return outcome,
            () = tokio::time::sleep(self.options.stop_grace) => {}
        }
        tracing::warn!(parent: &self.span, "a cell does not stop; its process is killed");
        self.kill_worker.notify_one();
        outcome.await
    }

    /// Sends a request about a cell, or says at once what came of it.
    fn ask(
        self: &Arc<Self>,
        cell_id: CellId,
        yield_now: CancellationToken,
        message: impl FnOnce(u64, CellId) -> ToWorker,
    ) -> Result<Observation, Late> {
        let mut state = self.state();
        if let Some(response) = state.unclaimed.take_final(&cell_id) {
            return Err(Late::Kept(PendingOutcome::live(response)));
        }
        let Some(cell) = state.cells.get_mut(&cell_id) else {
            return Err(Late::Missing(cell_id));
        };
        if let Some(lost) = cell.lost.take() {
            let outcome = state.unclaimed.join(PendingOutcome::live(lost));
            drop(state);
            worker::close(self, cell_id);
            return Err(Late::Kept(outcome));
        }
        let Some(outbound) = state.outbound.clone() else {
            return Err(Late::Missing(cell_id));
        };
        let (reply, answer) = oneshot::channel();
        let id = state.request(cell_id.clone(), reply);
        outbound.send(message(id, cell_id));
        drop(state);
        Ok(self.observation(id, answer, yield_now, outbound))
    }

    fn observation(
        self: &Arc<Self>,
        request: u64,
        answer: oneshot::Receiver<Answer>,
        yield_now: CancellationToken,
        outbound: Outbound,
    ) -> Observation {
        Observation {
            session: self.clone(),
            request,
            answer,
            yield_now,
            outbound,
            done: false,
        }
    }
}

/// Why a worker need not be asked about a cell.
enum Late {
    /// The outcome is here.
    Kept(PendingOutcome),
    /// The cell has ended, or never was.
    Missing(CellId),
}

/// A request on its way. Dropped before its answer came, it lets the worker know
/// and loses nothing.
struct Observation {
    session: Arc<Shared>,
    request: u64,
    answer: oneshot::Receiver<Answer>,
    yield_now: CancellationToken,
    outbound: Outbound,
    done: bool,
}

impl Observation {
    async fn outcome(mut self) -> Answer {
        let received = tokio::select! {
            biased;
            received = &mut self.answer => received,
            () = self.yield_now.cancelled() => {
                self.outbound.send(ToWorker::YieldNow { request: self.request });
                (&mut self.answer).await
            }
        };
        self.done = true;
        received.unwrap_or(Err(SessionError::ShuttingDown))
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.answer.close();
        if let Ok(answer) = self.answer.try_recv() {
            if let Ok(outcome) = answer {
                self.session.state().unclaimed.keep(outcome);
            }
        } else if self.session.state().is_open(self.request) {
            self.outbound.send(ToWorker::Cancel {
                request: self.request,
            });
        }
    }
}

impl HostSession {
    /// Opens a session and gives it a worker.
    pub(crate) async fn open(
        workers: Arc<Workers>,
        options: ProviderOptions,
        delegate: Arc<dyn CodeModeSessionDelegate>,
        stored: Vec<(String, Json)>,
        token: CancellationToken,
    ) -> Result<Self, SessionError> {
        let mut state = State::default();
        let limit = options.limits.max_stored_bytes;
        for (key, json) in stored {
            if state.store(key, json.into_string()) > limit {
                return Err(Limit::StoredBytes.exceeded(limit as u64).into());
            }
        }
        let session = Self {
            shared: Arc::new(Shared {
                options,
                delegate,
                workers,
                state: Mutex::new(state),
                token,
                tasks: TaskTracker::new(),
                kill_worker: Notify::new(),
                starting: tokio::sync::Mutex::new(()),
                span: tracing::info_span!("session"),
            }),
        };
        session.shared.outbound().await?;
        Ok(session)
    }

    /// The values that completed cells have stored, as JSON.
    pub fn stored_values(&self) -> Vec<(String, Json)> {
        self.shared
            .state()
            .stored()
            .into_iter()
            .filter_map(|(key, json)| Some((key, Json::parse(json).ok()?)))
            .collect()
    }
}

impl Drop for HostSession {
    fn drop(&mut self) {
        self.shared.token.cancel();
    }
}

#[async_trait]
impl CodeModeSession for HostSession {
    async fn execute(&self, request: ExecuteRequest) -> Result<StartedCell, SessionError> {
        let (cell_id, observation) = self.shared.execute(request, false).await?;
        Ok(StartedCell {
            cell_id,
            initial_response: Box::pin(async move {
                Ok(observation
                    .outcome()
                    .await?
                    .into_wait_outcome()
                    .into_response())
            }),
        })
    }

    async fn wait(&self, request: WaitRequest) -> Result<WaitOutcome, SessionError> {
        self.shared
            .observe(request, false)
            .await
            .map(PendingOutcome::into_wait_outcome)
    }

    async fn terminate(&self, cell_id: CellId) -> Result<WaitOutcome, SessionError> {
        self.shared
            .terminate(cell_id)
            .await
            .map(PendingOutcome::into_wait_outcome)
    }

    async fn execute_to_pending(
        &self,
        request: ExecuteRequest,
    ) -> Result<StartedPendingCell, SessionError> {
        let (cell_id, observation) = self.shared.execute(request, true).await?;
        Ok(StartedPendingCell {
            cell_id,
            initial_outcome: Box::pin(observation.outcome()),
        })
    }

    async fn wait_to_pending(&self, request: WaitRequest) -> Result<PendingOutcome, SessionError> {
        self.shared.observe(request, true).await
    }

    fn is_alive(&self) -> bool {
        !self.shared.token.is_cancelled()
    }

    async fn shutdown(&self) {
        self.shared.token.cancel();
        // A worker that is just being started sees the token; one that was
        // started has its supervisor among the tasks.
        let _started = self.shared.starting.lock().await;
        let left: Vec<CellId> = {
            let state = self.shared.state();
            match state.outbound {
                Some(_) => Vec::new(),
                None => state.cells.keys().cloned().collect(),
            }
        };
        for cell_id in left {
            worker::close(&self.shared, cell_id);
        }
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}
