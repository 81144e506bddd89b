//! Sessions opened and killed at random, by a seeded generator: nothing is left
//! behind, and every request has exactly one answer.
#![cfg(target_os = "linux")]

use std::sync::Arc;

use code_mode_host::Provider;
use code_mode_protocol::{CodeModeSession, Limits, WaitRequest};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Agent, descendants, options, request, run};

/// Sessions of the ordinary run; the variable sets another number, and
/// `CODE_MODE_FAULT_SEED` another seed.
const SESSIONS: u64 = 150;

pub fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

pub fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[test]
fn sessions_killed_in_random_phases_leave_nothing_and_answer_everything() {
    // Its descriptors and children are counted, so it needs a process of its own.
    const MARK: &str = "CODE_MODE_TEST_ALONE";
    if std::env::var_os(MARK).is_none() {
        let status = std::process::Command::new(std::env::current_exe().expect("a path"))
            .args(["--exact", "--nocapture"])
            .arg("faults::sessions_killed_in_random_phases_leave_nothing_and_answer_everything")
            .env(MARK, "1")
            .stdout(std::process::Stdio::null())
            .status()
            .expect("the test starts");
        assert!(status.success());
        return;
    }
    let seed = from_environment("CODE_MODE_FAULT_SEED", 20_261_121);
    let sessions = from_environment("CODE_MODE_FAULT_SESSIONS", SESSIONS);
    run(async {
        let mut random = StdRng::seed_from_u64(seed);
        let mut before = None;
        for round in 0..sessions {
            let provider = Provider::new(options()).expect("the program is there");
            one_session(&provider, &mut random).await;
            provider.shutdown().await;
            drop(provider);
            while !descendants(std::process::id()).is_empty() {
                tokio::task::yield_now().await;
            }
            // The first rounds make threads and descriptors that stay, once.
            if round == 5 {
                before = Some((count("/proc/self/fd"), count("/proc/self/task")));
            }
        }
        if let Some((descriptors, threads)) = before {
            assert!(count("/proc/self/fd") <= descriptors + 2, "seed {seed}");
            assert!(count("/proc/self/task") <= threads + 2, "seed {seed}");
        }
    });
}

async fn one_session(provider: &Provider, random: &mut StdRng) {
    let agent = Arc::new(Agent::default());
    let opened = provider
        .open_session(agent.clone(), Limits::default(), Vec::new())
        .await;
    let Ok(session) = opened else {
        return;
    };
    let mut admitted = 0;
    let mut observations = Vec::new();
    for _ in 0..random.random_range(1..6) {
        let source = [
            "text(1)",
            "await tools.never()",
            "while (true) {}",
            "for (let i = 0; i < 50; i++) text(await tools.echo(i))",
            "store('k', 1); notify('n'); throw new Error('e')",
            "await Promise.all(Array.from({length: 200}, (_, i) => tools.echo(i)))",
        ][random.random_range(0..6)];
        let mut cell = request(source);
        cell.yield_time = Some(std::time::Duration::from_millis(random.random_range(0..20)));
        if let Ok(started) = session.execute(cell).await {
            admitted += 1;
            observations.push((
                started.cell_id.clone(),
                tokio::spawn(started.initial_response),
            ));
        }
        if random.random_bool(0.4) {
            for pid in descendants(std::process::id()) {
                if random.random_bool(0.7)
                    && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
                {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
        }
    }
    for (cell_id, observation) in observations {
        // One answer, whatever it is.
        let first = observation.await.expect("no panic");
        if random.random_bool(0.3) {
            let _ = session.terminate(cell_id).await;
        } else if first.is_ok_and(|response| !response.is_final()) && random.random_bool(0.5) {
            let mut wait = WaitRequest::new(cell_id);
            wait.yield_time = Some(std::time::Duration::from_millis(5));
            let _ = session.wait(wait).await;
        }
    }
    session.shutdown().await;
    agent.until(|agent| agent.closed().len() >= admitted).await;
    let mut closed = agent.closed();
    closed.sort();
    closed.dedup();
    assert_eq!(closed.len(), admitted, "each cell closed once");
    assert_eq!(agent.closed().len(), admitted, "each cell closed once");
}
