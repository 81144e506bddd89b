//! Durable sessions without their workers, their disk or their room, and with a second holder.

use std::time::Duration;

use code_mode_host::{Journal, JournalError, JournalOptions, Provider, SessionError, WaitRequest};

use crate::durable::{Agent, Life, Place, request};
use crate::support::{error_text, provider_in_process, run};

#[test]
fn a_journal_and_a_session_have_one_holder() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let life = Life::start(&place, &agent).await;
        let second = Journal::open(&place.file, JournalOptions::default());
        let error = second.expect_err("in use").to_string();
        let process = std::process::id().to_string();
        assert!(
            error.contains("is in use by process") && error.contains(&process),
            "{error}"
        );

        let again = life
            .provider
            .resume(&life.journal, "work", agent.clone())
            .await;
        let error = again.expect_err("open").to_string();
        assert!(error.contains("the session \"work\" is open"), "{error}");
        let other = life
            .provider
            .resume(&life.journal, "other", agent.clone())
            .await;
        match other.expect_err("not there") {
            SessionError::Journal(source) => {
                let source = source.downcast_ref::<JournalError>();
                assert!(matches!(source, Some(JournalError::NoSession(name)) if name == "other"));
            }
            other => panic!("{other:?}"),
        }
        // Shutting the session down gives it free.
        life.session.shutdown().await;
        let again = life
            .provider
            .resume(&life.journal, "work", agent.clone())
            .await;
        drop(again.expect("free"));
        life.dies().await;
    });
}

#[test]
fn a_file_that_is_no_journal_stays_as_it_is() {
    let place = Place::new();
    std::fs::write(&place.file, "a letter\n".repeat(1000)).expect("written");
    let opened = Journal::open(&place.file, JournalOptions::default());
    let error = opened.expect_err("no journal").to_string();
    assert!(error.contains("is not a journal, or is damaged"), "{error}");
    let kept = std::fs::read_to_string(&place.file).expect("there");
    assert_eq!(kept, "a letter\n".repeat(1000));
}

#[test]
fn a_log_that_grows_too_long_ends_its_cell() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let options = JournalOptions::default().max_cell_bytes(10_000);
        let journal = Journal::open(&place.file, options).expect("a journal");
        let life = Life::with(provider_in_process(), journal, &agent).await;
        let source = "for (;;) await tools.add('x'.repeat(100))";
        let running = life.admit(source).await;
        let cell = running.id().clone();
        drop(running);
        let (_, response) = life.end_of(&cell).await;
        let error = error_text(&response).expect("ended");
        assert!(error.contains("journal limit"), "{error}");
        life.dies().await;
    });
}

#[test]
fn a_full_journal_ends_its_cells_and_says_why() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let options = JournalOptions::default().max_bytes(8 << 20);
        let journal = Journal::open(&place.file, options).expect("a journal");
        let life = Life::with(provider_in_process(), journal, &agent).await;
        let source = "for (let i = 0; ; i++) await tools.add('x'.repeat(1_000_000))";
        let running = life.admit(source).await;
        let cell = running.id().clone();
        let mut answer = running.outcome().await;
        while matches!(&answer, Ok(response) if !response.is_final()) {
            let wait = WaitRequest::new(cell.clone()).yield_time(Duration::from_secs(60));
            answer = life.session.wait(wait).await;
        }
        let error = match &answer {
            Ok(response) => error_text(response).expect("ended").to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(error.contains("bytes, and may have 8388608"), "{error}");
        let refused = life
            .session
            .execute(request("1"))
            .await
            .expect_err("refused");
        assert!(matches!(refused, SessionError::Journal(_)), "{refused:?}");
        life.dies().await;
    });
}

/// Kills the workers of a test that runs alone in its process.
#[cfg(target_os = "linux")]
fn kill_workers() {
    for worker in crate::support::own_processes() {
        crate::support::send(worker, rustix::process::Signal::KILL);
    }
}

#[cfg(target_os = "linux")]
fn with_processes() -> Provider {
    Provider::new(crate::support::options().prewarmed(0)).expect("the program is there")
}

