//! What the host says.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::gather::{Content, Text, Texts, gather_json};
use crate::{CellResponse, ContentItem, Json, NestedToolCall, ToolKind, ToolName, WaitOutcome};

/// A message to the client.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub enum HostMessage<'a> {
    /// The handshake succeeded.
    #[serde(rename = "connection/ready")]
    Ready {
        /// The version both speak.
        selected_version: u64,
        /// The capabilities asked for that this program knows, sorted.
        capabilities: Vec<&'static str>,
    },
    /// The handshake failed.
    #[serde(rename = "connection/rejected")]
    Rejected {
        /// Why.
        reason: Rejection,
    },
    /// Answers a request.
    #[serde(rename = "operation/response")]
    Response {
        /// The request.
        id: u64,
        /// Its outcome.
        result: Outcome<Value>,
    },
    /// The first observation of an execute.
    #[serde(rename = "execute/initialResponse")]
    InitialResponse {
        /// The execute.
        id: u64,
        /// The observation.
        result: Outcome<TimedResponse>,
    },
    /// A callback.
    #[serde(rename = "delegate/request")]
    DelegateRequest {
        /// The callback's name.
        id: u64,
        /// Which session.
        session_id: &'a str,
        /// What is wanted.
        request: DelegateRequest<'a>,
    },
    /// A callback is no longer wanted.
    #[serde(rename = "delegate/cancel")]
    DelegateCancel {
        /// Which.
        id: u64,
    },
    /// A cell is gone.
    #[serde(rename = "cell/closed")]
    CellClosed {
        /// Its session.
        session_id: &'a str,
        /// Which.
        cell_id: &'a str,
    },
}

impl HostMessage<'_> {
    /// The content of the frame that carries the message.
    ///
    /// # Errors
    /// Where it cannot be serialised, which no message of this type can fail to be.
    pub fn encode(self) -> Result<Content, serde_json::Error> {
        gather_json(self)
    }
}

impl Texts for HostMessage<'_> {
    fn texts(&mut self, visit: &mut dyn FnMut(&mut dyn Text)) {
        match self {
            Self::DelegateRequest { request, .. } => match request {
                DelegateRequest::InvokeTool { invocation } => {
                    if let Some(input) = &mut invocation.input {
                        visit(input);
                    }
                }
                DelegateRequest::Notify { text, .. } => visit(text),
            },
            Self::InitialResponse {
                result: Outcome::Ok { value },
                ..
            } => value.response.texts(visit),
            Self::Response {
                result:
                    Outcome::Ok {
                        value: Value::WaitCompleted { outcome },
                    },
                ..
            } => outcome.outcome.texts(visit),
            _ => {}
        }
    }
}

/// Why a handshake failed.
#[derive(Debug, Serialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Rejection {
    /// The first message is no hello.
    InvalidHello {
        /// What was expected.
        message: &'static str,
    },
    /// No version in common.
    NoCompatibleVersion {
        /// What this program speaks.
        supported_versions: [u64; 1],
    },
    /// A required capability is unknown here.
    MissingRequiredCapability {
        /// The first such.
        capability: String,
    },
}

/// A callback's content.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub enum DelegateRequest<'a> {
    /// A tool call.
    #[serde(rename = "tool/invoke")]
    InvokeTool {
        /// The call.
        invocation: Invocation<'a>,
    },
    /// A notification.
    #[serde(rename = "notification/send")]
    Notify {
        /// The `tool_call_id` of the cell's execute.
        call_id: &'a str,
        /// The cell.
        cell_id: &'a str,
        /// What it says.
        text: String,
    },
}

/// A tool call on the wire.
#[derive(Debug, Serialize)]
pub struct Invocation<'a> {
    cell_id: &'a str,
    runtime_tool_call_id: String,
    tool_name: &'a ToolName,
    tool_kind: ToolKind,
    input: Option<Json>,
}

