//! The same work over the gRPC wire on two hosts in turn, by a compiled client:
//!
//! ```sh
//! cargo bench --bench grpc_hosts -- "target/release/code-mode serve" codex-code-mode-host
//! ```
//!
//! Each argument is a host's command, to which `--listen grpc+stdio://` is added. Prints
//! the medians of each, and the ratio of the first to the second.

use std::time::Instant;

use tokio::process::Command;

#[path = "../tests/suite/grpc_client.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod grpc_client;

/// What the client of the tests asks for; here, each host has a command.
mod support {
    pub fn program() -> std::path::PathBuf {
        "code-mode".into()
    }
}

use grpc_client::{Host, Session, next, outcome, wire};

const ROUNDS: usize = 7;
const STARTS: usize = 31;

/// One kind of work: what it is called, and how long it took, in microseconds.
type Row = (&'static str, f64);

fn main() {
    let hosts: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let [ours, theirs] = hosts.as_slice() else {
        eprintln!("name two hosts: their commands, each as one argument");
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut starts: [Vec<Vec<Row>>; 2] = Default::default();
    for _ in 0..STARTS {
        for (command, starts) in [ours, theirs].iter().zip(&mut starts) {
            starts.push(vec![runtime.block_on(start(command))]);
        }
    }
    let mut rounds: [Vec<Vec<Row>>; 2] = Default::default();
    for _ in 0..ROUNDS {
        for (command, rounds) in [ours, theirs].iter().zip(&mut rounds) {
            rounds.push(runtime.block_on(round(command)));
        }
    }
    println!(
        "{:32} {:>12} {:>12} {:>6}",
        "work over gRPC", "first", "second", "ratio"
    );
    for measured in [starts, rounds] {
        let [ours, theirs] = measured.map(medians);
        for ((work, ours), (_, theirs)) in ours.iter().zip(&theirs) {
            println!(
                "{work:32} {ours:>9.0} us {theirs:>9.0} us {:>6.2}",
                ours / theirs
            );
        }
    }
}

fn medians(rounds: Vec<Vec<Row>>) -> Vec<Row> {
    let rows = rounds[0].iter().enumerate().map(|(n, (work, _))| {
        let mut times: Vec<f64> = rounds.iter().map(|round| round[n].1).collect();
        times.sort_by(f64::total_cmp);
        (*work, times[times.len() / 2])
    });
    rows.collect()
}

/// A new process, and a session in it that has run a cell.
async fn begin(command: &str) -> (Host, Session) {
    let mut words = command.split_whitespace();
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words);
    let mut host = Host::stdio_of(command).await;
    let session = host
        .open(wire::OpenSessionRequest {
            max_pending_delegate_calls: Some(4096),
            ..wire::OpenSessionRequest::default()
        })
        .await;
    session.exec("first", "text('hi')").await;
    (host, session)
}

async fn start(command: &str) -> Row {
    let begun = Instant::now();
    let (_host, session) = begin(command).await;
    let took = micros(begun);
    session.close().await;
    ("start to first result", took)
}

/// All other kinds of work, in a new process.
async fn round(command: &str) -> Vec<Row> {
    let (mut host, session) = begin(command).await;
    let mut rows = Vec::new();
    for (work, tools) in [("warm exec, 0 tools", 0), ("warm exec, 128 tools", 128)] {
        let mut times: Vec<f64> = Vec::new();
        for n in 0..50 {
            let mut request = session.request(&format!("{work} {n}"), "text('hi')");
            let definition = request.enabled_tools[0].clone();
            request.enabled_tools = vec![definition; tools];
            for (n, definition) in request.enabled_tools.iter_mut().enumerate() {
                definition.name = format!("tool{n}");
            }
            let begun = Instant::now();
            let executed = host.client.execute(request).await.expect("admitted");
            let mut events = executed.into_inner();
            next(&mut events).await;
            outcome(&mut events).await;
            times.push(micros(begun));
        }
        times.sort_by(f64::total_cmp);
        rows.push((work, times[times.len() / 2]));
    }
    let calls = "for (let i = 0; i < 200; i++) await tools.echo(i)";
    rows.push((
        "sequential tool call",
        called(&session, "s", calls, 200).await,
    ));
    let calls = "await Promise.all(Array.from({length: 100}, (_, i) => tools.echo(i)))";
    rows.push((
        "100 parallel tool calls, each",
        called(&session, "p", calls, 100).await,
    ));
    session.close().await;
    rows
}

/// Runs a cell that makes so many calls; how long each took.
async fn called(session: &Session, id: &str, source: &str, count: usize) -> f64 {
    let mut calls = session.subscribe(&[]).await;
    let begun = Instant::now();
    let mut events = session.execute(id, source).await;
    for _ in 0..count {
        let call = next(&mut calls).await;
        let answer = session.requests.clone();
        tokio::spawn(async move { answer.complete(&call.invocation_id, Ok("1".into())).await });
    }
    outcome(&mut events).await;
    micros(begun) / count as f64
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}
