//! Delegates that panic, never return, or answer when nobody asks any more: each
//! costs the one call alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{
    CellId, CellNotification, CellResponse, CodeModeSessionDelegate, ExecuteRequest, Json, Limits,
    NestedToolCall, ToolError, WaitRequest,
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    Agent, agent_tools, brief, error_text, exec, on_both, open, open_in_process, request, run,
    texts,
};

/// Misbehaves as its tools, notifications and cells say.
#[derive(Default)]
struct Careless {
    never_closes: bool,
    closed: AtomicUsize,
}

#[async_trait]
impl CodeModeSessionDelegate for Careless {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        _: CancellationToken,
    ) -> Result<Json, ToolError> {
        match call.tool_name.name.as_str() {
            "echo" => Ok(call.input.unwrap_or_else(Json::null)),
            name => panic!("the tool {name} panics"),
        }
    }

    async fn notify(&self, notification: CellNotification, _: CancellationToken) {
        assert!(notification.text != "panic", "a notification that panics");
    }

    async fn cell_closed(&self, _: CellId) {
        self.closed.fetch_add(1, Ordering::SeqCst);
        if self.never_closes {
            std::future::pending::<()>().await;
        }
    }
}

#[test]
fn a_tool_that_panics_rejects_its_call_and_nothing_else() {
    run(async {
        for opened in [
            open(Arc::new(Careless::default()), Limits::default()).await,
            open_in_process(Arc::new(Careless::default()), Limits::default()).await,
        ] {
            let source = "try { await tools.never() } catch (e) { text(e.message) }
                text(await tools.echo(1))";
            let response = exec(&opened.session, source).await;
            assert_eq!(
                texts(&response),
                ["the agent's code for this tool panicked", "1"]
            );
            opened.provider.shutdown().await;
        }
    });
}

#[test]
fn a_notification_that_panics_holds_neither_the_next_nor_the_end_up() {
    run(async {
        let opened = open(Arc::new(Careless::default()), Limits::default()).await;
        let response = exec(&opened.session, "notify('panic'); notify('x'); text('end')").await;
        assert_eq!(texts(&response), ["end"]);
        opened.provider.shutdown().await;
    });
}

