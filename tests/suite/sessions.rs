//! Sessions: concurrency, observation, stored values, shutdown. Every promise is
//! kept by the session in this process and by the provider's alike.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use code_mode_host::{CellId, CellResponse, Limits, SessionError, WaitRequest};
use futures::future::join_all;

use crate::support::{Agent, brief, error_text, exec, on_both, open, request, run, started, texts};

fn wait_for(cell_id: &CellId, ms: u64) -> WaitRequest {
    let mut wait = WaitRequest::new(cell_id.clone());
    wait.yield_time = Some(Duration::from_millis(ms));
    wait
}

const LONG: u64 = 100_000;

#[test]
fn hundreds_of_cells_at_once_each_get_their_own_answer() {
    on_both(Limits::default(), |session, agent| async move {
        let cells = (0..300).map(|i| {
            let session = session.clone();
            async move {
                let source = format!("text(await tools.echo({i})); store('k{i}', {i})");
                let response = exec(&session, &source).await;
                assert_eq!(texts(&response), [i.to_string()]);
            }
        });
        join_all(cells).await;
        let loaded = exec(
            &session,
            "let n = 0; for (let i = 0; i < 300; i++) n += load('k' + i) === i; text(n)",
        )
        .await;
        assert_eq!(texts(&loaded), ["300"]);
        agent.until(|agent| agent.closed().len() == 301).await;
    });
}

#[test]
fn ten_thousand_tool_calls_at_once_complete() {
    on_both(Limits::default(), |session, agent| async move {
        let source =
            "const all = await Promise.all(Array.from({length: 10000}, (_, i) => tools.echo(i)));
            text(all.every((v, i) => v === i))";
        assert_eq!(texts(&exec(&session, source).await), ["true"]);
        assert_eq!(agent.calls.load(Ordering::SeqCst), 10_000);
    });
}

#[test]
fn terminate_stops_an_endless_loop() {
    on_both(Limits::default(), |session, agent| async move {
        let started = session
            .execute(brief("text('t'); while (true) {}"))
            .await
            .expect("admitted");
        let cell_id = started.id().clone();
        let first = started.outcome().await.expect("observed");
        let outcome = session.terminate(cell_id.clone()).await.expect("stopped");
        let CellResponse::Terminated { content_items, .. } = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(first.content_items().len() + content_items.len(), 1);
        agent.until(|agent| agent.closed() == ["1"]).await;
    });
}

#[test]
fn the_end_of_the_first_turn_ends_no_observation_but_one_whose_time_is_over() {
    on_both(Limits::default(), |session, _| async move {
        // Its time is over when it yields, but not its grace; and the first turn goes
        // on while the next observation begins.
        let busy = |ms| format!("{{ const t = Date.now(); while (Date.now() - t < {ms}); }}");
        let source = format!(
            "{} text('before'); yield_control(); {} await tools.echo(); text('after')",
            busy(10),
            busy(200)
        );
        loop {
            let started = session.execute(brief(&source)).await.expect("admitted");
            let cell_id = started.id().clone();
            let first = started.outcome().await.expect("observed");
            let rest = session
                .wait(wait_for(&cell_id.clone(), LONG))
                .await
                .expect("observed");
            if texts(&first) == ["before"] {
                assert!(rest.is_final(), "{rest:?}");
                assert_eq!(texts(&rest), ["after"]);
                return;
            }
            // The machine was too busy for that: once more.
            session.terminate(cell_id.clone()).await.expect("stopped");
        }
    });
}

