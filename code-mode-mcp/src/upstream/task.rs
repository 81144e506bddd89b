//! Calls that a server answers with a task, whose state the gateway requests until it has ended.
//!
//! Both forms of the protocol are spoken. In the extension `io.modelcontextprotocol/tasks` of
//! 2026-07-28 the server decides, and `tasks/get` gives the result. In the experimental tasks of
//! 2025-11-25 the client decides: a tool says that it needs a task, the call carries one, and
//! `tasks/result` gives the result.

use std::time::{Duration, Instant};

use rmcp::RoleClient;
use rmcp::model::{
    ClientRequest, CustomRequest, ErrorData, GetTaskParams, GetTaskRequest, InputRequests,
    InputRequiredResult, RequestMetaObject, UpdateTaskParams, UpdateTaskRequest,
};
use rmcp::service::{Peer, PeerRequestOptions, ServiceError};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Upstream;
use super::call::{Cancelling, ElicitInCall, Running};
use super::error::CallError;

/// A task may take so long in all.
const HARD_TASK_LIMIT: Duration = Duration::from_secs(3600);
/// How long the server is left alone between two questions, where it does not say.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// The bounds of the time that it may say.
const SHORTEST_POLL: Duration = Duration::from_millis(100);
const LONGEST_POLL: Duration = Duration::from_secs(15);
/// Rounds of questions that one task may have.
const MAX_ROUNDS: usize = 10;
/// The longest name of a task.
const LONGEST_ID: usize = 1024;

/// Whether a tool is called as a task only, in the form of 2025-11-25.
pub(super) fn is_required(definition: &Value) -> bool {
    definition.pointer("/execution/taskSupport") == Some(&Value::from("required"))
}

/// The request of a call that asks for a task.
pub(super) fn request(tool: &str, arguments: &Map<String, Value>) -> ClientRequest {
    let ttl = u64::try_from(HARD_TASK_LIMIT.as_millis()).unwrap_or(u64::MAX);
    let params = json!({"name": tool, "arguments": arguments, "task": {"ttl": ttl}});
    ClientRequest::CustomRequest(CustomRequest::new("tools/call", Some(params)))
}

/// A task that a server has begun instead of an answer.
#[derive(Debug, PartialEq)]
pub(super) struct Task {
    id: String,
    is_legacy: bool,
    poll_every: Duration,
}

impl Task {
    /// The task in an answer to a call; `None` where the answer is a result.
    pub(super) fn of(answer: &Value) -> Option<Self> {
        let is_modern = answer.get("resultType").and_then(Value::as_str) == Some("task");
        let (task, is_legacy) = match answer.get("task") {
            _ if is_modern => (answer, false),
            Some(task) if answer.get("content").is_none() => (task, true),
            _ => return None,
        };
        let id = task.get("taskId")?.as_str()?;
        (id.len() <= LONGEST_ID).then(|| Self {
            id: id.to_owned(),
            is_legacy,
            poll_every: poll_every(task).unwrap_or(POLL_EVERY),
        })
    }
}

/// The interval between two requests for the state of a task, as that state has it.
fn poll_every(task: &Value) -> Option<Duration> {
    let ms = task.get("pollIntervalMs").or(task.get("pollInterval"))?;
    let every = Duration::from_millis(ms.as_u64()?);
    Some(every.clamp(SHORTEST_POLL, LONGEST_POLL))
}

/// The state of a task as a server reports it, in either form.
#[derive(Deserialize)]
struct State {
    status: String,
    #[serde(default, rename = "statusMessage")]
    message: Option<String>,
    #[serde(default, rename = "inputRequests")]
    questions: Option<InputRequests>,
    #[serde(default)]
    result: Option<Map<String, Value>>,
    #[serde(default)]
    error: Option<ErrorData>,
}

