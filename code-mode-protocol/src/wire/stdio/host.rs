//! What the host says.

use std::time::Duration;

use serde::Serialize;

use crate::wire::frame::{Frame, FrameError};
use crate::wire::json_frame::JsonFrame;
use crate::{CellResponse, ContentItem, Json, NestedToolCall, ToolKind, ToolName};

/// A message to the client.
#[derive(Debug)]
pub enum HostMessage<'a> {
    /// `connection/ready`: the handshake succeeded.
    Ready {
        /// The version both speak.
        selected_version: u64,
        /// The capabilities asked for that this program knows, sorted.
        capabilities: Vec<&'static str>,
    },
    /// `connection/rejected`: the handshake failed.
    Rejected {
        /// Why.
        reason: Rejection,
    },
    /// `operation/response`: answers a request.
    Response {
        /// The request.
        id: u64,
        /// Its outcome.
        result: Result<Value, String>,
    },
    /// `execute/initialResponse`: the first observation of an execute.
    InitialResponse {
        /// The execute.
        id: u64,
        /// The observation.
        result: Result<TimedResponse, String>,
    },
    /// `delegate/request`: a tool call or a notification.
    DelegateRequest {
        /// Its name.
        id: u64,
        /// Which session.
        session_id: &'a str,
        /// The requested operation.
        request: DelegateRequest<'a>,
    },
    /// `delegate/cancel`: the answer is no longer wanted.
    DelegateCancel {
        /// Which.
        id: u64,
    },
    /// `cell/closed`: a cell is gone.
    CellClosed {
        /// Its session.
        session_id: &'a str,
        /// Which.
        cell_id: &'a str,
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
#[derive(Debug)]
pub enum DelegateRequest<'a> {
    /// `tool/invoke`.
    InvokeTool {
        /// The call.
        invocation: Invocation<'a>,
    },
    /// `notification/send`.
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
#[derive(Debug)]
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

/// The value of an `operation/response`.
#[derive(Debug)]
pub enum Value {
    /// `session/ready`, of `session/open`.
    SessionReady {
        /// Which.
        session_id: String,
    },
    /// `execution/started`, of `session/execute`.
    ExecutionStarted {
        /// The new cell.
        cell_id: String,
    },
    /// `wait/completed`, of `session/wait` and `session/terminate`.
    WaitCompleted {
        /// The observation.
        outcome: TimedResponse,
    },
    /// `session/closed`, of `session/shutdown`.
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

impl HostMessage<'_> {
    /// The message as a frame. Its large texts are not copied.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] where it does not fit a frame's prefix.
    pub fn encode(self) -> Result<Frame, FrameError> {
        let mut frame = JsonFrame::with_room(256 + self.small_texts());
        match self {
            Self::Ready {
                selected_version,
                capabilities,
            } => {
                frame
                    .raw(r#"{"type":"connection/ready","selectedVersion":"#)
                    .value(&selected_version)?
                    .raw(r#","capabilities":"#)
                    .value(&capabilities)?
                    .raw("}");
            }
            Self::Rejected { reason } => {
                frame
                    .raw(r#"{"type":"connection/rejected","reason":"#)
                    .value(&reason)?
                    .raw("}");
            }
            Self::Response { id, result } => {
                frame
                    .raw(r#"{"type":"operation/response","id":"#)
                    .value(&id)?;
                write_result(&mut frame, result, write_value)?;
            }
            Self::InitialResponse { id, result } => {
                frame
                    .raw(r#"{"type":"execute/initialResponse","id":"#)
                    .value(&id)?;
                write_result(&mut frame, result, |frame, timed| {
                    write_response(frame, timed.response, timed.host_duration)
                })?;
            }
            Self::DelegateRequest {
                id,
                session_id,
                request,
            } => {
                frame
                    .raw(r#"{"type":"delegate/request","id":"#)
                    .value(&id)?
                    .raw(r#","sessionId":"#)
                    .value(session_id)?
                    .raw(r#","request":"#);
                write_delegate_request(&mut frame, request)?;
                frame.raw("}");
            }
            Self::DelegateCancel { id } => {
                frame
                    .raw(r#"{"type":"delegate/cancel","id":"#)
                    .value(&id)?
                    .raw("}");
            }
            Self::CellClosed {
                session_id,
                cell_id,
            } => {
                frame
                    .raw(r#"{"type":"cell/closed","sessionId":"#)
                    .value(session_id)?
                    .raw(r#","cellId":"#)
                    .value(cell_id)?
                    .raw("}");
            }
        }
        frame.finish()
    }

    /// About how many bytes of texts are copied into the frame.
    fn small_texts(&self) -> usize {
        let response = match self {
            Self::InitialResponse {
                result: Ok(timed), ..
            } => &timed.response,
            Self::Response {
                result: Ok(Value::WaitCompleted { outcome }),
                ..
            } => &outcome.response,
            _ => return 0,
        };
        let items = response.content_items().iter();
        items
            .map(|item| match item.bytes() {
                large if large >= crate::wire::frame::LARGE_TEXT => 64,
                small => small + 48,
            })
            .sum()
    }
}

/// Writes `,"result":{...}}`.
fn write_result<T>(
    frame: &mut JsonFrame,
    result: Result<T, String>,
    write: impl FnOnce(&mut JsonFrame, T) -> Result<(), FrameError>,
) -> Result<(), FrameError> {
    match result {
        Ok(value) => {
            frame.raw(r#","result":{"status":"ok","value":"#);
            write(frame, value)?;
        }
        Err(message) => {
            frame
                .raw(r#","result":{"status":"error","message":"#)
                .text(message)?;
        }
    }
    frame.raw("}}");
    Ok(())
}

fn write_value(frame: &mut JsonFrame, value: Value) -> Result<(), FrameError> {
    match value {
        Value::SessionReady { session_id } => {
            frame
                .raw(r#"{"type":"session/ready","sessionId":"#)
                .value(&session_id)?;
        }
        Value::ExecutionStarted { cell_id } => {
            frame
                .raw(r#"{"type":"execution/started","cellId":"#)
                .value(&cell_id)?;
        }
        Value::SessionClosed { session_id } => {
            frame
                .raw(r#"{"type":"session/closed","sessionId":"#)
                .value(&session_id)?;
        }
        Value::WaitCompleted { outcome } => {
            frame.raw(r#"{"type":"wait/completed","outcome":"#);
            frame.raw(match outcome.response.is_missing() {
                false => r#"{"LiveCell":"#,
                true => r#"{"MissingCell":"#,
            });
            write_response(frame, outcome.response, outcome.host_duration)?;
            frame.raw("}");
        }
    }
    frame.raw("}");
    Ok(())
}

fn write_response(
    frame: &mut JsonFrame,
    response: CellResponse,
    duration: Duration,
) -> Result<(), FrameError> {
    let (kind, cell_id, items, result) = match response {
        // The wire has no frozen cells: it never asks for them.
        CellResponse::Yielded {
            cell_id,
            content_items,
        }
        | CellResponse::Pending {
            cell_id,
            content_items,
            ..
        } => ("Yielded", cell_id, content_items, None),
        CellResponse::Terminated {
            cell_id,
            content_items,
        } => ("Terminated", cell_id, content_items, None),
        CellResponse::Result {
            cell_id,
            content_items,
            error_text,
            buffered_for,
            ..
        } => (
            "Result",
            cell_id,
            content_items,
            Some((error_text, buffered_for)),
        ),
    };
    frame
        .raw(r#"{""#)
        .raw(kind)
        .raw(r#"":{"cell_id":"#)
        .value(cell_id.as_str())?
        .raw(r#","content_items":["#);
    for (place, item) in items.into_iter().enumerate() {
        if place > 0 {
            frame.raw(",");
        }
        write_item(frame, item)?;
    }
    frame
        .raw(r#"],"code_mode_host_duration_ns":"#)
        .value(&nanoseconds(duration))?;
    if let Some((error_text, buffered_for)) = result {
        frame.raw(r#","error_text":"#);
        match error_text {
            Some(text) => frame.text(text)?,
            None => frame.raw("null"),
        };
        frame
            .raw(r#","result_buffered_for_ns":"#)
            .value(&nanoseconds(buffered_for))?;
    }
    frame.raw("}}");
    Ok(())
}

fn write_item(frame: &mut JsonFrame, item: ContentItem) -> Result<(), FrameError> {
    match item {
        ContentItem::Text { text } => {
            frame.raw(r#"{"type":"input_text","text":"#).text(text)?;
        }
        ContentItem::Image { image_url, detail } => {
            frame
                .raw(r#"{"type":"input_image","image_url":"#)
                .text(image_url)?
                .raw(r#","detail":"#)
                .value(&detail)?;
        }
        ContentItem::Audio { audio_url } => {
            frame
                .raw(r#"{"type":"input_audio","audio_url":"#)
                .text(audio_url)?;
        }
    }
    frame.raw("}");
    Ok(())
}

fn write_delegate_request(
    frame: &mut JsonFrame,
    request: DelegateRequest<'_>,
) -> Result<(), FrameError> {
    match request {
        DelegateRequest::InvokeTool { invocation } => {
            frame
                .raw(r#"{"type":"tool/invoke","invocation":{"cell_id":"#)
                .value(invocation.cell_id)?
                .raw(r#","runtime_tool_call_id":"#)
                .value(&invocation.runtime_tool_call_id)?
                .raw(r#","tool_name":"#)
                .value(invocation.tool_name)?
                .raw(r#","tool_kind":"#)
                .value(&invocation.tool_kind)?
                .raw(r#","input":"#);
            match invocation.input {
                Some(input) => frame.json(input),
                None => frame.raw("null"),
            };
            frame.raw("}}");
        }
        DelegateRequest::Notify {
            call_id,
            cell_id,
            text,
        } => {
            frame
                .raw(r#"{"type":"notification/send","callId":"#)
                .value(call_id)?
                .raw(r#","cellId":"#)
                .value(cell_id)?
                .raw(r#","text":"#)
                .text(text)?
                .raw("}");
        }
    }
    Ok(())
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
            invocation: Invocation::new(&mut call),
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
