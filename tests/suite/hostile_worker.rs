//! A worker is taken for an enemy: what it says that does not fit ends it, and
//! every request is answered all the same. These tests are the worker.
#![cfg(unix)]

use std::sync::Arc;

use code_mode_host::{Provider, ProviderOptions, WorkerSource};
use code_mode_protocol::frame::{self, Content};
use code_mode_protocol::message::{Loans, MessageCodec};
use code_mode_protocol::native::{FromWorker, Sample, ToWorker, VERSION, WorkerInfo};
use code_mode_protocol::{
    CellId, CellResponse, CodeModeSessionProvider, PendingOutcome, WaitOutcome,
};
use futures::{SinkExt, StreamExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::codec::Framed;

use crate::support::{Agent, error_text, provider_at, request, run};

pub type Wire = Framed<UnixStream, MessageCodec<ToWorker>>;

fn info() -> WorkerInfo {
    WorkerInfo {
        version: VERSION,
        capabilities: vec![],
        v8_version: "0".to_owned(),
        sandbox: vec![],
        sample: Sample {
            address: 0,
            content: [0; 16],
        },
    }
}

pub async fn say(wire: &mut Wire, message: FromWorker) {
    say_frame(wire, message.encode().expect("encodes")).await;
}

async fn say_frame(wire: &mut Wire, frame: Content) {
    // The host may have hung up already.
    let _ = wire.send(frame).await;
}

/// A worker up to the first execute; returns that request's id.
pub async fn greeted(listener: UnixListener) -> (Wire, u64) {
    let (stream, _) = listener.accept().await.expect("the host connects");
    let mut wire = Framed::new(stream, MessageCodec::new(frame::MAX_FRAME_BYTES));
    loop {
        match wire.next().await.expect("goes on").expect("a message") {
            ToWorker::Hello { .. } => say(&mut wire, FromWorker::Ready(info())).await,
            ToWorker::Execute { request, .. } => return (wire, request),
            _ => {}
        }
    }
}

fn completed(cell: u64) -> PendingOutcome {
    PendingOutcome::Observed(WaitOutcome::LiveCell(CellResponse::Result {
        cell_id: CellId::nth(cell),
        content_items: vec![],
        error_text: None,
        error_position: None,
        buffered_for: std::time::Duration::ZERO,
    }))
}

/// Has a worker say these things after it was asked to run a cell; returns what
/// the cell's observer was told.
async fn told_after(lies: impl FnOnce(u64) -> Vec<FromWorker> + Send + 'static) -> String {
    let encoded = |lie: FromWorker| lie.encode().expect("encodes");
    told_after_frames(move |request| lies(request).into_iter().map(encoded).collect()).await
}

/// Like [`told_after`], with the frames that say them.
async fn told_after_frames(lies: impl FnOnce(u64) -> Vec<Content> + Send + 'static) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("worker.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    let worker = tokio::spawn(async move {
        let (mut wire, request) = greeted(listener).await;
        for lie in lies(request) {
            say_frame(&mut wire, lie).await;
        }
        // Until the host hangs up.
        while let Some(Ok(_)) = wire.next().await {}
    });
    let provider = provider_at(socket);
    let agent = Arc::new(Agent::default());
    let session = provider
        .create_session(agent.clone())
        .await
        .expect("opened");
    let started = session.execute(request("text(1)")).await.expect("admitted");
    let response = started.initial_response.await.expect("answered");
    let error = error_text(&response).unwrap_or("no error").to_owned();
    agent.until(|agent| agent.closed() == ["1"]).await;
    worker.await.expect("hung up on");
    provider.shutdown().await;
    error
}

fn violation(lies: impl FnOnce(u64) -> Vec<FromWorker> + Send + 'static, what: &str) {
    run(async {
        let error = told_after(lies).await;
        assert!(error.contains("broke the protocol"), "{error}");
        assert!(error.contains(what), "{error}");
    });
}

#[test]
fn an_answer_to_a_request_that_nobody_made() {
    violation(
        |_| {
            vec![FromWorker::Answer {
                request: 999,
                outcome: Ok(completed(1)),
            }]
        },
        "answered request 999",
    );
}

#[test]
fn a_response_of_another_cell() {
    violation(
        |request| {
            vec![FromWorker::Answer {
                request,
                outcome: Ok(completed(2)),
            }]
        },
        "another cell's response",
    );
}

