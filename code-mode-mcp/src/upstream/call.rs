//! Calls of a server's tools.

use std::sync::atomic::Ordering;
use std::time::Duration;

use code_mode_host::TraceContext;
use rmcp::RoleClient;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CancelTaskParams, CancelTaskRequest,
    CancelledNotificationParam, ClientRequest, ElicitRequestParams, ElicitResult, InputRequest,
    InputRequiredResult, InputResponses, RequestId, RequestMetaObject, ServerResult,
};
use rmcp::service::{Peer, PeerRequestOptions, ServiceError};
use serde_json::{Map, Value};

use super::Upstream;
use super::error::{CallError, HttpFailure};
use super::task::{self, Task};
use crate::config::Transport;
use crate::texts::short;

/// A call with news may take so long.
const HARD_CALL_LIMIT: Duration = Duration::from_secs(600);
/// Rounds of questions that one call may have.
const MAX_ROUNDS: usize = 10;
/// How long a call waits for a server that is down.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Calls in a row that time out before a server is started again.
const TIMEOUTS: u32 = 3;

/// Answers the questions that a server asks within a call.
pub(crate) trait ElicitInCall: Send + Sync {
    fn elicit(
        &self,
        server: &str,
        params: ElicitRequestParams,
    ) -> impl Future<Output = ElicitResult> + Send;
}

impl Upstream {
    /// Calls a tool; questions of the server go to `questions`, and the request carries the span.
    /// Dropping the future sends the server a cancellation.
    pub(crate) async fn call(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
        span: Option<&TraceContext>,
        questions: &impl ElicitInCall,
    ) -> Result<Value, CallError> {
        let name = &self.config.name;
        let Some(peer) = self.ready_peer().await else {
            return Err(CallError::NotSent(self.state_in_words()));
        };
        let as_task = self
            .needs_task(tool)
            .then(|| task::request(tool, &arguments));
        let mut params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        for _ in 0..MAX_ROUNDS {
            let request = as_task.clone().unwrap_or_else(|| {
                ClientRequest::CallToolRequest(CallToolRequest::new(params.clone()))
            });
            let mut options = PeerRequestOptions::with_timeout(self.config.call_timeout)
                .reset_timeout_on_progress()
                .with_max_total_timeout(HARD_CALL_LIMIT);
            options.meta = span.map(meta_of);
            let sent = peer.send_request_with_option(request, options).await;
            let answer = match sent {
                Ok(handle) => {
                    let mut cancelling =
                        Cancelling(Some((peer.clone(), Running::Request(handle.id.clone()))));
                    let answer = handle.await_response().await;
                    // The library has cancelled a call that ran out of time.
                    cancelling.0 = None;
                    answer
                }
                Err(error) => Err(error),
            };
            match answer {
                Ok(ServerResult::InputRequiredResult(asked)) => {
                    params.request_state = asked.request_state.clone();
                    params.input_responses = Some(self.answer(asked, questions).await);
                }
                Ok(result) => {
                    self.timeouts.store(0, Ordering::Relaxed);
                    let result = serde_json::to_value(&result).map_err(|error| {
                        CallError::MayHaveRun(format!(
                            "the result of {name}/{tool} is malformed: {error}"
                        ))
                    })?;
                    return match Task::of(&result) {
                        None => Ok(result),
                        Some(task) => {
                            let meta = span.map(meta_of);
                            self.finish_task(&peer, tool, task, meta, questions).await
                        }
                    };
                }
                Err(error) => return Err(self.failed(tool, error).await),
            }
        }
        Err(CallError::MayHaveRun(format!(
            "{name}/{tool} asked more than {MAX_ROUNDS} times for input"
        )))
    }

    /// Whether the server takes calls of this tool as tasks only.
    fn needs_task(&self, tool: &str) -> bool {
        let tools = self.state().tools.clone();
        let mut named = tools.iter().filter(|known| known.name == tool);
        named.any(|known| task::is_required(&known.definition))
    }

    /// The connection, once there is one: a call wakes a server that is down, and waits
    /// for it as long as it may take to start.
    async fn ready_peer(&self) -> Option<Peer<RoleClient>> {
        let open = |peer: Option<Peer<RoleClient>>| peer.filter(|p| !p.is_transport_closed());
        if let Some(peer) = open(self.peer()) {
            return Some(peer);
        }
        if self.config.unusable.is_some() {
            return None;
        }
        self.wanted.notify_one();
        // The first start has other limits: a launcher may download for a minute.
        self.started().await;
        let limit = self.config.startup_timeout.min(LONGEST_WAIT);
        let ready = self.until(|state| open(state.peer.clone()).is_some());
        let _ = tokio::time::timeout(limit, ready).await;
        open(self.peer())
    }

