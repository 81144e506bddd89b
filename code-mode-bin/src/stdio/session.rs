//! One session of a connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use code_mode_host::{
    CellId, CellResponse, CodeModeSession, ExecuteRequest, SessionError, ToolDefinition, ToolSet,
    WaitOutcome, WaitRequest,
};
use code_mode_protocol::wire::stdio::{
    HostMessage, MAX_FRAME_BYTES, TimedOutcome, TimedResponse, Value,
};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::delegate::Operations;
use super::outbound::{ToClient, TooLarge};
use crate::bounded::Bounding;
use crate::fit::{Encoding, fit};

/// What a request that cannot be answered in a frame is answered with.
const TOO_LARGE: &str = "the answer does not fit a frame of the stdio wire";

/// A session that may still be opening: requests that come meanwhile wait for it.
pub(super) type Opening =
    Shared<BoxFuture<'static, Result<Arc<dyn CodeModeSession>, SessionError>>>;

/// A session, and the tools its last execute had.
pub(super) struct StdioSession {
    pub(super) host: Opening,
    operations: Operations,
    /// As the client wrote them, and as they were understood: agents send the same
    /// definitions with every execute.
    tools: Option<(Box<RawValue>, ToolSet)>,
    /// The side that makes its output fit the budget of a request.
    pub(super) bounding: Bounding,
}

/// How a request is answered and ended.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) client: ToClient,
    /// `operation/yield` for it.
    pub(super) yield_now: CancellationToken,
    /// `operation/cancel` for it.
    pub(super) cancelled: CancellationToken,
    pub(super) received: Instant,
    /// The side that cuts the output, and to how many tokens.
    pub(super) budget: (Bounding, Option<u64>),
}

impl Request {
    pub(super) fn new(id: u64, client: ToClient, budget: (Bounding, Option<u64>)) -> Self {
        Self {
            id,
            client,
            yield_now: CancellationToken::new(),
            cancelled: CancellationToken::new(),
            received: Instant::now(),
            budget,
        }
    }

    pub(super) fn respond(&self, result: Result<Value, impl ToString>) {
        let result = result.map_err(|error| error.to_string());
        let id = self.id;
        if let Err(TooLarge) = self.client.try_send(HostMessage::Response { id, result }) {
            let result = Err(TOO_LARGE.to_owned());
            self.client.send(HostMessage::Response { id, result });
        }
    }

    fn initial_response(&self, result: Result<CellResponse, SessionError>) {
        let result = result.map(|mut response| {
            self.cut(&mut response);
            TimedResponse {
                response,
                host_duration: self.received.elapsed(),
            }
        });
        let result = result.map_err(|error| error.to_string());
        let id = self.id;
        let message = HostMessage::InitialResponse { id, result };
        if let Err(TooLarge) = self.client.try_send(message) {
            let result = Err(TOO_LARGE.to_owned());
            self.client
                .send(HostMessage::InitialResponse { id, result });
        }
    }

    fn outcome(&self, result: Result<WaitOutcome, SessionError>) {
        self.respond(result.map(|mut outcome| {
            let (WaitOutcome::LiveCell(response) | WaitOutcome::MissingCell(response)) =
                &mut outcome;
            self.cut(response);
            Value::WaitCompleted {
                outcome: TimedOutcome {
                    outcome,
                    host_duration: self.received.elapsed(),
                },
            }
        }));
    }

    fn cut(&self, response: &mut CellResponse) {
        let (bounding, tokens) = self.budget;
        bounding.apply(response, tokens);
        fit(response, MAX_FRAME_BYTES, Encoding::Json);
    }
}

impl StdioSession {
    pub(super) fn new(
        host: impl Future<Output = Result<Arc<dyn CodeModeSession>, SessionError>> + Send + 'static,
        operations: Operations,
        bounding: Bounding,
    ) -> Self {
        Self {
            host: host.boxed().shared(),
            operations,
            tools: None,
            bounding,
        }
    }

    /// The definitions in a request.
    pub(super) fn tools(&mut self, json: &RawValue) -> Result<ToolSet, serde_json::Error> {
        if let Some((known, tools)) = &self.tools
            && known.get() == json.get()
        {
            return Ok(tools.clone());
        }
        let tools: Vec<ToolDefinition> = serde_json::from_str(json.get())?;
        let tools = ToolSet::from(tools);
        self.tools = Some((json.to_owned(), tools.clone()));
        Ok(tools)
    }

    /// Runs a cell: `execution/started`, then its first observation.
    pub(super) fn execute(
        &self,
        request: Request,
        mut execute: ExecuteRequest,
        yield_time: Option<Duration>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (host, operations) = (self.host.clone(), self.operations.clone());
        execute.yield_time = yield_time;
        execute.yield_now = request.yield_now.clone();
        async move {
            let started = match host.await {
                Ok(host) => host.execute(execute).await,
                Err(error) => Err(error),
            };
            let started = match started {
                Ok(started) => started,
                Err(error) => return request.respond(Err(error)),
            };
            let cell_id = started.cell_id.as_str().to_owned();
            let observed = operations.of(&started.cell_id).token();
            request.respond(Ok::<_, SessionError>(Value::ExecutionStarted { cell_id }));
            tokio::select! {
                response = started.initial_response => request.initial_response(response),
                () = request.cancelled.cancelled() => {}
            }
            drop(observed);
        }
    }

    /// Observes a cell.
    pub(super) fn wait(
        &self,
        request: Request,
        cell_id: CellId,
        yield_time: Option<Duration>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let host = self.host.clone();
        let observed = self.operations.about(&cell_id);
        let mut wait = WaitRequest::new(cell_id).yield_now(request.yield_now.clone());
        wait.yield_time = yield_time;
        async move {
            let outcome = async { host.await?.wait(wait).await };
            tokio::select! {
                outcome = outcome => request.outcome(outcome),
                () = request.cancelled.cancelled() => {}
            }
            drop(observed);
        }
    }

    /// Stops a cell.
    pub(super) fn terminate(
        &self,
        request: Request,
        cell_id: CellId,
    ) -> impl Future<Output = ()> + Send + use<> {
        let host = self.host.clone();
        let observed = self.operations.about(&cell_id);
        async move {
            request.outcome(async { host.await?.terminate(cell_id).await }.await);
            drop(observed);
        }
    }
}
