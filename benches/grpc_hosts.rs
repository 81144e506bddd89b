//! The same work over the gRPC wire on two hosts in turn, by a compiled client:
//!
//! ```sh
//! cargo bench --bench grpc_hosts -- "target/x86_64-unknown-linux-gnu/dist/code-mode serve" codex-code-mode-host
//! ```
//!
//! Each argument is a host's command, to which `--listen grpc+stdio://` is added. Prints
//! the medians of each, and the ratio of the first to the second, as a Markdown table.

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

const STARTS: usize = 31;

/// The kinds of work on hosts that stay: what it is called, rounds, what one round does.
const WORK: [(&str, usize, Work); 5] = [
    (
        "warm exec, 0 tools",
        20,
        Work::Execs {
            tools: 0,
            in_a_row: 5,
        },
    ),
    (
        "warm exec, 128 tools",
        20,
        Work::Execs {
            tools: 128,
            in_a_row: 5,
        },
    ),
    (
        "50 execs in a row, each",
        7,
        Work::Execs {
            tools: 0,
            in_a_row: 50,
        },
    ),
    (
        "sequential tool call",
        7,
        Work::Calls {
            source: "for (let i = 0; i < 300; i++) await tools.echo(i)",
            count: 300,
        },
    ),
    (
        "100 parallel tool calls, each",
        7,
        Work::Calls {
            source: "await Promise.all(Array.from({length: 100}, (_, i) => tools.echo(i)))",
            count: 100,
        },
    ),
];

#[derive(Clone, Copy)]
enum Work {
    /// Small cells, one after the other.
    Execs { tools: usize, in_a_row: usize },
    /// A cell that makes so many calls.
    Calls { source: &'static str, count: usize },
}

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
    println!("| work over gRPC | ours | reference | ratio |");
    println!("| --- | ---: | ---: | ---: |");
    runtime.block_on(compare([ours, theirs]));
}

/// Gives both hosts the same work in turn: many starts, then rounds of each kind of work on
/// hosts that stay, as `tests/compare_hosts.py` does over the stdio wire.
async fn compare(commands: [&str; 2]) {
    let mut starts: [Vec<f64>; 2] = Default::default();
    for _ in 0..STARTS {
        for (command, times) in commands.iter().zip(&mut starts) {
            let begun = Instant::now();
            let (_host, session) = begin(command).await;
            times.push(micros(begun));
            session.close().await;
        }
    }
    print_row("start to first result", starts);
    for (name, rounds, work) in WORK {
        let [ours, theirs] = commands;
        let mut hosts = [Measured::begin(ours).await, Measured::begin(theirs).await];
        let mut times: [Vec<f64>; 2] = Default::default();
        for _ in 0..rounds {
            for (host, times) in hosts.iter_mut().zip(&mut times) {
                times.extend(host.round(work).await);
            }
        }
        print_row(name, times);
        for host in hosts {
            host.session.close().await;
        }
    }
}

fn print_row(name: &str, times: [Vec<f64>; 2]) {
    let [ours, theirs] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    let ratio = ours / theirs;
    println!("| {name} | {ours:.0} us | {theirs:.0} us | {ratio:.2} |");
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

/// A host that stays, and its session.
struct Measured {
    host: Host,
    session: Session,
    calls: tonic::Streaming<wire::ToolCall>,
    cells: usize,
}

impl Measured {
    async fn begin(command: &str) -> Self {
        let (host, session) = begin(command).await;
        let calls = session.subscribe(&[]).await;
        Self {
            host,
            session,
            calls,
            cells: 0,
        }
    }

    /// How long each exec, or each call, took in one round, in microseconds.
    async fn round(&mut self, work: Work) -> Vec<f64> {
        match work {
            Work::Execs { tools, in_a_row } => {
                let mut times = Vec::new();
                for _ in 0..in_a_row {
                    times.push(self.exec(tools).await);
                }
                times
            }
            Work::Calls { source, count } => vec![self.called(source, count).await],
        }
    }

    fn next_cell(&mut self) -> String {
        self.cells += 1;
        format!("cell {}", self.cells)
    }

    async fn exec(&mut self, tools: usize) -> f64 {
        let name = self.next_cell();
        let mut request = self.session.request(&name, "text('hi')");
        let definition = request.enabled_tools[0].clone();
        request.enabled_tools = vec![definition; tools];
        for (n, definition) in request.enabled_tools.iter_mut().enumerate() {
            definition.name = format!("tool{n}");
        }
        let begun = Instant::now();
        let executed = self.host.client.execute(request).await.expect("admitted");
        let mut events = executed.into_inner();
        next(&mut events).await;
        outcome(&mut events).await;
        micros(begun)
    }

    /// Runs a cell that makes so many calls; how long each took.
    async fn called(&mut self, source: &str, count: usize) -> f64 {
        let name = self.next_cell();
        let begun = Instant::now();
        let mut events = self.session.execute(&name, source).await;
        for _ in 0..count {
            let call = next(&mut self.calls).await;
            let answer = self.session.requests.clone();
            tokio::spawn(async move { answer.complete(&call.invocation_id, Ok("1".into())).await });
        }
        outcome(&mut events).await;
        micros(begun) / count as f64
    }
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}
