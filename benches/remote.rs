//! Cells whose workers are lent by a host, beside the same with workers of this program:
//!
//! ```sh
//! cargo build --release && cargo bench --bench remote
//! ```
//!
//! Prints the median of a warm exec and of a tool call both ways, what a host does with
//! many sessions at once, and what the host and its workers take for each.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use code_mode_host::{
    CodeModeSessionDelegate, ExecuteRequest, Json, NestedToolCall, Provider, ProviderOptions,
    RemoteHost, ToolDefinition, ToolError, ToolSet, WorkerSource,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

struct Agent;

#[async_trait]
impl CodeModeSessionDelegate for Agent {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        _: CancellationToken,
    ) -> Result<Json, ToolError> {
        call.input.ok_or_else(|| "no input".into())
    }
}

const ROUNDS: usize = 300;
const CALLS: u32 = 200;
const LOAD: Duration = Duration::from_secs(5);

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/release/code-mode")
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (host, url) = host().await;
        let local = ProviderOptions::default().worker(WorkerSource::Program(program()));
        let remote = ProviderOptions::default().worker(WorkerSource::Remote(RemoteHost::new(url)));
        let local = Arc::new(Provider::new(local).expect("the program is there"));
        let remote = Arc::new(Provider::new(remote).expect("nothing to find"));
        println!("{:24} {:>10} {:>10}", "medians", "here", "host");
        let [ours, theirs] = [one(&local).await, one(&remote).await];
        println!("{:24} {:>7.0} us {:>7.0} us", "warm exec", ours.0, theirs.0);
        println!("{:24} {:>7.0} us {:>7.0} us", "tool call", ours.1, theirs.1);
        local.shutdown().await;
        println!(
            "\n{:>8} {:>10} {:>16} {:>16}",
            "sessions", "cells/s", "host RSS", "RSS/session"
        );
        for sessions in [1, 8, 32] {
            let (cells, host_memory, worker_memory) = load(&remote, &host, sessions).await;
            println!(
                "{sessions:>8} {cells:>10.0} {host_memory:>12.1} MiB {worker_memory:>12.1} MiB"
            );
        }
        remote.shutdown().await;
    });
}

async fn host() -> (Child, String) {
    let mut host = Command::new(program())
        .args(["serve", "--listen", "grpc://127.0.0.1:0"])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("built with --release");
    let output = BufReader::new(host.stdout.take().expect("piped"));
    let url = output.lines().next_line().await.expect("text");
    (host, url.expect("its address"))
}

async fn open(provider: &Provider) -> code_mode_host::Session {
    let session = provider.create_session(Arc::new(Agent)).await;
    session.expect("a session")
}

async fn exec(session: &code_mode_host::Session, source: &str) {
    let echo = ToolDefinition::function("echo", "Gives back its input");
    let request = ExecuteRequest::new("call", source).tools(ToolSet::from(vec![echo]));
    let started = session.execute(request).await.expect("admitted");
    let response = started.outcome().await.expect("observed");
    assert!(!response.content_items().is_empty(), "{response:?}");
}

/// The medians of an exec and of a tool call, in microseconds.
async fn one(provider: &Provider) -> (f64, f64) {
    let session = open(provider).await;
    exec(&session, "text(1)").await;
    let micros = |since: Instant| since.elapsed().as_secs_f64() * 1e6;
    let mut execs = Vec::new();
    let mut calls = Vec::new();
    let source = format!("for (let i = 0; i < {CALLS}; i++) await tools.echo(i); text(1)");
    for round in 0..ROUNDS {
        let began = Instant::now();
        exec(&session, "text(1)").await;
        execs.push(micros(began));
        if round % 20 == 0 {
            let began = Instant::now();
            exec(&session, &source).await;
            calls.push(micros(began) / f64::from(CALLS));
        }
    }
    session.shutdown().await;
    (median(execs), median(calls))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Cells a second with so many sessions at once, and the memory of the host and of each
/// session's worker, in MiB.
async fn load(provider: &Arc<Provider>, host: &Child, sessions: usize) -> (f64, f64, f64) {
    let until = Instant::now() + LOAD;
    let running = (0..sessions).map(|_| {
        let provider = provider.clone();
        tokio::spawn(async move {
            let session = open(&provider).await;
            let mut cells = 0_u32;
            while Instant::now() < until {
                exec(&session, "text(await tools.echo(1))").await;
                cells += 1;
            }
            (session, cells)
        })
    });
    let running: Vec<_> = running.collect();
    let mut open = Vec::new();
    let mut cells = 0;
    for session in running {
        let (session, ran) = session.await.expect("no panic");
        cells += ran;
        open.push(session);
    }
    let host = host.id().expect("it runs");
    let workers = children(host).into_iter().map(resident).sum::<f64>();
    let memory = (resident(host), workers / sessions as f64);
    for session in open {
        session.shutdown().await;
    }
    (f64::from(cells) / LOAD.as_secs_f64(), memory.0, memory.1)
}

fn children(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task");
    let tasks = std::fs::read_dir(path).expect("it runs").flatten();
    let of_task = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children"));
    let all: Vec<String> = tasks.filter_map(|task| of_task(task).ok()).collect();
    let numbers = all.iter().flat_map(|line| line.split_whitespace());
    numbers.filter_map(|number| number.parse().ok()).collect()
}

/// Proportional memory of a process, in MiB: a page that several share counts by parts.
fn resident(process: u32) -> f64 {
    let path = format!("/proc/{process}/smaps_rollup");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    number.map_or(0.0, |kib: f64| kib / 1024.0)
}
