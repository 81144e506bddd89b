//! What an exec costs: in this process, over the native IPC and over the stdio
//! wire; cold and warm; with 0, 32, 128 and 1,024 tools; tool calls; payloads; many
//! at once; and the memory of each scenario in a fresh process.
//!
//! `cargo build --release && cargo bench` runs all of it. The memory of a scenario
//! is measured in a process of its own, which this program starts with
//! `--memory SCENARIO`.

use std::hint::black_box;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use code_mode::{Engine, Session};
use code_mode_host::{HostSession, Provider, ProviderOptions, Sandbox, WorkerSource};
use code_mode_protocol::{
    CellId, CodeModeSession, CodeModeSessionDelegate, ExecuteRequest, Json, Limits, NestedToolCall,
    ToolDefinition, ToolKind, ToolName, ToolSet,
};
use criterion::{BenchmarkId, Criterion};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

#[path = "stdio.rs"]
mod stdio;

/// Answers every call with its input.
struct Echo;

#[async_trait]
impl CodeModeSessionDelegate for Echo {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        _: CancellationToken,
    ) -> Result<Json, String> {
        Ok(call.input.unwrap_or_else(Json::null))
    }
    async fn notify(&self, _: String, _: CellId, _: String, _: CancellationToken) {}
    async fn cell_closed(&self, _: CellId) {}
}

const TOOLS: [usize; 4] = [0, 32, 128, 1024];

fn tools(count: usize) -> ToolSet {
    (0..count)
        .map(|i| {
            let name = if i == 0 {
                "echo".to_owned()
            } else {
                format!("tool_{i}")
            };
            ToolDefinition {
                tool_name: ToolName {
                    name: name.clone(),
                    namespace: None,
                },
                name,
                description: format!("Tool number {i} does something useful with its input"),
                kind: ToolKind::Function,
                input_schema: None,
                output_schema: None,
            }
        })
        .collect()
}

fn program() -> PathBuf {
    let mut path = std::env::current_exe().expect("a bench has a path");
    path.pop();
    path.pop();
    path.join(code_mode_host::PROGRAM_NAME)
}

/// The runtime of an agent core that has one thread for it.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn options(sandbox: Sandbox, prewarmed: usize) -> ProviderOptions {
    ProviderOptions {
        worker: WorkerSource::Program(program()),
        sandbox,
        prewarmed,
        ..ProviderOptions::default()
    }
}

async fn session(provider: &Provider) -> Arc<HostSession> {
    provider
        .open_session(Arc::new(Echo), Limits::default(), Vec::new())
        .await
        .expect("a worker starts")
}

async fn exec(session: &dyn CodeModeSession, source: &str, tools: &ToolSet) {
    let mut request = ExecuteRequest::new("bench", source);
    request.enabled_tools = tools.clone();
    request.yield_time = Some(Duration::from_secs(60));
    let started = session.execute(request).await.expect("admitted");
    let response = started.initial_response.await.expect("observed");
    assert!(response.is_final(), "{response:?}");
    black_box(response);
}

const HI: &str = "text('hi')";

fn calls(count: usize, parallel: bool) -> String {
    if parallel {
        format!("await Promise.all(Array.from({{length: {count}}}, (_, i) => tools.echo({{i}})))")
    } else {
        format!("for (let i = 0; i < {count}; i++) await tools.echo({{i}})")
    }
}

fn payload() -> String {
    let bytes = 8 << 20;
    format!("await tools.echo('x'.repeat({bytes})); text('y'.repeat({bytes}))")
}

/// The scenarios of one way in.
fn way_in(criterion: &mut Criterion, name: &str, runtime: &Runtime, session: &dyn CodeModeSession) {
    let mut group = criterion.benchmark_group(name);
    for count in TOOLS {
        let tools = tools(count);
        group.bench_with_input(
            BenchmarkId::new("warm exec, tools", count),
            &tools,
            |b, tools| {
                b.iter(|| runtime.block_on(exec(session, HI, tools)));
            },
        );
    }
    let one = tools(1);
    group.bench_function("100 tool calls one after the other", |b| {
        b.iter(|| runtime.block_on(exec(session, &calls(100, false), &one)));
    });
    group.bench_function("100 tool calls at once", |b| {
        b.iter(|| runtime.block_on(exec(session, &calls(100, true), &one)));
    });
    group.bench_function("64 execs at once", |b| {
        b.iter(|| {
            let all = (0..64).map(|_| exec(session, HI, &one));
            runtime.block_on(futures::future::join_all(all));
        });
    });
    group.sample_size(10);
    group.bench_function("8 MiB in, 8 MiB out", |b| {
        b.iter(|| runtime.block_on(exec(session, &payload(), &one)));
    });
    group.finish();
}

fn starts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("start");
    group.sample_size(20);
    for (name, sandbox) in [
        ("worker to first result", Sandbox::BestEffort),
        ("worker to first result, no sandbox", Sandbox::Off),
    ] {
        group.bench_function(name, |b| {
            let runtime = runtime();
            b.iter(|| {
                runtime.block_on(async {
                    let provider = Provider::new(options(sandbox, 0)).expect("the program");
                    let session = session(&provider).await;
                    exec(&*session, HI, &tools(0)).await;
                    drop((session, provider));
                });
            });
        });
    }
    group.bench_function("stdio wire, process to first result", |b| {
        let runtime = runtime();
        b.iter(|| {
            runtime.block_on(async {
                let mut client = stdio::Client::start(&program()).await;
                client.exec(HI, "[]").await;
                client.end().await;
            });
        });
    });
    group.finish();
}

