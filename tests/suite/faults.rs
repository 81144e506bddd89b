//! Sessions opened and killed at random, by a seeded generator: nothing is left
//! behind, and every request has exactly one answer.
#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::time::Duration;

use code_mode_host::Provider;
use code_mode_host::{Limits, WaitRequest};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Agent, alone, options, own_processes, request, runtime, try_session};

/// Sessions of the ordinary run; `CODE_MODE_FAULT_SESSIONS` sets another number,
/// and `CODE_MODE_FAULT_SEED` another seed.
const SESSIONS: u64 = 1_000;

/// How long one step of one session may take before it counts as lost, however
/// busy the machine.
const LOST: Duration = Duration::from_secs(60);

async fn in_time<T>(step: &str, round: u64, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LOST, work)
        .await
        .unwrap_or_else(|_| panic!("session {round} never ends at: {step}"))
}

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
    if !alone("faults::sessions_killed_in_random_phases_leave_nothing_and_answer_everything") {
        return;
    }
    let seed = from_environment("CODE_MODE_FAULT_SEED", 20_261_121);
    let sessions = from_environment("CODE_MODE_FAULT_SESSIONS", SESSIONS);
    runtime().block_on(async {
        let mut random = StdRng::seed_from_u64(seed);
        let mut before = None;
        for round in 0..sessions {
            let provider = Provider::new(options()).expect("the program is there");
            one_session(&provider, round, &mut random).await;
            in_time("shutdown of the provider", round, provider.shutdown()).await;
            drop(provider);
            in_time("end of the processes", round, no_processes()).await;
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

async fn no_processes() {
    while !own_processes().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_provider_dropped_while_its_workers_start_leaves_no_process() {
    if !alone("faults::a_provider_dropped_while_its_workers_start_leaves_no_process") {
        return;
    }
    runtime().block_on(async {
        for round in 0..100 {
            let provider = Provider::new(options()).expect("the program is there");
            // Each time at another moment of the start.
            for _ in 0..round * 10 {
                tokio::task::yield_now().await;
            }
            drop(provider);
            in_time("end of the processes", round, no_processes()).await;
        }
    });
}

async fn one_session(provider: &Provider, round: u64, random: &mut StdRng) {
    let agent = Arc::new(Agent::default());
    let opened = try_session(provider, agent.clone(), Limits::default());
    let Ok(session) = in_time("opening", round, opened).await else {
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
        cell.yield_time = Some(Duration::from_millis(random.random_range(0..20)));
        if let Ok(started) = in_time("execute", round, session.execute(cell)).await {
            admitted += 1;
            observations.push((started.id().clone(), tokio::spawn(started.outcome())));
        }
        if random.random_bool(0.4) {
            for pid in own_processes() {
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
        let first = in_time("first answer", round, observation)
            .await
            .expect("no panic");
        if random.random_bool(0.3) {
            let _ = in_time("terminate", round, session.terminate(cell_id)).await;
        } else if first.is_ok_and(|response| !response.is_final()) && random.random_bool(0.5) {
            let mut wait = WaitRequest::new(cell_id);
            wait.yield_time = Some(Duration::from_millis(5));
            let _ = in_time("wait", round, session.wait(wait)).await;
        }
    }
    in_time("shutdown of the session", round, session.shutdown()).await;
    let all_closed = agent.until(|agent| agent.closed().len() >= admitted);
    in_time("close of the cells", round, all_closed).await;
    let mut closed = agent.closed();
    closed.sort();
    closed.dedup();
    assert_eq!(closed.len(), admitted, "each cell closed once");
    assert_eq!(agent.closed().len(), admitted, "each cell closed once");
}
