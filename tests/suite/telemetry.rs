//! Traces and metrics as a collector gets them, and spans as a subscriber does.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use code_mode_host::{TerminateRequest, TraceContext, WaitRequest};
use serde_json::{Value, json};
use tonic::Streaming;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::grpc_client::{Host, Session, next, outcome, started, wire};
use crate::mcp_client;
use crate::stdio_client::Client;
use crate::support::{Agent, program, provider_in_process, request, runtime};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Takes the bodies of requests until nobody holds the other end.
fn collector() -> (String, std::sync::mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            let tell = tell.clone();
            std::thread::spawn(move || {
                let mut read = Vec::new();
                let mut buffer = [0; 4096];
                loop {
                    let head = read.windows(4).position(|w| w == b"\r\n\r\n");
                    if let Some(head) = head {
                        let text = String::from_utf8_lossy(&read[..head]).into_owned();
                        let length = text.lines().find_map(|line| {
                            let (name, value) = line.split_once(':')?;
                            let is_length = name.eq_ignore_ascii_case("content-length");
                            is_length.then(|| value.trim().parse::<usize>().expect("a length"))
                        });
                        let end = head + 4 + length.expect("a length");
                        if read.len() >= end {
                            let path = text.split(' ').nth(1).expect("a path").to_owned();
                            let _ = tell.send((path, read[head + 4..end].to_vec()));
                            read.drain(..end);
                            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                            stream.write_all(answer).expect("answered");
                            continue;
                        }
                    }
                    match stream.read(&mut buffer) {
                        Ok(0) | Err(_) => return,
                        Ok(more) => read.extend_from_slice(&buffer[..more]),
                    }
                }
            });
        }
    });
    (format!("http://{address}"), told)
}

/// Runs a program of one cell to its end.
fn run(command: &mut Command) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"text('a secret word')").expect("written");
    drop(input);
    child.wait_with_output().expect("it ends")
}

