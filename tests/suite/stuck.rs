//! Cells that V8 cannot interrupt: each is answered for, and its process is ended.
#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::time::Duration;

use code_mode_host::{CellResponse, Limits, Provider, WaitOutcome};

use crate::support::{Agent, Session, error_text, exec, options, request, run, session_of, texts};

/// Built-in functions whose loops never look whether they must stop.
const UNINTERRUPTIBLE: &str =
    "notify('up'); Array.prototype.indexOf.call({length: 2 ** 53 - 1}, 1)";

/// A provider that ends a worker soon after a cell of it does not stop.
fn impatient() -> Provider {
    Provider::new(options().stop_grace(Duration::from_millis(200))).expect("the program is there")
}

async fn up(agent: &Agent, cells: usize) {
    agent
        .until(|agent| agent.notifications.lock().expect("not poisoned").len() == cells)
        .await;
}

async fn started(session: &Session, source: &str) -> code_mode_host::StartedCell {
    session.execute(request(source)).await.expect("admitted")
}

#[test]
fn a_limit_of_time_ends_what_v8_cannot_interrupt() {
    run(async {
        let provider = impatient();
        for (limits, expected) in [
            (
                Limits::default().max_cpu_time(Some(Duration::from_millis(100))),
                "CPU time limit of 100 ms exceeded",
            ),
            (
                Limits::default().max_wall_time(Some(Duration::from_millis(100))),
                "wall time limit of 100 ms exceeded",
            ),
        ] {
            let agent = Arc::new(Agent::default());
            let session = session_of(&provider, agent, limits).await;
            let response = exec(&*session, UNINTERRUPTIBLE).await;
            assert_eq!(error_text(&response), Some(expected));
            assert_eq!(texts(&exec(&*session, "text('on')").await), ["on"]);
        }
        provider.shutdown().await;
    });
}

#[test]
fn the_other_cells_of_the_session_are_told_which_cell_it_was() {
    run(async {
        let provider = impatient();
        let agent = Arc::new(Agent::default());
        let session = session_of(&provider, agent.clone(), Limits::default()).await;
        exec(&*session, "store('kept', 1)").await;
        let culprit = started(&session, UNINTERRUPTIBLE).await;
        let innocent = started(&session, "await tools.never()").await;
        agent.called_once().await;
        up(&agent, 1).await;
        let outcome = session.terminate(culprit.cell_id).await.expect("answered");
        assert!(matches!(
            outcome,
            WaitOutcome::LiveCell(CellResponse::Terminated { .. })
        ));
        let response = innocent.initial_response.await.expect("answered");
        let error = error_text(&response).expect("an error");
        assert!(
            error.contains("because exec cell 2 did not stop after it was terminated"),
            "{error}"
        );
        assert_eq!(texts(&exec(&*session, "text(load('kept'))").await), ["1"]);
        provider.shutdown().await;
    });
}

#[test]
fn two_terminates_that_time_out_together_do_not_end_the_next_worker() {
    run(async {
        let provider = impatient();
        let agent = Arc::new(Agent::default());
        let session = session_of(&provider, agent.clone(), Limits::default()).await;
        let first = started(&session, UNINTERRUPTIBLE).await;
        let second = started(&session, UNINTERRUPTIBLE).await;
        up(&agent, 2).await;
        let (first, second) = tokio::join!(
            session.terminate(first.cell_id),
            session.terminate(second.cell_id)
        );
        for outcome in [first, second] {
            let response = outcome.expect("answered").into_response();
            assert!(matches!(response, CellResponse::Terminated { .. }));
        }
        // The next worker runs its cell for longer than any grace.
        let source = "await new Promise(done => setTimeout(done, 500)); text('whole')";
        assert_eq!(texts(&exec(&*session, source).await), ["whole"]);
        provider.shutdown().await;
    });
}

#[test]
fn a_shutdown_ends_what_v8_cannot_interrupt() {
    run(async {
        let provider = impatient();
        let agent = Arc::new(Agent::default());
        let session = session_of(&provider, agent.clone(), Limits::default()).await;
        started(&session, UNINTERRUPTIBLE).await;
        up(&agent, 1).await;
        session.shutdown().await;
        assert_eq!(agent.closed(), ["1"]);
        provider.shutdown().await;
    });
}
