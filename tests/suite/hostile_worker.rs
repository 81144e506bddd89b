//! A worker is taken for an enemy: what it says that does not fit ends it, and
//! every request is answered all the same. These tests are the worker.
#![cfg(unix)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use code_mode_host::{
    CellResponse, ContentItem, Limits, Provider, RuntimeToolCallId, WaitRequest, WorkerSource,
};
use code_mode_protocol::wire::frame::{Frame, MAX_FRAME_BYTES};
use code_mode_protocol::wire::native::{
    CellEnd, FromWorker, JsonText, ToWorker, Used, VERSION, WorkerInfo,
};
use code_mode_protocol::wire::reader::{MaxMessage, MessageReader};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

use crate::support::{Agent, Session, error_text, options, request, run, session_of};

/// A worker of the test's own.
pub struct Liar {
    reader: MessageReader<OwnedReadHalf, ToWorker>,
    writer: OwnedWriteHalf,
}

impl Liar {
    pub fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        let max = MaxMessage {
            frame: MAX_FRAME_BYTES,
            texts: MAX_FRAME_BYTES,
        };
        Self {
            reader: MessageReader::new(reader, max),
            writer,
        }
    }

    /// Answers the greeting of the next host, and waits for its first execute.
    pub async fn greeted(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().await.expect("the host connects");
        let mut liar = Self::new(stream);
        liar.hears(|message| matches!(message, ToWorker::Hello { .. }))
            .await;
        liar.say(FromWorker::Ready(info())).await;
        liar.hears(|message| matches!(message, ToWorker::Execute { .. }))
            .await;
        liar
    }

    /// The next message of the host; `None` once it has hung up.
    pub async fn next(&mut self) -> Option<ToWorker> {
        self.reader.next().await.ok().flatten()
    }

    /// Waits for a message.
    pub async fn hears(&mut self, wanted: impl Fn(&ToWorker) -> bool) -> ToWorker {
        loop {
            let message = self.next().await.expect("the host goes on");
            if wanted(&message) {
                return message;
            }
        }
    }

    pub async fn say(&mut self, message: FromWorker) {
        self.say_frame(message.encode().expect("encodes")).await;
    }

    async fn say_frame(&mut self, frame: Frame) {
        for part in frame.into_parts() {
            self.say_bytes(&part).await;
        }
    }

    async fn say_bytes(&mut self, bytes: &[u8]) {
        // The host may have hung up already.
        let _ = self.writer.write_all(bytes).await;
    }

    /// Ends as an honest worker does, when the host says so.
    pub async fn until_shutdown(&mut self) {
        while let Some(message) = self.next().await {
            if matches!(message, ToWorker::Shutdown) {
                self.say(FromWorker::ShutDown).await;
            }
        }
    }
}

pub fn info() -> WorkerInfo {
    WorkerInfo {
        version: VERSION,
        capabilities: vec![],
        v8_version: "0".to_owned(),
        v8_heap_sandbox: false,
        sandbox: vec![],
    }
}

pub fn ended(cell: u64) -> FromWorker {
    FromWorker::Ended {
        cell,
        items: vec![].into(),
        end: CellEnd::Completed,
        used: Used::default(),
    }
}

pub fn tool_call(cell: u64, call: u32) -> FromWorker {
    FromWorker::ToolCall {
        cell,
        call: RuntimeToolCallId(call),
        tool: 1,
        input: None,
        site: None,
    }
}

fn notification(text: &str) -> FromWorker {
    FromWorker::Notify {
        cell: 1,
        text: text.to_owned(),
    }
}

/// A session whose worker is the test, while that runs `worker`.
pub async fn with_worker<W, T, F>(
    limits: Limits,
    worker: impl FnOnce(UnixListener) -> W,
    test: impl FnOnce(Session, Arc<Agent>) -> F,
) -> T
where
    W: Future<Output = ()> + Send + 'static,
    F: Future<Output = T>,
{
    let agent = Arc::new(Agent::default());
    let delegate = agent.clone();
    with_agent((limits, delegate), worker, |session| test(session, agent)).await
}

