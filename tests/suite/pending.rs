//! Pending mode: a cell stands still between the steps its caller asks for.

use code_mode_host::{CellResponse, ContentItem, Limits, WaitRequest};

use crate::support::{on_both, request, texts};

fn pending(outcome: CellResponse) -> (Vec<ContentItem>, Vec<String>) {
    match outcome {
        CellResponse::Pending {
            content_items,
            pending_tool_call_ids,
            ..
        } => {
            let calls = pending_tool_call_ids.iter().map(ToString::to_string);
            (content_items, calls.collect())
        }
        other => panic!("not pending: {other:?}"),
    }
}

fn completed(outcome: CellResponse) -> CellResponse {
    match outcome {
        response if response.is_final() && !response.is_missing() => response,
        other => panic!("not completed: {other:?}"),
    }
}

#[test]
fn a_cell_freezes_without_work_and_goes_on_when_resumed() {
    on_both(Limits::default(), |session, _| async move {
        let source =
            "text('a'); const v = await tools.echo(1); text(v); await tools.echo(2); text('end')";
        let started = session
            .execute_to_pending(request(source))
            .await
            .expect("admitted");
        let cell_id = started.id().clone();
        let (items, calls) = pending(started.outcome().await.expect("observed"));
        assert_eq!(items, [ContentItem::text("a")]);
        assert_eq!(calls, ["tool-1"]);
        let wait = || session.wait_to_pending(WaitRequest::new(cell_id.clone()));
        let (items, calls) = pending(wait().await.expect("observed"));
        assert_eq!(items, [ContentItem::text("1")]);
        assert_eq!(calls, ["tool-2"]);
        assert_eq!(texts(&completed(wait().await.expect("observed"))), ["end"]);
    });
}

#[test]
fn neither_an_answer_nor_a_timer_is_let_into_a_frozen_cell() {
    on_both(Limits::default(), |session, agent| async move {
        let source = "setTimeout(() => text('timer'), 0); tools.echo().then(() => text('answer'));
            await new Promise(() => {})";
        let started = session
            .execute_to_pending(request(source))
            .await
            .expect("admitted");
        let cell_id = started.id().clone();
        let (items, calls) = pending(started.outcome().await.expect("observed"));
        assert_eq!(items, []);
        assert_eq!(calls, ["tool-1"]);
        agent.called_once().await;
        // What came meanwhile shows only now, in as many steps as it takes.
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let wait = session.wait_to_pending(WaitRequest::new(cell_id.clone()));
            seen.extend(pending(wait.await.expect("observed")).0);
        }
        assert!(seen.contains(&ContentItem::text("timer")));
        assert!(seen.contains(&ContentItem::text("answer")));
        session.terminate(cell_id.clone()).await.expect("stopped");
    });
}

#[test]
fn a_plain_wait_sets_a_frozen_cell_free() {
    on_both(Limits::default(), |session, _| async move {
        let source = "for (let i = 0; i < 3; i++) text(await tools.echo(i))";
        let started = session
            .execute_to_pending(request(source))
            .await
            .expect("admitted");
        let cell_id = started.id().clone();
        pending(started.outcome().await.expect("observed"));
        let outcome = session
            .wait(WaitRequest::new(cell_id.clone()))
            .await
            .expect("observed");
        assert_eq!(texts(&outcome), ["0", "1", "2"]);
    });
}

#[test]
fn a_frozen_cell_can_be_terminated() {
    on_both(Limits::default(), |session, agent| async move {
        let started = session
            .execute_to_pending(request("text('x'); await tools.never()"))
            .await
            .expect("admitted");
        let cell_id = started.id().clone();
        pending(started.outcome().await.expect("observed"));
        let outcome = session.terminate(cell_id.clone()).await.expect("stopped");
        assert!(matches!(outcome, CellResponse::Terminated { .. }));
        agent.until(|agent| agent.closed() == ["1"]).await;
    });
}
