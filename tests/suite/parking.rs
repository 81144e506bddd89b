//! A cell of a durable session that waits leaves its worker, and continues as if it had not.

use std::sync::Arc;
use std::time::Duration;

use code_mode_host::{
    CellOutcome, CellResponse, Journal, JournalOptions, Provider, TerminateRequest, WaitRequest,
    WorkerSource,
};

use crate::durable::{Agent, Life, Place, request};
use crate::support::{error_text, options, run, texts};

/// A session whose cells leave their worker after so long, which leaves soon after them.
async fn parks_after(place: &Place, agent: &Arc<Agent>, time: Duration) -> Life {
    let options = options()
        .worker(WorkerSource::in_memory(code_mode::in_process))
        .prewarmed(0)
        .idle_timeout(Duration::from_millis(10));
    let provider = Provider::new(options).expect("nothing to find");
    let kept = JournalOptions::default().park_after(time);
    let journal = Journal::open(&place.file, kept).expect("a journal");
    Life::with(provider, journal, agent).await
}

async fn parks_soon(place: &Place, agent: &Arc<Agent>) -> Life {
    parks_after(place, agent, Duration::from_millis(30)).await
}

/// Waits until no worker serves a session.
async fn has_no_worker(life: &Life) {
    while life.provider.workers().serving > 0 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_cell_that_waits_has_no_worker_and_continues_with_the_answer() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let life = parks_soon(&place, &agent).await;
        let source = "
            const [one, id] = [await tools.add(1), Math.random()];
            text('asked');
            const answer = await tools.ask('who?');
            text([one, answer]);
            const more = await tools.send(id);
            text(more);
        ";
        let cell = life.begin(source).await;
        agent.until_called("ask").await;
        has_no_worker(&life).await;
        agent.answer("ask", "\"me\"");
        agent.until_called("send").await;
        has_no_worker(&life).await;
        agent.answer("send", "true");
        let (shown, response) = life.end_of(&cell).await;
        assert_eq!(error_text(&response), None);
        assert_eq!(shown, ["asked", "[1,\"me\"]", "true"]);
        let names: Vec<String> = agent.calls().into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["add", "ask", "send"]);
        life.dies().await;
    });
}

#[test]
fn a_cell_without_a_worker_can_be_observed_and_terminated() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let life = parks_soon(&place, &agent).await;
        let cell = life
            .begin("await tools.ask(0); text('here'); await tools.read(1)")
            .await;
        agent.until_called("ask").await;
        agent.answer("ask", "null");
        agent.until_called("read").await;
        has_no_worker(&life).await;
        let mut shown = Vec::new();
        for _ in 0..2 {
            let wait = WaitRequest::new(cell.clone()).yield_time(Duration::from_millis(1));
            let response = life.session.wait(wait).await.expect("observed");
            assert!(
                matches!(response, CellResponse::Yielded { .. }),
                "{response:?}"
            );
            shown.extend(texts(&response).into_iter().map(str::to_owned));
        }
        assert_eq!(shown, ["here"]);
        assert_eq!(life.provider.workers().serving, 0);
        let ended = life.session.terminate(TerminateRequest::new(cell)).await;
        let ended = ended.expect("answered");
        assert!(
            matches!(ended, CellResponse::Terminated { .. }),
            "{ended:?}"
        );
        assert_eq!(life.session.live_cells(), []);
        life.dies().await;
    });
}

#[test]
fn a_timer_wakes_a_cell_without_a_worker() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let life = parks_soon(&place, &agent).await;
        let source = "
            const began = Date.now();
            setTimeout(() => text('late'), 400);
            await new Promise((resolve) => setTimeout(resolve, 500));
            text(Date.now() - began >= 500);
        ";
        let cell = life.begin(source).await;
        has_no_worker(&life).await;
        let (shown, response) = life.end_of(&cell).await;
        assert_eq!(error_text(&response), None);
        assert_eq!(shown, ["late", "true"]);
        assert!(life.provider.workers().started >= 2);
        life.dies().await;
    });
}

