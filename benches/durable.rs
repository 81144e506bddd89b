//! What a journal costs: the rows of a session whose calls wait for the disk, and a restart.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use code_mode_host::{
    CodeModeSessionDelegate, ExecuteRequest, Journal, JournalOptions, Json, NestedToolCall,
    Provider, Sandbox, Session, SessionOptions, ToolDefinition, ToolError, WaitRequest,
};
use criterion::Criterion;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{Echo, HI, calls, exec, options, runtime, tools};

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

/// Echoes, but for the tool `wait`, which a person answers later.
#[derive(Default)]
struct Person(Mutex<Option<oneshot::Sender<()>>>);

#[async_trait]
impl CodeModeSessionDelegate for Person {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        if call.tool_name.name != "wait" {
            return Echo.invoke_tool(call, cancelled).await;
        }
        let (answer, answered) = oneshot::channel();
        self.0.lock().expect("not poisoned").replace(answer);
        let _ = answered.await;
        Ok(Json::null())
    }
}

impl Person {
    async fn answers(&self) {
        loop {
            let waits = self.0.lock().expect("not poisoned").take();
            match waits {
                Some(answer) => {
                    let _ = answer.send(());
                    return;
                }
                None => tokio::task::yield_now().await,
            }
        }
    }
}

/// Sessions of one cell each that waits for a person: what they take, and how long each takes to
/// continue.
pub(crate) fn parked(count: usize) {
    const PARK_AFTER: Duration = Duration::from_millis(200);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("journal");
    let runtime = runtime();
    runtime.block_on(async {
        let options = options(Sandbox::BestEffort, 1).idle_timeout(PARK_AFTER);
        let provider = Provider::new(options).expect("the program");
        let kept = JournalOptions::default().park_after(PARK_AFTER);
        let journal = Journal::open(&file, kept).expect("a journal");
        let with_wait = ToolDefinition::function("wait", "").idempotent(true);
        let one = tools(1);
        let with_wait: Vec<_> = one.iter().cloned().chain([with_wait]).collect();
        let source = format!("{}; await tools.wait(); text('done')", calls(40, false));
        let request = ExecuteRequest::new("bench", source)
            .tools(with_wait)
            .yield_time(Duration::from_millis(1));
        let before = crate::memory::proportional_memory();
        let began = Instant::now();
        let mut all = Vec::new();
        for number in 0..count {
            let person = Arc::new(Person::default());
            let name = number.to_string();
            let session =
                provider.open_durable(&journal, &name, person.clone(), SessionOptions::default());
            let session = session.await.expect("a session");
            let running = session.execute(request.clone()).await.expect("admitted");
            let cell = running.id().clone();
            let _ = running.outcome().await;
            all.push((session, cell, person));
        }
        while provider.workers().serving > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("\n{count} sessions whose cell has made 40 calls and waits for a person");
        println!("  until all wait without a process: {:?}", began.elapsed());
        let bytes = std::fs::metadata(&file).map_or(0, |file| file.len());
        println!(
            "  the journal, MiB                  {:.1}",
            bytes as f64 / f64::from(1 << 20)
        );
        let held = crate::memory::proportional_memory().saturating_sub(before);
        println!(
            "  memory of the host, KiB a session {}",
            held / count.max(1) as u64
        );
        println!(
            "  processes of workers              {}",
            provider.workers().serving
        );
        let mut times = Vec::new();
        for (session, cell, person) in all {
            let began = Instant::now();
            person.answers().await;
            let wait = WaitRequest::new(cell).yield_time(Duration::from_secs(60));
            let response = session.wait(wait).await.expect("observed");
            times.push(began.elapsed());
            assert!(response.is_final(), "{response:?}");
            session.shutdown().await;
        }
        times.sort_unstable();
        let at = |share: usize| times[(times.len() - 1) * share / 100];
        println!(
            "  from the answer to the end: p50 {:?}, p95 {:?}",
            at(50),
            at(95)
        );
        provider.shutdown().await;
    });
}