    pub(super) async fn answer(
        &self,
        asked: InputRequiredResult,
        questions: &impl ElicitInCall,
    ) -> InputResponses {
        let mut answers = InputResponses::new();
        for (key, request) in asked.input_requests.unwrap_or_default() {
            let InputRequest::Elicitation(request) = request else {
                continue;
            };
            let answer = questions.elicit(&self.config.name, request.params).await;
            answers.insert(key, serde_json::to_value(answer).unwrap_or_default());
        }
        answers
    }

    pub(super) async fn failed(&self, tool: &str, error: ServiceError) -> CallError {
        let name = &self.config.name;
        match error {
            ServiceError::McpError(error) => CallError::Rpc(error),
            ServiceError::Timeout { timeout } => {
                let in_a_row = self.timeouts.fetch_add(1, Ordering::Relaxed) + 1;
                if in_a_row >= TIMEOUTS {
                    tracing::warn!(server = %name, "an MCP server does not answer; it is started again");
                    self.restart.notify_one();
                }
                CallError::MayHaveRun(format!(
                    "{name}/{tool} did not answer within {} s; it may have run",
                    timeout.as_secs()
                ))
            }
            ServiceError::TransportSend(error)
                if self.peer().is_some_and(|peer| !peer.is_transport_closed()) =>
            {
                let failure = HttpFailure::of(error.error.as_ref());
                if failure == HttpFailure::SessionExpired {
                    // The next call gets a new session.
                    self.restart.notify_one();
                }
                if failure.is_refusal() {
                    if matches!(self.config.transport, Transport::Sse(_)) && self.login.is_some() {
                        // This connection has its token from the start; the next has another.
                        self.restart.notify_one();
                    }
                    let words = failure.login_words(name).filter(|_| self.login.is_some());
                    let words = words.unwrap_or_else(|| failure.to_string());
                    return CallError::NotSent(format!("the server {name} {words}"));
                }
                CallError::MayHaveRun(format!("{name}/{tool}: {failure}; it may have run"))
            }
            ServiceError::TransportClosed | ServiceError::TransportSend(_) => {
                // The supervisor is about to find out why.
                let gone = self.until(|state| state.peer.is_none());
                let _ = tokio::time::timeout(Duration::from_secs(2), gone).await;
                let why = self.state().lost.clone();
                let why = why.unwrap_or_else(|| "the connection was lost".to_owned());
                CallError::MayHaveRun(format!(
                    "the server {name} went away during {tool} ({why}); it may have run"
                ))
            }
            error => CallError::MayHaveRun(format!(
                "{name}/{tool} failed: {}; it may have run",
                short(&self.events.secrets.hide(&error.to_string()))
            )),
        }
    }
}

/// A span as servers find it with a call.
fn meta_of(span: &TraceContext) -> RequestMetaObject {
    let mut meta = RequestMetaObject::default();
    meta.set_traceparent(&span.traceparent);
    if let Some(tracestate) = &span.tracestate {
        meta.set_tracestate(tracestate);
    }
    meta
}

/// Cancels a call or its task at the server, where nobody waits for the result any more.
pub(super) struct Cancelling(pub(super) Option<(Peer<RoleClient>, Running)>);

/// What runs at a server for a call.
pub(super) enum Running {
    Request(RequestId),
    Task(String),
}

impl Drop for Cancelling {
    fn drop(&mut self) {
        let Some((peer, running)) = self.0.take() else {
            return;
        };
        // Without a runtime the connection does not exist either.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                match running {
                    Running::Request(id) => {
                        let reason = Some("nobody waits for the answer any more".to_owned());
                        let mut params = CancelledNotificationParam::new(Some(id), reason);
                        params.meta = None;
                        let _ = peer.notify_cancelled(params).await;
                    }
                    Running::Task(id) => {
                        let cancel = CancelTaskRequest::new(CancelTaskParams::new(id));
                        let cancel = ClientRequest::CancelTaskRequest(cancel);
                        let _ = peer.send_request(cancel).await;
                    }
                }
            });
        }
    }
}
