//! The gRPC wire, as its clients see it.

use std::time::Duration;

use tonic::Code;

use crate::grpc_client::wire::execution_outcome::Outcome;
use crate::grpc_client::wire::session_event::Event;
use crate::grpc_client::wire::{self, OpenSessionRequest};
use crate::grpc_client::{Host, Session, next, outcome, texts};
use crate::support::{program, run};

async fn opened(host: &mut Host) -> Session {
    host.open(OpenSessionRequest::default()).await
}

#[test]
fn a_cell_runs_over_standard_streams_and_over_tcp() {
    run(async {
        for mut host in [Host::stdio().await, Host::tcp().await] {
            let mut session = opened(&mut host).await;
            let outcome = session.exec("e", "text('hi'); text(2)").await;
            assert_eq!(texts(&outcome), ["hi", "2"]);
            let closed = session.cell_closed().await;
            assert_eq!(
                (closed.execution_id, closed.cell_id),
                ("e".to_owned(), "1".to_owned())
            );
            session.close().await;
            let after_the_end = session.lease.message().await.expect("ended well");
            assert!(after_the_end.is_none());
        }
    });
}

#[test]
fn a_client_that_goes_away_ends_the_program_well_also_with_cells_busy() {
    run(async {
        let mut host = Host::stdio().await;
        let session = opened(&mut host).await;
        let busy = session.execute("e", "while (true) {}").await;
        drop((busy, session));
        assert!(host.gone().await.success());
    });
}

#[test]
#[cfg(unix)]
fn a_signal_ends_streams_and_cells_and_the_program_well() {
    use rustix::process::{Pid, Signal, kill_process};

    run(async {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            if signal == Signal::HUP && crate::support::ignores_hang_up() {
                continue;
            }
            let mut host = Host::tcp_with(&["--drain-time", "0"]).await;
            let mut session = opened(&mut host).await;
            let mut busy = session.execute("e", "while (true) {}").await;
            let id = host.child.id().and_then(|id| i32::try_from(id).ok());
            let id = id.and_then(Pid::from_raw).expect("it runs");
            kill_process(id, signal).expect("it runs");
            assert!(busy.message().await.expect("ended well").is_none());
            while session.lease.message().await.expect("ended well").is_some() {}
            assert!(host.child.wait().await.expect("it ends").success());
        }
    });
}

#[test]
fn a_lease_that_is_dropped_ends_its_session_and_no_other() {
    run(async {
        let mut host = Host::stdio().await;
        let Session { requests, lease } = opened(&mut host).await;
        let id = requests.id;
        let other = opened(&mut host).await;
        drop(lease);
        // Nothing tells when; the session is unknown from then on.
        let unknown = loop {
            let request = wire::YieldObservationRequest {
                session_id: id.clone(),
                observation: Some(wire::yield_observation_request::Observation::WaitId(
                    "w".to_owned(),
                )),
            };
            if let Err(unknown) = host.client.yield_observation(request).await {
                break unknown;
            }
        };
        assert_eq!(unknown.code(), Code::NotFound);
        assert_eq!(unknown.message(), format!("unknown code-mode session {id}"));
        assert_eq!(texts(&other.exec("e", "text('on')").await), ["on"]);
    });
}

#[test]
fn an_execute_that_is_dropped_terminates_its_cell() {
    run(async {
        let mut host = Host::stdio().await;
        let mut session = opened(&mut host).await;
        drop(session.execute("e", "while (true) {}").await);
        assert_eq!(session.cell_closed().await.cell_id, "1");
    });
}

#[test]
fn a_closed_session_ends_executes_without_an_outcome_and_cancels_waits() {
    run(async {
        let mut host = Host::stdio().await;
        let session = opened(&mut host).await;
        let mut execute = session.execute("e", "await new Promise(() => {})").await;
        let mut yielded = session
            .execute("y", "yield_control(); await new Promise(() => {})")
            .await;
        outcome(&mut yielded).await;
        let wait = async {
            // Where a probe has come before it, it tries again.
            for attempt in 1.. {
                let waited = session.wait(&format!("w{attempt}"), "2", 60_000).await;
                match waited {
                    Err(busy) if busy.code() == Code::FailedPrecondition => {}
                    waited => return waited,
                }
            }
            unreachable!("it tries until it waits")
        };
        let (waited, ()) = tokio::join!(wait, async {
            // The wait is there when a second one is refused.
            while session.wait("probe", "2", 0).await.is_ok() {}
            session.close().await;
        });
        let cancelled = waited.expect_err("cancelled");
        assert_eq!(
            (cancelled.code(), cancelled.message()),
            (Code::Cancelled, "code-mode wait was cancelled")
        );
        assert!(execute.message().await.expect("ended well").is_none());
    });
}

