//! A pause while a person decides: deadlines stand still, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use code_mode_host::{CellId, CellResponse, ExecuteRequest, Limits, SessionError, WaitRequest};
use tokio_util::sync::CancellationToken;

use crate::support::{Agent, Opened, on_both, open, request, run};

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_wall_time = Some(Duration::from_millis(400));
    limits
}

#[test]
fn no_yield_and_no_wall_time_runs_out_in_a_pause() {
    on_both(limits(), |session, _| async move {
        let pause = session.hold(None).expect("paused");
        let source = "await new Promise((r) => setTimeout(r, 900)); text('done')";
        let mut cell = request(source);
        cell.yield_time = Some(Duration::from_millis(100));
        let started = session.execute(cell).await.expect("admitted");
        let response = started.outcome().await.expect("observed");
        assert!(
            matches!(
                &response,
                CellResponse::Result {
                    error_text: None,
                    ..
                }
            ),
            "{response:?}"
        );
        drop(pause);
        // Afterwards deadlines hold again.
        let started = session
            .execute(request("await new Promise(() => {})"))
            .await
            .expect("admitted");
        let response = started.outcome().await.expect("observed");
        let CellResponse::Result {
            error_text: Some(error),
            ..
        } = response
        else {
            panic!("{response:?}");
        };
        assert!(error.contains("wall time"), "{error}");
    });
}

#[test]
fn a_pause_of_one_cell_leaves_its_neighbours_their_deadlines() {
    on_both(limits(), |session, _| async move {
        let forever = || request("await new Promise(() => {})").yield_time(Duration::from_secs(60));
        let paused = session.execute(forever()).await.expect("admitted");
        session.pause(Some(&paused.id().clone())).expect("paused");
        let other = session.execute(forever()).await.expect("admitted");
        let response = other.outcome().await.expect("observed");
        assert!(response.is_final(), "{response:?}");
        assert_eq!(
            session.live_cells(),
            std::slice::from_ref(&paused.id().clone())
        );
        // Terminate works all the same.
        let outcome = session
            .terminate(paused.id().clone())
            .await
            .expect("terminated");
        assert!(matches!(outcome, CellResponse::Terminated { .. }));
    });
}

#[test]
fn an_explicit_yield_ends_an_observation_in_a_pause() {
    on_both(Limits::default(), |session, _| async move {
        let _pause = session.hold(None).expect("paused");
        let yield_now = CancellationToken::new();
        let cell = ExecuteRequest::new("call-1", "text('a'); await new Promise(() => {})")
            .yield_time(Duration::from_millis(1))
            .yield_now(yield_now.clone());
        let started = session.execute(cell).await.expect("admitted");
        yield_now.cancel();
        let response = started.outcome().await.expect("observed");
        assert!(
            matches!(response, CellResponse::Yielded { .. }),
            "{response:?}"
        );
        session.shutdown().await;
    });
}

#[test]
fn pauses_are_counted_and_resuming_what_is_not_paused_is_an_error() {
    on_both(Limits::default(), |session, _| async move {
        let missing = CellId::try_from("99".to_owned()).expect("an id");
        assert!(matches!(session.resume(None), Err(SessionError::NotPaused)));
        assert!(matches!(
            session.pause(Some(&missing)),
            Err(SessionError::MissingCell(_))
        ));
        assert_eq!(session.pause(None).expect("paused"), 1);
        assert_eq!(session.pause(None).expect("paused"), 2);
        assert_eq!(session.resume(None).expect("resumed"), 1);
        let started = session
            .execute(request("await new Promise(() => {})").yield_time(Duration::from_millis(1)))
            .await
            .expect("admitted");
        let cell_id = started.id().clone();
        session.resume(None).expect("resumed");
        let response = started.outcome().await.expect("observed");
        assert!(
            matches!(response, CellResponse::Yielded { .. }),
            "{response:?}"
        );
        assert!(matches!(
            session.resume(Some(&cell_id)),
            Err(SessionError::NotPaused)
        ));
    });
}

#[test]
fn a_pause_outlives_a_worker() {
    run(async {
        let Opened { provider, session } = open(Arc::new(Agent::default()), limits()).await;
        let _pause = session.hold(None).expect("paused");
        // V8 ends the process for this.
        let dies = "'x'.repeat(2**28).match(/x/g)";
        let started = session.execute(request(dies)).await.expect("admitted");
        let _ = started.outcome().await.expect("observed");
        let source = "await new Promise((r) => setTimeout(r, 800)); text('done')";
        let cell = request(source).yield_time(Duration::from_millis(50));
        let started = session.execute(cell).await.expect("admitted");
        let cell_id = started.id().clone();
        let response = started.outcome().await.expect("observed");
        assert!(
            matches!(
                &response,
                CellResponse::Result {
                    error_text: None,
                    ..
                }
            ),
            "{response:?}"
        );
        let wait = WaitRequest::new(cell_id.clone());
        let _ = session.wait(wait).await;
        provider.shutdown().await;
    });
}
