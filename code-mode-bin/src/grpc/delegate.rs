//! Callbacks of cells, as messages down the streams of their session.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use code_mode_host::{
    CellId, CellNotification, CodeModeSessionDelegate, Json, NestedToolCall, ToolKind,
};
use futures::FutureExt;
use prost::Message;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::outcome::MAX_MESSAGE;
use super::session::Session;
use super::wire;
use super::wire::session_event::Event;

const CANCELLED: &str = "the call was cancelled";

/// The delegate of one session. The session's streams may outlive it and end first.
pub(super) struct Delegate {
    pub(super) session: Weak<Session>,
}

impl Session {
    /// Waits for the turn of one more callback, in the session and in the host.
    async fn turn(&self) -> Option<impl Drop + use<>> {
        struct Turn(
            #[allow(dead_code, reason = "held")] tokio::sync::OwnedSemaphorePermit,
            #[allow(dead_code, reason = "held")] tokio::sync::OwnedSemaphorePermit,
        );
        impl Drop for Turn {
            fn drop(&mut self) {}
        }
        let acquire = |of: &Arc<Semaphore>| of.clone().acquire_owned();
        let own = acquire(&self.capacity).await.ok()?;
        let hosts = acquire(&self.host_capacity).await.ok()?;
        Some(Turn(own, hosts))
    }

    async fn ask(
        &self,
        call: NestedToolCall,
        cancelled: &CancellationToken,
    ) -> Result<Json, String> {
        let mut turn = pin!(self.turn());
        // A call whose cell has ended meanwhile is sent all the same where there is room
        // for it at once: the client sees what the cell did, and that it is cancelled.
        let turn = match turn.as_mut().now_or_never() {
            Some(turn) => turn,
            None => tokio::select! {
                biased;
                () = cancelled.cancelled() => None,
                turn = turn => turn,
            },
        };
        let _turn = turn.ok_or(CANCELLED)?;
        // What this program calls the execute's tool call is the execution's id.
        let execution = self.execution(&call.tool_call_id).ok_or(CANCELLED)?;
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
            traceparent: None,
        };
        if message.encoded_len() > MAX_MESSAGE {
            return Err(format!(
                "code-mode tool invocation exceeds the {MAX_MESSAGE}-byte gRPC message limit"
            ));
        }
        let next = self.state().subscriptions.next(&call.tool_name);
        let Some((subscription, calls)) = next else {
            let none = "no code-mode tool subscription matches the requested tool";
            return Err(none.to_owned());
        };
        let (id, answered) = self.call(subscription);
        message.invocation_id = id.to_string();
        message.sequence = execution.next_sequence();
        // A subscription that was dropped just now ends the session.
        let _ = calls.send(Ok(message));
        tokio::select! {
            biased;
            answer = answered => answer.unwrap_or_else(|_| Err(CANCELLED.to_owned())),
            () = cancelled.cancelled() => {
                if self.forget_call(id) {
                    let invocation_id = id.to_string();
                    let event = wire::ToolCallCancelled { invocation_id };
                    self.event(Event::ToolCallCancelled(event)).await;
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
        // A notification is done when the lease's queue has it; until then it waits its
        // turn like a call.
        tokio::select! {
            () = async {
                let _turn = session.turn().await;
                session.event(Event::Notification(event)).await;
            } => {}
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
            session.event(Event::CellClosed(event)).await;
        }
    }
}