impl Upstream {
    /// Waits for the end of a task that a call of `tool` has become. Dropping the future cancels the
    /// task at its server.
    pub(super) async fn finish_task(
        &self,
        peer: &Peer<RoleClient>,
        tool: &str,
        task: Task,
        meta: Option<RequestMetaObject>,
        questions: &impl ElicitInCall,
    ) -> Result<Value, CallError> {
        let name = format!("{}/{tool}", self.config.name);
        let until = Instant::now() + HARD_TASK_LIMIT;
        let mut every = task.poll_every;
        let mut rounds = 0;
        let mut cancelling = Cancelling(Some((peer.clone(), Running::Task(task.id.clone()))));
        let get =
            || ClientRequest::GetTaskRequest(GetTaskRequest::new(GetTaskParams::new(&task.id)));
        let ended = loop {
            if Instant::now() >= until {
                let minutes = HARD_TASK_LIMIT.as_secs() / 60;
                return Err(CallError::MayHaveRun(format!(
                    "{name} was cancelled after {minutes} minutes as a task; it may have run"
                )));
            }
            tokio::time::sleep(every).await;
            let answer = self.ask(peer, get(), meta.clone()).await;
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => return Err(self.failed(tool, error).await),
            };
            every = poll_every(&answer).unwrap_or(every);
            let state: State = serde_json::from_value(answer).map_err(|error| {
                CallError::MayHaveRun(format!(
                    "the state of the task of {name} is malformed: {error}"
                ))
            })?;
            match state.status.as_str() {
                "working" | "submitted" => {}
                // The form of 2025-11-25 asks its questions while `tasks/result` waits.
                "input_required" if task.is_legacy => break None,
                "input_required" => {
                    rounds += 1;
                    if rounds > MAX_ROUNDS {
                        return Err(CallError::MayHaveRun(format!(
                            "{name} asked more than {MAX_ROUNDS} times for input; it may have run"
                        )));
                    }
                    let asked = InputRequiredResult::from_input_requests(
                        state.questions.unwrap_or_default(),
                    );
                    let answers = self.answer(asked, questions).await;
                    let update = UpdateTaskParams::new(&task.id, answers);
                    let update = ClientRequest::UpdateTaskRequest(UpdateTaskRequest::new(update));
                    if let Err(error) = self.ask(peer, update, meta.clone()).await {
                        return Err(self.failed(tool, error).await);
                    }
                }
                "completed" => break state.result,
                "failed" if task.is_legacy => break None,
                "failed" => {
                    cancelling.0 = None;
                    return Err(match state.error {
                        Some(error) => CallError::Rpc(error),
                        None => CallError::MayHaveRun(format!(
                            "{name} failed as a task; it may have run"
                        )),
                    });
                }
                "cancelled" => {
                    cancelling.0 = None;
                    let why = state
                        .message
                        .map(|why| format!(": {why}"))
                        .unwrap_or_default();
                    return Err(CallError::MayHaveRun(format!(
                        "{name} was cancelled by its server{why}; it may have run"
                    )));
                }
                other => {
                    return Err(CallError::MayHaveRun(format!(
                        "the task of {name} has an unknown state {other:?}; it may have run"
                    )));
                }
            }
        };
        let result = match ended {
            Some(result) => Ok(Value::Object(result)),
            None => {
                let params = Some(json!({"taskId": task.id}));
                let request =
                    ClientRequest::CustomRequest(CustomRequest::new("tasks/result", params));
                let left = until.saturating_duration_since(Instant::now());
                self.ask_within(peer, request, meta, left).await
            }
        };
        match result {
            Ok(result) => {
                cancelling.0 = None;
                Ok(result)
            }
            Err(error) => Err(self.failed(tool, error).await),
        }
    }

    /// Sends a request about a task; its answer is JSON in whichever form the server wrote it.
    async fn ask(
        &self,
        peer: &Peer<RoleClient>,
        request: ClientRequest,
        meta: Option<RequestMetaObject>,
    ) -> Result<Value, ServiceError> {
        self.ask_within(peer, request, meta, self.config.call_timeout)
            .await
    }

    async fn ask_within(
        &self,
        peer: &Peer<RoleClient>,
        request: ClientRequest,
        meta: Option<RequestMetaObject>,
        limit: Duration,
    ) -> Result<Value, ServiceError> {
        let mut options = PeerRequestOptions::with_timeout(limit);
        options.meta = meta;
        let handle = peer.send_request_with_option(request, options).await?;
        let answer = handle.await_response().await?;
        serde_json::to_value(&answer).map_err(|_| ServiceError::UnexpectedResponse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_task_in_either_form_and_a_result_is_none() {
        let modern =
            json!({"resultType": "task", "taskId": "a", "status": "working", "pollIntervalMs": 5});
        let legacy = json!({"task": {"taskId": "b", "status": "working", "pollInterval": 60_000}});
        let of = |answer: &Value| {
            Task::of(answer).map(|task| (task.id, task.is_legacy, task.poll_every))
        };
        assert_eq!(of(&modern), Some(("a".to_owned(), false, SHORTEST_POLL)));
        assert_eq!(of(&legacy), Some(("b".to_owned(), true, LONGEST_POLL)));
        for result in [
            json!({"content": [], "task": {"taskId": "b"}}),
            json!({"content": []}),
            json!({"task": {"status": "working"}}),
            json!({"resultType": "task", "taskId": "x".repeat(LONGEST_ID + 1)}),
        ] {
            assert_eq!(Task::of(&result), None);
        }
    }
}
