//! What a client says: read in one pass, checked field by field.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::guided::{GuidedExecute, GuidedOpen};
use crate::{InvalidCallId, Json, RuntimeToolCallId, ToolError, ToolFailure};

/// A message of a client is not one of the wire.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not JSON, or a field has the wrong type or is unknown.
    #[error("invalid message: {0}")]
    Json(#[from] serde_json::Error),
    /// Not the place of a call.
    #[error(transparent)]
    CallId(#[from] InvalidCallId),
    /// An unknown `type`.
    #[error("unknown message type `{0}`")]
    UnknownType(String),
    /// An unknown `method`.
    #[error("unknown method `{0}`")]
    UnknownMethod(String),
    /// A field is missing.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A field stands where it means nothing.
    #[error("unknown field `{0}`")]
    Unexpected(&'static str),
    /// A hello without a version.
    #[error("at least one protocol version is required")]
    NoVersion,
    /// A hello that contradicts itself.
    #[error("capability `{0}` cannot be both required and optional")]
    RequiredAndOptional(String),
    /// An id is the empty string.
    #[error("`{0}` is empty")]
    EmptyId(&'static str),
}

/// A message from the client.
#[derive(Debug)]
pub enum ClientMessage<'a> {
    /// `connection/hello`.
    Hello(Hello),
    /// `operation/request`.
    Request {
        /// The client's name for it.
        id: u64,
        /// What it asks.
        operation: Operation<'a>,
    },
    /// `operation/yield`: ends the observation of a request.
    Yield {
        /// The execute or wait.
        id: u64,
    },
    /// `operation/cancel`: drops a request.
    Cancel {
        /// Which.
        id: u64,
    },
    /// `delegate/response`: answers a callback.
    DelegateResponse {
        /// The callback.
        id: u64,
        /// Its answer.
        answer: DelegateAnswer,
    },
}

/// The first message.
#[derive(Debug)]
pub struct Hello {
    /// Versions the client speaks.
    pub supported_versions: Vec<u64>,
    /// Capabilities it cannot do without.
    pub required_capabilities: Vec<String>,
    /// Capabilities it can use.
    pub optional_capabilities: Vec<String>,
}

/// What a request asks.
#[derive(Debug)]
pub enum Operation<'a> {
    /// `session/open`.
    Open {
        /// The client's name for the session.
        session_id: String,
        /// Limits of its cells.
        limits: CellExecutionLimits,
        /// The side that cuts output to its budget, where the client names one.
        output_truncation: Option<OutputTruncation>,
        /// The session is guided.
        guided: Option<Box<GuidedOpen>>,
    },
    /// `session/execute`.
    Execute {
        /// Which session.
        session_id: String,
        /// For notifications.
        tool_call_id: String,
        /// Tool definitions, unread.
        enabled_tools: &'a RawValue,
        /// The source.
        source: String,
        /// How long to observe.
        yield_time: Option<Duration>,
        /// The output budget.
        max_output_tokens: Option<u64>,
        /// What guided sessions have besides.
        guided: Option<Box<GuidedExecute>>,
    },
    /// `session/wait`.
    Wait {
        /// Which session.
        session_id: String,
        /// Which cell.
        cell_id: String,
        /// How long to observe.
        yield_time: Option<Duration>,
        /// The output budget.
        max_output_tokens: Option<u64>,
    },
    /// `session/terminate`.
    Terminate {
        /// Which session.
        session_id: String,
        /// Which cell.
        cell_id: String,
        /// The output budget.
        max_output_tokens: Option<u64>,
    },
    /// `session/shutdown`.
    Shutdown {
        /// Which session.
        session_id: String,
    },
    /// `session/stored`, of guided sessions: the values that its cells have stored.
    Stored {
        /// Which session.
        session_id: String,
    },
    /// `session/cells`, of guided sessions: the cells that have not ended, or whose result nobody has taken; among
    /// them those of an earlier process.
    Cells {
        /// Which session.
        session_id: String,
    },
    /// `session/ask`, of durable sessions: a call waits for a person, and has not run.
    Ask {
        /// Which session.
        session_id: String,
        /// The calling cell.
        cell_id: String,
        /// The call's place in the cell.
        call: RuntimeToolCallId,
        /// What the decision is about: as `subject` of a kept question.
        subject: String,
        /// The question, in one line.
        text: String,
    },
    /// `session/decide`, of durable sessions: the person has decided, and the call may run from now on.
    Decide {
        /// Which session.
        session_id: String,
        /// The calling cell.
        cell_id: String,
        /// The call's place in the cell.
        call: RuntimeToolCallId,
        /// Whether it may run.
        allowed: bool,
    },
    /// `session/pause` and `session/resume`, of guided sessions: the deadlines of the session, or of
    /// one cell, stand still.
    Pause {
        /// Which session.
        session_id: String,
        /// Which cell; all without one.
        cell_id: Option<String>,
        /// Whether the pause begins.
        begins: bool,
    },
    /// `session/describe`, of guided sessions: the text for a model.
    Describe {
        /// Which session.
        session_id: String,
        /// Tool definitions, unread.
        enabled_tools: &'a RawValue,
        /// How long the tools' part may be; default 4,000 tokens.
        budget_tokens: Option<usize>,
    },
}

impl Operation<'_> {
    /// What only the capability `guided-sessions-v1` has, of this request.
    pub fn needs_guided(&self) -> Option<MessageError> {
        let method = match self {
            Self::Open {
                guided: Some(_), ..
            }
            | Self::Execute {
                guided: Some(_), ..
            } => return Some(MessageError::Unexpected("guided")),
            Self::Stored { .. } => "session/stored",
            Self::Cells { .. } => "session/cells",
            Self::Ask { .. } => "session/ask",
            Self::Decide { .. } => "session/decide",
            Self::Pause { begins: true, .. } => "session/pause",
            Self::Pause { begins: false, .. } => "session/resume",
            Self::Describe { .. } => "session/describe",
            _ => return None,
        };
        Some(MessageError::UnknownMethod(method.to_owned()))
    }
}

