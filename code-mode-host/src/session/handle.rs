//! A session as an agent core has it.

use std::sync::Arc;

use async_trait::async_trait;
use code_mode_protocol::{
    CellId, CodeModeSession, ExecuteRequest, Json, PendingOutcome, SessionError, StartedCell,
    StartedPendingCell, WaitOutcome, WaitRequest, truncate,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::core::{Answer, Execute, NotAdmitted};
use super::driver::Shared;
use super::spans;

/// A session of a [`Provider`](crate::Provider). Dropping it shuts the session down.
pub(crate) struct HostSession {
    shared: Arc<Shared>,
}

impl HostSession {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn admit(
        &self,
        mut request: ExecuteRequest,
        to_pending: bool,
    ) -> Result<(CellId, Observation), SessionError> {
        let yield_now = request.yield_now.clone();
        let max_output_tokens = request.max_output_tokens;
        let parent = request.parent.take();
        let (reply, answer) = oneshot::channel();
        let span = self.shared.spans.exec(&request.tool_call_id);
        let mut execute = Execute {
            request,
            to_pending,
            reply,
            span: span.clone(),
        };
        let admitted = loop {
            match self.shared.event(|core, now| core.execute(execute, now)) {
                Ok(admitted) => break admitted,
                Err(NotAdmitted::Refused(error)) => {
                    span.record("outcome", "refused");
                    return Err(error);
                }
                Err(NotAdmitted::NeedsWorker(again)) => {
                    execute = *again;
                    self.shared.start_worker().await?;
                }
            }
        };
        if let Some(parent) = parent {
            self.end_with(parent, admitted.cell_id.clone(), admitted.token);
        }
        let observation = Observation {
            session: self.shared.clone(),
            cell_id: admitted.cell_id.clone(),
            observer: Some(admitted.observer),
            answer,
            yield_now,
            max_output_tokens,
            is_done: false,
        };
        Ok((admitted.cell_id, observation))
    }

    /// Terminates a cell when `parent` is cancelled, if it has not ended before.
    fn end_with(&self, parent: CancellationToken, cell_id: CellId, ended: CancellationToken) {
        let session = self.shared.clone();
        self.shared.runtime.spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                () = parent.cancelled() => {
                    session.event(|core, now| core.terminate(&cell_id, None, now));
                }
            }
        });
    }

    async fn observe(&self, request: WaitRequest, to_pending: bool) -> Answer {
        let (reply, answer) = oneshot::channel();
        let cell_id = request.cell_id;
        let how = (request.yield_time, to_pending);
        let observer = self
            .shared
            .event(|core, now| core.observe(&cell_id, how, reply, now));
        let observation = Observation {
            session: self.shared.clone(),
            cell_id,
            observer,
            answer,
            yield_now: request.yield_now,
            max_output_tokens: request.max_output_tokens,
            is_done: false,
        };
        observation.outcome().await
    }
}

impl std::fmt::Debug for HostSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostSession").finish_non_exhaustive()
    }
}

impl Drop for HostSession {
    fn drop(&mut self) {
        self.shared.shut_down();
    }
}

/// Says on an observation's span how it ended.
fn observed_by(span: &tracing::Span, answer: Answer) -> Answer {
    let response = match &answer {
        Ok(PendingOutcome::Observed(
            WaitOutcome::LiveCell(response) | WaitOutcome::MissingCell(response),
        )) => Some(response),
        Ok(PendingOutcome::Pending { .. }) | Err(_) => None,
    };
    match &answer {
        Ok(PendingOutcome::Pending { .. }) => {
            span.record("outcome", "pending");
        }
        _ => spans::observed(span, response),
    }
    answer
}

/// A request whose answer is on its way. Dropped before the answer was looked at, it
/// loses nothing: the core gives the answer to the next observer.
struct Observation {
    session: Arc<Shared>,
    cell_id: CellId,
    /// The observer's number, where the core has one.
    observer: Option<u64>,
    answer: oneshot::Receiver<Answer>,
    yield_now: CancellationToken,
    max_output_tokens: Option<u64>,
    is_done: bool,
}

