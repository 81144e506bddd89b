//! What a journal costs: the rows of a session whose calls wait for the disk, and a restart.

use std::sync::Arc;

use async_trait::async_trait;
use code_mode_host::{
    CodeModeSessionDelegate, ExecuteRequest, Journal, JournalOptions, Json, NestedToolCall,
    Provider, Session, SessionOptions, ToolDefinition, ToolError,
};
use criterion::Criterion;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{Echo, HI, calls, exec, tools};

const NAME: &str = "bench";

/// Echoes, but for the tool `wait`, which it reports and never answers.
struct Waits(mpsc::UnboundedSender<()>);

#[async_trait]
impl CodeModeSessionDelegate for Waits {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        if call.tool_name.name != "wait" {
            return Echo.invoke_tool(call, cancelled).await;
        }
        let _ = self.0.send(());
        cancelled.cancelled().await;
        Err(ToolError::cancelled())
    }
}

/// Opens the session of a journal.
async fn opened(
    provider: &Provider,
    folder: &tempfile::TempDir,
    delegate: Arc<dyn CodeModeSessionDelegate>,
) -> Session {
    let file = folder.path().join("journal");
    let journal = Journal::open(file, JournalOptions::default()).expect("a journal");
    let options = SessionOptions::default();
    let session = provider
        .open_durable(&journal, NAME, delegate, options)
        .await;
    session.expect("a session")
}

/// The rows of a durable session. Compare them with those of the group `native IPC`.
pub(crate) fn durable(criterion: &mut Criterion, runtime: &Runtime, provider: &Provider) {
    let folder = tempfile::tempdir().expect("a folder");
    let session = runtime.block_on(opened(provider, &folder, Arc::new(Echo)));
    let one = tools(1);
    let mut group = criterion.benchmark_group("durable, native IPC");
    group.sample_size(20);
    for (name, source) in [
        ("warm exec", HI.to_owned()),
        ("100 tool calls one after the other", calls(100, false)),
        ("100 tool calls at once", calls(100, true)),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| runtime.block_on(exec(&session, &source, &one)));
        });
    }
    runtime.block_on(session.shutdown());
    drop(session);

    // A cell with 1,000 answers in its log, whose next call is made again after each restart.
    let source = format!("{}; await tools.wait()", calls(1000, false));
    let again = ToolDefinition::function("wait", "").idempotent(true);
    let with_wait: Vec<_> = one.iter().cloned().chain([again]).collect();
    let (waits, mut waiting) = mpsc::unbounded_channel();
    let waits = Arc::new(Waits(waits));
    let request = ExecuteRequest::new("bench", source).tools(with_wait);
    runtime.block_on(async {
        let session = opened(provider, &folder, waits.clone()).await;
        let _running = session.execute(request).await.expect("admitted");
        waiting.recv().await.expect("it waits");
        session.shutdown().await;
    });
    group.bench_function("open, and repeat 1000 recorded calls", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let session = opened(provider, &folder, waits.clone()).await;
                waiting.recv().await.expect("it waits");
                session.shutdown().await;
            });
        });
    });
    group.finish();
}
