//! Workers for a provider on another machine.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use async_trait::async_trait;
use code_mode_protocol::wire::native::{CellEnd, Used};
use code_mode_protocol::wire::watch::{Watch, begun, ended};
use code_mode_protocol::{
    CellEnded, CellId, CellOutcome, CellStarted, CellStats, CodeModeSessionDelegate, Json,
    NestedToolCall, ToolError,
};
use interprocess::local_socket::tokio::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::ProviderOptions;
use crate::process::{Child, ExitReason};
use crate::worker::Counted;

/// A worker that was started for somebody else's provider: the bytes to and from it are
/// those of the native wire, which begins with the provider's greeting. Dropping it ends
/// its process.
pub struct LentWorker {
    stream: Stream,
    child: Child,
    counted: Counted,
    cells: LentCells,
}

impl LentWorker {
    /// The observer that `options` have for the delegates of sessions gets the cells of this worker.
    pub(crate) fn new(
        stream: Stream,
        child: Child,
        mut counted: Counted,
        options: &ProviderOptions,
    ) -> Self {
        counted.serves(false);
        Self {
            stream,
            child,
            counted,
            cells: LentCells::new(options.observe(Arc::new(Nobody))),
        }
    }

    /// How its process ended, once its bytes have ended. It is killed if it has not.
    pub async fn ended(mut self) -> ExitReason {
        // A worker that must end ends at once.
        const LAST_BREATH: std::time::Duration = std::time::Duration::from_millis(500);
        drop(self.stream);
        let reason = match tokio::time::timeout(LAST_BREATH, self.child.wait()).await {
            Ok(reason) => reason,
            Err(_) => {
                self.child.kill();
                self.child.wait().await
            }
        };
        if reason != ExitReason::Exited(0) {
            self.counted.lost();
        }
        reason
    }
}

/// The cells of a worker that was lent, as far as the passing bytes tell. They are counted, and
/// nothing depends on them.
struct LentCells {
    observer: Arc<dyn CodeModeSessionDelegate>,
    to: Watch,
    from: Watch,
    /// Those that run, and since when.
    running: HashMap<u64, Instant>,
}

/// The most cells of one lent worker that are followed at once. A provider that says it begins more
/// is not believed.
const MOST_CELLS: usize = 4096;

impl LentCells {
    fn new(observer: Arc<dyn CodeModeSessionDelegate>) -> Self {
        Self {
            observer,
            to: Watch::to_worker(),
            from: Watch::from_worker(),
            running: HashMap::new(),
        }
    }

    /// The provider has sent this.
    fn asked(&mut self, bytes: &[u8]) {
        let (running, observer) = (&mut self.running, &self.observer);
        self.to.pass(bytes, |frame| {
            if let Some(cell) = begun(frame)
                && running.len() < MOST_CELLS
                && running.insert(cell, Instant::now()).is_none()
            {
                observer.cell_started(&CellStarted::new(CellId::nth(cell), String::new()));
            }
        });
    }

    /// The worker has sent this.
    fn said(&mut self, bytes: &[u8]) {
        let (running, observer) = (&mut self.running, &self.observer);
        self.from.pass(bytes, |frame| {
            if let Some((cell, end, used)) = ended(frame)
                && let Some(since) = running.remove(&cell)
            {
                let outcome = match end {
                    CellEnd::Completed => CellOutcome::Completed,
                    CellEnd::Exited { status: 0 } => CellOutcome::Exited,
                    CellEnd::Exited { status } => CellOutcome::ExitedWith(status),
                    CellEnd::Failed { .. } => CellOutcome::ScriptError,
                    CellEnd::Limit { limit, .. } => CellOutcome::Limit(limit),
                    CellEnd::Terminated => CellOutcome::Terminated,
                    CellEnd::Diverged { text } => CellOutcome::Lost(text),
                };
                observer.cell_ended(&over((cell, since), outcome, used));
            }
        });
    }
}

impl Drop for LentCells {
    fn drop(&mut self) {
        for cell in self.running.drain() {
            let lost = CellOutcome::Lost("its worker was given back".to_owned());
            let ended = over(cell, lost, Used::default());
            self.observer.cell_ended(&ended);
        }
    }
}

fn over((cell, since): (u64, Instant), outcome: CellOutcome, used: Used) -> CellEnded {
    let mut stats = CellStats::default();
    stats.wall = since.elapsed();
    stats.processor = used.processor;
    stats.queued = used.queued;
    stats.peak_heap_bytes = used.peak_heap_bytes;
    CellEnded::new(CellId::nth(cell), String::new(), outcome, stats)
}

/// The delegate of cells whose calls go elsewhere.
struct Nobody;

#[async_trait]
impl CodeModeSessionDelegate for Nobody {
    async fn invoke_tool(
        &self,
        _: NestedToolCall,
        _: CancellationToken,
    ) -> Result<Json, ToolError> {
        Err("calls of a lent worker go to its provider".into())
    }
}

impl std::fmt::Debug for LentWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LentWorker").finish_non_exhaustive()
    }
}

impl AsyncRead for LentWorker {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let came = buffer.filled().get(before..).unwrap_or_default();
        self.cells.said(came);
        read
    }
}

impl AsyncWrite for LentWorker {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.cells.asked(bytes.get(..count).unwrap_or_default());
        }
        written
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