/// `cellExecutionLimits` of a `session/open`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CellExecutionLimits {
    /// The longest observation, in milliseconds.
    pub max_yield_time_ms: Option<u64>,
    /// The heap of one cell, in bytes.
    pub max_heap_size_bytes: Option<u64>,
}

/// `outputTruncation` of a `session/open`, known with `bounded-output-v1`: who cuts
/// a session's output to its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputTruncation {
    /// The client does.
    Client,
    /// The host does.
    Server,
}

/// The answer to a callback.
#[derive(Debug, PartialEq, Eq)]
pub enum DelegateAnswer {
    /// `tool/result`.
    ToolResult(Json),
    /// `notification/delivered`.
    NotificationDelivered,
    /// The client refused or failed.
    Error(ToolError),
}

impl DelegateAnswer {
    /// What only the capability `guided-sessions-v1` has, of this answer.
    pub fn needs_guided(&self) -> Option<MessageError> {
        match self {
            Self::Error(error) if error.code.is_some() => Some(MessageError::Unexpected("code")),
            Self::Error(error) if error.data.is_some() => Some(MessageError::Unexpected("data")),
            Self::Error(error) if error.failure != ToolFailure::Failed => {
                Some(MessageError::Unexpected("failure"))
            }
            _ => None,
        }
    }
}

/// Every field any message can have. [`ClientMessage::parse`] decides which of them a message
/// may and must have once its type is known, so that the order of fields does not matter and one
/// pass is enough. An enum that serde tells apart by its `type` would buffer the fields before
/// it, and could not leave tool definitions and results unread as `RawValue`s.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    id: Option<u64>,
    #[serde(borrow)]
    request: Option<RequestFields<'a>>,
    result: Option<ResultFields<'a>>,
    supported_versions: Option<Vec<u64>>,
    required_capabilities: Option<Vec<String>>,
    optional_capabilities: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RequestFields<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
    session_id: Option<String>,
    cell_id: Option<String>,
    cell_execution_limits: Option<CellExecutionLimits>,
    output_truncation: Option<OutputTruncation>,
    max_output_tokens: Option<u64>,
    #[serde(borrow)]
    request: Option<PayloadFields<'a>>,
    guided: Option<Box<GuidedOpen>>,
    #[serde(borrow)]
    enabled_tools: Option<&'a RawValue>,
    budget_tokens: Option<usize>,
    runtime_tool_call_id: Option<String>,
    subject: Option<String>,
    text: Option<String>,
    allowed: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PayloadFields<'a> {
    tool_call_id: Option<String>,
    #[serde(borrow)]
    enabled_tools: Option<&'a RawValue>,
    source: Option<String>,
    yield_time_ms: Option<u64>,
    max_output_tokens: Option<u64>,
    cell_id: Option<String>,
    guided: Option<Box<GuidedExecute>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultFields<'a> {
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow)]
    value: Option<ValueFields<'a>>,
    message: Option<String>,
    code: Option<i64>,
    data: Option<Json>,
    failure: Option<ToolFailure>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueFields<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
}

/// Tells a `null` from a missing field.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(d: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(d).map(Some)
}

fn required<T>(field: Option<T>, name: &'static str) -> Result<T, MessageError> {
    field.ok_or(MessageError::Missing(name))
}

fn id(field: Option<String>, name: &'static str) -> Result<String, MessageError> {
    let id = required(field, name)?;
    if id.is_empty() {
        return Err(MessageError::EmptyId(name));
    }
    Ok(id)
}