#[test]
fn a_text_that_is_to_be_read_in_memory_nobody_asked_to_read() {
    run(async {
        let input = format!("\"{}\"", "x".repeat(2 << 20));
        let lent = call(1, 1, 0, &input).encode_lending(&Loans::default());
        let error = told_after_frames(|_| vec![lent.expect("encodes")]).await;
        assert!(
            error.contains("a text is lent that nobody borrows"),
            "{error}"
        );
    });
}

#[test]
fn two_answers_to_one_request() {
    run(async {
        let error = told_after(|request| {
            vec![
                FromWorker::Answer {
                    request,
                    outcome: Ok(completed(1)),
                },
                FromWorker::Answer {
                    request,
                    outcome: Ok(completed(1)),
                },
            ]
        })
        .await;
        // The first stands; the second ends the worker.
        assert_eq!(error, "no error");
    });
}

fn call(call: u64, cell: u64, tool: u32, input: &str) -> FromWorker {
    FromWorker::ToolCall {
        call,
        cell_id: CellId::nth(cell),
        runtime_tool_call_id: 1,
        tool,
        input: Some(input.to_owned().into()),
    }
}

#[test]
fn a_call_of_a_cell_it_does_not_run() {
    violation(
        |_| vec![call(1, 7, 0, "1")],
        "cell 7, which it does not run",
    );
}

#[test]
fn a_call_of_a_tool_the_cell_does_not_have() {
    violation(
        |_| vec![call(1, 1, 99, "1")],
        "a tool that cell 1 does not have",
    );
}

#[test]
fn a_call_whose_input_is_no_json() {
    violation(|_| vec![call(1, 1, 0, "{nope")], "that is not JSON");
}

#[test]
fn a_call_name_used_twice() {
    violation(
        |_| vec![call(1, 1, 1, "1"), call(1, 1, 1, "1")],
        "the name of call 1 twice",
    );
}

#[test]
fn a_notification_of_a_cell_it_does_not_run() {
    violation(
        |_| {
            vec![FromWorker::Notify {
                call: 1,
                cell_id: CellId::nth(5),
                text: String::new(),
            }]
        },
        "cell 5, which it does not run",
    );
}

#[test]
fn values_committed_for_a_cell_it_does_not_run() {
    violation(
        |_| {
            vec![FromWorker::Committed {
                cell_id: CellId::nth(3),
                writes: vec![],
            }]
        },
        "cell 3, which it does not run",
    );
}

#[test]
fn committed_values_that_are_no_json() {
    violation(
        |_| {
            vec![FromWorker::Committed {
                cell_id: CellId::nth(1),
                writes: vec![("k".to_owned(), "undefined".to_owned().into())],
            }]
        },
        "that is not JSON",
    );
}

#[test]
fn more_committed_values_than_a_session_may_have() {
    violation(
        |_| {
            let json = format!("\"{}\"", "x".repeat(60 << 20));
            let write = |key: &str| (key.to_owned(), json.clone().into());
            vec![FromWorker::Committed {
                cell_id: CellId::nth(1),
                writes: vec![write("a"), write("b"), write("c")],
            }]
        },
        "",
    );
}

#[test]
fn the_end_of_a_cell_it_does_not_run() {
    violation(
        |_| {
            vec![FromWorker::CellClosed {
                cell_id: CellId::nth(2),
            }]
        },
        "cell 2, which it does not run",
    );
}

#[test]
fn a_greeting_in_the_middle() {
    violation(|_| vec![FromWorker::Ready(info())], "no place in a session");
}

#[test]
fn a_worker_that_hangs_up_without_a_word() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("worker.sock");
        let listener = UnixListener::bind(&socket).expect("bound");
        let worker = tokio::spawn(async move {
            let _ = greeted(listener).await;
        });
        let provider = provider_at(socket);
        let session = provider
            .create_session(Arc::new(Agent::default()))
            .await
            .expect("opened");
        let started = session.execute(request("text(1)")).await.expect("admitted");
        let response = started.initial_response.await.expect("answered");
        assert_eq!(
            error_text(&response),
            Some("exec cell 1 was lost: its process closed its connection")
        );
        worker.await.expect("no panic");
    });
}

#[test]
fn a_worker_that_never_greets_is_given_up() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("worker.sock");
        let _listener = UnixListener::bind(&socket).expect("bound");
        let provider = Provider::new(ProviderOptions {
            worker: WorkerSource::Socket(socket),
            handshake_timeout: std::time::Duration::from_millis(20),
            ..ProviderOptions::default()
        })
        .expect("nothing to find");
        let refused = provider.create_session(Arc::new(Agent::default())).await;
        let Err(error) = refused else {
            panic!("opened without a greeting");
        };
        assert!(
            error
                .to_string()
                .contains("did not answer the greeting in time")
        );
    });
}
