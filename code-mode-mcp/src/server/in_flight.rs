//! The requests of a client that have no answer yet are bounded: one that sends requests and does not
//! read their answers is not read from, until it does.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rmcp::RoleServer;
use rmcp::model::{ClientNotification, JsonRpcMessage, RequestId};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::sync::Notify;

use crate::upstream::answered;

/// Requests of one client without an answer.
const MAX_OPEN: usize = 1024;

/// A transport that stops reading while too many requests wait for their answers to be written.
pub(super) struct InFlight<T> {
    inner: T,
    open: Arc<Open>,
}

#[derive(Default)]
pub(super) struct Open {
    ids: Mutex<HashSet<RequestId>>,
    /// The last requests that the client has cancelled.
    cancelled: Mutex<VecDeque<RequestId>>,
    /// Rung when one is closed.
    closed: Notify,
}

impl Open {
    fn ids(&self) -> MutexGuard<'_, HashSet<RequestId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cancelled(&self) -> MutexGuard<'_, VecDeque<RequestId>> {
        self.cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The client has cancelled a request.
    fn cancel(&self, id: &RequestId) {
        if self.ids().contains(id) {
            let mut cancelled = self.cancelled();
            cancelled.push_back(id.clone());
            if cancelled.len() > MAX_OPEN {
                cancelled.pop_front();
            }
        }
        self.close(id);
    }

    /// Whether the client has cancelled a request; one that has left has not.
    pub(super) fn was_cancelled(&self, id: &RequestId) -> bool {
        self.cancelled().contains(id)
    }

    fn close(&self, id: &RequestId) {
        self.ids().remove(id);
        self.closed.notify_waiters();
    }

    /// Waits until there is room for one more.
    async fn has_room(&self) {
        loop {
            let mut closed = std::pin::pin!(self.closed.notified());
            closed.as_mut().enable();
            if self.ids().len() < MAX_OPEN {
                return;
            }
            closed.await;
        }
    }
}

impl<T> InFlight<T> {
    pub(super) fn new(inner: T, open: Arc<Open>) -> Self {
        Self { inner, open }
    }
}

impl<T: Transport<RoleServer>> Transport<RoleServer> for InFlight<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = Result<(), T::Error>> + Send + 'static {
        let answered = answered(&item);
        let open = self.open.clone();
        let sending = self.inner.send(item);
        async move {
            let sent = sending.await;
            if let Some(id) = answered {
                open.close(&id);
            }
            sent
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        // This future may be dropped while it waits: nothing has been read then.
        self.open.has_room().await;
        let message = self.inner.receive().await?;
        match &message {
            JsonRpcMessage::Request(request) => {
                self.open.ids().insert(request.id.clone());
            }
            // A cancelled request gets no answer.
            JsonRpcMessage::Notification(notification) => {
                if let ClientNotification::CancelledNotification(cancelled) =
                    &notification.notification
                    && let Some(id) = &cancelled.params.request_id
                {
                    self.open.cancel(id);
                }
            }
            JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => {}
        }
        Some(message)
    }

    fn close(&mut self) -> impl Future<Output = Result<(), T::Error>> + Send {
        self.inner.close()
    }
}

#[cfg(test)]
mod tests {
    use rmcp::model::{EmptyResult, ServerResult};
    use serde_json::json;

    use super::*;

    /// A client that pings without end.
    struct Pings(u64);

    impl Transport<RoleServer> for Pings {
        type Error = std::io::Error;

        fn send(
            &mut self,
            _: TxJsonRpcMessage<RoleServer>,
        ) -> impl Future<Output = Result<(), std::io::Error>> + Send + 'static {
            std::future::ready(Ok(()))
        }

        async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
            self.0 += 1;
            let ping = json!({"jsonrpc": "2.0", "id": self.0, "method": "ping"});
            serde_json::from_value(ping).ok()
        }

        async fn close(&mut self) -> Result<(), std::io::Error> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_client_that_reads_no_answers_is_not_read_from() {
        let mut bounded = InFlight::new(Pings(0), Arc::default());
        let mut last = None;
        for _ in 0..MAX_OPEN {
            last = bounded.receive().await;
        }
        assert!(futures::poll!(std::pin::pin!(bounded.receive())).is_pending());
        let Some(JsonRpcMessage::Request(last)) = last else {
            panic!("no request");
        };
        let result = ServerResult::EmptyResult(EmptyResult {});
        let sent = bounded.send(JsonRpcMessage::response(result, last.id));
        sent.await.expect("sent");
        assert!(bounded.receive().await.is_some());
        assert!(futures::poll!(std::pin::pin!(bounded.receive())).is_pending());
    }
}