macro_rules! no_others {
    ($fields:ident: $($field:ident = $name:literal),* $(,)?) => {
        $(if $fields.$field.is_some() { return Err(MessageError::Unexpected($name)); })*
    };
}

impl<'a> ClientMessage<'a> {
    /// Reads one frame's content.
    ///
    /// # Errors
    /// [`MessageError`]; by the protocol it ends the connection.
    pub fn parse(content: &'a [u8]) -> Result<Self, MessageError> {
        let mut m: Envelope<'a> = serde_json::from_slice(content)?;
        let message = match m.kind.as_ref() {
            "connection/hello" => Self::Hello(Hello::new(
                required(m.supported_versions.take(), "supportedVersions")?,
                m.required_capabilities.take().unwrap_or_default(),
                m.optional_capabilities.take().unwrap_or_default(),
            )?),
            "operation/request" => Self::Request {
                id: required(m.id.take(), "id")?,
                operation: Operation::from_fields(required(m.request.take(), "request")?)?,
            },
            "operation/yield" => Self::Yield {
                id: required(m.id.take(), "id")?,
            },
            "operation/cancel" => Self::Cancel {
                id: required(m.id.take(), "id")?,
            },
            "delegate/response" => Self::DelegateResponse {
                id: required(m.id.take(), "id")?,
                answer: DelegateAnswer::from_fields(required(m.result.take(), "result")?)?,
            },
            other => return Err(MessageError::UnknownType(other.to_owned())),
        };
        no_others!(m: id = "id", request = "request", result = "result",
            supported_versions = "supportedVersions",
            required_capabilities = "requiredCapabilities",
            optional_capabilities = "optionalCapabilities");
        Ok(message)
    }
}

impl Hello {
    fn new(
        supported_versions: Vec<u64>,
        required_capabilities: Vec<String>,
        optional_capabilities: Vec<String>,
    ) -> Result<Self, MessageError> {
        if supported_versions.is_empty() {
            return Err(MessageError::NoVersion);
        }
        if let Some(both) = required_capabilities
            .iter()
            .find(|name| optional_capabilities.contains(name))
        {
            return Err(MessageError::RequiredAndOptional(both.clone()));
        }
        Ok(Self {
            supported_versions,
            required_capabilities,
            optional_capabilities,
        })
    }
}

impl<'a> Operation<'a> {
    fn from_fields(mut r: RequestFields<'a>) -> Result<Self, MessageError> {
        let mut session_id = || id(r.session_id.take(), "sessionId");
        let operation = match r.method.as_ref() {
            "session/open" => Self::Open {
                session_id: session_id()?,
                limits: r.cell_execution_limits.take().unwrap_or_default(),
                output_truncation: r.output_truncation.take(),
                guided: r.guided.take(),
            },
            "session/execute" => {
                let session_id = session_id()?;
                let mut p = required(r.request.take(), "request")?;
                no_others!(p: cell_id = "cell_id");
                Self::Execute {
                    session_id,
                    tool_call_id: required(p.tool_call_id.take(), "tool_call_id")?,
                    enabled_tools: required(p.enabled_tools, "enabled_tools")?,
                    source: required(p.source.take(), "source")?,
                    yield_time: p.yield_time_ms.map(Duration::from_millis),
                    max_output_tokens: p.max_output_tokens,
                    guided: p.guided.take(),
                }
            }
            "session/wait" => {
                let session_id = session_id()?;
                let mut p = required(r.request.take(), "request")?;
                no_others!(p: tool_call_id = "tool_call_id", enabled_tools = "enabled_tools",
                    source = "source", max_output_tokens = "max_output_tokens", guided = "guided");
                Self::Wait {
                    session_id,
                    cell_id: id(p.cell_id.take(), "cell_id")?,
                    yield_time: p.yield_time_ms.map(Duration::from_millis),
                    max_output_tokens: r.max_output_tokens.take(),
                }
            }
            "session/terminate" => Self::Terminate {
                session_id: session_id()?,
                cell_id: id(r.cell_id.take(), "cellId")?,
                max_output_tokens: r.max_output_tokens.take(),
            },
            "session/shutdown" => Self::Shutdown {
                session_id: session_id()?,
            },
            "session/stored" => Self::Stored {
                session_id: session_id()?,
            },
            "session/cells" => Self::Cells {
                session_id: session_id()?,
            },
            "session/ask" => Self::Ask {
                session_id: session_id()?,
                cell_id: id(r.cell_id.take(), "cellId")?,
                call: required(r.runtime_tool_call_id.take(), "runtimeToolCallId")?.parse()?,
                subject: required(r.subject.take(), "subject")?,
                text: required(r.text.take(), "text")?,
            },
            "session/decide" => Self::Decide {
                session_id: session_id()?,
                cell_id: id(r.cell_id.take(), "cellId")?,
                call: required(r.runtime_tool_call_id.take(), "runtimeToolCallId")?.parse()?,
                allowed: required(r.allowed.take(), "allowed")?,
            },
            method @ ("session/pause" | "session/resume") => Self::Pause {
                session_id: session_id()?,
                cell_id: r.cell_id.take(),
                begins: method == "session/pause",
            },
            "session/describe" => Self::Describe {
                session_id: session_id()?,
                enabled_tools: required(r.enabled_tools.take(), "enabledTools")?,
                budget_tokens: r.budget_tokens.take(),
            },
            other => return Err(MessageError::UnknownMethod(other.to_owned())),
        };
        no_others!(r: cell_id = "cellId", cell_execution_limits = "cellExecutionLimits",
            output_truncation = "outputTruncation", max_output_tokens = "maxOutputTokens",
            request = "request", guided = "guided", enabled_tools = "enabledTools",
            budget_tokens = "budgetTokens", runtime_tool_call_id = "runtimeToolCallId",
            subject = "subject", text = "text", allowed = "allowed");
        Ok(operation)
    }
}

