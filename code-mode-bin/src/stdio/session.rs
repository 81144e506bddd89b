//! One session of a connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use code_mode_host::HostSession;
use code_mode_protocol::stdio::{HostMessage, Outcome, TimedOutcome, TimedResponse, Value};
use code_mode_protocol::{
    CellId, CellResponse, CodeModeSession, ExecuteRequest, SessionError, ToolDefinition, ToolSet,
    WaitOutcome, WaitRequest,
};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::bounded::Bounding;
use super::delegate::Operations;
use super::outbound::{Outbound, TooLarge};

/// What a request that cannot be answered in a frame is answered with.
const TOO_LARGE: &str = "the output does not fit a frame of the stdio wire";

/// A session, and the tools its last execute had.
pub(super) struct StdioSession {
    pub(super) host: Arc<HostSession>,
    pub(super) operations: Operations,
    /// As the client wrote them, and as they were understood: agents send the
    /// same definitions with every execute.
    tools: Option<(Box<RawValue>, ToolSet)>,
    /// Who makes its output fit the budget of a request.
    pub(super) bounding: Bounding,
}

/// How a request is answered and ended.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) id: u64,
    pub(super) outbound: Outbound,
    /// `operation/yield` for it.
    pub(super) yield_now: CancellationToken,
    /// `operation/cancel` for it.
    pub(super) cancelled: CancellationToken,
    pub(super) received: Instant,
    /// The tokens of output that are wanted, and who sees to it.
    pub(super) budget: (Bounding, Option<u64>),
}

impl Handle {
    pub(super) fn respond(&self, result: Result<Value, impl ToString>) {
        let message = HostMessage::Response {
            id: self.id,
            result: result.into(),
        };
        if let Err(TooLarge) = self.outbound.try_send(message) {
            let result = Outcome::Error {
                message: TOO_LARGE.to_owned(),
            };
            let id = self.id;
            self.outbound.send(HostMessage::Response { id, result });
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
        let id = self.id;
        let result = result.into();
        let message = HostMessage::InitialResponse { id, result };
        if let Err(TooLarge) = self.outbound.try_send(message) {
            let result = Outcome::Error {
                message: TOO_LARGE.to_owned(),
            };
            self.outbound
                .send(HostMessage::InitialResponse { id, result });
        }
    }

    fn outcome(&self, result: Result<WaitOutcome, SessionError>) {
        self.respond(result.map(|mut outcome| {
            if let WaitOutcome::LiveCell(response) = &mut outcome {
                self.cut(response);
            }
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
    }
}

impl StdioSession {
    pub(super) fn new(host: Arc<HostSession>, operations: Operations, bounding: Bounding) -> Self {
        Self {
            host,
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
        handle: Handle,
        tool_call_id: String,
        tools: ToolSet,
        source: String,
        yield_time: Option<Duration>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (host, operations) = (self.host.clone(), self.operations.clone());
        let request = ExecuteRequest {
            tool_call_id,
            enabled_tools: tools,
            source,
            yield_time,
            max_output_tokens: None,
            yield_now: handle.yield_now.clone(),
        };
        async move {
            let started = match host.execute(request).await {
                Ok(started) => started,
                Err(error) => return handle.respond(Err(error)),
            };
            let cell_id = started.cell_id.as_str().to_owned();
            handle.respond(Ok::<_, SessionError>(Value::ExecutionStarted { cell_id }));
            let observed = operations.of(&started.cell_id).token();
            tokio::select! {
                response = started.initial_response => handle.initial_response(response),
                () = handle.cancelled.cancelled() => {}
            }
            drop(observed);
        }
    }

    /// Observes a cell.
    pub(super) fn wait(
        &self,
        handle: Handle,
        cell_id: CellId,
        yield_time: Option<Duration>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let host = self.host.clone();
        let observed = self.operations.of(&cell_id).token();
        let request = WaitRequest {
            cell_id,
            yield_time,
            yield_now: handle.yield_now.clone(),
        };
        async move {
            tokio::select! {
                outcome = host.wait(request) => handle.outcome(outcome),
                () = handle.cancelled.cancelled() => {}
            }
            drop(observed);
        }
    }

    /// Stops a cell.
    pub(super) fn terminate(
        &self,
        handle: Handle,
        cell_id: CellId,
    ) -> impl Future<Output = ()> + Send + use<> {
        let host = self.host.clone();
        let observed = self.operations.of(&cell_id).token();
        async move {
            handle.outcome(host.terminate(cell_id).await);
            drop(observed);
        }
    }
}
