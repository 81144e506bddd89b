//! The events that a delegate gets about a session's cells.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{
    CallOutcome, CellEnded, CellId, CellOutcome, CellResponse, CellStarted,
    CodeModeSessionDelegate, ExecuteRequest, Json, Limit, Limits, NestedToolCall, Provider,
    SessionOptions, ToolAnswer, ToolCallFinished, ToolError,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::support::{options, provider_in_process, run, tool};

/// Records the events, in order.
#[derive(Default)]
struct Observer {
    told: Mutex<Vec<String>>,
    ends: Mutex<Vec<CellEnded>>,
    calls: Mutex<Vec<ToolCallFinished>>,
    ended: Notify,
}

impl Observer {
    fn note(&self, what: String) {
        self.told.lock().expect("no panic").push(what);
    }

    async fn end(&self) -> CellEnded {
        loop {
            let ended = self.ended.notified();
            if let Some(end) = self.ends.lock().expect("no panic").last().cloned() {
                return end;
            }
            ended.await;
        }
    }
}

#[async_trait]
impl CodeModeSessionDelegate for Observer {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        match call.tool_name.name.as_str() {
            "fails" => Err("no".into()),
            "blocked" => Err(ToolError::blocked("the policy forbids it")),
            "lost" => Err(ToolError::unknown("it may have run")),
            "mcp_fails" => Ok(
                Json::parse(r#"{"content": [], "isError": true}"#.to_owned())
                    .map_err(|error| error.to_string())?,
            ),
            "never" => {
                cancelled.cancelled().await;
                Err("cancelled".into())
            }
            _ => Ok(Json::string("1234")),
        }
    }

    async fn cell_closed(&self, cell: CellId) {
        self.note(format!("closed {cell}"));
    }

    fn cell_started(&self, cell: &CellStarted) {
        self.note(format!("started {} {}", cell.cell_id, cell.tool_call_id));
    }

    fn cell_ended(&self, cell: &CellEnded) {
        self.note(format!("ended {} {}", cell.cell_id, cell.outcome.as_str()));
        self.ends.lock().expect("no panic").push(cell.clone());
        self.ended.notify_one();
    }

    fn tool_call_started(&self, call: &NestedToolCall) {
        self.note(format!("call {}", call.tool_name.name));
    }

    fn tool_call_finished(&self, call: &ToolCallFinished) {
        self.note(format!("{} {}", call.tool_name.name, call.outcome.as_str()));
        self.calls.lock().expect("no panic").push(call.clone());
    }
}

async fn open(provider: &Provider, limits: Limits) -> (code_mode_host::Session, Arc<Observer>) {
    let observer = Arc::new(Observer::default());
    let options = SessionOptions::default().limits(limits);
    let session = provider.open_session(observer.clone(), options).await;
    (session.expect("a session"), observer)
}

fn request(source: &str) -> ExecuteRequest {
    ExecuteRequest::new("exec-1", source)
        .tools(["works", "fails", "never"].map(tool))
        .yield_time(Duration::from_secs(30))
}

#[test]
fn what_became_of_a_failed_call_is_told_apart() {
    run(async {
        let provider = Provider::new(options()).expect("the program is there");
        let observer = Arc::new(Observer::default());
        let checked = SessionOptions::default().guided(true).check_inputs(true);
        let session = provider.open_session(observer.clone(), checked).await;
        let session = session.expect("a session");
        let mut strict = tool("strict");
        let schema = r#"{"type": "object", "required": ["a"], "properties": {"a": {}}}"#;
        strict.input_schema = Some(Json::parse(schema.to_owned()).expect("JSON"));
        let source = "for (const name of ['fails', 'strict', 'blocked', 'lost', 'works']) \
                      await tools[name]({}).catch(() => {})";
        let tools = ["works", "fails", "blocked", "lost"].map(tool);
        let request = ExecuteRequest::new("exec-1", source).tools([&tools[..], &[strict]].concat());
        let started = session.execute(request).await.expect("admitted");
        started.outcome().await.expect("observed");
        let stats = observer.end().await.stats;
        assert_eq!((stats.calls, stats.calls_failed), (5, 4));
        let told = observer.told.lock().expect("no panic").clone();
        for outcome in [
            "fails failed",
            "strict refused",
            "blocked blocked",
            "lost unknown",
            "works succeeded",
        ] {
            assert!(
                told.iter().any(|told| told == outcome),
                "{outcome}: {told:?}"
            );
        }
        session.shutdown().await;
        provider.shutdown().await;
    });
}

#[test]
fn a_result_of_an_mcp_server_that_is_an_error_is_a_failed_call() {
    run(async {
        let provider = Provider::new(options()).expect("the program is there");
        let (session, observer) = open(&provider, Limits::default()).await;
        let of_mcp = tool("mcp_fails").answer(ToolAnswer::McpResult);
        let source = "await tools.mcp_fails().catch(() => {}); text('on')";
        let request = ExecuteRequest::new("exec-1", source).tools([of_mcp]);
        let started = session.execute(request).await.expect("admitted");
        started.outcome().await.expect("observed");
        let stats = observer.end().await.stats;
        assert_eq!((stats.calls, stats.calls_failed), (1, 1));
        assert_eq!(
            observer.calls.lock().expect("no panic")[0].outcome,
            CallOutcome::Failed
        );
        // The same value of another tool is a result like any other.
        let request = ExecuteRequest::new("exec-2", source).tools([tool("mcp_fails")]);
        let started = session.execute(request).await.expect("admitted");
        started.outcome().await.expect("observed");
        let outcome = observer.calls.lock().expect("no panic")[1].outcome;
        assert!(
            matches!(outcome, CallOutcome::Succeeded { .. }),
            "{outcome:?}"
        );
        session.shutdown().await;
        provider.shutdown().await;
    });
}

