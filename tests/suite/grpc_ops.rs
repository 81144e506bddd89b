//! Health and metrics of a gRPC host, at an address of their own.
#![cfg(unix)]

use std::sync::Arc;

use code_mode_host::{Provider, RemoteHost, WorkerSource};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};

use crate::grpc_client::wire::OpenSessionRequest;
use crate::grpc_client::{Host, http};
use crate::grpc_host::{Certificates, TOKEN, channel};
use crate::support::{Agent, exec, options, program, run, started};

/// A host whose metrics can be read, with its address and that of the metrics. What else it writes
/// on standard error comes line by line.
struct WithOps {
    child: tokio::process::Child,
    address: String,
    ops: String,
    lines: Lines<BufReader<tokio::process::ChildStderr>>,
}

impl WithOps {
    async fn start(further: &[&str]) -> Self {
        let mut command = tokio::process::Command::new(program());
        let mut child = command
            .args(["serve", "--listen", "grpc://127.0.0.1:0"])
            .args(["--ops-listen", "127.0.0.1:0"])
            .args(further)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let said = lines.next_line().await.expect("text").expect("a line");
        let ops = said.strip_prefix("health and metrics at http://");
        let ops = ops.expect("its address").to_owned();
        let mut output = BufReader::new(child.stdout.take().expect("piped")).lines();
        let address = output.next_line().await.expect("text").expect("a line");
        Self {
            child,
            address,
            ops,
            lines,
        }
    }

    /// The value of the first metric whose line begins like this, once it is not zero.
    async fn metric(&self, name: &str) -> f64 {
        loop {
            let (status, page) = http(&self.ops, "GET /metrics").await;
            assert_eq!(status, "HTTP/1.1 200 OK");
            let line = page.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            match value {
                None | Some(0.0) => tokio::task::yield_now().await,
                Some(value) => return value,
            }
        }
    }
}

#[test]
fn cells_of_borrowed_workers_and_refused_clients_are_in_the_metrics() {
    let certificates = Certificates::new();
    certificates.write("tokens", TOKEN);
    let tokens = certificates.text("tokens");
    run(async {
        let mut host = WithOps::start(&["--token-file", &tokens]).await;
        let borrowing = |token: &str| {
            let remote = RemoteHost::new(&host.address).bearer_token(token);
            let options = options().worker(WorkerSource::Remote(remote)).prewarmed(0);
            Provider::new(options).expect("nothing to find")
        };
        let provider = borrowing(TOKEN);
        let session = provider.create_session(Arc::new(Agent::default())).await;
        let session = session.expect("a session");
        exec(&session, "text('x'.repeat(200_000)); store('k', 1)").await;
        exec(&session, "throw 1").await;
        let waiting = started(&session, "await tools.never()").await;
        let outcome = |outcome: &str| {
            format!("code_mode_cell_duration_seconds_count{{code_mode_cell_outcome=\"{outcome}\"")
        };
        assert_eq!(host.metric(&outcome("completed")).await, 1.0);
        assert_eq!(host.metric(&outcome("script_error")).await, 1.0);
        assert_eq!(host.metric("code_mode_cell_live").await, 1.0);
        session.terminate(waiting).await.expect("terminated");
        assert_eq!(host.metric(&outcome("terminated")).await, 1.0);
        let stranger = borrowing("nobody-knows-this-token");
        for _ in 0..3 {
            let refused = stranger.create_session(Arc::new(Agent::default())).await;
            refused.map(drop).expect_err("refused");
        }
        let refused = "code_mode_refused_total{error_type=\"token\"";
        assert!(host.metric(refused).await >= 3.0);
        let line = host.lines.next_line().await.expect("text").expect("a line");
        assert!(
            line.contains("refused: 1 requests without a known token"),
            "{line}"
        );
        assert!(!line.contains("nobody-knows"), "{line}");
        provider.shutdown().await;
    });
}

#[test]
fn health_and_metrics_have_an_address_of_their_own() {
    run(async {
        let WithOps {
            child,
            address,
            ops,
            ..
        } = WithOps::start(&[]).await;
        let ops = ops.as_str();
        let mut host = Host::new(child, channel(&address, None).await.expect("open"), None);
        let session = host.open(OpenSessionRequest::default()).await;
        session.exec("e", "text(1)").await;
        assert_eq!(http(ops, "GET /healthz").await.0, "HTTP/1.1 200 OK");
        assert!(http(ops, "POST /metrics").await.0.contains("405"));
        assert!(http(ops, "GET /else").await.0.contains("404"));
        let (status, page) = http(ops, "GET /metrics").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        for metric in [
            "code_mode_worker_serving",
            "code_mode_worker_memory_bytes",
            "code_mode_session_live",
            "code_mode_cell_duration_seconds_count",
        ] {
            let line = page.lines().find(|line| line.starts_with(metric));
            let line = line.unwrap_or_else(|| panic!("{metric}: {page}"));
            let value = line.rsplit(' ').next().expect("a value");
            assert!(value.parse::<f64>().expect("a number") >= 1.0, "{line}");
        }
    });
}