/// As [`with_worker`], with a delegate of the test's own.
async fn with_agent<W, T, F>(
    (limits, agent): (Limits, Arc<Agent>),
    worker: impl FnOnce(UnixListener) -> W,
    test: impl FnOnce(Session) -> F,
) -> T
where
    W: Future<Output = ()> + Send + 'static,
    F: Future<Output = T>,
{
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("worker.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    let worker = tokio::spawn(worker(listener));
    let options = options()
        .worker(WorkerSource::Socket(socket))
        .stop_grace(Duration::from_millis(50));
    let provider = Provider::new(options).expect("nothing to find");
    let session = session_of(&provider, agent, limits).await;
    let result = test(session).await;
    provider.shutdown().await;
    worker.await.expect("no panic");
    result
}

/// Makes a worker send these messages after its execute; returns the answer that the
/// cell's observer got.
async fn told_after(lies: Vec<Vec<u8>>) -> String {
    with_worker(
        Limits::default(),
        |listener| async move {
            let mut liar = Liar::greeted(&listener).await;
            for lie in lies {
                liar.say_bytes(&lie).await;
            }
            // Until the host hangs up.
            liar.until_shutdown().await;
        },
        |session, agent| async move {
            let started = session.execute(request("text(1)")).await.expect("admitted");
            let response = started.outcome().await.expect("answered");
            let error = error_text(&response).unwrap_or("no error").to_owned();
            agent.until(|agent| agent.closed() == ["1"]).await;
            error
        },
    )
    .await
}

fn bytes(message: FromWorker) -> Vec<u8> {
    let parts = message.encode().expect("encodes").into_parts();
    parts.flat_map(|part| part.to_vec()).collect()
}

fn violation_of_bytes(lies: Vec<Vec<u8>>, what: &str) {
    run(async {
        let error = told_after(lies).await;
        assert!(error.contains("broke the protocol"), "{error}");
        assert!(error.contains(what), "{error}");
    });
}

fn violation(lies: Vec<FromWorker>, what: &str) {
    violation_of_bytes(lies.into_iter().map(bytes).collect(), what);
}

macro_rules! lies {
    ($($name:ident: [$($lie:expr),* $(,)?] => $what:expr;)*) => {$(
        #[test]
        fn $name() {
            violation(vec![$($lie),*], $what);
        }
    )*};
}

lies! {
    the_end_of_a_cell_it_does_not_run: [ended(2)] => "cell 2, which it does not run";
    a_call_of_a_cell_it_does_not_run: [tool_call(2, 1)] => "cell 2, which it does not run";
    a_call_of_a_tool_that_the_cell_does_not_have: [FromWorker::ToolCall {
        cell: 1,
        call: RuntimeToolCallId(1),
        tool: 99,
        input: None,
        site: None,
    }] => "a tool that cell 1 does not have";
    a_call_whose_name_is_not_the_next: [tool_call(1, 1), tool_call(1, 3)] => "not the next";
    a_call_whose_name_was_used: [tool_call(1, 1), tool_call(1, 1)] => "not the next";
    an_observation_that_nobody_asked_for: [FromWorker::Observed {
        cell: 1,
        observation: 2,
        items: vec![].into(),
        frozen: None,
    }] => "observation 2 of cell 1";
    output_of_a_cell_it_does_not_run: [FromWorker::Output {
        cell: 2,
        items: vec![].into(),
    }] => "cell 2, which it does not run";
    values_of_a_cell_it_does_not_run: [FromWorker::Stored {
        cell: 3,
        writes: vec![].into(),
    }] => "cell 3, which it does not run";
    stored_values_that_are_no_json: [FromWorker::Stored {
        cell: 1,
        writes: vec![("k".to_owned(), JsonText::Unchecked("undefined".to_owned()))].into(),
    }] => "not valid JSON";
    an_input_that_is_no_json: [FromWorker::ToolCall {
        cell: 1,
        call: RuntimeToolCallId(1),
        tool: 1,
        input: Some(JsonText::Unchecked("{".to_owned())),
        site: None,
    }] => "not valid JSON";
    an_input_that_strict_parsers_refuse: [FromWorker::ToolCall {
        cell: 1,
        call: RuntimeToolCallId(1),
        tool: 1,
        input: Some(JsonText::Unchecked(r#""\ud800""#.to_owned())),
        site: None,
    }] => "surrogate";
    an_input_that_is_nested_too_deep: [FromWorker::ToolCall {
        cell: 1,
        call: RuntimeToolCallId(1),
        tool: 1,
        input: Some(JsonText::Unchecked("[".repeat(130) + &"]".repeat(130))),
        site: None,
    }] => "nested deeper";
    a_large_input_that_is_no_json: [FromWorker::ToolCall {
        cell: 1,
        call: RuntimeToolCallId(1),
        tool: 1,
        input: Some(JsonText::Unchecked("[".to_owned() + &"1".repeat(3 << 20))),
        site: None,
    }] => "not valid JSON";
    a_termination_that_nobody_asked_for: [FromWorker::Ended {
        cell: 1,
        items: vec![].into(),
        end: CellEnd::Terminated, used: Used::default() }] => "no place in a session";
    an_error_text_longer_than_its_limit: [FromWorker::Ended {
        cell: 1,
        items: vec![].into(),
        end: CellEnd::Failed {
            text: "x".repeat(Limits::MAX_ERROR_BYTES + 1),
            position: None,
        }, used: Used::default() }] => "exceeded a limit";
    a_greeting_in_the_middle: [FromWorker::Ready(info())] => "no place in a session";
}

#[test]
fn more_stored_values_than_a_session_may_have() {
    let value = |key: &str| {
        let json = JsonText::Unchecked(format!("\"{}\"", "x".repeat(60 << 20)));
        FromWorker::Stored {
            cell: 1,
            writes: vec![(key.to_owned(), json)].into(),
        }
    };
    violation(vec![value("a"), value("b"), value("c")], "exceeded a limit");
}

#[test]
fn more_output_than_a_cell_may_have() {
    let output = || FromWorker::Output {
        cell: 1,
        items: vec![ContentItem::text("x".repeat(15 << 20))].into(),
    };
    violation(vec![output(), output(), output()], "exceeded a limit");
}

#[test]
fn very_many_empty_items_in_one_frame_are_refused_before_they_are_made() {
    let items = vec![ContentItem::text(""); 500_000];
    violation(
        vec![FromWorker::Output {
            cell: 1,
            items: items.into(),
        }],
        "a list of at most 4096 elements",
    );
}

#[test]
fn a_frame_past_the_limit_is_refused_before_it_is_buffered() {
    violation_of_bytes(vec![(65u32 << 20).to_le_bytes().to_vec()], "too large");
}

#[test]
fn texts_past_the_limit_are_refused_before_they_come() {
    // The list of texts behind the frame: one, number 0, of nearly 4 GiB.
    let message = [1, 0, 252, 0xff, 0xff, 0xff, 0xff, 3, 1, 0];
    let mut frame = (message.len() as u32).to_le_bytes().to_vec();
    frame.extend(message);
    violation_of_bytes(vec![frame], "");
}

#[test]
fn calls_and_notifications_past_the_limits_of_a_cell_end_its_worker() {
    run(async {
        let limits = Limits::default().max_pending_tool_calls(100);
        for flood in [
            // Tool 1 of the agent's is the one that never answers.
            (1..=200).map(|n| tool_call(1, n)).collect::<Vec<_>>(),
            (1..=200).map(|_| notification("n")).collect(),
        ] {
            let agent = Arc::new(Agent {
                holds_notifications: true,
                ..Agent::default()
            });
            let error = with_agent(
                (limits.clone(), agent.clone()),
                |listener| async move {
                    let mut liar = Liar::greeted(&listener).await;
                    for message in flood {
                        liar.say(message).await;
                    }
                    liar.until_shutdown().await;
                },
                |session| async move {
                    let started = session.execute(request("text(1)")).await.expect("admitted");
                    let response = started.outcome().await.expect("answered");
                    error_text(&response).expect("an error").to_owned()
                },
            )
            .await;
            assert!(error.contains("exceeded a limit"), "{error}");
            assert!(agent.calls.load(Ordering::SeqCst) <= 100);
            assert!(agent.notifications.lock().expect("not poisoned").len() <= 1);
        }
    });
}

#[test]
fn a_worker_that_floods_can_be_terminated_and_shut_down() {
    run(async {
        let closed = with_worker(
            Limits::default(),
            |listener| async move {
                let Liar { reader, mut writer } = Liar::greeted(&listener).await;
                let flood = bytes(FromWorker::Output {
                    cell: 1,
                    items: vec![].into(),
                })
                .repeat(1000);
                // It neither stops nor reads.
                while writer.write_all(&flood).await.is_ok() {}
                drop(reader);
            },
            |session, agent| async move {
                let started = session.execute(request("text(1)")).await.expect("admitted");
                let outcome = session
                    .terminate(started.id().clone())
                    .await
                    .expect("answered");
                assert!(matches!(outcome, CellResponse::Terminated { .. }));
                session.shutdown().await;
                agent.closed()
            },
        )
        .await;
        assert_eq!(closed, ["1"]);
    });
}

#[test]
fn a_worker_that_never_reports_a_cells_end_is_ended_and_answered_for() {
    run(async {
        with_worker(
            Limits::default(),
            |listener| async move {
                let mut liar = Liar::greeted(&listener).await;
                while liar.next().await.is_some() {}
            },
            |session, agent| async move {
                let first = session.execute(request("text(1)")).await.expect("admitted");
                let second = session.execute(request("text(2)")).await.expect("admitted");
                let outcome = session.terminate(first.id().clone()).await.expect("answered");
                assert!(matches!(
                    outcome,
                    CellResponse::Terminated { .. }
                ));
                let innocent = second.outcome().await.expect("answered");
                assert_eq!(
                    error_text(&innocent),
                    Some(
                        "exec cell 2 was lost: its process was ended, because exec cell 1 did not stop after it was terminated"
                    )
                );
                agent.until(|agent| agent.closed().len() == 2).await;
            },
        )
        .await;
    });
}

#[test]
fn a_cell_past_its_wall_time_ends_whatever_its_worker_says() {
    run(async {
        // The worker says that a cell is stuck in a limit, which is true of it.
        let limit = code_mode_host::Limit::CpuTime.exceeded(5);
        let error = with_worker(
            Limits::default(),
            move |listener| async move {
                let mut liar = Liar::greeted(&listener).await;
                liar.say(FromWorker::Stuck { cell: 1, limit }).await;
                while liar.next().await.is_some() {}
            },
            |session, _| async move {
                let started = session.execute(request("text(1)")).await.expect("admitted");
                let response = started.outcome().await.expect("answered");
                error_text(&response).expect("an error").to_owned()
            },
        )
        .await;
        assert_eq!(error, "CPU time limit of 5 ms exceeded");
    });
}

#[test]
fn after_a_terminate_no_call_of_the_cell_reaches_the_delegate() {
    run(async {
        let (calls, notifications) = with_worker(
            Limits::default(),
            |listener| async move {
                let mut liar = Liar::greeted(&listener).await;
                liar.hears(|message| matches!(message, ToWorker::Terminate { .. }))
                    .await;
                liar.say(tool_call(1, 1)).await;
                liar.say(notification("late")).await;
                liar.say(FromWorker::Ended {
                    cell: 1,
                    items: vec![].into(),
                    end: CellEnd::Terminated,
                    used: Used::default(),
                })
                .await;
                liar.until_shutdown().await;
            },
            |session, agent| async move {
                let started = session.execute(request("text(1)")).await.expect("admitted");
                session
                    .terminate(started.id().clone())
                    .await
                    .expect("answered");
                let notifications = agent.notifications.lock().expect("not poisoned").clone();
                (agent.calls.load(Ordering::SeqCst), notifications)
            },
        )
        .await;
        assert_eq!((calls, notifications), (0, Vec::<String>::new()));
    });
}

#[test]
fn a_worker_that_hangs_up_without_a_word() {
    run(async {
        let error = with_worker(
            Limits::default(),
            |listener| async move { drop(Liar::greeted(&listener).await) },
            |session, _| async move {
                let started = session.execute(request("text(1)")).await.expect("admitted");
                let response = started.outcome().await.expect("answered");
                error_text(&response).expect("an error").to_owned()
            },
        )
        .await;
        assert_eq!(
            error,
            "exec cell 1 was lost: its process closed its connection"
        );
    });
}

#[test]
fn a_worker_that_never_greets_is_given_up() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("worker.sock");
        let _listener = UnixListener::bind(&socket).expect("bound");
        let options = options()
            .worker(WorkerSource::Socket(socket))
            .handshake_timeout(Duration::from_millis(20));
        let provider = Provider::new(options).expect("nothing to find");
        let refused = provider.create_session(Arc::new(Agent::default())).await;
        let error = refused.expect_err("refused").to_string();
        assert!(
            error.contains("did not answer the greeting in time"),
            "{error}"
        );
    });
}

