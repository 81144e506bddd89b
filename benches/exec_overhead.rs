//! What an exec costs: in this process, over the native IPC and over the stdio
//! wire; cold and warm; with 0, 32, 128 and 1,024 tools; tool calls; payloads; many
//! at once; with a journal; and the memory of each scenario in a fresh process.
//!
//! `cargo build --release && cargo bench` runs all of it. Cold starts, memory and
//! allocations are measured in processes of their own, which this program starts with
//! `--sample`, `--memory` and `--allocations`. With `--parked N` it prints what N durable sessions take that wait. With `--samples N`, `--warm-iterations N` or
//! `--tool-counts N,N` it prints the table of the documentation and nothing else.

use std::hint::black_box;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{
    CodeModeSessionDelegate, ExecuteRequest, Json, NestedToolCall, Provider, ProviderOptions,
    Sandbox, ToolDefinition, ToolError, ToolSet, WorkerSource,
};
use criterion::{BenchmarkId, Criterion};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

#[path = "allocations.rs"]
mod allocations;
#[path = "durable.rs"]
mod durable;
#[path = "memory.rs"]
mod memory;
#[path = "../tests/suite/processes.rs"]
mod processes;
#[path = "scale.rs"]
mod scale;
#[path = "stdio.rs"]
mod stdio;
#[path = "table.rs"]
mod table;

/// Answers every call with its input.
struct Echo;

#[async_trait]
impl CodeModeSessionDelegate for Echo {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        _: CancellationToken,
    ) -> Result<Json, ToolError> {
        Ok(call.input.unwrap_or_else(Json::null))
    }
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
            let does = format!("Tool number {i} does something useful with its input");
            ToolDefinition::function(name, does)
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
    ProviderOptions::default()
        .worker(WorkerSource::Program(program()))
        .sandbox(sandbox)
        .prewarmed(prewarmed)
}

/// A provider whose workers are in this process.
fn in_process() -> Provider {
    let source = WorkerSource::in_memory(code_mode::in_process);
    Provider::new(ProviderOptions::default().worker(source).prewarmed(0)).expect("nothing to find")
}

async fn session(provider: &Provider) -> code_mode_host::Session {
    provider
        .create_session(Arc::new(Echo))
        .await
        .expect("a worker starts")
}

async fn exec(session: &code_mode_host::Session, source: &str, tools: &ToolSet) {
    let request = ExecuteRequest::new("bench", source)
        .tools(tools.clone())
        .yield_time(Duration::from_secs(60));
    let started = session.execute(request).await.expect("admitted");
    let response = started.outcome().await.expect("observed");
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
fn way_in(
    criterion: &mut Criterion,
    name: &str,
    runtime: &Runtime,
    session: &code_mode_host::Session,
) {
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
                    exec(&session, HI, &tools(0)).await;
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

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, scenario, ..] = arguments.as_slice() {
        match flag.as_str() {
            "--memory" => return println!("{}", memory::memory(scenario)),
            "--sample" => {
                let number = |at: usize| arguments.get(at).and_then(|text| text.parse().ok());
                let (tools, warm) = (number(3).unwrap_or(0), number(4).unwrap_or(1));
                return println!("{}", table::sample(scenario, tools, warm));
            }
            "--parked" => return durable::parked(scenario.parse().unwrap_or(100)),
            "--allocations" => return println!("{}", allocations::allocations(scenario)),
            _ => {}
        }
    }
    assert!(
        program().is_file(),
        "{} is missing: run `cargo build --release` first",
        program().display()
    );
    match table::Wanted::of(&arguments) {
        Ok(Some(wanted)) => return wanted.print(),
        Ok(None) => {}
        Err(wrong) => {
            eprintln!("{wrong}");
            std::process::exit(2);
        }
    }
    let mut criterion = Criterion::default().configure_from_args();
    {
        let runtime = runtime();
        let (provider, session) = runtime.block_on(async {
            let provider = in_process();
            let session = session(&provider).await;
            (provider, session)
        });
        way_in(&mut criterion, "in process", &runtime, &session);
        runtime.block_on(provider.shutdown());
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
        way_in(&mut criterion, name, &runtime, &session);
        if matches!(sandbox, Sandbox::BestEffort) {
            durable::durable(&mut criterion, &runtime, &provider);
        }
        runtime.block_on(provider.shutdown());
    }
    over_stdio(&mut criterion);
    starts(&mut criterion);
    criterion.final_summary();
    println!();
    table::Wanted::documented().print();
    println!("\nGrowth of memory, 5 fresh processes each, KiB: p50, max");
    for scenario in memory::MEMORY {
        let growth = memory::samples(5, scenario);
        println!("  {scenario:56} {:>8} {:>8}", growth[2], growth[4]);
    }
    println!("\nAllocations of this program's own code in the steady state: number, bytes");
    each_in_a_process("--allocations", &allocations::ALLOCATIONS);
    scale::scale();
}

fn each_in_a_process(flag: &str, scenarios: &[&str]) {
    for scenario in scenarios {
        let output = Command::new(std::env::current_exe().expect("a path"))
            .args([flag, scenario])
            .output()
            .expect("it starts");
        let result = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        println!("  {scenario:56} {result:>16}");
    }
}
