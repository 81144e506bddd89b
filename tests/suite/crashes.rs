//! A process that dies is an ordinary event: everything in flight is answered,
//! stored values and cell ids live on, and nothing is left behind.
#![cfg(target_os = "linux")]

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use code_mode_host::{Provider, Sandbox};
use code_mode_protocol::{CellResponse, Limits, WaitRequest};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{
    Agent, Session, alone, error_text, exec, open, options, own_processes, program, request, run,
    send, session_of, started, texts, try_session,
};

fn kill(process: u32) {
    send(process, Signal::KILL);
}

fn options_without_spares() -> code_mode_host::ProviderOptions {
    options().prewarmed(0)
}

/// A session whose only worker is known.
async fn session_alone(agent: Arc<Agent>) -> (Provider, Session) {
    let provider = Provider::new(options_without_spares()).expect("the program is there");
    let session = session_of(&provider, agent, Limits::default()).await;
    assert_eq!(own_processes().len(), 1);
    (provider, session)
}

const LOST: &str = "was lost: its process was killed by signal 9 (SIGKILL)";

/// Runs a cell after a kill. Its first answer may still be that the process was
/// lost: the death and the request cross.
async fn exec_past_loss(session: &code_mode_host::Session, source: &str) -> CellResponse {
    loop {
        let response = exec(session, source).await;
        if !error_text(&response).is_some_and(|error| error.contains(LOST)) {
            return response;
        }
    }
}

#[test]
fn killed_while_a_cell_runs_the_session_answers_and_keeps_its_values() {
    if !alone("crashes::killed_while_a_cell_runs_the_session_answers_and_keeps_its_values") {
        return;
    }
    run(async {
        let agent = Arc::new(Agent::default());
        let (provider, session) = session_alone(agent.clone()).await;
        exec(&session, "store('kept', {deep: [1]})").await;
        let running = session
            .execute(request("notify('up'); store('kept', 0); while (true) {}"))
            .await
            .expect("admitted");
        agent
            .until(|agent| !agent.notifications.lock().expect("not poisoned").is_empty())
            .await;
        own_processes().into_iter().for_each(kill);
        let response = running.outcome().await.expect("answered");
        let error = error_text(&response).expect("an error");
        assert!(
            error.contains("exec cell 2") && error.contains(LOST),
            "{error}"
        );
        let loaded = session
            .execute(request("text(load('kept'))"))
            .await
            .expect("admitted");
        assert_eq!(loaded.id().as_str(), "3");
        let loaded = loaded.outcome().await.expect("observed");
        assert_eq!(texts(&loaded), ["{\"deep\":[1]}"]);
        agent.until(|agent| agent.closed().len() == 3).await;
        provider.shutdown().await;
    });
}

#[test]
fn killed_while_a_cell_waits_for_a_tool_the_call_is_cancelled() {
    if !alone("crashes::killed_while_a_cell_waits_for_a_tool_the_call_is_cancelled") {
        return;
    }
    run(async {
        let agent = Arc::new(Agent::default());
        let (provider, session) = session_alone(agent.clone()).await;
        let waiting = session
            .execute(request("await tools.never()"))
            .await
            .expect("admitted");
        agent.called_once().await;
        own_processes().into_iter().for_each(kill);
        let response = waiting.outcome().await.expect("answered");
        assert!(error_text(&response).expect("an error").contains(LOST));
        assert_eq!(agent.cancelled.load(Ordering::SeqCst), 1);
        provider.shutdown().await;
    });
}

#[test]
fn a_lost_cell_that_nobody_observed_tells_the_next_observer() {
    if !alone("crashes::a_lost_cell_that_nobody_observed_tells_the_next_observer") {
        return;
    }
    run(async {
        let agent = Arc::new(Agent::default());
        let (provider, session) = session_alone(agent.clone()).await;
        let cell = started(&session, "await tools.never()").await;
        agent.called_once().await;
        own_processes().into_iter().for_each(kill);
        agent
            .until(|agent| agent.cancelled.load(Ordering::SeqCst) == 1)
            .await;
        let outcome = session
            .wait(WaitRequest::new(cell.clone()))
            .await
            .expect("answered");
        let response = outcome;
        assert!(error_text(&response).expect("an error").contains(LOST));
        agent.until(|agent| agent.closed() == ["1"]).await;
        let again = session
            .wait(WaitRequest::new(cell))
            .await
            .expect("answered");
        assert_eq!(error_text(&again), Some("exec cell 1 not found"));
        provider.shutdown().await;
    });
}

#[test]
fn killed_between_cells_the_next_one_runs_in_another_process() {
    if !alone("crashes::killed_between_cells_the_next_one_runs_in_another_process") {
        return;
    }
    run(async {
        let agent = Arc::new(Agent::default());
        let (provider, session) = session_alone(agent).await;
        exec(&session, "store('k', 1)").await;
        for round in 0..3 {
            let before = own_processes();
            before.iter().copied().for_each(kill);
            let response = exec_past_loss(&session, "text(load('k'))").await;
            assert_eq!(texts(&response), ["1"], "round {round}");
            assert!(own_processes().iter().all(|pid| !before.contains(pid)));
        }
        provider.shutdown().await;
    });
}

