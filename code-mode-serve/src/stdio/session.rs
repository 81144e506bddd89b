//! One session of a connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use code_mode_host::{
    CellId, CellResponse, ExecuteRequest, Session, SessionError, ToolDefinition, ToolSet,
    WaitRequest, normalize_tool_name,
};
use code_mode_protocol::wire::stdio::{
    GuidedDefinition, HostMessage, MAX_FRAME_BYTES, TimedResponse, Value,
};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use serde::de::Error as _;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::delegate::Guided;
use super::durable::Durable;
use super::outbound::{ToClient, TooLarge};
use crate::core::{Budget, Cells, Encoding, Tokens, TruncatedBy};

/// What a request that cannot be answered in a frame is answered with.
const TOO_LARGE: &str = "the answer does not fit a frame of the stdio wire";

/// A session that may still be opening: requests that come meanwhile wait for it.
pub(super) type Opening = Shared<BoxFuture<'static, Result<Session, SessionError>>>;

/// A session, and the tools its last execute had.
pub(super) struct StdioSession {
    pub(super) opening: Opening,
    cells: Cells<()>,
    /// Cancelled when the session is shut down.
    pub(super) gone: CancellationToken,
    /// As the client wrote them, and as they were understood: agents send the same
    /// definitions with every execute.
    tools: Option<(Box<RawValue>, ToolSet)>,
    truncated_by: TruncatedBy,
    guided: Option<Arc<Guided>>,
    durable: Option<Arc<Durable>>,
}

/// How a request is answered and ended.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) client: ToClient,
    /// Cancelled by `operation/yield` and `operation/cancel` for it.
    pub(super) tokens: Tokens,
    pub(super) received: Instant,
    pub(super) budget: Budget,
    /// Of a guided session.
    guided: Option<Arc<Guided>>,
}

impl Request {
    pub(super) fn new(id: u64, client: ToClient, budget: Budget) -> Self {
        Self {
            id,
            client,
            tokens: Tokens::default(),
            received: Instant::now(),
            budget,
            guided: None,
        }
    }

    /// The same request with the tokens of its observation.
    pub(super) fn observing(mut self, tokens: Tokens) -> Self {
        self.tokens = tokens;
        self
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
        let result = result.map(|response| self.timed(response));
        let result = result.map_err(|error| error.to_string());
        let id = self.id;
        let message = HostMessage::InitialResponse { id, result };
        if let Err(TooLarge) = self.client.try_send(message) {
            let result = Err(TOO_LARGE.to_owned());
            self.client
                .send(HostMessage::InitialResponse { id, result });
        }
    }

    fn outcome(&self, result: Result<CellResponse, SessionError>) {
        self.respond(result.map(|response| Value::WaitCompleted {
            outcome: self.timed(response),
        }));
    }

    /// The response as it is sent.
    fn timed(&self, mut response: CellResponse) -> TimedResponse {
        let guided = self.guided.as_ref();
        let guided = guided
            .and_then(|guided| guided.end(&response))
            .map(Box::new);
        self.budget
            .apply(&mut response, MAX_FRAME_BYTES, Encoding::Json);
        TimedResponse {
            response,
            host_duration: self.received.elapsed(),
            guided,
        }
    }
}

impl StdioSession {
    pub(super) fn new(
        opening: impl Future<Output = Result<Session, SessionError>> + Send + 'static,
        cells: Cells<()>,
        gone: CancellationToken,
        truncated_by: TruncatedBy,
        guided: Option<Arc<Guided>>,
    ) -> Self {
        Self {
            opening: opening.boxed().shared(),
            cells,
            gone,
            tools: None,
            truncated_by,
            guided,
            durable: None,
        }
    }

    /// The same session, which is kept in the journal.
    pub(super) fn durable_as(mut self, durable: Option<Arc<Durable>>) -> Self {
        self.durable = durable;
        self
    }

    /// Its part of the journal.
    pub(super) fn durable(&self) -> Option<Arc<Durable>> {
        self.durable.clone()
    }

    /// The budget of a request that names so many tokens.
    pub(super) fn budget(&self, tokens: Option<u64>) -> Budget {
        Budget {
            by: self.truncated_by,
            tokens,
        }
    }

