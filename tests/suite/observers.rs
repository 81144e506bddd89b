//! Those who look on beside a session's delegate.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{
    CellEnded, CellId, CellOutcome, CellStarted, CodeModeSessionDelegate, ExecuteRequest, Json,
    NestedToolCall, SessionObserver, SessionOptions, ToolCallFinished, ToolError,
};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::support::{provider_in_process, run, tool};

/// What happened, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>, Arc<Notify>);

impl Log {
    fn note(&self, what: String) {
        self.0.lock().expect("no panic").push(what);
        self.1.notify_one();
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().expect("no panic").clone()
    }

    async fn has(&self, what: &str) {
        loop {
            let noted = self.1.notified();
            if self.all().iter().any(|noted| noted == what) {
                return;
            }
            noted.await;
        }
    }
}

struct Tools(Log);

#[async_trait]
impl CodeModeSessionDelegate for Tools {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        _: CancellationToken,
    ) -> Result<Json, ToolError> {
        self.0.note(format!("ran {}", call.tool_name.name));
        Ok(Json::string(&call.tool_name.name))
    }

    async fn cell_closed(&self, _: CellId) {
        self.0.note("closed".to_owned());
    }
}

/// Records its events; one of them waits for a gate.
struct Watcher {
    name: &'static str,
    log: Log,
    holds: &'static str,
    gate: Semaphore,
}

impl Watcher {
    fn new(name: &'static str, log: &Log, holds: &'static str) -> Arc<Self> {
        Arc::new(Self {
            name,
            log: log.clone(),
            holds,
            gate: Semaphore::new(0),
        })
    }

    async fn told(&self, what: String) {
        self.log.note(format!("{}: {what}", self.name));
        if what == self.holds {
            self.gate.acquire().await.expect("open").forget();
        }
    }
}

#[async_trait]
impl SessionObserver for Watcher {
    async fn session_opened(&self) {
        self.told("opened".to_owned()).await;
    }

    async fn session_closed(&self) {
        self.told("session closed".to_owned()).await;
    }

    async fn cell_started(&self, cell: &CellStarted) {
        self.told(format!("started {}", cell.tool_call_id)).await;
    }

    async fn cell_ended(&self, cell: &CellEnded) {
        self.told(format!("ended {}", cell.outcome.as_str())).await;
    }

    async fn call_started(&self, call: &NestedToolCall) {
        self.told(format!("calls {}", call.tool_name.name)).await;
    }

    async fn call_finished(&self, call: &ToolCallFinished) {
        self.told(format!("{} {}", call.tool_name.name, call.outcome.as_str()))
            .await;
    }
}

/// One that always panics.
struct Careless;

#[async_trait]
impl SessionObserver for Careless {
    async fn call_started(&self, _: &NestedToolCall) {
        panic!("an observer's fault");
    }

    async fn cell_ended(&self, _: &CellEnded) {
        panic!("an observer's fault");
    }
}

fn request(source: &str) -> ExecuteRequest {
    ExecuteRequest::new("exec-1", source)
        .tools(["held", "free"].map(tool))
        .yield_time(Duration::from_secs(30))
}

#[test]
fn several_observers_are_told_of_the_session_its_cells_and_their_calls() {
    run(async {
        let log = Log::default();
        let provider = provider_in_process();
        let options = SessionOptions::default()
            .observer(Watcher::new("a", &log, ""))
            .observer(Arc::new(Careless))
            .observer(Watcher::new("b", &log, ""));
        let session = provider
            .open_session(Arc::new(Tools(log.clone())), options)
            .await;
        let session = session.expect("a session");
        let started = session.execute(request("text(await tools.free())")).await;
        let outcome = started
            .expect("admitted")
            .outcome()
            .await
            .expect("observed");
        assert_eq!(
            outcome.outcome(),
            Some(CellOutcome::Completed),
            "{outcome:?}"
        );
        log.has("closed").await;
        session.shutdown().await;
        session.closed().await;
        log.has("b: session closed").await;
        for name in ["a", "b"] {
            let prefix = format!("{name}: ");
            let told: Vec<_> = log
                .all()
                .into_iter()
                .filter_map(|what| what.strip_prefix(&prefix).map(str::to_owned))
                .collect();
            assert_eq!(told[0], "opened");
            let mut told = told[1..].to_vec();
            // The program runs while its observers learn of its start.
            told.sort();
            assert_eq!(
                told,
                [
                    "calls free",
                    "ended completed",
                    "free succeeded",
                    "session closed",
                    "started exec-1"
                ]
            );
        }
        let all = log.all();
        let at = |what: &str| all.iter().position(|noted| noted == what).expect("noted");
        assert!(at("a: calls free") < at("ran free"));
        assert!(at("ran free") < at("a: free succeeded"));
        assert!(at("a: ended completed") < at("closed"));
    });
}

#[test]
fn a_slow_observer_holds_what_it_observes_and_nothing_else() {
    run(async {
        let log = Log::default();
        let provider = provider_in_process();
        let slow = Watcher::new("slow", &log, "calls held");
        // A guided session begins calls in their order.
        let options = SessionOptions::default()
            .guided(true)
            .observer(slow.clone());
        let session = provider
            .open_session(Arc::new(Tools(log.clone())), options)
            .await;
        let session = session.expect("a session");
        let source = "const held = tools.held(); text(await tools.free()); text(await held)";
        let started = session.execute(request(source)).await.expect("admitted");
        log.has("slow: free succeeded").await;
        assert!(!log.all().contains(&"ran held".to_owned()));
        slow.gate.add_permits(1);
        started.outcome().await.expect("observed");
        assert!(log.all().contains(&"ran held".to_owned()));
        session.shutdown().await;
    });
}

#[test]
fn an_observer_that_never_returns_holds_neither_the_end_of_a_cell_nor_a_shutdown() {
    run(async {
        let provider = provider_in_process();
        for holds in ["calls held", "held succeeded", "ended terminated"] {
            let log = Log::default();
            let slow = Watcher::new("slow", &log, holds);
            let options = SessionOptions::default().observer(slow);
            let session = provider
                .open_session(Arc::new(Tools(log.clone())), options)
                .await;
            let session = session.expect("a session");
            let source = "await tools.held(); await new Promise(() => {})";
            let started = session.execute(request(source)).await.expect("admitted");
            log.has("slow: calls held").await;
            let id = started.id().clone();
            session.terminate(id).await.expect("terminated");
            session.shutdown().await;
            session.closed().await;
        }
    });
}
