//! What cells reach outside this process: messages to the provider.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use code_mode::Callbacks;
use code_mode_protocol::native::FromWorker;
use code_mode_protocol::{BoxFuture, CellId, RuntimeToolCallId};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::outbound::Outbound;

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<String, String>>>>>;

/// Callbacks on their way.
pub(super) struct WireCallbacks {
    outbound: Outbound,
    last_call: AtomicU64,
    waiting: Waiting,
}

fn lock(
    waiting: &Waiting,
) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Result<String, String>>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WireCallbacks {
    pub(super) fn new(outbound: Outbound) -> Self {
        Self {
            outbound,
            last_call: AtomicU64::new(0),
            waiting: Waiting::default(),
        }
    }

    /// The provider answered a call. One that is not waited for any more is
    /// ignored: its answer crossed the cancellation.
    pub(super) fn answered(&self, call: u64, result: Result<String, String>) {
        let waiting = lock(&self.waiting).remove(&call);
        if let Some(waiting) = waiting {
            let _ = waiting.send(result);
        }
    }

    /// Sends what `message` makes of a new call's name, and waits for the answer
    /// or the cancellation.
    fn call(
        &self,
        message: impl FnOnce(u64) -> FromWorker,
        cancelled: CancellationToken,
    ) -> BoxFuture<Option<Result<String, String>>> {
        let call = self.last_call.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, answer) = oneshot::channel();
        lock(&self.waiting).insert(call, sender);
        self.outbound.send(message(call));
        let (outbound, waiting) = (self.outbound.clone(), self.waiting.clone());
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = answer => answer.ok(),
                () = cancelled.cancelled() => {
                    lock(&waiting).remove(&call);
                    outbound.send(FromWorker::CallCancelled { call });
                    None
                }
            }
        })
    }
}

impl Callbacks for WireCallbacks {
    fn call_tool(
        &self,
        cell_id: &CellId,
        id: RuntimeToolCallId,
        tool: u32,
        input: Option<String>,
        cancelled: CancellationToken,
    ) -> BoxFuture<Result<String, String>> {
        let message = |call| FromWorker::ToolCall {
            call,
            cell_id: cell_id.clone(),
            runtime_tool_call_id: id.0,
            tool,
            input: input.map(Into::into),
        };
        let answer = self.call(message, cancelled);
        Box::pin(async move {
            answer
                .await
                .unwrap_or_else(|| Err("the call was cancelled".to_owned()))
        })
    }

    fn notify(
        &self,
        cell_id: &CellId,
        text: String,
        cancelled: CancellationToken,
    ) -> BoxFuture<()> {
        let message = |call| FromWorker::Notify {
            call,
            cell_id: cell_id.clone(),
            text,
        };
        let delivered = self.call(message, cancelled);
        Box::pin(async move {
            delivered.await;
        })
    }

    fn committed(&self, cell_id: &CellId, writes: &[(String, Arc<str>)]) {
        self.outbound.send(FromWorker::Committed {
            cell_id: cell_id.clone(),
            writes: writes
                .iter()
                .map(|(key, json)| (key.clone(), json.to_string().into()))
                .collect(),
        });
    }

    fn closed(&self, cell_id: &CellId) -> BoxFuture<()> {
        self.outbound.send(FromWorker::CellClosed {
            cell_id: cell_id.clone(),
        });
        Box::pin(std::future::ready(()))
    }

    fn together(&self, work: &mut dyn FnMut()) {
        self.outbound.together(work);
    }
}