impl<'a> Invocation<'a> {
    /// The call, whose input is taken out of it.
    pub fn new(call: &'a mut NestedToolCall) -> Self {
        Self {
            input: call.input.take(),
            cell_id: call.cell_id.as_str(),
            runtime_tool_call_id: call.runtime_tool_call_id.to_string(),
            tool_name: &call.tool_name,
            tool_kind: call.tool_kind,
        }
    }
}

/// A result or an error message.
#[derive(Debug, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum Outcome<T> {
    /// It worked.
    Ok {
        /// What came of it.
        value: T,
    },
    /// It did not.
    Error {
        /// Why.
        message: String,
    },
}

impl<T, E: ToString> From<Result<T, E>> for Outcome<T> {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(value) => Self::Ok { value },
            Err(error) => Self::Error {
                message: error.to_string(),
            },
        }
    }
}

/// The value of an `operation/response`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub enum Value {
    /// Of `session/open`.
    #[serde(rename = "session/ready")]
    SessionReady {
        /// Which.
        session_id: String,
    },
    /// Of `session/execute`.
    #[serde(rename = "execution/started")]
    ExecutionStarted {
        /// The new cell.
        cell_id: String,
    },
    /// Of `session/wait` and `session/terminate`.
    #[serde(rename = "wait/completed")]
    WaitCompleted {
        /// What was observed.
        outcome: TimedOutcome,
    },
    /// Of `session/shutdown`.
    #[serde(rename = "session/closed")]
    SessionClosed {
        /// Which.
        session_id: String,
    },
}

/// A response and how long this program had the request.
#[derive(Debug)]
pub struct TimedResponse {
    /// The response.
    pub response: CellResponse,
    /// From reading the request to having the response.
    pub host_duration: Duration,
}

/// An outcome and how long this program had the request.
#[derive(Debug)]
pub struct TimedOutcome {
    /// The outcome.
    pub outcome: WaitOutcome,
    /// From reading the request to having the outcome.
    pub host_duration: Duration,
}

#[derive(Serialize)]
enum ResponseFields<'a> {
    Yielded(Fields<'a>),
    Terminated(Fields<'a>),
    Result(ResultResponseFields<'a>),
}

#[derive(Serialize)]
struct Fields<'a> {
    cell_id: &'a str,
    content_items: &'a [ContentItem],
    #[serde(skip_serializing_if = "Option::is_none")]
    code_mode_host_duration_ns: Option<u64>,
}

#[derive(Serialize)]
struct ResultResponseFields<'a> {
    #[serde(flatten)]
    fields: Fields<'a>,
    error_text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_buffered_for_ns: Option<u64>,
}

impl<'a> ResponseFields<'a> {
    fn new(response: &'a CellResponse, duration: Option<Duration>) -> Self {
        let fields = Fields {
            cell_id: response.cell_id().as_str(),
            content_items: response.content_items(),
            code_mode_host_duration_ns: duration.map(nanoseconds),
        };
        match response {
            CellResponse::Yielded { .. } => Self::Yielded(fields),
            CellResponse::Terminated { .. } => Self::Terminated(fields),
            CellResponse::Result {
                error_text,
                buffered_for,
                ..
            } => Self::Result(ResultResponseFields {
                fields,
                error_text: error_text.as_deref(),
                result_buffered_for_ns: duration.map(|_| nanoseconds(*buffered_for)),
            }),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Serialize for TimedResponse {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ResponseFields::new(&self.response, Some(self.host_duration)).serialize(serializer)
    }
}

impl Serialize for TimedOutcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        enum OutcomeFields<'a> {
            LiveCell(ResponseFields<'a>),
            MissingCell(ResponseFields<'a>),
        }
        match &self.outcome {
            WaitOutcome::LiveCell(response) => {
                OutcomeFields::LiveCell(ResponseFields::new(response, Some(self.host_duration)))
            }
            WaitOutcome::MissingCell(response) => {
                OutcomeFields::MissingCell(ResponseFields::new(response, None))
            }
        }
        .serialize(serializer)
    }
}
