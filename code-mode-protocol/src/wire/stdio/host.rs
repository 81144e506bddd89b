//! What the host says.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::wire::frame::{Frame, FrameError};
use crate::wire::json_frame::LargeTexts;
use crate::{CellResponse, ContentItem, Json, NestedToolCall, SourcePosition, ToolKind, ToolName};

use super::guided::{GuidedEnd, SessionEvent};

/// A message to the client.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub enum HostMessage<'a> {
    /// `connection/ready`: the handshake succeeded.
    #[serde(rename = "connection/ready")]
    Ready {
        /// The version both speak.
        selected_version: u64,
        /// The capabilities asked for that this program knows, sorted.
        capabilities: Vec<&'static str>,
    },
    /// `connection/rejected`: the handshake failed.
    #[serde(rename = "connection/rejected")]
    Rejected {
        /// Why.
        reason: Rejection,
    },
    /// `operation/response`: answers a request.
    #[serde(rename = "operation/response")]
    Response {
        /// The request.
        id: u64,
        /// Its outcome.
        #[serde(serialize_with = "ok_or_error")]
        result: Result<Value, String>,
    },
    /// `execute/initialResponse`: the first observation of an execute.
    #[serde(rename = "execute/initialResponse")]
    InitialResponse {
        /// The execute.
        id: u64,
        /// The observation.
        #[serde(serialize_with = "ok_or_error")]
        result: Result<TimedResponse, String>,
    },
    /// `delegate/request`: a tool call or a notification.
    #[serde(rename = "delegate/request")]
    DelegateRequest {
        /// Its name.
        id: u64,
        /// Which session.
        session_id: &'a str,
        /// The requested operation.
        request: DelegateRequest<'a>,
    },
    /// `delegate/cancel`: the answer is no longer wanted.
    #[serde(rename = "delegate/cancel")]
    DelegateCancel {
        /// Which.
        id: u64,
    },
    /// `cell/closed`: a cell is gone.
    #[serde(rename = "cell/closed")]
    CellClosed {
        /// Its session.
        session_id: &'a str,
        /// Which.
        cell_id: &'a str,
    },
    /// `session/event`, of guided sessions that ask for it.
    #[serde(rename = "session/event")]
    SessionEvent {
        /// Its session.
        session_id: &'a str,
        /// What happened.
        event: SessionEvent<'a>,
    },
}

/// Why a handshake failed.
#[derive(Debug, Serialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Rejection {
    /// The first message is not a hello.
    InvalidHello {
        /// The expected type.
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

/// What a `delegate/request` is about.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub enum DelegateRequest<'a> {
    /// `tool/invoke`.
    #[serde(rename = "tool/invoke")]
    InvokeTool {
        /// The call.
        invocation: Invocation<'a>,
    },
    /// `notification/send`.
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
    #[serde(flatten)]
    guided: Option<GuidedInvocation<'a>>,
}

/// What a call of a guided session carries besides.
#[derive(Debug, Serialize)]
struct GuidedInvocation<'a> {
    call_id: &'a str,
    /// Where the call is made again.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    site: Option<SourcePosition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<&'a str>,
}

impl<'a> Invocation<'a> {
    /// The call, whose input is taken out of it; `is_guided` where it is one of a guided session.
    pub fn new(call: &'a mut NestedToolCall, is_guided: bool) -> Self {
        let context = call.trace_context.as_ref();
        let guided = is_guided.then(|| GuidedInvocation {
            call_id: &call.tool_call_id,
            attempt: Some(call.attempt).filter(|attempt| *attempt > 1),
            site: call.site,
            traceparent: context.map(|context| context.traceparent.as_str()),
            tracestate: context.and_then(|context| context.tracestate.as_deref()),
        });
        Self {
            input: call.input.take(),
            cell_id: call.cell_id.as_str(),
            runtime_tool_call_id: call.runtime_tool_call_id.to_string(),
            tool_name: &call.tool_name,
            tool_kind: call.tool_kind,
            guided,
        }
    }
}