#[test]
fn a_collector_gets_traces_and_metrics() {
    let (url, told) = collector();
    let output = run(Command::new(program())
        .args(["run", "-"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &url));
    assert!(output.status.success());
    let got: Vec<_> = told.try_iter().collect();
    let of = |path: &str| {
        let bodies = got.iter().filter(|(to, _)| to == path);
        let text: String = bodies
            .map(|(_, body)| String::from_utf8_lossy(body))
            .collect();
        assert!(!text.contains("secret word"), "{path}");
        text
    };
    let traces = of("/v1/traces");
    for name in ["session", "exec", "worker", "completed"] {
        assert!(traces.contains(name), "{name}");
    }
    assert!(of("/v1/metrics").contains("code_mode.cell.duration"));
}

#[test]
fn an_exporter_that_fails_costs_nothing_else() {
    let output = run(Command::new(program()).args([
        "run",
        "--otel-trace-exporter",
        "http://127.0.0.1:1/",
        "-",
    ]));
    assert!(output.status.success());
    assert_eq!(output.stdout, b"a secret word\n");
}

#[test]
fn over_grpc_an_execute_and_its_calls_are_of_the_clients_trace() {
    let (url, told) = collector();
    runtime().block_on(async {
        let mut command = tokio::process::Command::new(program());
        let traces = format!("{url}/v1/traces");
        command.args(["serve", "--otel-trace-exporter", &traces]);
        let mut host = Host::stdio_of(command).await;
        let session = host.open(Default::default()).await;
        let mut calls = session.subscribe(&["echo"]).await;
        let mut events = execute_traced(&session).await;
        let call = next(&mut calls).await;
        let parent_of_call = call.traceparent.expect("a parent for the tool");
        let of_client = format!("00-{TRACE}-");
        assert!(parent_of_call.starts_with(&of_client), "{parent_of_call}");
        assert_ne!(parent_of_call, TRACEPARENT);
        session
            .complete(&call.invocation_id, Ok("1".to_owned()))
            .await;
        outcome(&mut events).await;
        session.close().await;
        drop((session, calls, events));
        assert!(host.gone().await.success());
        let sent: String = told
            .try_iter()
            .map(|(_, body)| String::from_utf8_lossy(&body).into_owned())
            .collect();
        assert!(sent.contains(TRACE) && sent.contains("code_mode_host.grpc.execute"));
    });
}

/// Executes a cell that calls `echo`, in the trace of the client.
async fn execute_traced(session: &Session) -> Streaming<wire::ExecuteEvent> {
    let mut execute = tonic::Request::new(session.request("e", "await tools.echo({})"));
    let metadata = execute.metadata_mut();
    metadata.insert("traceparent", TRACEPARENT.parse().expect("text"));
    let executed = session.client.clone().execute(execute).await;
    let mut events = executed.expect("admitted").into_inner();
    started(&mut events).await;
    events
}

#[test]
fn over_grpc_a_call_names_the_clients_span_without_an_exporter_too() {
    runtime().block_on(async {
        let mut command = tokio::process::Command::new(program());
        command.arg("serve");
        let mut host = Host::stdio_of(command).await;
        let session = host.open(Default::default()).await;
        let mut calls = session.subscribe(&["echo"]).await;
        let _events = execute_traced(&session).await;
        let call = next(&mut calls).await;
        assert_eq!(call.traceparent.as_deref(), Some(TRACEPARENT));
    });
}

/// The span and the trace's state that a tool call over the stdio wire names.
fn over_stdio(more: &[&str]) -> (String, Value) {
    runtime().block_on(async {
        let mut client = Client::start(&[&["serve", "--listen", "stdio"], more].concat());
        client.hello(&["guided-sessions-v1"], &[]).await;
        let open = json!({"method": "session/open", "sessionId": "s", "guided": {}});
        let opened = client.request(open).await;
        client.response(opened).await;
        let execute = json!({
            "tool_call_id": "e", "enabled_tools": [{"name": "echo"}], "yield_time_ms": 60_000,
            "source": "await tools.echo({})",
            "guided": {"traceparent": TRACEPARENT, "tracestate": "agent=1"},
        });
        let execute = json!({"method": "session/execute", "sessionId": "s", "request": execute});
        let executed = client.request(execute).await;
        client.initial_response(executed).await;
        let mut calls = client
            .log
            .iter()
            .map(|message| &message["request"]["invocation"]);
        let call = calls.find(|call| call.is_object()).expect("a call");
        let span = call["traceparent"].as_str().expect("text").to_owned();
        (span, call["tracestate"].clone())
    })
}

#[test]
fn over_stdio_a_call_is_of_the_clients_trace_with_an_exporter_and_without() {
    assert_eq!(over_stdio(&[]), (TRACEPARENT.to_owned(), json!("agent=1")));
    let (url, _told) = collector();
    let traces = format!("{url}/v1/traces");
    let (span, state) = over_stdio(&["--otel-trace-exporter", &traces]);
    assert!(span.starts_with(&format!("00-{TRACE}-")), "{span}");
    assert_ne!(span, TRACEPARENT);
    assert_eq!(state, "agent=1");
}

/// The `_meta` that a server gets with a call, where the client of `code-mode mcp` names its span.
fn meta_at_server(more: &[&str]) -> String {
    runtime().block_on(async {
        let mut client = mcp_client::Client::before("plain", more, json!({})).await;
        let code = "text((await tools.mad__echo({})).meta)";
        let exec = json!({
            "name": "exec", "arguments": {"code": code},
            "_meta": {"traceparent": TRACEPARENT, "tracestate": "agent=1"},
        });
        let answer = client.request("tools/call", exec).await;
        client.leave().await;
        mcp_client::texts(&answer["result"]).swap_remove(0)
    })
}

#[test]
fn an_mcp_server_gets_the_trace_of_the_client_with_each_call() {
    let meta: Value = serde_json::from_str(&meta_at_server(&[])).expect("JSON");
    assert_eq!(meta["traceparent"], TRACEPARENT);
    assert_eq!(meta["tracestate"], "agent=1");
    let (url, told) = collector();
    let traces = format!("{url}/v1/traces");
    let meta = meta_at_server(&["--otel-trace-exporter", &traces]);
    let meta: Value = serde_json::from_str(&meta).expect("JSON");
    assert_eq!(meta["tracestate"], "agent=1");
    let span = meta["traceparent"].as_str().expect("text");
    assert!(span.starts_with(&format!("00-{TRACE}-")) && span != TRACEPARENT);
    // That span is exported by the gateway, at its end at the latest, and so are the ones between.
    let id = span.split('-').nth(2).expect("a span's id");
    let wanted = [
        format!("\"spanId\": \"{id}\""),
        "\"parentSpanId\": \"b7ad6b7169203331\"".to_owned(),
    ];
    let mut sent = String::new();
    while !wanted.iter().all(|wanted| sent.contains(wanted)) {
        let (_, body) = told
            .recv_timeout(Duration::from_secs(60))
            .unwrap_or_else(|_| panic!("{sent}"));
        sent.push_str(&String::from_utf8_lossy(&body));
    }
}

#[test]
fn over_grpc_and_over_stdio_the_spans_have_the_names_of_the_codex_host() {
    let (url, told) = collector();
    let traces = format!("{url}/v1/traces");
    let all = || -> String {
        let bodies = told.try_iter().map(|(_, body)| body);
        bodies
            .map(|body| String::from_utf8_lossy(&body).into_owned())
            .collect()
    };
    runtime().block_on(async {
        let mut command = tokio::process::Command::new(program());
        command.args(["serve", "--otel-trace-exporter", &traces]);
        let mut host = Host::stdio_of(command).await;
        let session = host.open(Default::default()).await;
        let mut calls = session.subscribe(&[]).await;
        let mut cell = session.execute("e", "await tools.echo({})").await;
        let call = next(&mut calls).await;
        session
            .complete(&call.invocation_id, Ok("1".to_owned()))
            .await;
        outcome(&mut cell).await;
        session.wait("w", "1", 0).await.expect("answered");
        session.close().await;
        drop((session, calls, cell));
        assert!(host.gone().await.success());
    });
    let sent = all();
    for name in [
        "code_mode_host.startup",
        "code_mode_host.run_main",
        "code_mode_host.grpc.open_session",
        "code_mode_host.grpc.execute",
        "code_mode_host.grpc.wait",
        "code_mode_host.grpc.close_session",
        "code_mode.runtime.invoke_tool",
        "session.id",
        "execution.id",
        "cell.id",
        "wait.id",
        "runtime_tool_call_id",
        "tool_name",
    ] {
        assert!(sent.contains(&format!("\"{name}\"")), "{name}: {sent}");
    }
    runtime().block_on(async {
        let options = ["serve", "--otel-trace-exporter", &traces];
        let mut client = Client::start(&options);
        client.hello(&[], &[]).await;
        client.open("s").await;
        client.end_of_input().await;
        assert!(client.exit().await.success());
    });
    let sent = all();
    for name in ["code_mode_host.request", "request.kind", "session/open"] {
        assert!(sent.contains(&format!("\"{name}\"")), "{name}: {sent}");
    }
}

#[test]
fn who_connects_a_websocket_gets_the_traces_and_no_page_in_a_browser_does() {
    use futures::StreamExt;
    use std::io::{BufRead, BufReader};
    use tokio_tungstenite::connect_async;
    use tokio_tungstenite::tungstenite::Error;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;

    let mut child = Command::new(program())
        .args(["run", "--otel-trace-listen", "ws://127.0.0.1:0", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut said = BufReader::new(child.stderr.take().expect("piped")).lines();
    let said = said.next().expect("a line").expect("text");
    let address = said.strip_prefix("traces at ").expect("an address");
    runtime().block_on(async {
        let status = |answer| match answer {
            Err(Error::Http(response)) => response.status().as_u16(),
            other => panic!("let in: {other:?}"),
        };
        let mut page = address.into_client_request().expect("a URL");
        let origin = "http://evil.example".parse().expect("text");
        page.headers_mut().insert("origin", origin);
        assert_eq!(status(connect_async(page).await), 403);
        let elsewhere = connect_async(format!("{address}/x")).await;
        assert_eq!(status(elsewhere), 404);
        let (mut listener, _) = connect_async(address).await.expect("let in");
        let mut input = child.stdin.take().expect("piped");
        input.write_all(b"text('a secret word')").expect("written");
        drop(input);
        let mut sent = String::new();
        while !sent.contains("\"exec\"") {
            let message = listener.next().await.expect("a batch").expect("a message");
            assert!(message.is_binary());
            sent += &String::from_utf8_lossy(&message.into_data());
        }
        assert!(sent.contains("resourceSpans") && !sent.contains("secret word"));
    });
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn traces_go_to_one_place_of_this_machine() {
    let both = [
        "--otel-trace-listen",
        "ws://127.0.0.1:0",
        "--otel-trace-exporter",
        "http://127.0.0.1:1",
    ];
    for options in [&both[..], &["--otel-trace-listen", "ws://0.0.0.0:1"]] {
        let output = Command::new(program())
            .arg("serve")
            .args(options)
            .output()
            .expect("it starts");
        assert_eq!(output.status.code(), Some(2));
    }
}

/// Spans by name, with their fields as text, and their parents.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<Span>>>);

#[derive(Clone, Debug, Default)]
struct Span {
    name: &'static str,
    target: String,
    parent: Option<u64>,
    fields: Vec<(String, String)>,
}

impl Visit for Span {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let value = format!("{value:?}").trim_matches('"').to_owned();
        self.fields.push((field.name().to_owned(), value));
    }
}

impl Span {
    fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().rev().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

thread_local! {
    static CURRENT: std::cell::RefCell<Vec<u64>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("code_mode")
            || metadata.target() == "test"
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut span = Span {
            name: attributes.metadata().name(),
            target: attributes.metadata().target().to_owned(),
            parent: match attributes.parent() {
                Some(parent) => Some(parent.into_u64()),
                None if attributes.is_contextual() => {
                    CURRENT.with(|current| current.borrow().last().copied())
                }
                None => None,
            },
            fields: Vec::new(),
        };
        attributes.record(&mut span);
        let mut spans = self.0.lock().expect("no panic");
        spans.push(span);
        Id::from_u64(spans.len() as u64)
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        let mut spans = self.0.lock().expect("no panic");
        values.record(&mut spans[id.into_u64() as usize - 1]);
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, id: &Id) {
        CURRENT.with(|current| current.borrow_mut().push(id.into_u64()));
    }

    fn exit(&self, id: &Id) {
        CURRENT.with(|current| {
            let mut current = current.borrow_mut();
            if let Some(at) = current.iter().rposition(|known| *known == id.into_u64()) {
                current.remove(at);
            }
        });
    }
}

#[test]
fn every_request_call_and_notification_has_its_span() {
    let spans = Spans::default();
    // Of this thread alone, where everything of this runtime is: other tests run beside it.
    let _guard = tracing::subscriber::set_default(spans.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let provider = provider_in_process();
        let session = provider
            .create_session(Arc::new(Agent::default()))
            .await
            .expect("a session");
        let turn = tracing::info_span!(target: "test", "turn");
        let traced = request("await tools.echo('x'); notify('n')");
        let execute =
            session.execute(traced.trace_context(TraceContext::new(Some(TRACEPARENT), None)));
        let started = tracing::Instrument::instrument(execute, turn)
            .await
            .expect("admitted");
        started.outcome().await.expect("observed");
        let waiting = session
            .execute(request("await tools.never()").yield_time(Duration::ZERO))
            .await
            .expect("admitted");
        let id = waiting.id().clone();
        waiting.outcome().await.expect("observed");
        let wait = WaitRequest::new(id.clone()).yield_time(Duration::ZERO);
        let wait = session.wait(wait.tool_call_id("model-2")).await;
        wait.expect("observed");
        let terminate = TerminateRequest::new(id);
        let terminated = session.terminate(terminate.tool_call_id("model-3")).await;
        terminated.expect("terminated");
        session.shutdown().await;
        provider.shutdown().await;
    });
    let spans = spans.0.lock().expect("no panic").clone();
    let find = |name: &str| {
        let found = spans.iter().find(|span| span.name == name);
        found.unwrap_or_else(|| panic!("{name}: {spans:?}"))
    };
    let parent = |span: &Span| {
        let parent = span.parent.expect("a parent");
        spans[parent as usize - 1].name
    };
    assert_eq!(parent(find("exec")), "turn");
    assert_eq!(find("exec").field("outcome"), Some("completed"));
    assert_eq!(find("exec").field("tool_call_id"), Some("call-1"));
    assert_eq!(find("exec").field("cell"), Some("1"));
    assert!(find("exec").field("duration_ms").is_some());
    let call = find("tool_call");
    assert_eq!(parent(call), "exec");
    assert_eq!(call.field("tool"), Some("echo"));
    assert_eq!(call.field("kind"), Some("function"));
    assert_eq!(call.field("call"), Some("tool-1"));
    assert_eq!(call.field("outcome"), Some("succeeded"));
    assert_eq!(parent(find("notification")), "exec");
    assert_eq!(find("notification").field("outcome"), Some("delivered"));
    assert_eq!(find("wait").field("tool_call_id"), Some("model-2"));
    assert_eq!(find("terminate").field("tool_call_id"), Some("model-3"));
    assert_eq!(find("terminate").field("outcome"), Some("terminated"));
    assert_eq!(parent(find("shutdown")), "session");
    assert_eq!(parent(find("worker")), "session");
    assert_eq!(find("worker").field("outcome"), Some("shut_down"));
    // The worker's own span, on the other side of the native wire.
    assert_eq!(find("cell").field("traceparent"), Some(TRACEPARENT));
    let session = find("session").field("session").expect("an id");
    assert_eq!(session.len(), 32);
    let of_host = |span: &&Span| span.target.starts_with("code_mode_host");
    for span in spans.iter().filter(of_host) {
        assert_eq!(span.field("session"), Some(session), "{}", span.name);
        for (_, value) in &span.fields {
            assert!(!value.contains("await"), "nothing of a program: {value}");
        }
    }
}
