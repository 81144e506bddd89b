//! Callbacks of cells, as messages down the streams of their session.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{
    CellId, CellNotification, CodeModeSessionDelegate, Json, NestedToolCall, ToolError, ToolKind,
};
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::outcome::MAX_MESSAGE;
use super::session::{CallPermits, Capacities, Session};
use super::wire;
use super::wire::session_event::Event;
use crate::Telemetry;
use crate::core::at_once_or_wanted;

/// How long a call waits for calls of other sessions to be answered.
const SERVICE_PATIENCE: Duration = Duration::from_secs(10);

/// The most that one call takes of the room for calls, in KiB.
const MAX_KIB: u32 = 32 << 10;

/// The delegate of one session. The session's streams may outlive it and end first.
pub(super) struct Delegate {
    pub(super) session: Weak<Session>,
    pub(super) telemetry: Arc<dyn Telemetry>,
}

impl Session {
    /// Waits for the capacity that one more call of so many bytes needs, in the session and
    /// in the service.
    async fn capacity(
        &self,
        bytes: usize,
    ) -> Result<(CallPermits, OwnedSemaphorePermit), ToolError> {
        let closed = |_| ToolError::cancelled();
        let Capacities {
            session,
            service,
            unread_kib,
        } = &self.capacities;
        let own = session.clone().acquire_owned().await.map_err(closed)?;
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).min(MAX_KIB);
        let room = unread_kib.clone().acquire_many_owned(kib);
        let room = room.await.map_err(closed)?;
        // Another client may never answer: this one learns so.
        let shared = timeout(SERVICE_PATIENCE, service.clone().acquire_owned()).await;
        let too_many = |_| ToolError::new("code-mode host has too many pending delegate calls");
        let shared = shared.map_err(too_many)?.map_err(closed)?;
        Ok((Arc::new([own, room]), shared))
    }

    async fn ask(
        &self,
        call: NestedToolCall,
        telemetry: &dyn Telemetry,
        cancelled: &CancellationToken,
    ) -> Result<Json, ToolError> {
        // What this program calls the execute's tool call is the execution's id.
        let execution = self
            .execution(&call.tool_call_id)
            .ok_or_else(ToolError::cancelled)?;
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
            traceparent: telemetry
                .context(&span)
                .or(call.trace_context)
                .map(|context| context.traceparent),
        };
        let bytes = message.encoded_len();
        if bytes > MAX_MESSAGE {
            return Err(ToolError::new(format!(
                "code-mode tool invocation exceeds the {MAX_MESSAGE}-byte gRPC message limit"
            )));
        }
        let permits = at_once_or_wanted(self.capacity(bytes), cancelled).await;
        let (permits, _in_service) = permits.ok_or_else(ToolError::cancelled)??;
        let next = self.state().subscriptions.next(&call.tool_name);
        let Some((subscription, calls)) = next else {
            let none = "no code-mode tool subscription matches the requested tool";
            return Err(none.into());
        };
        let id = Uuid::new_v4();
        let answered = self.state().calls.begin(id, subscription);
        message.invocation_id = id.to_string();
        message.sequence = execution.next_sequence();
        // Held until the call is answered and the client has it.
        self.queue(id, message, permits.clone());
        // A subscription that was dropped just now ends the session.
        let _ = calls.send(id);
        tokio::select! {
            biased;
            answer = answered => answer.unwrap_or_else(|_| Err(ToolError::cancelled())),
            () = cancelled.cancelled() => {
                if self.state().calls.forget(id) {
                    let invocation_id = id.to_string();
                    let event = wire::ToolCallCancelled { invocation_id };
                    self.event(Event::ToolCallCancelled(event));
                }
                Err(ToolError::cancelled())
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
    ) -> Result<Json, ToolError> {
        let session = self.session.upgrade().ok_or_else(ToolError::cancelled)?;
        session.ask(call, &*self.telemetry, &cancelled).await
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