/// The value of an `operation/response`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub enum Value {
    /// `session/ready`, of `session/open`.
    #[serde(rename = "session/ready")]
    SessionReady {
        /// Which.
        session_id: String,
    },
    /// `execution/started`, of `session/execute`.
    #[serde(rename = "execution/started")]
    ExecutionStarted {
        /// The new cell.
        cell_id: String,
    },
    /// `wait/completed`, of `session/wait` and `session/terminate`.
    #[serde(rename = "wait/completed")]
    WaitCompleted {
        /// The observation.
        #[serde(serialize_with = "live_or_missing")]
        outcome: TimedResponse,
    },
    /// `session/closed`, of `session/shutdown`.
    #[serde(rename = "session/closed")]
    SessionClosed {
        /// Which.
        session_id: String,
    },
    /// `session/values`, of `session/stored`.
    #[serde(rename = "session/values")]
    SessionValues {
        /// Key and value, in order of the keys.
        values: BTreeMap<String, Json>,
    },
    /// `session/running`, of `session/cells`.
    #[serde(rename = "session/running")]
    SessionRunning {
        /// Cells that have not ended, or whose result nobody has taken.
        cells: Vec<String>,
    },
    /// `session/decision`, of `session/ask` and `session/decide`.
    #[serde(rename = "session/decision")]
    SessionDecision {
        /// Whether the call may run; nothing while it waits for a person.
        allowed: Option<bool>,
    },
    /// `session/paused`, of `session/pause` and `session/resume`.
    #[serde(rename = "session/paused")]
    SessionPaused {
        /// How many pauses are held now.
        held: u32,
    },
    /// `session/description`, of `session/describe`.
    #[serde(rename = "session/description")]
    SessionDescription {
        /// The description of the tool by which a model runs programs.
        text: String,
    },
}

/// A response and how long this program had the request.
#[derive(Debug)]
pub struct TimedResponse {
    /// The response.
    pub response: CellResponse,
    /// From reading the request to having the response.
    pub host_duration: Duration,
    /// Of a guided session: how the cell ended.
    pub guided: Option<Box<GuidedEnd>>,
}

impl HostMessage<'_> {
    /// The message as a frame. Its large texts are not copied.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] where it does not fit a frame's prefix.
    pub fn encode(mut self) -> Result<Frame, FrameError> {
        let mut large = LargeTexts::new();
        match &mut self {
            Self::Response {
                result: Ok(Value::WaitCompleted { outcome }),
                ..
            } => outcome.take_large(&mut large),
            Self::InitialResponse {
                result: Ok(timed), ..
            } => timed.take_large(&mut large),
            Self::DelegateRequest { request, .. } => request.take_large(&mut large),
            _ => {}
        }
        large.frame(&self)
    }
}

impl TimedResponse {
    fn take_large(&mut self, large: &mut LargeTexts) {
        for item in self.response.content_items_mut() {
            match item {
                ContentItem::Text { text, .. } => large.take(text),
                ContentItem::Image { image_url, .. } => large.take(image_url),
                ContentItem::Audio { audio_url } => large.take(audio_url),
            }
        }
        if let CellResponse::Result {
            error_text: Some(text),
            ..
        } = &mut self.response
        {
            large.take(text);
        }
    }
}

impl DelegateRequest<'_> {
    fn take_large(&mut self, large: &mut LargeTexts) {
        match self {
            Self::InvokeTool { invocation } => {
                if let Some(input) = &mut invocation.input {
                    large.take_json(input);
                }
            }
            Self::Notify { text, .. } => large.take(text),
        }
    }
}