    /// The budget that a guided session cuts output to by itself.
    pub(super) fn own_budget(&self, tokens: Option<u64>) -> Option<u64> {
        tokens.filter(|_| self.is_guided())
    }

    pub(super) fn is_guided(&self) -> bool {
        self.guided.is_some()
    }

    /// The definitions in a request.
    ///
    /// # Errors
    /// Where they are not definitions; in a guided session also where programs could not tell two
    /// of them apart.
    pub(super) fn tools(&mut self, json: &RawValue) -> Result<ToolSet, serde_json::Error> {
        if let Some((known, tools)) = &self.tools
            && known.get() == json.get()
        {
            return Ok(tools.clone());
        }
        let tools: ToolSet = match self.guided {
            None => serde_json::from_str::<Vec<ToolDefinition>>(json.get())?.into(),
            Some(_) => {
                let tools: Vec<GuidedDefinition> = serde_json::from_str(json.get())?;
                let tools: ToolSet = tools.into_iter().map(ToolDefinition::from).collect();
                check_names(&tools)?;
                tools
            }
        };
        self.tools = Some((json.to_owned(), tools.clone()));
        Ok(tools)
    }

    /// Runs a cell: `execution/started`, then its first observation.
    pub(super) fn execute(
        &self,
        mut request: Request,
        mut execute: ExecuteRequest,
        yield_time: Option<Duration>,
    ) -> impl Future<Output = ()> + Send + use<> {
        request.guided = self.guided.clone();
        let (opening, cells) = (self.opening.clone(), self.cells.clone());
        execute.yield_time = yield_time;
        execute.yield_now = request.tokens.yield_now.clone();
        async move {
            let started = match opening.await {
                Ok(session) => session.execute(execute).await,
                Err(error) => Err(error),
            };
            let started = match started {
                Ok(started) => started,
                Err(error) => return request.respond(Err(error)),
            };
            let cell_id = started.id().as_str().to_owned();
            let observed = cells.admitted(started.id().clone(), ());
            request.respond(Ok::<_, SessionError>(Value::ExecutionStarted { cell_id }));
            tokio::select! {
                response = started.outcome() => request.initial_response(response),
                () = request.tokens.cancel.cancelled() => {}
            }
            drop(observed);
        }
    }

    /// Observes a cell.
    pub(super) fn wait(
        &self,
        mut request: Request,
        cell_id: CellId,
        (yield_time, max_output_tokens): (Option<Duration>, Option<u64>),
    ) -> impl Future<Output = ()> + Send + use<> {
        request.guided = self.guided.clone();
        let opening = self.opening.clone();
        let observed = self.cells.request(&cell_id);
        let mut wait = WaitRequest::new(cell_id).yield_now(request.tokens.yield_now.clone());
        (wait.yield_time, wait.max_output_tokens) = (yield_time, max_output_tokens);
        async move {
            let outcome = async { opening.await?.wait(wait).await };
            tokio::select! {
                outcome = outcome => request.outcome(outcome),
                () = request.tokens.cancel.cancelled() => {}
            }
            drop(observed);
        }
    }

    /// Stops a cell.
    pub(super) fn terminate(
        &self,
        mut request: Request,
        cell_id: CellId,
    ) -> impl Future<Output = ()> + Send + use<> {
        request.guided = self.guided.clone();
        let opening = self.opening.clone();
        let observed = self.cells.request(&cell_id);
        async move {
            request.outcome(async { opening.await?.terminate(cell_id).await }.await);
            drop(observed);
        }
    }
}

/// Programs reach a tool by its normalised name, so that no two tools may have one.
fn check_names(tools: &[ToolDefinition]) -> Result<(), serde_json::Error> {
    let mut known = HashMap::new();
    for tool in tools {
        let name = normalize_tool_name(&tool.name);
        if let Some(other) = known.insert(name.clone(), &tool.name) {
            return Err(serde_json::Error::custom(format!(
                "programs would reach both {other:?} and {:?} as tools.{name}",
                tool.name
            )));
        }
    }
    Ok(())
}
