//! Callbacks of cells, as messages down the streams of their session.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{
    CellId, CellNotification, CodeModeSessionDelegate, Json, NestedToolCall, ToolKind,
};
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::outcome::MAX_MESSAGE;
use super::session::{Session, Turn};
use super::wire;
use super::wire::session_event::Event;
use crate::turn::{CANCELLED, at_once_or_wanted};

/// How long a call waits for calls of other sessions to be answered.
const HOST_PATIENCE: Duration = Duration::from_secs(10);

/// The most that one call takes of the room for calls, in KiB.
const MAX_KIB: u32 = 32 << 10;

/// The delegate of one session. The session's streams may outlive it and end first.
pub(super) struct Delegate {
    pub(super) session: Weak<Session>,
}

impl Session {
    /// Waits for the turn of one more call of so many bytes, in the session and in the
    /// host.
    async fn turn(&self, bytes: usize) -> Result<(Turn, OwnedSemaphorePermit), String> {
        let closed = |_| CANCELLED.to_owned();
        let own = self
            .capacity
            .clone()
            .acquire_owned()
            .await
            .map_err(closed)?;
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).min(MAX_KIB);
        let room = self.call_room.clone().acquire_many_owned(kib);
        let room = room.await.map_err(closed)?;
        // Another client may never answer: this one is told so.
        let hosts = timeout(HOST_PATIENCE, self.host_capacity.clone().acquire_owned()).await;
        let too_many = |_| "code-mode host has too many pending delegate calls".to_owned();
        let hosts = hosts.map_err(too_many)?.map_err(closed)?;
        Ok((Arc::new([own, room]), hosts))
    }

    async fn ask(
        &self,
        call: NestedToolCall,
        cancelled: &CancellationToken,
    ) -> Result<Json, String> {
        // What this program calls the execute's tool call is the execution's id.
        let execution = self.execution(&call.tool_call_id).ok_or(CANCELLED)?;
        let span = tracing::info_span!(
            parent: &execution.span,
            "code_mode.runtime.invoke_tool",
            "cell.id" = %call.cell_id,
            runtime_tool_call_id = %call.runtime_tool_call_id,
            tool_name = %call.tool_name.name,
        );
        let mut message = wire::ToolCall {
            session_id: self.id.to_string(),
            execution_id: execution.id.clone(),
            cell_id: call.cell_id.to_string(),
            invocation_id: Uuid::nil().to_string(),
            runtime_tool_call_id: call.runtime_tool_call_id.to_string(),
            tool_name: Some(wire::ToolName {
                name: call.tool_name.name.clone(),
                namespace: call.tool_name.namespace.clone(),
            }),
            tool_kind: match call.tool_kind {
                ToolKind::Function => wire::ToolKind::Function,
                ToolKind::Freeform => wire::ToolKind::Freeform,
            }
            .into(),
            input_json: call.input.map(|input| input.into_string().into_bytes()),
            sequence: u64::MAX,
            traceparent: span.in_scope(crate::telemetry::traceparent),
        };
        let bytes = message.encoded_len();
        if bytes > MAX_MESSAGE {
            return Err(format!(
                "code-mode tool invocation exceeds the {MAX_MESSAGE}-byte gRPC message limit"
            ));
        }
        let turn = at_once_or_wanted(self.turn(bytes), cancelled).await;
        let (turn, _in_host) = turn.ok_or(CANCELLED)??;
        let next = self.state().subscriptions.next(&call.tool_name);
        let Some((subscription, calls)) = next else {
            let none = "no code-mode tool subscription matches the requested tool";
            return Err(none.to_owned());
        };
        let (id, answered) = self.call(subscription);
        message.invocation_id = id.to_string();
        message.sequence = execution.next_sequence();
        // Its turn is over when it is answered and the client has it.
        self.queue(id, message, turn.clone());
        // A subscription that was dropped just now ends the session.
        let _ = calls.send(id);
        tokio::select! {
            biased;
            answer = answered => answer.unwrap_or_else(|_| Err(CANCELLED.to_owned())),
            () = cancelled.cancelled() => {
                if self.forget_call(id) {
                    let invocation_id = id.to_string();
                    let event = wire::ToolCallCancelled { invocation_id };
                    self.event(Event::ToolCallCancelled(event));
                }
                Err(CANCELLED.to_owned())
            }
        }
    }
}

#[async_trait]
impl CodeModeSessionDelegate for Delegate {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, String> {
        let session = self.session.upgrade().ok_or(CANCELLED)?;
        session.ask(call, &cancelled).await
    }

    async fn notify(&self, notification: CellNotification, cancelled: CancellationToken) {
        let Some(session) = self.session.upgrade() else {
            return;
        };
        let Some(execution) = session.execution(&notification.tool_call_id) else {
            return;
        };
        let mut event = wire::Notification {
            notification_id: Uuid::new_v4().to_string(),
            execution_id: execution.id.clone(),
            cell_id: notification.cell_id.to_string(),
            call_id: execution.tool_call_id.clone(),
            text: notification.text,
        };
        if event.encoded_len() > MAX_MESSAGE {
            event.text = format!(
                "[a notification of {} bytes left out: it does not fit a message of {MAX_MESSAGE} bytes]",
                event.text.len()
            );
        }
        // A notification is done when the lease has it: it needs no answer.
        tokio::select! {
            () = session.notification(event) => {}
            () = cancelled.cancelled() => {}
        }
    }

    async fn cell_closed(&self, cell_id: CellId) {
        let Some(session) = self.session.upgrade() else {
            return;
        };
        if let Some(execution) = session.close_execution(&cell_id).await {
            let event = wire::CellClosed {
                execution_id: execution.id.clone(),
                cell_id: cell_id.to_string(),
                final_tool_call_sequence: execution.sequence.load(Ordering::Relaxed),
            };
            session.event(Event::CellClosed(event));
        }
    }
}