#[test]
fn calls_go_to_the_subscriptions_that_match_in_turn() {
    run(async {
        let mut host = Host::stdio().await;
        let mut session = opened(&mut host).await;
        let mut all = session.subscribe(&[]).await;
        let mut echoes = session.subscribe(&["echo"]).await;
        let _others = session.subscribe(&["other"]).await;
        let source = "text(await Promise.all([1, 2].map((n) => tools.echo(n))))";
        let mut events = session.execute("e", source).await;
        for (subscription, sequence) in [(&mut all, 1), (&mut echoes, 2)] {
            let call = next(subscription).await;
            assert_eq!((call.sequence, call.execution_id.as_str()), (sequence, "e"));
            assert_eq!(call.input_json, Some(sequence.to_string().into_bytes()));
            let result = Ok(format!("{}", sequence * 10));
            session.complete(&call.invocation_id, result).await;
        }
        assert_eq!(texts(&outcome(&mut events).await), ["[10,20]"]);
        assert_eq!(session.cell_closed().await.final_tool_call_sequence, 2);
    });
}

#[test]
fn a_call_that_no_subscription_takes_fails_in_the_script() {
    run(async {
        let mut host = Host::stdio().await;
        let session = opened(&mut host).await;
        let source = "try { await tools.echo(1) } catch (e) { text(e.message) }";
        assert_eq!(
            texts(&session.exec("e", source).await),
            ["no code-mode tool subscription matches the requested tool"]
        );
    });
}

#[test]
fn a_subscription_dropped_with_a_call_open_ends_the_session() {
    run(async {
        let mut host = Host::stdio().await;
        let mut session = opened(&mut host).await;
        let mut calls = session.subscribe(&[]).await;
        let mut events = session.execute("e", "await tools.echo(1)").await;
        next(&mut calls).await;
        drop(calls);
        assert!(events.message().await.expect("ended well").is_none());
        while session.lease.message().await.expect("ended well").is_some() {}
    });
}

#[test]
fn calls_beyond_the_capacity_wait_their_turn() {
    run(async {
        let mut host = Host::stdio().await;
        let session = host
            .open(OpenSessionRequest {
                max_pending_delegate_calls: Some(2),
                ..OpenSessionRequest::default()
            })
            .await;
        let mut calls = session.subscribe(&[]).await;
        let source =
            "const all = await Promise.all(Array.from({length: 50}, (_, i) => tools.echo(i)));
            text(all.every((n, i) => n === i))";
        let mut events = session.execute("e", source).await;
        let mut open = Vec::new();
        for answered in 0..50 {
            while open.len() < 2.min(50 - answered) {
                open.push(next(&mut calls).await);
            }
            // A third would have been sent before the answer to the present request.
            session.wait("w", "none", 0).await.ok();
            let call: wire::ToolCall = open.remove(0);
            let input = String::from_utf8(call.input_json.expect("an input")).expect("text");
            session.complete(&call.invocation_id, Ok(input)).await;
        }
        assert_eq!(texts(&outcome(&mut events).await), ["true"]);
    });
}

#[test]
fn notifications_come_in_order_before_their_cell_is_closed() {
    run(async {
        let mut host = Host::stdio().await;
        let mut session = opened(&mut host).await;
        session
            .exec("e", "for (let i = 0; i < 3000; i++) notify(i)")
            .await;
        for n in 0..3000 {
            match next(&mut session.lease).await.event {
                Some(Event::Notification(notification)) => {
                    assert_eq!(notification.text, n.to_string());
                    assert_eq!(notification.call_id, "call-1");
                }
                other => panic!("{other:?}"),
            }
        }
        session.cell_closed().await;
    });
}