#[test]
fn a_cell_whose_timer_is_near_keeps_its_worker() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let life = parks_after(&place, &agent, Duration::from_millis(200)).await;
        let source = "
            for (let i = 0; i < 8; i++) await new Promise((resolve) => setTimeout(resolve, 50));
            text('done');
        ";
        let cell = life.begin(source).await;
        let (shown, _) = life.end_of(&cell).await;
        assert_eq!(shown, ["done"]);
        assert_eq!(life.provider.workers().started, 1);
        life.dies().await;
    });
}

#[test]
fn a_frozen_cell_without_a_worker_takes_the_answers_that_came_when_it_is_observed() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let life = parks_soon(&place, &agent).await;
        let source = "
            const [a, b] = [tools.ask(1), tools.send(2)];
            text(await a);
            text(await b);
        ";
        let request = request(source).yield_time(Duration::from_secs(60));
        let running = life.session.execute_to_pending(request).await;
        let running = running.expect("admitted");
        let cell = running.id().clone();
        let response = running.outcome().await.expect("observed");
        assert!(
            matches!(response, CellResponse::Pending { .. }),
            "{response:?}"
        );
        has_no_worker(&life).await;
        // It lets nothing in before it is observed.
        agent.answer("ask", "\"first\"");
        let wait = WaitRequest::new(cell.clone()).yield_time(Duration::from_secs(60));
        let response = life.session.wait_to_pending(wait).await.expect("observed");
        assert!(
            matches!(response, CellResponse::Pending { .. }),
            "{response:?}"
        );
        assert_eq!(texts(&response), ["first"]);
        has_no_worker(&life).await;
        agent.answer("send", "\"second\"");
        let wait = WaitRequest::new(cell).yield_time(Duration::from_secs(60));
        let response = life.session.wait(wait).await.expect("observed");
        assert_eq!(texts(&response), ["second"]);
        assert!(response.is_final());
        life.dies().await;
    });
}

#[test]
fn a_cell_without_a_worker_continues_in_the_next_process() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let life = parks_soon(&place, &agent).await;
        let cell = life
            .begin("text(await tools.add(1)); text(await tools.read(2))")
            .await;
        agent.until_called("read").await;
        has_no_worker(&life).await;
        life.dies().await;
        let life = parks_soon(&place, &agent).await;
        agent.answer("read", "2");
        let (shown, _) = life.end_of(&cell).await;
        assert_eq!(shown, ["1", "2"]);
        life.dies().await;
    });
}

#[test]
fn wall_time_passes_for_a_cell_without_a_worker() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let options = options()
            .worker(WorkerSource::in_memory(code_mode::in_process))
            .prewarmed(0)
            .idle_timeout(Duration::from_millis(10))
            .limits(
                code_mode_host::Limits::default().max_wall_time(Some(Duration::from_millis(300))),
            );
        let provider = Provider::new(options).expect("nothing to find");
        let kept = JournalOptions::default().park_after(Duration::from_millis(30));
        let journal = Journal::open(&place.file, kept).expect("a journal");
        let life = Life::with(provider, journal, &agent).await;
        let cell = life.begin("await tools.ask(1)").await;
        agent.until_called("ask").await;
        has_no_worker(&life).await;
        let (_, response) = life.end_of(&cell).await;
        let CellResponse::Result { outcome, .. } = response else {
            panic!("{response:?}");
        };
        assert!(matches!(outcome, CellOutcome::Limit(_)), "{outcome:?}");
        life.dies().await;
    });
}

#[test]
fn many_cells_of_many_sessions_wait_without_a_worker_and_all_continue() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let life = parks_soon(&place, &agent).await;
        let source = "
            const all = [];
            for (let i = 0; i < 5; i++) all.push(await tools.add(i));
            text([all, await tools.ask(all)]);
        ";
        let mut cells = Vec::new();
        for _ in 0..20 {
            cells.push(life.begin(source).await);
        }
        agent
            .until(|agent| {
                agent
                    .calls()
                    .iter()
                    .filter(|(name, ..)| name == "ask")
                    .count()
                    == 20
            })
            .await;
        has_no_worker(&life).await;
        agent.answer("ask", "\"yes\"");
        for cell in cells {
            let (shown, response) = life.end_of(&cell).await;
            assert_eq!(error_text(&response), None);
            assert_eq!(shown, ["[[0,1,2,3,4],\"yes\"]"]);
        }
        assert_eq!(agent.calls().len(), 20 * 6);
        life.dies().await;
    });
}