#[test]
#[cfg(target_os = "linux")]
fn a_cell_that_loses_its_worker_continues_with_the_next_one() {
    if !crate::support::alone(
        "durable_faults::a_cell_that_loses_its_worker_continues_with_the_next_one",
    ) {
        return;
    }
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let life = Life::of(with_processes(), &place, &agent).await;
        let source = "
            const begun = Date.now();
            const first = await tools.add(1);
            text('before');
            const answer = await tools.ask(2);
            text([first, answer, begun <= Date.now()]);
        ";
        let cell = life.begin(source).await;
        let other = life.begin("text(await tools.read(0))").await;
        agent.until_called("ask").await;
        agent.until_called("read").await;
        kill_workers();
        // The calls run on: they are the agent's, and no worker's.
        agent.answer("ask", "2");
        agent.answer("read", "0");
        let (shown, response) = life.end_of(&cell).await;
        assert_eq!(error_text(&response), None);
        let (other, _) = life.end_of(&other).await;
        assert_eq!(other, ["0"]);
        // The first text may have been observed by `begin`.
        assert_eq!(shown.last().map(String::as_str), Some("[1,2,true]"));
        let mut calls = agent.calls();
        calls.sort();
        let called = |name: &str, input: &str| (name.to_owned(), input.to_owned(), 1);
        assert_eq!(
            calls,
            [called("add", "1"), called("ask", "2"), called("read", "0")]
        );
        life.dies().await;
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_cell_that_ends_its_workers_is_given_up() {
    if !crate::support::alone("durable_faults::a_cell_that_ends_its_workers_is_given_up") {
        return;
    }
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let life = Life::of(with_processes(), &place, &agent).await;
        let cell = life.begin("await tools.ask(0); while (true) {}").await;
        agent.until_called("ask").await;
        agent.answer("ask", "0");
        // Each worker dies as soon as it is there.
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let killer = tokio::task::spawn_blocking(move || {
            while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                kill_workers();
                std::thread::yield_now();
            }
        });
        let (_, response) = life.end_of(&cell).await;
        let error = error_text(&response).expect("given up");
        assert!(error.contains("exec cell 1"), "{error}");
        assert!(error.contains("signal 9"), "{error}");
        stop.send(()).expect("it kills");
        killer.await.expect("it ends");
        life.dies().await;
    });
}

/// What a cell that waits for `ask` ends with, where its worker of the second life is `worker`.
#[cfg(unix)]
async fn with_another_worker<W>(worker: impl FnOnce(crate::hostile_worker::Liar) -> W) -> String
where
    W: Future<Output = ()> + Send + 'static,
{
    use crate::hostile_worker::Liar;
    let (place, agent) = (Place::new(), Agent::new());
    let first = Life::start(&place, &agent).await;
    let cell = first.begin("await tools.add(1); await tools.ask(2)").await;
    agent.until_called("ask").await;
    first.dies().await;

    let socket = place.file.with_extension("sock");
    let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
    let provider = crate::support::provider_at(socket);
    let second = tokio::spawn(async move {
        let second = Life::of(provider, &place, &agent).await;
        let (_, response) = second.end_of(&cell).await;
        second.dies().await;
        error_text(&response).expect("ended").to_owned()
    });
    let worker = tokio::spawn(worker(Liar::greeted(&listener).await));
    let error = second.await.expect("ended");
    worker.await.expect("ended");
    error
}

#[cfg(unix)]
fn calls(call: u32, tool: u32, input: &str) -> code_mode_protocol::wire::native::FromWorker {
    use code_mode_protocol::wire::native::{FromWorker, JsonText};
    FromWorker::ToolCall {
        cell: 1,
        call: code_mode_host::RuntimeToolCallId(call),
        tool,
        input: Some(JsonText::Unchecked(input.to_owned())),
        site: None,
    }
}

#[test]
#[cfg(unix)]
fn a_cell_that_makes_another_call_than_before_ends_with_both() {
    use code_mode_protocol::wire::native::ToWorker;
    run(async {
        let error = with_another_worker(|mut liar| async move {
            liar.say(calls(1, 0, "5")).await;
            liar.hears(|message| matches!(message, ToWorker::Terminate { .. }))
                .await;
            liar.say(crate::hostile_worker::ended(1)).await;
            liar.until_shutdown().await;
        });
        let error = error.await;
        assert!(error.contains("did something else"), "{error}");
        assert!(
            error.contains("add with 1") && error.contains("add with 5"),
            "{error}"
        );
    });
}

#[test]
#[cfg(unix)]
fn a_cell_that_leaves_a_call_out_ends_with_it() {
    run(async {
        let error = with_another_worker(|mut liar| async move {
            liar.say(calls(1, 0, "1")).await;
            liar.say(crate::hostile_worker::ended(1)).await;
            liar.until_shutdown().await;
        });
        let error = error.await;
        assert!(
            error.contains("did something else") && error.contains("ask"),
            "{error}"
        );
    });
}
