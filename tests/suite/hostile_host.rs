//! A worker that is lent keeps its machine's limits whatever the provider sends, which is a
//! stranger.

use std::time::Duration;

use code_mode::{Engine, ServeError, WorkerEnvironment};
use code_mode_protocol::wire::native::{self, FromWorker, ToWorker};
use code_mode_protocol::wire::outbound::Outbound;
use code_mode_protocol::wire::reader::{MaxMessage, MessageReader};
use code_mode_protocol::{Limit, Limits};

use crate::support::runtime;

/// A machine whose owner gives little to others.
struct Lent(Limits);

impl WorkerEnvironment for Lent {
    fn most(&self) -> Option<&Limits> {
        Some(&self.0)
    }
}

fn little() -> Limits {
    Limits::default()
        .max_stored_bytes(10_000)
        .max_live_cells(2)
        .max_frame_bytes(1000)
        .max_wall_time(Some(Duration::from_millis(200)))
}

fn execute(cell: u64, source: &str) -> ToWorker {
    ToWorker::Execute {
        cell,
        tools: 1,
        source: source.to_owned(),
        to_pending: false,
        constants: Vec::new(),
        determinism: None,
        resumed: None,
        idle_after: None,
        traceparent: None,
    }
}

/// A greeting, and a session of the largest limits.
fn opening() -> [ToWorker; 3] {
    [
        ToWorker::Hello {
            versions: vec![native::VERSION],
            required_capabilities: Vec::new(),
        },
        ToWorker::Open {
            limits: Limits::default(),
            guided: false,
        },
        ToWorker::Tools {
            id: 1,
            tools: Vec::new(),
        },
    ]
}

/// What becomes of such a worker that is sent these in a session of the largest limits, and
/// what it says until `enough`.
fn sent(
    messages: Vec<ToWorker>,
    enough: impl Fn(&FromWorker) -> bool,
) -> (Result<(), ServeError>, Vec<FromWorker>) {
    runtime().block_on(async {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let worker = tokio::spawn(code_mode::serve(theirs, Engine::new(), Lent(little())));
        let (receive, send) = tokio::io::split(ours);
        let (outbound, writing) = Outbound::new(send, usize::MAX);
        let writing = tokio::spawn(writing);
        let most = usize::try_from(u32::MAX).expect("64 bits");
        let max = MaxMessage {
            frame: most,
            texts: most,
        };
        let mut inbound = MessageReader::<_, FromWorker>::new(receive, max);
        for message in opening().into_iter().chain(messages) {
            outbound.send(message.encode().expect("it fits"));
        }
        let mut said = Vec::new();
        while let Ok(Some(message)) = inbound.next().await {
            let is_enough = enough(&message);
            said.push(message);
            if is_enough {
                break;
            }
        }
        writing.abort();
        drop((inbound, outbound));
        (worker.await.expect("no panic"), said)
    })
}

fn is_refused(messages: Vec<ToWorker>) -> bool {
    matches!(sent(messages, |_| false).0, Err(ServeError::Protocol(_)))
}

#[test]
fn stored_values_sources_and_cells_beyond_the_machines_limits_end_the_worker() {
    let value = |n: usize| (format!("k{n}"), "\"x\"".to_owned());
    let values = |n: usize| ToWorker::Store {
        values: (0..n).map(value).collect(),
    };
    assert!(is_refused(vec![values(10), values(10)]));
    assert!(is_refused(vec![execute(1, &"x".repeat(2000))]));
    let forever = "await new Promise(() => {})";
    let many = (1..=5).map(|cell| execute(cell, forever)).collect();
    assert!(is_refused(many));
}

#[test]
fn a_pause_does_not_stop_the_clock_of_the_machines_owner() {
    let forever = execute(1, "await new Promise(() => {})");
    let pause = ToWorker::Pause {
        cell: 1,
        paused: true,
    };
    let is_over =
        |message: &FromWorker| format!("{message:?}").contains(&format!("{:?}", Limit::WallTime));
    let (_, said) = sent(vec![forever, pause], is_over);
    assert!(said.last().is_some_and(is_over), "{said:?}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_cell_that_v8_cannot_interrupt_ends_a_lent_worker_whose_provider_does_nothing() {
    use tokio::io::AsyncWriteExt;

    use crate::listening::{framed, listening_with};

    crate::support::run(async {
        let folder = tempfile::tempdir().expect("a folder");
        // A wall time could be over before the loop begins.
        let most = little()
            .max_wall_time(None)
            .max_cpu_time(Some(Duration::from_millis(500)));
        let most = serde_json::to_string(&most).expect("JSON");
        let (mut worker, socket) = listening_with(&folder, &["--most", &most]).await;
        let mut provider = tokio::net::UnixStream::connect(&socket)
            .await
            .expect("connected");
        let endless = "Array.prototype.indexOf.call({length: 2 ** 53 - 1}, 1)";
        for message in opening().into_iter().chain([execute(1, endless)]) {
            let message = framed(message);
            provider.write_all(&message).await.expect("written");
        }
        let status = worker.wait().await.expect("it ends");
        assert_eq!(status.code(), Some(3));
    });
}