#[test]
fn output_that_crosses_its_observers_leaving_is_the_next_observers() {
    run(async {
        let outcome = with_worker(
            Limits::default(),
            |listener| async move {
                let mut liar = Liar::greeted(&listener).await;
                // The next observer is there, by which the first must have left.
                liar.hears(|message| matches!(message, ToWorker::Collect { .. }))
                    .await;
                liar.say(FromWorker::Ended {
                    cell: 1,
                    items: vec![ContentItem::text("the end")].into(),
                    end: CellEnd::Completed,
                    used: Used::default(),
                })
                .await;
                liar.until_shutdown().await;
            },
            |session, _| async move {
                let started = session.execute(request("text(1)")).await.expect("admitted");
                let cell_id = started.id().clone();
                drop(started.outcome());
                let wait = WaitRequest::new(cell_id.clone()).yield_time(Duration::from_millis(1));
                session.wait(wait).await.expect("observed")
            },
        )
        .await;
        let CellResponse::Result { content_items, .. } = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(content_items, [ContentItem::text("the end")]);
    });
}

#[test]
fn each_session_of_a_provider_with_a_socket_has_a_connection_of_its_own() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("worker.sock");
        let listener = UnixListener::bind(&socket).expect("bound");
        let workers = tokio::spawn(async move {
            let mut liars = Vec::new();
            for _ in 0..2 {
                let mut liar = Liar::greeted(&listener).await;
                liar.say(ended(1)).await;
                liars.push(liar);
            }
            for mut liar in liars {
                liar.until_shutdown().await;
            }
        });
        let provider = Provider::new(options().worker(WorkerSource::Socket(socket)).prewarmed(0));
        let provider = provider.expect("nothing to find");
        let agent = Arc::new(Agent::default());
        let mut sessions = Vec::new();
        for _ in 0..2 {
            let session = session_of(&provider, agent.clone(), Limits::default()).await;
            let started = session.execute(request("text(1)")).await.expect("admitted");
            started.outcome().await.expect("answered");
            sessions.push(session);
        }
        provider.shutdown().await;
        workers.await.expect("no panic");
    });
}