#[test]
fn an_observation_can_be_yielded_and_a_wait_cancelled_before_it_is_there() {
    run(async {
        let mut host = Host::stdio().await;
        let session = opened(&mut host).await;
        let yielded = |observation| wire::YieldObservationRequest {
            session_id: session.id.clone(),
            observation: Some(observation),
        };
        use wire::yield_observation_request::Observation;
        let early = yielded(Observation::ExecutionId("e".to_owned()));
        host.client.yield_observation(early).await.expect("fine");
        let forever = "text('up'); await new Promise(() => {})";
        let outcome = session.exec("e", forever).await;
        assert!(matches!(outcome.outcome, Some(Outcome::Yielded(_))));
        let cancel = wire::CancelWaitRequest {
            session_id: session.id.clone(),
            wait_id: "w".to_owned(),
        };
        host.client.cancel_wait(cancel).await.expect("fine");
        let cancelled = session.wait("w", "1", 60_000).await;
        assert_eq!(cancelled.expect_err("cancelled").code(), Code::Cancelled);
        let reused = session.wait("w", "1", 0).await.expect_err("refused");
        assert_eq!(
            (reused.code(), reused.message()),
            (Code::AlreadyExists, "code-mode wait ID `w` was reused")
        );
    });
}

#[test]
fn a_request_that_is_not_well_formed_fails_alone() {
    run(async {
        let mut host = Host::stdio().await;
        let session = opened(&mut host).await;
        let request = || session.request("e", "text(1)");
        let long = "x".repeat(257);
        let mut cases = Vec::new();
        let mut case = |request: wire::ExecuteRequest, code: Code, message: &str| {
            cases.push((request, code, message.to_owned()));
        };
        for (id, message) in [
            ("", "code-mode session ID must not be empty"),
            ("nope", "code-mode session ID must be a UUID"),
            (&long, "code-mode session ID exceeds 256 bytes"),
        ] {
            let session_id = id.to_owned();
            let request = wire::ExecuteRequest {
                session_id,
                ..request()
            };
            case(request, Code::InvalidArgument, message);
        }
        for (id, message) in [
            ("", "code-mode execution ID must not be empty"),
            (&long, "code-mode execution ID exceeds 256 bytes"),
        ] {
            let execution_id = id.to_owned();
            let request = wire::ExecuteRequest {
                execution_id,
                ..request()
            };
            case(request, Code::InvalidArgument, message);
        }
        let mut nameless = request();
        nameless.enabled_tools[0].tool_name = None;
        case(
            nameless,
            Code::InvalidArgument,
            "tool definition is missing its tool name",
        );
        let mut kindless = request();
        kindless.enabled_tools[0].kind = 0;
        case(
            kindless,
            Code::InvalidArgument,
            "tool definition has an invalid kind",
        );
        for (request, code, message) in cases {
            let refused = host.client.execute(request).await.expect_err("refused");
            assert_eq!(
                (refused.code(), refused.message()),
                (code, message.as_str())
            );
        }
        // A refused request has not used its id.
        assert_eq!(texts(&session.exec("e", "text('on')").await), ["on"]);
        let reused = host.client.execute(request()).await.expect_err("refused");
        assert_eq!(reused.code(), Code::AlreadyExists);
    });
}

#[test]
fn a_cell_that_exhausts_its_heap_ends_alone() {
    run(async {
        let mut host = Host::stdio().await;
        let (one, other) = (opened(&mut host).await, opened(&mut host).await);
        let mut waiting = other
            .execute(
                "w",
                "await new Promise((r) => setTimeout(r, 50)); text('on')",
            )
            .await;
        let source = "const a = []; for (;;) a.push(new Array(1e6).fill({}))";
        let ended = one.exec("e", source).await;
        let Some(Outcome::Completed(wire::ExecutionCompleted {
            error_text: Some(error),
        })) = ended.outcome
        else {
            panic!("no error");
        };
        assert!(error.contains("heap limit"), "{error}");
        assert_eq!(texts(&outcome(&mut waiting).await), ["on"]);
    });
}