#[test]
fn terminate_cancels_the_tool_call_a_cell_waits_for() {
    on_both(Limits::default(), |session, agent| async move {
        let cell = started(&session, "await tools.never()").await;
        agent.called_once().await;
        let outcome = session.terminate(cell).await.expect("stopped");
        assert!(matches!(outcome, CellResponse::Terminated { .. }));
        // The answer came after the cancellation had reached the agent.
        assert_eq!(agent.cancelled.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn the_waiting_observer_of_a_terminated_cell_gets_the_same_answer() {
    on_both(Limits::default(), |session, agent| async move {
        let mut slow = request("text('x'); notify('up'); await new Promise(() => {})");
        slow.yield_time = Some(Duration::from_millis(LONG));
        let started = session.execute(slow).await.expect("admitted");
        let cell_id = started.id().clone();
        agent
            .until(|agent| !agent.notifications.lock().expect("not poisoned").is_empty())
            .await;
        let (observed, outcome) =
            tokio::join!(started.outcome(), session.terminate(cell_id.clone()));
        let observed = observed.expect("observed");
        assert_eq!(texts(&observed), ["x"]);
        assert_eq!(outcome.ok(), Some(observed));
        let again = session.terminate(cell_id.clone()).await.expect("answered");
        assert!(again.is_missing());
    });
}

#[test]
fn output_while_nobody_observes_is_kept_for_the_next_observation() {
    on_both(Limits::default(), |session, agent| async move {
        let source = "notify('a'); await tools.never().catch(() => {}); text('never')";
        let started = session
            .execute(brief(&format!(
                "text(1); yield_control(); text(2); {source}"
            )))
            .await
            .expect("admitted");
        let cell_id = started.id().clone();
        let first = started.outcome().await.expect("observed");
        agent.called_once().await;
        let second = session
            .wait(wait_for(&cell_id.clone(), 1))
            .await
            .expect("observed");
        let all: Vec<_> = texts(&first).into_iter().chain(texts(&second)).collect();
        assert_eq!(all, ["1", "2"]);
        session.terminate(cell_id.clone()).await.expect("stopped");
    });
}

#[test]
fn a_result_nobody_observes_is_kept_until_it_is_waited_for() {
    on_both(Limits::default(), |session, agent| async move {
        let mut at_once = request("notify('n'); text('done')");
        at_once.yield_time = Some(Duration::ZERO);
        let started = session.execute(at_once).await.expect("admitted");
        let cell_id = started.id().clone();
        started.outcome().await.expect("observed");
        agent
            .until(|agent| agent.notifications.lock().expect("not poisoned").len() == 1)
            .await;
        let outcome = session
            .wait(wait_for(&cell_id.clone(), LONG))
            .await
            .expect("observed");
        assert_eq!(texts(&outcome), ["done"]);
        let gone = session
            .wait(wait_for(&cell_id.clone(), LONG))
            .await
            .expect("answered");
        assert_eq!(error_text(&gone), Some("exec cell 1 not found"));
    });
}

#[test]
fn a_second_observer_is_refused_and_the_first_goes_on() {
    on_both(Limits::default(), |session, _| async move {
        let started = session
            .execute(brief("await new Promise(() => {})"))
            .await
            .expect("admitted");
        let cell_id = started.id().clone();
        started.outcome().await.expect("observed");
        let first = session.wait(wait_for(&cell_id.clone(), 50));
        let second = session.wait(wait_for(&cell_id.clone(), 50));
        let (first, second) = tokio::join!(first, second);
        let is_busy = |outcome: &Result<CellResponse, SessionError>| matches!(outcome, Err(SessionError::ObserverBusy(cell)) if *cell == cell_id.clone());
        assert!(is_busy(&first) || is_busy(&second));
        assert!(first.is_ok() || second.is_ok());
        session.terminate(cell_id.clone()).await.expect("stopped");
    });
}

#[test]
fn an_observer_that_goes_away_loses_nothing_for_the_next() {
    on_both(Limits::default(), |session, agent| async move {
        let source = "text('a'); notify('up'); await tools.echo(); text('b')";
        let mut observed = request(source);
        observed.yield_time = Some(Duration::from_millis(LONG));
        let started = session.execute(observed).await.expect("admitted");
        let cell_id = started.id().clone();
        agent
            .until(|agent| !agent.notifications.lock().expect("not poisoned").is_empty())
            .await;
        drop(started.outcome());
        let mut seen = Vec::new();
        loop {
            let outcome = session
                .wait(wait_for(&cell_id.clone(), LONG))
                .await
                .expect("observed");
            let response = outcome;
            seen.extend(texts(&response).into_iter().map(str::to_owned));
            if response.is_final() {
                break;
            }
        }
        assert_eq!(seen, ["a", "b"]);
    });
}

#[test]
fn an_observation_ends_when_its_caller_asks_for_what_there_is() {
    on_both(Limits::default(), |session, agent| async move {
        let mut asked = request("text('x'); notify('up'); await new Promise(() => {})");
        asked.yield_time = Some(Duration::from_millis(LONG));
        let yield_now = asked.yield_now.clone();
        let started = session.execute(asked).await.expect("admitted");
        let cell_id = started.id().clone();
        agent
            .until(|agent| !agent.notifications.lock().expect("not poisoned").is_empty())
            .await;
        yield_now.cancel();
        let response = started.outcome().await.expect("observed");
        assert!(matches!(response, CellResponse::Yielded { .. }));
        assert_eq!(texts(&response), ["x"]);
        session.terminate(cell_id.clone()).await.expect("stopped");
    });
}

#[test]
fn concurrent_cells_that_write_different_keys_both_win() {
    on_both(Limits::default(), |session, _| async move {
        let write = |key: &'static str| {
            let session = session.clone();
            async move { exec(&session, &format!("await tools.echo(); store('{key}', 1)")).await }
        };
        tokio::join!(write("a"), write("b"), write("c"));
        let loaded = exec(&session, "text([load('a'), load('b'), load('c')])").await;
        assert_eq!(texts(&loaded), ["[1,1,1]"]);
    });
}

#[test]
fn a_terminated_cell_commits_nothing() {
    on_both(Limits::default(), |session, agent| async move {
        let started = session
            .execute(brief(
                "store('t', 1); notify('stored'); await new Promise(() => {})",
            ))
            .await
            .expect("admitted");
        let cell_id = started.id().clone();
        started.outcome().await.expect("observed");
        agent
            .until(|agent| !agent.notifications.lock().expect("not poisoned").is_empty())
            .await;
        session.terminate(cell_id.clone()).await.expect("stopped");
        assert_eq!(
            texts(&exec(&session, "text(typeof load('t'))").await),
            ["undefined"]
        );
    });
}

#[test]
fn after_shutdown_no_cell_is_admitted_and_every_admitted_one_was_closed_once() {
    on_both(Limits::default(), |session, agent| async move {
        let admissions: Vec<_> = (0..50)
            .map(|i| {
                let session = session.clone();
                tokio::spawn(async move {
                    let source = if i % 2 == 0 {
                        "while (true) {}"
                    } else {
                        "await tools.never()"
                    };
                    match session.execute(request(source)).await {
                        Ok(started) => {
                            let cell_id = started.id().to_string();
                            let _ = started.outcome().await;
                            Some(cell_id)
                        }
                        Err(error) => {
                            assert!(matches!(error, SessionError::ShuttingDown));
                            None
                        }
                    }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        session.shutdown().await;
        assert!(!session.is_alive());
        let refused = session.execute(request("text(1)")).await;
        assert!(matches!(refused, Err(SessionError::ShuttingDown)));
        let mut admitted: Vec<String> = join_all(admissions)
            .await
            .into_iter()
            .filter_map(|task| task.expect("no panic"))
            .collect();
        agent
            .until(|agent| agent.closed().len() >= admitted.len())
            .await;
        let mut closed = agent.closed();
        closed.sort();
        admitted.sort();
        assert_eq!(closed, admitted);
    });
}

#[test]
fn a_callback_that_ignores_its_cancellation_does_not_hold_shutdown_up() {
    on_both(Limits::default(), |session, agent| async move {
        started(&session, "await tools.deaf()").await;
        agent.called_once().await;
        session.shutdown().await;
        agent.until(|agent| agent.closed() == ["1"]).await;
    });
}

#[test]
fn dropping_a_session_stops_its_cells() {
    run(async {
        let agent = Arc::new(Agent::default());
        let opened = open(agent.clone(), Limits::default()).await;
        started(&opened.session, "await tools.never()").await;
        agent.called_once().await;
        drop(opened.session);
        agent.until(|agent| agent.closed() == ["1"]).await;
        assert_eq!(agent.cancelled.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn notifications_arrive_in_order_and_before_the_end() {
    on_both(Limits::default(), |session, agent| async move {
        exec(&session, "for (let i = 0; i < 200; i++) notify(i)").await;
        let expected: Vec<String> = (0..200).map(|i| i.to_string()).collect();
        assert_eq!(*agent.notifications.lock().expect("not poisoned"), expected);
    });
}

#[test]
fn a_changed_set_of_tools_is_the_next_cells() {
    on_both(Limits::default(), |session, _| async move {
        let names = |tools: &'static [&'static str]| {
            let session = session.clone();
            async move {
                let mut with = request("text(Object.keys(tools).join())");
                with.enabled_tools = tools
                    .iter()
                    .map(|name| crate::support::tool(name))
                    .collect();
                let started = session.execute(with).await.expect("admitted");
                let response = started.outcome().await.expect("observed");
                texts(&response).join("")
            }
        };
        assert_eq!(names(&["a", "b"]).await, "a,b");
        assert_eq!(names(&["a", "b"]).await, "a,b");
        assert_eq!(names(&["c"]).await, "c");
        assert_eq!(names(&[]).await, "");
        assert_eq!(names(&["a", "b"]).await, "a,b");
    });
}
