//! A session as an agent core has it.

use std::sync::Arc;

use async_trait::async_trait;
use code_mode_protocol::{
    CellId, CellResponse, CellStarted, CodeModeSession, ExecuteRequest, Json, Pause, RunningCell,
    SessionError, TerminateRequest, WaitRequest, truncate,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::core::{Answer, Execute, NotAdmitted};
use super::driver::Shared;
use super::observers::tell;
use super::spans;
use crate::trace::Recorder;

/// A session of a [`Provider`](crate::Provider): one agent's cells and the values they store.
///
/// Clones are handles of the same session; dropping the last one shuts the session down.
/// Dropping the future of an observation ends that observation only: the cell continues, and
/// what it would have returned is kept for the next one.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
    _last: Arc<ShutDownOnDrop>,
}

/// Shuts the session down when its last handle is dropped.
struct ShutDownOnDrop(Arc<Shared>);

impl Drop for ShutDownOnDrop {
    fn drop(&mut self) {
        self.0.shut_down();
    }
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            _last: Arc::new(ShutDownOnDrop(shared.clone())),
            shared,
        }
    }

    async fn admit(
        &self,
        mut request: ExecuteRequest,
        to_pending: bool,
    ) -> Result<(CellId, Observing), SessionError> {
        let yield_now = request.yield_now.clone();
        let max_output_tokens = request.max_output_tokens;
        let parent = request.parent.take();
        if let Some(inputs) = &self.shared.inputs {
            request.enabled_tools = inputs.readable(&request.enabled_tools).await;
        }
        if self.shared.journal.is_some() {
            // A cell that runs again takes its turns from the journal.
            let of_cell = request
                .determinism
                .get_or_insert_with(Recorder::determinism);
            of_cell.turns = None;
        }
        let recorder = self.shared.recorder.clone();
        if recorder
            .as_ref()
            .is_some_and(|recorder| recorder.has_contents())
        {
            request
                .determinism
                .get_or_insert_with(Recorder::determinism);
        }
        let recording = recorder.map(|recorder| {
            let stored = match recorder.has_contents() {
                true => self.stored_values(),
                false => Vec::new(),
            };
            (recorder, request.clone(), stored)
        });
        let (reply, answer) = oneshot::channel();
        let tool_call_id = request.tool_call_id.clone();
        let exec = self.shared.spans.exec(&mut request);
        let span = exec.span.clone();
        let mut execute = Execute {
            request,
            to_pending,
            reply,
            exec,
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
        let observing = Observing {
            session: self.shared.clone(),
            cell_id: admitted.cell_id.clone(),
            observer: Some(admitted.observer),
            answer,
            yield_now,
            max_output_tokens,
            waiting: None,
            is_done: false,
        };
        if let Some((recorder, request, stored)) = recording {
            recorder.executed(&admitted.cell_id, &request, stored);
        }
        self.shared.flushed().await?;
        let started = CellStarted::new(admitted.cell_id.clone(), tool_call_id);
        tell(&self.shared.told.observers, |one| {
            one.cell_started(&started)
        })
        .await;
        Ok((admitted.cell_id, observing))
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
        let id = request.tool_call_id.as_deref();
        let span = self.shared.spans.wait(&request.cell_id, id);
        let answer = self.observing(request, to_pending);
        let answer = answer.instrument(span.clone()).await;
        observed_by(&span, answer)
    }

    async fn observing(&self, request: WaitRequest, to_pending: bool) -> Answer {
        let (reply, answer) = oneshot::channel();
        let cell_id = request.cell_id;
        let how = (request.yield_time, to_pending);
        let observer = self
            .shared
            .event(|core, now| core.observe(&cell_id, how, reply, now));
        let observing = Observing {
            session: self.shared.clone(),
            cell_id,
            observer,
            answer,
            yield_now: request.yield_now,
            max_output_tokens: request.max_output_tokens,
            waiting: None,
            is_done: false,
        };
        observing.response().await
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// Says on an observation's span how it ended.
fn observed_by(span: &tracing::Span, answer: Answer) -> Answer {
    match &answer {
        Ok(CellResponse::Pending { .. }) => {
            span.record("outcome", "pending");
        }
        answer => spans::observed(span, answer.as_ref().ok()),
    }
    answer
}

/// The response of an observation that was not made to pending. Its cell may have been frozen
/// by an earlier one, which says the same as a yield.
fn plain(response: CellResponse) -> CellResponse {
    match response {
        CellResponse::Pending {
            cell_id,
            content_items,
            ..
        } => CellResponse::Yielded {
            cell_id,
            content_items,
        },
        response => response,
    }
}

/// A request whose answer is on its way. Dropped before the answer was looked at, it
/// loses nothing: the core gives the answer to the next observer.
struct Observing {
    session: Arc<Shared>,
    cell_id: CellId,
    /// The observer's number, where the core has one.
    observer: Option<u64>,
    answer: oneshot::Receiver<Answer>,
    yield_now: CancellationToken,
    max_output_tokens: Option<u64>,
    /// In a durable session: the response, while the disk does not have all that led to it.
    waiting: Option<CellResponse>,
    is_done: bool,
}

impl Observing {
    async fn response(mut self) -> Answer {
        let received = tokio::select! {
            biased;
            received = &mut self.answer => received,
            observer = yield_asked(&self.yield_now, self.observer) => {
                self.session
                    .event(|core, now| core.yield_now(&self.cell_id, observer, now));
                (&mut self.answer).await
            }
        };
        let mut response = match received {
            Ok(Ok(response)) if self.session.journal.is_some() => {
                let response = self.waiting.insert(response);
                let (cell, items) = (response.cell_id().clone(), response.content_items().len());
                let is_final = response.is_final() && !response.is_missing();
                let flushed = self.session.flushed().await;
                self.is_done = true;
                let response = self.waiting.take();
                flushed?;
                self.session
                    .event(|core, _| core.handed_over(&cell, items, is_final));
                response.ok_or(SessionError::ShuttingDown)?
            }
            received => {
                self.is_done = true;
                received.unwrap_or(Err(SessionError::ShuttingDown))?
            }
        };
        if let Some(recorder) = &self.session.recorder
            && !response.is_missing()
        {
            recorder.observed(&response);
        }
        if let Some(tokens) = self.max_output_tokens {
            truncate::truncate(response.content_items_mut(), tokens);
        }
        Ok(response)
    }
}

/// Waits until the caller wants an observation to end with what there is; returns the number
/// of the observer.
async fn yield_asked(yield_now: &CancellationToken, observer: Option<u64>) -> u64 {
    match observer {
        Some(observer) => {
            yield_now.cancelled().await;
            observer
        }
        None => std::future::pending().await,
    }
}

impl Drop for Observing {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        if let Some(response) = self.waiting.take() {
            return self
                .session
                .event(|core, now| core.unclaimed(response, now));
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

/// The methods of [`CodeModeSession`], which has their documentation, so that no trait must be
/// imported to call them.
impl Session {
    /// Admits a cell; see [`CodeModeSession::execute`].
    ///
    /// # Errors
    /// Those of [`CodeModeSession::execute`].
    pub async fn execute(&self, request: ExecuteRequest) -> Result<RunningCell, SessionError> {
        let (cell_id, observing) = self.admit(request, false).await?;
        let response = async move { observing.response().await.map(plain) };
        Ok(RunningCell::new(cell_id, response))
    }

    /// Observes a cell; see [`CodeModeSession::wait`].
    ///
    /// # Errors
    /// Those of [`CodeModeSession::wait`].
    pub async fn wait(&self, request: WaitRequest) -> Result<CellResponse, SessionError> {
        self.observe(request, false).await.map(plain)
    }

    /// Stops a cell; see [`CodeModeSession::terminate`].
    ///
    /// # Errors
    /// Those of [`CodeModeSession::terminate`].
    pub async fn terminate(
        &self,
        request: impl Into<TerminateRequest> + Send,
    ) -> Result<CellResponse, SessionError> {
        let request = request.into();
        let cell_id = request.cell_id;
        let id = request.tool_call_id.as_deref();
        let span = self.shared.spans.terminate(&cell_id, id);
        let (reply, answer) = oneshot::channel();
        self.shared
            .event(|core, now| core.terminate(&cell_id, Some(reply), now));
        let observing = Observing {
            session: self.shared.clone(),
            cell_id,
            observer: None,
            answer,
            yield_now: CancellationToken::new(),
            max_output_tokens: None,
            waiting: None,
            is_done: false,
        };
        let answer = observing.response().instrument(span.clone()).await;
        observed_by(&span, answer).map(plain)
    }

    /// Admits a cell that is frozen when it has no work; see
    /// [`CodeModeSession::execute_to_pending`].
    ///
    /// # Errors
    /// Those of [`CodeModeSession::execute_to_pending`].
    pub async fn execute_to_pending(
        &self,
        request: ExecuteRequest,
    ) -> Result<RunningCell, SessionError> {
        let (cell_id, observing) = self.admit(request, true).await?;
        Ok(RunningCell::new(cell_id, observing.response()))
    }

    /// Observes a cell until it is frozen again; see [`CodeModeSession::wait_to_pending`].
    ///
    /// # Errors
    /// Those of [`CodeModeSession::wait_to_pending`].
    pub async fn wait_to_pending(
        &self,
        request: WaitRequest,
    ) -> Result<CellResponse, SessionError> {
        self.observe(request, true).await
    }

    /// Stops the deadlines of the session, or of one cell; see [`CodeModeSession::pause`].
    ///
    /// # Errors
    /// Those of [`CodeModeSession::pause`].
    pub fn pause(&self, cell: Option<&CellId>) -> Result<u32, SessionError> {
        self.shared.event(|core, now| core.pause(cell, now))
    }

    /// Ends one pause; see [`CodeModeSession::resume`].
    ///
    /// # Errors
    /// Those of [`CodeModeSession::resume`].
    pub fn resume(&self, cell: Option<&CellId>) -> Result<u32, SessionError> {
        self.shared.event(|core, now| core.resume(cell, now))
    }

    /// Stops the deadlines of the session, or of one cell, until the returned value is
    /// dropped.
    ///
    /// # Errors
    /// Those of [`CodeModeSession::pause`].
    pub fn hold(&self, cell: Option<&CellId>) -> Result<Pause, SessionError> {
        self.shared.hold(cell)
    }

    /// The cells that were admitted and have not ended, in order of admission.
    pub fn live_cells(&self) -> Vec<CellId> {
        self.shared.look(|core| core.live_cells())
    }

    /// The cells that an observer can still observe: those that have not ended, and those with a result that
    /// nobody has taken; in order of admission.
    pub fn cells_to_observe(&self) -> Vec<CellId> {
        self.shared.look(|core| core.cells_to_observe())
    }

    /// The values that cells have stored: key and value, in order of the keys.
    pub fn stored_values(&self) -> Vec<(String, Json)> {
        self.shared.look(|core| core.stored_values())
    }

    /// Whether cells can still be admitted.
    pub fn is_alive(&self) -> bool {
        !self.shared.token.is_cancelled() && !self.shared.look(|core| core.is_shutting_down())
    }

    /// Waits until the session has shut down; see [`CodeModeSession::closed`].
    pub async fn closed(&self) {
        self.shared.closed().await;
    }

    /// Stops every cell; see [`CodeModeSession::shutdown`].
    pub async fn shutdown(&self) {
        let span = self.shared.spans.shutdown();
        let shut_down = self.shared.shut_down_and_wait(true);
        shut_down.instrument(span).await;
    }
}

#[async_trait]
impl CodeModeSession for Session {
    async fn execute(&self, request: ExecuteRequest) -> Result<RunningCell, SessionError> {
        Session::execute(self, request).await
    }

    async fn wait(&self, request: WaitRequest) -> Result<CellResponse, SessionError> {
        Session::wait(self, request).await
    }

    async fn terminate(&self, request: TerminateRequest) -> Result<CellResponse, SessionError> {
        Session::terminate(self, request).await
    }

    async fn execute_to_pending(
        &self,
        request: ExecuteRequest,
    ) -> Result<RunningCell, SessionError> {
        Session::execute_to_pending(self, request).await
    }

    async fn wait_to_pending(&self, request: WaitRequest) -> Result<CellResponse, SessionError> {
        Session::wait_to_pending(self, request).await
    }

    fn pause(&self, cell: Option<&CellId>) -> Result<u32, SessionError> {
        Session::pause(self, cell)
    }

    fn resume(&self, cell: Option<&CellId>) -> Result<u32, SessionError> {
        Session::resume(self, cell)
    }

    fn live_cells(&self) -> Vec<CellId> {
        Session::live_cells(self)
    }

    fn stored_values(&self) -> Vec<(String, Json)> {
        Session::stored_values(self)
    }

    fn is_alive(&self) -> bool {
        Session::is_alive(self)
    }

    async fn closed(&self) {
        Session::closed(self).await;
    }

    async fn shutdown(&self) {
        Session::shutdown(self).await;
    }
}
