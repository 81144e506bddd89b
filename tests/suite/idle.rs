//! A session that does nothing costs nothing: its worker is given back, and nothing
//! of the session goes with it.
#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::time::Duration;

use code_mode_host::{Limits, Provider, SessionError, WaitRequest, WorkerSource};

use crate::support::{Agent, alone, exec, options, own_processes, request, run, session_of, texts};

async fn no_workers() {
    while !own_processes().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_worker_without_cells_is_given_back_and_values_and_results_stay() {
    if !alone("idle::a_worker_without_cells_is_given_back_and_values_and_results_stay") {
        return;
    }
    run(async {
        let options = options()
            .prewarmed(0)
            .idle_timeout(Duration::from_millis(50));
        let provider = Provider::new(options).expect("the program is there");
        let agent = Arc::new(Agent::default());
        let session = session_of(&provider, agent.clone(), Limits::default()).await;
        exec(&session, "store('k', [1])").await;
        let unobserved = request("text('kept')").yield_time(Duration::ZERO);
        let unobserved = session
            .execute(unobserved)
            .await
            .expect("admitted")
            .id()
            .clone();
        no_workers().await;
        let waited = session.wait(WaitRequest::new(unobserved)).await;
        assert_eq!(texts(&waited.expect("answered")), ["kept"]);
        let next = session
            .execute(request("text(load('k'))"))
            .await
            .expect("admitted");
        assert_eq!(next.id().as_str(), "3");
        let response = next.outcome().await.expect("observed");
        assert_eq!(texts(&response), ["[1]"]);
        provider.shutdown().await;
    });
}

#[test]
fn a_worker_with_a_waiting_cell_is_kept() {
    if !alone("idle::a_worker_with_a_waiting_cell_is_kept") {
        return;
    }
    run(async {
        let options = options()
            .prewarmed(0)
            .idle_timeout(Duration::from_millis(20));
        let provider = Provider::new(options).expect("the program is there");
        let session = session_of(&provider, Arc::new(Agent::default()), Limits::default()).await;
        let source = "await new Promise(done => setTimeout(done, 300)); text('there')";
        assert_eq!(texts(&exec(&session, source).await), ["there"]);
        provider.shutdown().await;
    });
}

#[test]
fn sessions_without_cells_have_no_processes() {
    if !alone("idle::sessions_without_cells_have_no_processes") {
        return;
    }
    run(async {
        let provider = Provider::new(options().prewarmed(0)).expect("the program is there");
        let mut sessions = Vec::new();
        for _ in 0..200 {
            sessions
                .push(session_of(&provider, Arc::new(Agent::default()), Limits::default()).await);
        }
        // The first session has the worker by which the provider saw that there are
        // any.
        assert!(own_processes().len() <= 1);
        for session in [&sessions[0], &sessions[199]] {
            assert_eq!(texts(&exec(session, "text(1)").await), ["1"]);
        }
        provider.shutdown().await;
    });
}

#[test]
fn where_no_worker_can_be_had_opening_a_session_says_so() {
    run(async {
        let options = options().worker(WorkerSource::Program("/nowhere/code-mode".into()));
        let provider = Provider::new(options).expect("looked for when it is started");
        for _ in 0..2 {
            let refused = provider.create_session(Arc::new(Agent::default())).await;
            let Err(SessionError::Unavailable(source)) = refused else {
                panic!("opened without a program");
            };
            let error = source
                .downcast_ref::<code_mode_host::ProviderError>()
                .expect("the provider's error");
            assert!(matches!(error, code_mode_host::ProviderError::Spawn(_)));
        }
        provider.shutdown().await;
    });
}