#[test]
fn killed_while_it_waits_for_a_session_it_is_not_used() {
    if !alone("crashes::killed_while_it_waits_for_a_session_it_is_not_used") {
        return;
    }
    run(async {
        let provider = Provider::new(options()).expect("the program is there");
        let agent = Arc::new(Agent::default());
        let first = session_of(&provider, agent.clone(), Limits::default()).await;
        exec(&first, "text(1)").await;
        // All of them: the session's, and the spare in whatever phase it is.
        own_processes().into_iter().for_each(kill);
        let second = try_session(&provider, agent, Limits::default()).await;
        // A spare killed while it started is an error of the session it was for;
        // the one after it gets another.
        let second = match second {
            Ok(session) => session,
            Err(_) => session_of(&provider, Arc::new(Agent::default()), Limits::default()).await,
        };
        assert_eq!(texts(&exec_past_loss(&second, "text(2)").await), ["2"]);
        provider.shutdown().await;
    });
}

#[test]
fn a_crash_loop_is_reported_with_the_pause_before_the_next_start() {
    if !alone("crashes::a_crash_loop_is_reported_with_the_pause_before_the_next_start") {
        return;
    }
    run(async {
        let agent = Arc::new(Agent::default());
        let (provider, session) = session_alone(agent.clone()).await;
        let mut errors = Vec::new();
        for n in 1..=3 {
            let running = session
                .execute(request("notify(1); while (true) {}"))
                .await
                .expect("admitted");
            agent
                .until(|agent| agent.notifications.lock().expect("not poisoned").len() == n)
                .await;
            own_processes().into_iter().for_each(kill);
            let response = running.outcome().await.expect("answered");
            errors.push(error_text(&response).expect("an error").to_owned());
        }
        assert!(errors[0].ends_with(LOST), "{errors:?}");
        assert!(
            errors[2].ends_with("(3 processes in a row died; the next starts in 100 ms)"),
            "{errors:?}"
        );
        assert_eq!(
            texts(&exec(&session, "text('up again')").await),
            ["up again"]
        );
        provider.shutdown().await;
    });
}

#[test]
fn after_shutdown_no_process_is_left() {
    if !alone("crashes::after_shutdown_no_process_is_left") {
        return;
    }
    run(async {
        let opened = open(Arc::new(Agent::default()), Limits::default()).await;
        exec(&opened.session, "text(1)").await;
        assert!(!own_processes().is_empty());
        opened.provider.shutdown().await;
        drop(opened);
        // Spares are killed by their destructor and reaped behind it.
        while !own_processes().is_empty() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn when_the_parent_is_killed_no_worker_remains() {
    run(async {
        let mut parent = tokio::process::Command::new(program())
            .args(["run", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let mut stdin = parent.stdin.take().expect("piped");
        tokio::io::AsyncWriteExt::write_all(
            &mut stdin,
            b"text('up'); yield_control(); while (true) {}",
        )
        .await
        .expect("written");
        drop(stdin);
        let mut lines = BufReader::new(parent.stdout.take().expect("piped")).lines();
        assert_eq!(
            lines.next_line().await.expect("read").as_deref(),
            Some("up")
        );
        let workers = crate::processes::descendants(parent.id().expect("running"));
        assert!(!workers.is_empty());
        parent.kill().await.expect("killed");
        while workers.iter().any(|pid| {
            std::path::Path::new(&format!("/proc/{pid}/exe")).exists() && is_running(*pid)
        }) {
            tokio::task::yield_now().await;
        }
    });
}

/// Whether a process runs: one that nobody has waited for yet does not.
fn is_running(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .starts_with(" Z")
    })
}

#[test]
fn a_worker_dies_with_its_provider_even_without_a_sandbox() {
    if !alone("crashes::a_worker_dies_with_its_provider_even_without_a_sandbox") {
        return;
    }
    run(async {
        let options = options_without_spares().sandbox(Sandbox::Off);
        let provider = Provider::new(options).expect("the program is there");
        let session = session_of(&provider, Arc::new(Agent::default()), Limits::default()).await;
        exec(&session, "text(1)").await;
        drop((session, provider));
        while !own_processes().is_empty() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn the_provider_counts_its_workers_and_what_became_of_them() {
    if !alone("crashes::the_provider_counts_its_workers_and_what_became_of_them") {
        return;
    }
    run(async {
        let (provider, session) = session_alone(Arc::default()).await;
        exec(&session, "text(1)").await;
        let before = provider.workers();
        assert_eq!((before.serving, before.spare, before.started), (1, 0, 1));
        assert_eq!((before.lost, before.restarted), (0, 0));
        assert!(provider.worker_memory() > 1 << 20);
        for worker in own_processes() {
            kill(worker);
        }
        exec_past_loss(&session, "text(2)").await;
        let after = provider.workers();
        assert_eq!((after.serving, after.started), (1, 2));
        assert_eq!((after.lost, after.restarted), (1, 1));
        session.shutdown().await;
        let end = provider.workers();
        assert_eq!((end.serving, end.lost, provider.worker_memory()), (0, 1, 0));
        provider.shutdown().await;
    });
}