impl DelegateAnswer {
    fn from_fields(r: ResultFields<'_>) -> Result<Self, MessageError> {
        match r.status.as_ref() {
            "ok" => {
                no_others!(r: message = "message", code = "code", data = "data", failure = "failure");
                let value = required(r.value, "value")?;
                match value.kind.as_ref() {
                    // A result that no strict parser takes costs its call, not the
                    // connection.
                    "tool/result" => {
                        match Json::parse(required(value.result, "result")?.get().to_owned()) {
                            Ok(result) => Ok(Self::ToolResult(result)),
                            Err(error) => {
                                let error = format!("the tool's result is {error}");
                                Ok(Self::Error(error.into()))
                            }
                        }
                    }
                    "notification/delivered" => {
                        no_others!(value: result = "result");
                        Ok(Self::NotificationDelivered)
                    }
                    other => Err(MessageError::UnknownType(other.to_owned())),
                }
            }
            "error" => {
                no_others!(r: value = "value");
                let mut error = ToolError::new(required(r.message, "message")?);
                (error.code, error.data) = (r.code, r.data);
                error.failure = r.failure.unwrap_or_default();
                Ok(Self::Error(error))
            }
            other => Err(MessageError::UnknownType(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        match ClientMessage::parse(json.as_bytes()) {
            Ok(message) => panic!("accepted {json} as {message:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn fields_may_come_in_any_order() {
        let json = r#"{"request":{"request":{"yield_time_ms":5,"cell_id":"1"},
            "sessionId":"s","method":"session/wait"},"id":3,"type":"operation/request"}"#;
        let Ok(ClientMessage::Request {
            id: 3,
            operation: Operation::Wait { cell_id, .. },
        }) = ClientMessage::parse(json.as_bytes())
        else {
            panic!("not understood");
        };
        assert_eq!(cell_id, "1");
    }

    #[test]
    fn a_tools_result_of_null_is_a_result_and_a_missing_one_is_not() {
        let json = r#"{"type":"delegate/response","id":1,"result":{"status":"ok",
            "value":{"type":"tool/result","result":null}}}"#;
        let Ok(ClientMessage::DelegateResponse { answer, .. }) =
            ClientMessage::parse(json.as_bytes())
        else {
            panic!("not understood");
        };
        assert_eq!(answer, DelegateAnswer::ToolResult(Json::null()));
        assert_eq!(
            error(
                r#"{"type":"delegate/response","id":1,"result":{"status":"ok","value":{"type":"tool/result"}}}"#
            ),
            "`result` is missing"
        );
    }

    #[test]
    fn what_a_message_must_not_have_is_named() {
        assert_eq!(error(r#"{"type":"what"}"#), "unknown message type `what`");
        assert_eq!(
            error(r#"{"type":"operation/cancel","id":1,"request":{"method":"x"}}"#),
            "unknown field `request`"
        );
        assert_eq!(
            error(r#"{"type":"operation/request","id":9,"request":{"method":"session/dance"}}"#),
            "unknown method `session/dance`"
        );
        assert_eq!(
            error(
                r#"{"type":"operation/request","id":1,"request":{"method":"session/open","sessionId":""}}"#
            ),
            "`sessionId` is empty"
        );
        assert!(
            error(r#"{"type":"connection/hello","supportedVersions":[1],"x":1}"#)
                .contains("unknown field `x`")
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60)
        ) {
            let _ = ClientMessage::parse(&bytes);
        }
    }
}