#[test]
fn output_is_cut_where_the_session_asks_for_that() {
    run(async {
        let mut host = Host::stdio().await;
        let cut = format!(
            "Warning: truncated output (original token count: 250)\nTotal output lines: 1\n\n{0}…240 tokens truncated…{0}",
            "x".repeat(20)
        );
        for (asked, expected) in [
            (wire::OutputTruncation::Unspecified, "x".repeat(1000)),
            (wire::OutputTruncation::Client, "x".repeat(1000)),
            (wire::OutputTruncation::Server, cut),
        ] {
            let session = host
                .open(OpenSessionRequest {
                    output_truncation: asked.into(),
                    ..OpenSessionRequest::default()
                })
                .await;
            let mut request = session.request("e", "text('x'.repeat(1000))");
            request.max_output_tokens = Some(10);
            let executed = host.client.execute(request).await.expect("admitted");
            let mut events = executed.into_inner();
            next(&mut events).await;
            let outcome = outcome(&mut events).await;
            assert_eq!(texts(&outcome), [expected]);
        }
    });
}

#[test]
#[cfg(target_os = "linux")]
fn process_metrics_are_those_of_the_program() {
    run(async {
        let mut host = Host::stdio().await;
        let metrics = host
            .client
            .get_process_metrics(wire::GetProcessMetricsRequest {})
            .await
            .expect("answered")
            .into_inner();
        assert_eq!(Some(metrics.process_id), host.child.id());
        assert!(metrics.resident_memory_bytes > 1 << 20);
        // Cells run in workers, and a client sees one host.
        let session = host.open(OpenSessionRequest::default()).await;
        let source = "globalThis.kept = []; for (let i = 0; i < 4e6; i++) kept.push(i + 0.5); \
                      text(1); yield_control(); await null; for (;;) {}";
        let outcome = session.exec("busy", source).await;
        assert_eq!(texts(&outcome), ["1"]);
        loop {
            let request = wire::GetProcessMetricsRequest {};
            let later = host.client.get_process_metrics(request).await;
            let later = later.expect("answered").into_inner();
            assert!(later.resident_memory_bytes > metrics.resident_memory_bytes + (16 << 20));
            if later.cpu_seconds_total >= metrics.cpu_seconds_total + 1.0 {
                break;
            }
        }
        let now = std::time::SystemTime::now();
        let now = now.duration_since(std::time::UNIX_EPOCH).expect("later");
        let age = now.as_secs_f64() - metrics.process_start_time_seconds;
        assert!((-5.0..600.0).contains(&age), "{age}");
    });
}

#[test]
fn health_is_told_over_plain_http_and_the_rest_of_http_1_is_refused() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    run(async {
        let host = Host::tcp().await;
        let address = host.address.as_deref().expect("it listens");
        let address = address.strip_prefix("http://").expect("a URL");
        for (request, status) in [
            ("GET /healthz", "HTTP/1.1 200 OK"),
            ("GET /healthz?x=1", "HTTP/1.1 200 OK"),
            ("GET /", "HTTP/1.1 505 HTTP Version Not Supported"),
            ("HEAD /healthz", "HTTP/1.1 505 HTTP Version Not Supported"),
            ("POST /healthz", "HTTP/1.1 505 HTTP Version Not Supported"),
        ] {
            let mut stream = tokio::net::TcpStream::connect(address).await.expect("open");
            let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("text");
            assert_eq!(answer.lines().next(), Some(status), "{request}");
        }
    });
}