#[test]
fn a_cells_life_is_told_in_its_order() {
    run(async {
        let provider = Provider::new(options()).expect("the program is there");
        let (session, observer) = open(&provider, Limits::default()).await;
        let source = "await tools.works(); try { await tools.fails() } catch {} tools.never(); text('x'.repeat(1000))";
        let started = session.execute(request(source)).await.expect("admitted");
        let response = started.outcome().await.expect("observed");
        assert_eq!(response.outcome(), Some(CellOutcome::Completed));
        session.shutdown().await;
        let told = observer.told.lock().expect("no panic").clone();
        let place = |what: &str| {
            told.iter()
                .position(|t| t == what)
                .unwrap_or_else(|| panic!("{what}: {told:?}"))
        };
        assert_eq!(place("started 1 exec-1"), 0);
        assert!(place("call works") < place("works succeeded"));
        assert!(place("works succeeded") < place("fails failed"));
        assert!(place("fails failed") < place("ended 1 completed"));
        assert!(place("ended 1 completed") < place("never cancelled"));
        assert_eq!(place("closed 1"), told.len() - 1);
        assert_eq!(told.len(), 9, "each once: {told:?}");
        let stats = observer.end().await.stats;
        assert_eq!(
            (stats.calls, stats.calls_failed, stats.calls_cancelled),
            (3, 1, 1)
        );
        assert_eq!(stats.output_bytes, 1000);
        assert!(stats.wall >= stats.queued && stats.processor > Duration::ZERO);
        assert!(stats.peak_heap_bytes > 100_000);
        provider.shutdown().await;
        let calls = observer.calls.lock().expect("no panic");
        assert_eq!(calls[0].outcome, CallOutcome::Succeeded { bytes: 6 });
    });
}

#[test]
fn every_end_has_its_type() {
    run(async {
        let mut limits = Limits::default();
        limits.max_cpu_time = Some(Duration::from_millis(200));
        for in_process in [true, false] {
            let provider = match in_process {
                true => provider_in_process(),
                false => Provider::new(options()).expect("the program is there"),
            };
            for (source, wanted) in [
                ("text(1)", "completed"),
                ("exit()", "exited"),
                ("throw 1", "script_error"),
                ("}", "script_error"),
                ("for (;;) {}", "limit"),
            ] {
                let (session, observer) = open(&provider, limits.clone()).await;
                let started = session.execute(request(source)).await.expect("admitted");
                let response = started.outcome().await.expect("observed");
                let end = observer.end().await;
                assert_eq!(end.outcome.as_str(), wanted, "{source}");
                assert_eq!(response.outcome(), Some(end.outcome.clone()), "{source}");
                if let CellOutcome::Limit(limit) = end.outcome {
                    assert_eq!(limit.limit, Limit::CpuTime);
                }
                session.shutdown().await;
            }
            let (session, observer) = open(&provider, limits.clone()).await;
            let waiting = || request("await tools.never()");
            let started = session.execute(waiting()).await.expect("admitted");
            session
                .terminate(started.id().clone())
                .await
                .expect("terminated");
            assert_eq!(observer.end().await.outcome, CellOutcome::Terminated);
            let (session, observer) = open(&provider, limits.clone()).await;
            session.execute(waiting()).await.expect("admitted");
            session.shutdown().await;
            assert_eq!(observer.end().await.outcome, CellOutcome::ShutDown);
            provider.shutdown().await;
        }
    });
}

#[test]
fn the_loss_of_a_worker_is_told_with_its_reason() {
    run(async {
        let provider = Provider::new(options()).expect("the program is there");
        let (session, observer) = open(&provider, Limits::default()).await;
        let dies = request("'x'.repeat(2**28).match(/x/g)");
        let started = session.execute(dies).await.expect("admitted");
        let response = started.outcome().await.expect("observed");
        let CellOutcome::Lost(why) = observer.end().await.outcome else {
            panic!("{response:?}");
        };
        let CellResponse::Result {
            error_text: Some(text),
            ..
        } = response
        else {
            panic!("{response:?}");
        };
        assert_eq!(text, why);
        provider.shutdown().await;
    });
}

#[test]
fn an_observer_that_panics_costs_nothing_else() {
    struct Panics;
    #[async_trait]
    impl CodeModeSessionDelegate for Panics {
        async fn invoke_tool(
            &self,
            _: NestedToolCall,
            _: CancellationToken,
        ) -> Result<Json, ToolError> {
            Ok(Json::null())
        }
        fn cell_started(&self, _: &CellStarted) {
            panic!("in cell_started");
        }
        fn cell_ended(&self, _: &CellEnded) {
            panic!("in cell_ended");
        }
        fn tool_call_started(&self, _: &NestedToolCall) {
            panic!("in tool_call_started");
        }
    }
    run(async {
        let provider = provider_in_process();
        let session = provider
            .create_session(Arc::new(Panics))
            .await
            .expect("a session");
        let started = session
            .execute(request("text(await tools.works())"))
            .await
            .expect("admitted");
        let response = started.outcome().await.expect("observed");
        assert_eq!(response.outcome(), Some(CellOutcome::Completed));
        provider.shutdown().await;
    });
}