fn over_stdio(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut client = runtime.block_on(stdio::Client::start(&program()));
    let mut group = criterion.benchmark_group("stdio wire");
    for count in TOOLS {
        let definitions = serde_json::to_string(&*tools(count)).expect("JSON");
        group.bench_function(BenchmarkId::new("warm exec, tools", count), |b| {
            b.iter(|| runtime.block_on(client.exec(HI, &definitions)));
        });
    }
    let one = serde_json::to_string(&*tools(1)).expect("JSON");
    group.bench_function("100 tool calls one after the other", |b| {
        b.iter(|| runtime.block_on(client.exec(&calls(100, false), &one)));
    });
    group.bench_function("100 tool calls at once", |b| {
        b.iter(|| runtime.block_on(client.exec(&calls(100, true), &one)));
    });
    group.sample_size(10);
    group.bench_function("8 MiB in, 8 MiB out", |b| {
        b.iter(|| runtime.block_on(client.exec(&payload(), &one)));
    });
    group.finish();
    runtime.block_on(client.end());
}

/// Memory of a process and all its descendants in KiB, shared pages divided among
/// those that share them.
fn proportional_memory() -> u64 {
    let mut total = 0;
    let mut todo = vec![std::process::id()];
    while let Some(process) = todo.pop() {
        let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"));
        total += rollup
            .unwrap_or_default()
            .lines()
            .find_map(|line| {
                line.strip_prefix("Pss:")?
                    .split_whitespace()
                    .next()?
                    .parse::<u64>()
                    .ok()
            })
            .unwrap_or(0);
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{process}/task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let children = std::fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            todo.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
    }
    total
}

/// The peak of this process alone in KiB.
fn peak_memory() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

const MEMORY: [&str; 7] = [
    "in process: first exec, 0 tools",
    "in process: first exec, 128 tools",
    "in process: 100 further execs",
    "IPC: an idle session",
    "IPC: a session after its first exec",
    "IPC: a waiting cell, of 100",
    "IPC: 100 MB of stored values, a cell that loads none",
];

/// Growth of memory in one scenario, in KiB.
fn memory(scenario: &str) -> u64 {
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

/// How the cost of the n-th of something grows; it should not.
fn scale() {
    let runtime = runtime();
    runtime.block_on(async {
        let provider = Provider::new(options(Sandbox::BestEffort, 1)).expect("the program");
        let median_us = async |session: &HostSession, tools: &ToolSet| {
            let mut times = Vec::new();
            for _ in 0..41 {
                let start = Instant::now();
                exec(session, HI, tools).await;
                times.push(start.elapsed().as_micros());
            }
            times.sort_unstable();
            times[20]
        };
        let none = tools(0);
        println!("\nwarm exec beside n waiting cells of its worker, us");
        let crowded = session(&provider).await;
        let mut waiting = 0;
        for n in [1, 10, 100, 1000] {
            while waiting < n {
                let mut request = ExecuteRequest::new("bench", "await new Promise(() => {})");
                request.yield_time = Some(Duration::ZERO);
                crowded.execute(request).await.expect("admitted");
                waiting += 1;
            }
            println!("  {n:>5}  {}", median_us(&crowded, &none).await);
        }
        println!("\nwarm exec with n tools, us");
        let one = session(&provider).await;
        for n in [1, 100, 1000, 5000] {
            println!("  {n:>5}  {}", median_us(&one, &tools(n)).await);
        }
        println!("\nwarm exec beside n MB of stored values, us");
        for n in [1, 10, 100] {
            let source =
                format!("for (let i = 0; i < {n}; i++) store('k' + i, 'x'.repeat(10 ** 6))");
            exec(&*one, &source, &none).await;
            println!("  {n:>5}  {}", median_us(&one, &none).await);
        }
        println!("\nwarm exec in the last of n sessions, us");
        let mut sessions = Vec::new();
        for n in [1, 10, 50, 200] {
            while sessions.len() < n {
                sessions.push(session(&provider).await);
            }
            let last = sessions.last().expect("opened");
            println!("  {n:>5}  {}", median_us(last, &none).await);
        }
        provider.shutdown().await;
    });
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, scenario, ..] = arguments.as_slice()
        && flag == "--memory"
    {
        println!("{}", memory(scenario));
        return;
    }
    assert!(
        program().is_file(),
        "{} is missing: run `cargo build --release` first",
        program().display()
    );
    let mut criterion = Criterion::default().configure_from_args();
    {
        let runtime = runtime();
        let in_process = {
            let _entered = runtime.enter();
            Session::new(Engine::new(), Arc::new(Echo), Limits::default())
        };
        way_in(&mut criterion, "in process", &runtime, &in_process);
        runtime.block_on(in_process.shutdown());
    }
    for (name, sandbox) in [
        ("native IPC", Sandbox::BestEffort),
        ("native IPC, no sandbox", Sandbox::Off),
    ] {
        let runtime = runtime();
        let (provider, session) = runtime.block_on(async {
            let provider = Provider::new(options(sandbox, 0)).expect("the program");
            let session = session(&provider).await;
            (provider, session)
        });
        way_in(&mut criterion, name, &runtime, &*session);
        runtime.block_on(provider.shutdown());
    }
    over_stdio(&mut criterion);
    starts(&mut criterion);
    criterion.final_summary();
    println!("\nGrowth of memory, each in a fresh process");
    for scenario in MEMORY {
        let output = Command::new(std::env::current_exe().expect("a path"))
            .args(["--memory", scenario])
            .output()
            .expect("it starts");
        let kib = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        println!("  {scenario:56} {kib:>8} KiB");
    }
    scale();
}