impl Observation {
    async fn outcome(mut self) -> Answer {
        let received = tokio::select! {
            biased;
            received = &mut self.answer => received,
            () = self.yield_now.cancelled(), if self.observer.is_some() => {
                let observer = self.observer.unwrap_or_default();
                self.session
                    .event(|core, now| core.yield_now(&self.cell_id, observer, now));
                (&mut self.answer).await
            }
        };
        self.is_done = true;
        let mut outcome = received.unwrap_or(Err(SessionError::ShuttingDown))?;
        if let Some(tokens) = self.max_output_tokens {
            truncate::truncate(outcome.content_items_mut(), tokens);
        }
        Ok(outcome)
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        self.answer.close();
        match (self.answer.try_recv(), self.observer) {
            (Ok(Ok(outcome)), _) => self.session.event(|core, now| core.unclaimed(outcome, now)),
            (Err(_), Some(observer)) => self
                .session
                .event(|core, _| core.observer_gone(&self.cell_id, observer)),
            _ => {}
        }
    }
}

#[async_trait]
impl CodeModeSession for HostSession {
    async fn execute(&self, request: ExecuteRequest) -> Result<StartedCell, SessionError> {
        let (cell_id, observation) = self.admit(request, false).await?;
        Ok(StartedCell {
            cell_id,
            initial_response: Box::pin(async move {
                let outcome = observation.outcome().await?;
                Ok(outcome.into_wait_outcome().into_response())
            }),
        })
    }

    async fn wait(&self, request: WaitRequest) -> Result<WaitOutcome, SessionError> {
        let span = self.shared.spans.wait(&request.cell_id);
        let answer = self.observe(request, false).instrument(span.clone()).await;
        observed_by(&span, answer).map(PendingOutcome::into_wait_outcome)
    }

    async fn terminate(&self, cell_id: CellId) -> Result<WaitOutcome, SessionError> {
        let span = self.shared.spans.terminate(&cell_id);
        let (reply, answer) = oneshot::channel();
        self.shared
            .event(|core, now| core.terminate(&cell_id, Some(reply), now));
        let observation = Observation {
            session: self.shared.clone(),
            cell_id,
            observer: None,
            answer,
            yield_now: CancellationToken::new(),
            max_output_tokens: None,
            is_done: false,
        };
        let answer = observation.outcome().instrument(span.clone()).await;
        observed_by(&span, answer).map(PendingOutcome::into_wait_outcome)
    }

    async fn execute_to_pending(
        &self,
        request: ExecuteRequest,
    ) -> Result<StartedPendingCell, SessionError> {
        let (cell_id, observation) = self.admit(request, true).await?;
        Ok(StartedPendingCell {
            cell_id,
            initial_outcome: Box::pin(observation.outcome()),
        })
    }

    async fn wait_to_pending(&self, request: WaitRequest) -> Result<PendingOutcome, SessionError> {
        let span = self.shared.spans.wait(&request.cell_id);
        let answer = self.observe(request, true).instrument(span.clone()).await;
        observed_by(&span, answer)
    }

    fn pause(&self, cell: Option<&CellId>) -> Result<(), SessionError> {
        self.shared.event(|core, now| core.pause(cell, now))
    }

    fn resume(&self, cell: Option<&CellId>) -> Result<(), SessionError> {
        self.shared.event(|core, now| core.resume(cell, now))
    }

    fn live_cells(&self) -> Vec<CellId> {
        self.shared.look(|core| core.live_cells())
    }

    fn stored_values(&self) -> Vec<(String, Json)> {
        self.shared.look(|core| core.stored_values())
    }

    fn is_alive(&self) -> bool {
        !self.shared.token.is_cancelled() && !self.shared.look(|core| core.is_shutting_down())
    }

    async fn shutdown(&self) {
        let span = self.shared.spans.shutdown();
        self.shared.shut_down_and_wait().instrument(span).await;
    }
}