#[test]
fn bytes_that_are_no_http_2_end_the_connection_well() {
    use std::io::Write;
    use std::process::{Command, Stdio};

    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"", &[0xff; 100]] {
        let mut child = Command::new(program())
            .args(["serve", "--listen", "grpc+stdio://"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        let mut input = child.stdin.take().expect("piped");
        // It may have ended already.
        let _ = input.write_all(bytes);
        drop(input);
        assert!(child.wait().expect("it ends").success(), "{bytes:?}");
    }
}

#[test]
fn an_address_that_cannot_be_listened_on_is_said_and_ends_with_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let taken = format!("grpc://{}", taken.local_addr().expect("bound"));
    for (listen, said) in [
        (
            "grpc://localhost:1",
            "invalid gRPC --listen URL `grpc://localhost:1`",
        ),
        (
            "grpc://0.0.0.0:0",
            "others than this machine can reach this address",
        ),
        ("http://x", "unsupported --listen URL `http://x`"),
        (&taken, "failed to bind code-mode gRPC host to 127.0.0.1:"),
    ] {
        let output = std::process::Command::new(program())
            .args(["serve", "--listen", listen])
            .output()
            .expect("it starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(said), "{error}");
        // What the Codex host does not refuse is wrong usage, as in every command.
        let status = if listen.contains("0.0.0.0") { 2 } else { 1 };
        assert_eq!(output.status.code(), Some(status));
    }
}

#[test]
fn hundreds_of_cells_and_ten_thousand_calls_share_a_connection() {
    run(async {
        let mut host = Host::stdio().await;
        let session = opened(&mut host).await;
        let mut calls = session.subscribe(&[]).await;
        let source =
            "const all = await Promise.all(Array.from({length: 10000}, (_, i) => tools.echo(i)));
            text(all.every((n, i) => n === i))";
        let mut events = session.execute("e", source).await;
        for _ in 0..10_000 {
            let call = next(&mut calls).await;
            let input = String::from_utf8(call.input_json.expect("an input")).expect("text");
            session.complete(&call.invocation_id, Ok(input)).await;
        }
        assert_eq!(texts(&outcome(&mut events).await), ["true"]);
        let mut waiting = Vec::new();
        for n in 0..200 {
            let mut request = session.request(&format!("w{n}"), "await new Promise(() => {})");
            request.yield_time_ms = Some(0);
            let executed = host.client.execute(request).await.expect("admitted");
            let mut events = executed.into_inner();
            next(&mut events).await;
            let outcome = outcome(&mut events).await;
            assert!(matches!(outcome.outcome, Some(Outcome::Yielded(_))));
            waiting.push(events);
        }
        tokio::time::timeout(Duration::from_secs(60), session.close())
            .await
            .expect("it closes");
    });
}

#[test]
fn a_burst_of_dropped_requests_ends_those_alone() {
    run(async {
        let mut host = Host::stdio().await;
        let session = opened(&mut host).await;
        let mut dropped = tokio::task::JoinSet::new();
        for n in 0..300 {
            let request = session.request(&format!("d{n}"), "await new Promise(() => {})");
            let mut client = host.client.clone();
            dropped.spawn(async move { client.execute(request).await.map(|_| ()) });
        }
        // Each is sent when its task has run once.
        tokio::task::yield_now().await;
        dropped.shutdown().await;
        assert_eq!(texts(&session.exec("e", "text('on')").await), ["on"]);
    });
}

#[test]
fn a_client_that_reads_neither_lease_nor_calls_holds_no_other_session_up() {
    run(async {
        let mut host = Host::stdio().await;
        let lazy = opened(&mut host).await;
        let _unread = lazy.subscribe(&[]).await;
        let source = "for (let i = 0; i < 2000; i++) notify(i);
            for (let i = 0; i < 900; i++) tools.echo('x'.repeat(50_000));
            await new Promise((r) => setTimeout(r, 100))";
        for n in 0..3 {
            let mut request = lazy.request(&n.to_string(), source);
            request.yield_time_ms = Some(200);
            let executed = host.client.execute(request).await.expect("admitted");
            let mut events = executed.into_inner();
            next(&mut events).await;
            outcome(&mut events).await;
        }
        let mut other = opened(&mut host).await;
        let mut calls = other.subscribe(&[]).await;
        let mut events = other
            .execute("e", "notify('n'); text(await tools.echo(1))")
            .await;
        let call = next(&mut calls).await;
        other
            .complete(&call.invocation_id, Ok("2".to_owned()))
            .await;
        assert_eq!(texts(&outcome(&mut events).await), ["2"]);
        other.cell_closed().await;
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_standard_output_that_nobody_reads_any_more_ends_the_program_well() {
    let mut child = std::process::Command::new(program())
        .args(["serve", "--listen", "grpc+stdio://"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take());
    // Its input stays open.
    let input = child.stdin.take();
    assert!(child.wait().expect("it ends").success());
    drop(input);
}
