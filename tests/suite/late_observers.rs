//! The end of a cell crosses the leaving of its observer on the wire. The next
//! observer asks in the meantime, when the worker knows the cell no more, and
//! gets the end all the same. These tests are the worker, so that the messages
//! cross every time.
#![cfg(unix)]

use std::sync::Arc;

use code_mode_protocol::native::{FromWorker, ToWorker};
use code_mode_protocol::{
    CellId, CellResponse, CodeModeSessionProvider, ContentItem, PendingOutcome, WaitOutcome,
    WaitRequest,
};
use futures::StreamExt;
use tokio::net::UnixListener;

use crate::hostile_worker::{greeted, say};
use crate::support::{Agent, provider_at, request, run};

fn end() -> CellResponse {
    CellResponse::Result {
        cell_id: CellId::nth(1),
        content_items: vec![ContentItem::text("the end")],
        error_text: None,
        error_position: None,
        buffered_for: std::time::Duration::ZERO,
    }
}

/// What an observer gets that asks when the first has left. The worker says `first`,
/// waits until it was asked again, tells the end to the observer that has left, and
/// then says `last`, which is given the second request.
async fn asked_too_late(
    first: Vec<FromWorker>,
    last: impl FnOnce(u64) -> Vec<FromWorker> + Send + 'static,
) -> WaitOutcome {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("worker.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    let worker = tokio::spawn(async move {
        let (mut wire, executed) = greeted(listener).await;
        for message in first {
            say(&mut wire, message).await;
        }
        let waited = loop {
            if let ToWorker::Wait { request, .. } =
                wire.next().await.expect("goes on").expect("a message")
            {
                break request;
            }
        };
        let told = FromWorker::Answer {
            request: executed,
            outcome: Ok(PendingOutcome::Observed(WaitOutcome::LiveCell(end()))),
        };
        say(&mut wire, told).await;
        for message in last(waited) {
            say(&mut wire, message).await;
        }
        while let Some(Ok(message)) = wire.next().await {
            if matches!(message, ToWorker::Shutdown) {
                say(&mut wire, FromWorker::ShutDown).await;
            }
        }
    });
    let provider = provider_at(socket);
    let agent = Arc::new(Agent::default());
    let session = provider.create_session(agent).await.expect("opened");
    let started = session.execute(request("text(1)")).await.expect("admitted");
    drop(started.initial_response);
    let outcome = session.wait(WaitRequest::new(CellId::nth(1))).await;
    drop(session);
    provider.shutdown().await;
    worker.await.expect("no panic");
    outcome.expect("observed")
}

#[test]
fn the_end_of_a_cell_that_is_missing_by_then_is_told() {
    run(async {
        let outcome = asked_too_late(vec![], |request| {
            let missing = PendingOutcome::missing(&CellId::nth(1));
            vec![
                FromWorker::Answer {
                    request,
                    outcome: Ok(missing),
                },
                FromWorker::CellClosed {
                    cell_id: CellId::nth(1),
                },
            ]
        })
        .await;
        assert_eq!(outcome, WaitOutcome::LiveCell(end()));
    });
}

#[test]
fn the_end_of_a_cell_whose_callbacks_are_still_being_cancelled_is_told() {
    run(async {
        let call = FromWorker::ToolCall {
            call: 1,
            cell_id: CellId::nth(1),
            runtime_tool_call_id: 1,
            tool: 1,
            input: None,
        };
        let closed = FromWorker::CellClosed {
            cell_id: CellId::nth(1),
        };
        let outcome = asked_too_late(vec![call], |_| vec![closed]).await;
        assert_eq!(outcome, WaitOutcome::LiveCell(end()));
    });
}
