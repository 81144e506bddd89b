//! The callbacks of one cell: tool calls and notifications on their way to the
//! agent core.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use code_mode_protocol::native::ToWorker;
use code_mode_protocol::{CellId, CodeModeSessionDelegate, Json, Limit, NestedToolCall};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::connection::Outbound;

/// How long a cancelled callback may take to return before its cell's end is
/// reported without it.
pub(crate) const GRACE: Duration = Duration::from_millis(500);

/// The callbacks of one cell.
pub(crate) struct Calls {
    cell_id: CellId,
    tool_call_id: String,
    /// Cancels every callback of the cell.
    cancelled: CancellationToken,
    tasks: TaskTracker,
    /// Tool calls without an answer.
    open: HashMap<u64, CancellationToken>,
    /// Feeds the task that delivers notifications in order.
    notifications: Option<UnboundedSender<(u64, String)>>,
}

impl Calls {
    pub(crate) fn new(cell_id: CellId, tool_call_id: String, cancelled: CancellationToken) -> Self {
        Self {
            cell_id,
            tool_call_id,
            cancelled,
            tasks: TaskTracker::new(),
            open: HashMap::new(),
            notifications: None,
        }
    }

    /// Tool calls without an answer.
    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }

    /// Hands one tool call to the agent core; its answer of at most `max_bytes`
    /// goes to the worker, and `done` is told.
    pub(crate) fn invoke(
        &mut self,
        call: u64,
        invocation: NestedToolCall,
        delegate: Arc<dyn CodeModeSessionDelegate>,
        outbound: Outbound,
        max_bytes: usize,
        done: impl FnOnce() + Send + 'static,
    ) {
        let cancelled = self.cancelled.child_token();
        self.open.insert(call, cancelled.clone());
        let span = tracing::debug_span!(
            "tool_call",
            cell = %invocation.cell_id,
            tool_call = %invocation.runtime_tool_call_id,
        );
        let task = async move {
            let result = delegate.invoke_tool(invocation, cancelled.clone()).await;
            done();
            if !cancelled.is_cancelled() {
                let result = match result {
                    Ok(json) if json.as_str().len() > max_bytes => {
                        let bytes = json.as_str().len();
                        let exceeded = Limit::Frame.exceeded(max_bytes as u64);
                        Err(format!("the tool's result has {bytes} bytes: {exceeded}"))
                    }
                    result => result.map(Json::into_string),
                };
                outbound.send(ToWorker::ToolResult { call, result });
            }
        };
        self.tasks.spawn(task.instrument(span));
    }

    /// Hands one notification to the agent core, after those before it.
    pub(crate) fn notify(
        &mut self,
        call: u64,
        text: String,
        delegate: &Arc<dyn CodeModeSessionDelegate>,
        outbound: &Outbound,
    ) {
        let queue = self.notifications.get_or_insert_with(|| {
            let (queue, mut texts) = unbounded_channel::<(u64, String)>();
            let (delegate, outbound) = (delegate.clone(), outbound.clone());
            let (cell_id, tool_call_id) = (self.cell_id.clone(), self.tool_call_id.clone());
            let cancelled = self.cancelled.clone();
            self.tasks.spawn(async move {
                while let Some((call, text)) = texts.recv().await {
                    if cancelled.is_cancelled() {
                        return;
                    }
                    delegate
                        .notify(
                            tool_call_id.clone(),
                            cell_id.clone(),
                            text,
                            cancelled.clone(),
                        )
                        .await;
                    outbound.send(ToWorker::Notified { call });
                }
            });
            queue
        });
        let _ = queue.send((call, text));
    }

    /// A call has its answer, or never gets one.
    pub(crate) fn forget(&mut self, call: u64) -> Option<CancellationToken> {
        self.open.remove(&call)
    }

    /// Cancels what still runs; the future ends when it has ended, or after the
    /// grace. `None` where nothing runs.
    pub(crate) fn end(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        self.notifications = None;
        self.tasks.close();
        self.cancelled.cancel();
        if self.tasks.is_empty() {
            return None;
        }
        let tasks = self.tasks.clone();
        Some(async move {
            if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
                tracing::warn!("a callback ignores its cancellation and is left behind");
            }
        })
    }
}
