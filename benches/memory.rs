//! Memory that the process tree gains in a scenario, in a process of its own.

use std::sync::Arc;
use std::time::Duration;

use code_mode::{Engine, Session};
use code_mode_host::{Provider, Sandbox};
use code_mode_protocol::{CodeModeSession, ExecuteRequest, Limits};

use crate::processes::{descendants, kib, pss_kib};
use crate::{Echo, HI, exec, options, runtime, session, tools};

/// Memory of this process and all its descendants in KiB, shared pages divided
/// among those that share them.
fn proportional_memory() -> u64 {
    let this = std::process::id();
    pss_kib(this) + descendants(this).into_iter().map(pss_kib).sum::<u64>()
}

/// The peak of this process alone in KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status");
    kib(&status.unwrap_or_default(), "VmHWM:").unwrap_or(0)
}

/// What [`memory`] knows.
pub const MEMORY: [&str; 7] = [
    "in process: first exec, 0 tools",
    "in process: first exec, 128 tools",
    "in process: 100 further execs",
    "IPC: an idle session",
    "IPC: a session after its first exec",
    "IPC: a waiting cell, of 100",
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
                let session = Session::new(Engine::new(), Arc::new(Echo), Limits::default());
                exec(&session, HI, &tools(count)).await;
                peak_memory() - before
            }
            "in process: 100 further execs" => {
                let session = Session::new(Engine::new(), Arc::new(Echo), Limits::default());
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
                if scenario == "IPC: an idle session" {
                    return proportional_memory().saturating_sub(before);
                }
                exec(&*session, HI, &tools(0)).await;
                if scenario == "IPC: a session after its first exec" {
                    return proportional_memory().saturating_sub(before);
                }
                if scenario == "IPC: a waiting cell, of 100" {
                    let before = proportional_memory();
                    for _ in 0..100 {
                        let mut request =
                            ExecuteRequest::new("bench", "await new Promise(() => {})");
                        request.yield_time = Some(Duration::from_millis(1));
                        let started = session.execute(request).await.expect("admitted");
                        started.initial_response.await.expect("observed");
                    }
                    return proportional_memory().saturating_sub(before) / 100;
                }
                for i in 0..100 {
                    let source = format!("store('k{i}', 'x'.repeat(10 ** 6))");
                    exec(&*session, &source, &tools(0)).await;
                }
                let before = proportional_memory();
                exec(&*session, HI, &tools(0)).await;
                proportional_memory().saturating_sub(before)
            }
        }
    })
}