#[test]
fn a_closing_that_never_returns_does_not_hold_the_shutdown_up() {
    run(async {
        let delegate = Arc::new(Careless {
            never_closes: true,
            ..Careless::default()
        });
        let opened = open(delegate.clone(), Limits::default()).await;
        exec(&opened.session, "text(1)").await;
        exec(&opened.session, "text(2)").await;
        opened.provider.shutdown().await;
        assert_eq!(delegate.closed.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn finished_cells_that_nobody_observed_take_no_place_of_a_live_one() {
    on_both(
        Limits::default().max_live_cells(64),
        |session, agent| async move {
            const CELLS: usize = 2_000;
            let mut last = None;
            for n in 0..CELLS {
                let request =
                    request(&format!("text({n}); notify('done')")).yield_time(Duration::ZERO);
                // All but the last few have ended when the next one comes.
                agent
                    .until(|agent| agent.notifications.lock().expect("not poisoned").len() + 32 > n)
                    .await;
                let started = session.execute(request).await.expect("admitted");
                let cell_id = started.id().clone();
                drop(started.outcome());
                last = Some(cell_id.clone());
            }
            assert_eq!(texts(&exec(&session, "text('on')").await), ["on"]);
            let wait = WaitRequest::new(last.expect("one"));
            let recent = session.wait(wait).await.expect("answered");
            assert_eq!(texts(&recent), [(CELLS - 1).to_string()]);
        },
    );
}

#[test]
fn past_their_bound_the_oldest_results_are_dropped_and_said_to_be() {
    on_both(
        Limits::default().max_ended_cells(2),
        |session, agent| async move {
            for _ in 1..=4 {
                // Nobody observes it any more when it ends, however soon that is.
                let request = request("yield_control(); text(1)");
                let started = session.execute(request).await.expect("admitted");
                started.outcome().await.expect("answered");
                // Without callbacks its result is kept when its JavaScript ends: the next cannot
                // overtake it.
                while !session.live_cells().is_empty() {
                    tokio::task::yield_now().await;
                }
            }
            // The closing of a dropped cell shows that its result is gone. Closings run side by
            // side, in any order.
            agent.until(|agent| agent.closed().len() == 2).await;
            let mut closed = agent.closed();
            closed.sort();
            assert_eq!(closed, ["1", "2"]);
            let wait = |n| session.wait(WaitRequest::new(CellId::nth(n)));
            let dropped = wait(1).await.expect("answered");
            assert!(dropped.is_missing(), "{dropped:?}");
            let error = error_text(&dropped).expect("an error");
            assert!(
                error.starts_with("exec cell 1 not found: its result was dropped"),
                "{error}"
            );
            let kept = wait(4).await.expect("answered");
            assert_eq!(texts(&kept), ["1"]);
        },
    );
}

#[test]
fn a_cancelled_parent_terminates_its_cells_and_no_others() {
    on_both(Limits::default(), |session, agent| async move {
        let turn = CancellationToken::new();
        let of_turn = brief("await tools.never()").parent(turn.clone());
        let of_turn = session.execute(of_turn).await.expect("admitted");
        let of_turn_id = of_turn.id().clone();
        let other = session
            .execute(brief("await tools.never()"))
            .await
            .expect("admitted");
        agent
            .until(|agent| agent.calls.load(Ordering::SeqCst) == 2)
            .await;
        drop(of_turn.outcome());
        let wait = session.wait(WaitRequest::new(of_turn_id.clone()));
        let (outcome, ()) = tokio::join!(wait, async { turn.cancel() });
        assert!(matches!(
            outcome.expect("observed"),
            CellResponse::Terminated { .. }
        ));
        assert_eq!(agent.cancelled.load(Ordering::SeqCst), 1);
        assert_eq!(session.live_cells(), [other.id().clone()]);
    });
}

#[test]
fn terminate_cancels_callbacks_while_the_javascript_still_runs() {
    on_both(Limits::default(), |session, agent| async move {
        // The loop runs until the isolate is stopped; the call is cancelled before.
        let started = session
            .execute(brief("tools.never(); for (;;) {}"))
            .await
            .expect("admitted");
        let cell_id = started.id().clone();
        started.outcome().await.expect("observed");
        agent.called_once().await;
        session.terminate(cell_id.clone()).await.expect("stopped");
        assert_eq!(agent.cancelled.load(Ordering::SeqCst), 1);
    });
}

/// Remembers which execute each call said it belongs to.
#[derive(Default)]
struct Belongs(AtomicUsize);

#[async_trait]
impl CodeModeSessionDelegate for Belongs {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        _: CancellationToken,
    ) -> Result<Json, ToolError> {
        let input = call.input.ok_or("an input")?;
        let said: String = input.to().map_err(|e| e.to_string())?;
        if said == call.tool_call_id {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        Ok(Json::null())
    }
}

#[test]
fn a_call_says_which_execute_it_belongs_to_also_before_that_has_returned() {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async {
            const CELLS: usize = 200;
            let delegate = Arc::new(Belongs::default());
            let opened = open(delegate.clone(), Limits::default()).await;
            let cells = (0..CELLS).map(|n| {
                let session = opened.session.clone();
                tokio::spawn(async move {
                    let source = format!("await tools.echo('call-{n}')");
                    let request = ExecuteRequest::new(format!("call-{n}"), source);
                    let started = session.execute(request.tools(agent_tools())).await;
                    let response = started.expect("admitted").outcome().await;
                    assert!(response.expect("observed").is_final());
                })
            });
            for cell in cells.collect::<Vec<_>>() {
                cell.await.expect("no panic");
            }
            assert_eq!(delegate.0.load(Ordering::SeqCst), CELLS);
            opened.provider.shutdown().await;
        });
}

#[test]
fn output_is_cut_to_the_budget_of_a_request() {
    on_both(Limits::default(), |session, _: Arc<Agent>| async move {
        let request = request("text('head' + '-'.repeat(4000) + 'tail')").max_output_tokens(2);
        let started = session.execute(request).await.expect("admitted");
        let response = started.outcome().await.expect("observed");
        assert_eq!(texts(&response), ["head…1000 tokens truncated…tail"]);
    });
}
