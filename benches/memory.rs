//! Memory that the process tree gains in a scenario, in a separate process.

use std::process::Command;
use std::time::Duration;

use code_mode_host::{ExecuteRequest, Provider, Sandbox};

use crate::processes::{descendants, kib, pss_kib};
use crate::{HI, exec, in_process, options, runtime, session, tools};

/// Memory of this process and all its descendants in KiB, shared pages divided
/// among those that share them.
pub fn proportional_memory() -> u64 {
    let this = std::process::id();
    pss_kib(this) + descendants(this).into_iter().map(pss_kib).sum::<u64>()
}

/// The peak of this process alone in KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status");
    kib(&status.unwrap_or_default(), "VmHWM:").unwrap_or(0)
}

/// What [`memory`] knows.
pub const MEMORY: [&str; 9] = [
    "in process: first exec, 0 tools",
    "in process: first exec, 128 tools",
    "in process: 100 further execs",
    "IPC: 1,000 sessions without cells",
    "IPC: a session with a worker and no cell",
    "IPC: a session after its first exec",
    "IPC: a waiting cell, of 100",
    "IPC: a session with a waiting cell, of 100",
    "IPC: 100 MB of stored values, a cell that loads none",
];

/// Growth of memory in one scenario, in KiB.
pub fn memory(scenario: &str) -> u64 {
    let runtime = runtime();
    runtime.block_on(async {
        let before = peak_memory();
        match scenario {
            "in process: first exec, 0 tools" | "in process: first exec, 128 tools" => {
                let count = if scenario.contains("128") { 128 } else { 0 };
                let provider = in_process();
                let session = session(&provider).await;
                exec(&session, HI, &tools(count)).await;
                peak_memory() - before
            }
            "in process: 100 further execs" => {
                let provider = in_process();
                let session = session(&provider).await;
                exec(&session, HI, &tools(0)).await;
                let before = peak_memory();
                for _ in 0..100 {
                    exec(&session, HI, &tools(0)).await;
                }
                peak_memory() - before
            }
            _ => {
                let before = proportional_memory();
                let provider = Provider::new(options(Sandbox::BestEffort, 0)).expect("the program");
                let session = session(&provider).await;
                if scenario == "IPC: 1,000 sessions without cells" {
                    let mut sessions = Vec::new();
                    for _ in 0..1_000 {
                        sessions.push(crate::session(&provider).await);
                    }
                    return proportional_memory().saturating_sub(before);
                }
                if scenario == "IPC: a session with a waiting cell, of 100" {
                    return with_waiting_cells(&provider, 100).await;
                }
                if scenario == "IPC: a session with a worker and no cell" {
                    return proportional_memory().saturating_sub(before);
                }
                exec(&session, HI, &tools(0)).await;
                if scenario == "IPC: a session after its first exec" {
                    return proportional_memory().saturating_sub(before);
                }
                if scenario == "IPC: a waiting cell, of 100" {
                    let before = proportional_memory();
                    for _ in 0..100 {
                        let request = ExecuteRequest::new("bench", "await new Promise(() => {})")
                            .yield_time(Duration::from_millis(1));
                        let started = session.execute(request).await.expect("admitted");
                        started.outcome().await.expect("observed");
                    }
                    return proportional_memory().saturating_sub(before) / 100;
                }
                for i in 0..100 {
                    let source = format!("store('k{i}', 'x'.repeat(10 ** 6))");
                    exec(&session, &source, &tools(0)).await;
                }
                let before = proportional_memory();
                exec(&session, HI, &tools(0)).await;
                proportional_memory().saturating_sub(before)
            }
        }
    })
}

/// Memory of each of many sessions with a waiting cell, when all is quiet.
async fn with_waiting_cells(provider: &Provider, count: u64) -> u64 {
    const QUIET: Duration = Duration::from_secs(3);
    let before = proportional_memory();
    let mut sessions = Vec::new();
    for _ in 0..count {
        let session = session(provider).await;
        let request = ExecuteRequest::new("bench", "await new Promise(() => {})")
            .yield_time(Duration::from_millis(1));
        let started = session.execute(request).await.expect("admitted");
        started.outcome().await.expect("observed");
        sessions.push(session);
    }
    tokio::time::sleep(QUIET).await;
    proportional_memory().saturating_sub(before) / count
}

/// What this many fresh processes need for a scenario, sorted.
pub fn samples(count: usize, scenario: &str) -> Vec<u64> {
    let program = std::env::current_exe().expect("a path");
    let mut samples: Vec<u64> = (0..count)
        .filter_map(|_| {
            let output = Command::new(&program)
                .args(["--memory", scenario])
                .output()
                .ok()?;
            String::from_utf8_lossy(&output.stdout).trim().parse().ok()
        })
        .collect();
    assert_eq!(samples.len(), count, "a sample of {scenario} failed");
    samples.sort_unstable();
    samples
}