/// `result` of an answer to a request.
#[derive(Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Answer<'a, T> {
    Ok { value: &'a T },
    Error { message: &'a str },
}

fn ok_or_error<T: Serialize, S: Serializer>(
    result: &Result<T, String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match result {
        Ok(value) => Answer::Ok { value },
        Err(message) => Answer::Error { message },
    }
    .serialize(serializer)
}

/// The observation of a wait.
#[derive(Serialize)]
enum Outcome<'a> {
    LiveCell(&'a TimedResponse),
    MissingCell(&'a TimedResponse),
}

fn live_or_missing<S: Serializer>(timed: &TimedResponse, serializer: S) -> Result<S::Ok, S::Error> {
    match timed.response.is_missing() {
        false => Outcome::LiveCell(timed),
        true => Outcome::MissingCell(timed),
    }
    .serialize(serializer)
}

/// A response as the wire has it.
#[derive(Serialize)]
enum Response<'a> {
    Yielded(Observed<'a>),
    Terminated {
        #[serde(flatten)]
        observed: Observed<'a>,
        #[serde(flatten)]
        guided: Option<&'a GuidedEnd>,
    },
    Result {
        #[serde(flatten)]
        observed: Observed<'a>,
        error_text: Option<&'a str>,
        result_buffered_for_ns: u64,
        #[serde(flatten)]
        guided: Option<&'a GuidedEnd>,
    },
}

#[derive(Serialize)]
struct Observed<'a> {
    cell_id: &'a str,
    content_items: &'a [ContentItem],
    code_mode_host_duration_ns: u64,
}

impl Serialize for TimedResponse {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let observed = Observed {
            cell_id: self.response.cell_id().as_str(),
            content_items: self.response.content_items(),
            code_mode_host_duration_ns: nanoseconds(self.host_duration),
        };
        match &self.response {
            // The wire has no frozen cells: it never asks for them.
            CellResponse::Yielded { .. } | CellResponse::Pending { .. } => {
                Response::Yielded(observed)
            }
            CellResponse::Terminated { .. } => Response::Terminated {
                observed,
                guided: self.guided.as_deref(),
            },
            CellResponse::Result {
                error_text,
                buffered_for,
                ..
            } => Response::Result {
                observed,
                error_text: error_text.as_deref(),
                result_buffered_for_ns: nanoseconds(*buffered_for),
                guided: self.guided.as_deref(),
            },
        }
        .serialize(serializer)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::CellId;

    fn written(message: HostMessage<'_>) -> serde_json::Value {
        let parts: Vec<_> = message.encode().expect("fits").into_parts().collect();
        serde_json::from_slice(&parts.concat()[4..]).expect("JSON")
    }

    #[test]
    fn a_result_has_its_items_its_error_and_its_times() {
        let response = CellResponse::Result {
            cell_id: CellId::nth(1),
            content_items: vec![
                ContentItem::text("a\"b"),
                ContentItem::Image {
                    image_url: "data:,".to_owned(),
                    detail: crate::ImageDetail::High,
                },
            ],
            error_text: Some("boom\n".to_owned()),
            error_position: None,
            outcome: crate::CellOutcome::Completed,
            buffered_for: Duration::from_nanos(5),
        };
        let timed = TimedResponse {
            response,
            host_duration: Duration::from_nanos(7),
            guided: None,
        };
        assert_eq!(
            written(HostMessage::InitialResponse {
                id: 3,
                result: Ok(timed)
            }),
            json!({"type": "execute/initialResponse", "id": 3, "result": {"status": "ok", "value":
                {"Result": {"cell_id": "1", "content_items": [
                    {"type": "input_text", "text": "a\"b"},
                    {"type": "input_image", "image_url": "data:,", "detail": "high"}],
                "code_mode_host_duration_ns": 7, "error_text": "boom\n", "result_buffered_for_ns": 5}}}})
        );
    }

    #[test]
    fn a_tool_call_without_input_has_null() {
        let mut call = NestedToolCall::new(
            CellId::nth(2),
            "call-1".to_owned(),
            crate::RuntimeToolCallId(1),
            ToolName::plain("echo"),
        );
        let request = DelegateRequest::InvokeTool {
            invocation: Invocation::new(&mut call, false),
        };
        assert_eq!(
            written(HostMessage::DelegateRequest {
                id: 1,
                session_id: "s",
                request
            }),
            json!({"type": "delegate/request", "id": 1, "sessionId": "s", "request":
                {"type": "tool/invoke", "invocation": {"cell_id": "2",
                "runtime_tool_call_id": "tool-1", "tool_name": {"name": "echo", "namespace": null},
                "tool_kind": "function", "input": null}}})
        );
    }
}
