//! Recorded behaviour of the reference host, reproduced through every way in:
//! the session in this process, the provider's worker process, the stdio wire and
//! the gRPC wire. Each case has a separate session, and each of the last a separate process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{
    CellId, CellNotification, CellResponse, CodeModeSessionDelegate, ExecuteRequest, Json, Limits,
    NestedToolCall, SessionOptions, ToolDefinition, ToolError, ToolSet, WaitRequest,
};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::durable_corpus::cut_after_every_turn;
use crate::grpc_client;
use crate::stdio_client::Client;
use crate::support;

fn fixture() -> Value {
    serde_json::from_str(include_str!("../fixtures/conformance.json")).expect("the fixture is JSON")
}

/// What the tools of the recording do, for both kinds of delegate.
pub fn recorded_tool(
    fixture: &Value,
    name: &str,
    namespace: Option<&str>,
    kind: &str,
    input: &str,
    id: &str,
) -> ToolAnswer {
    match name {
        "fail" => ToolAnswer::Now(Err("tool said no".into())),
        "slow" => ToolAnswer::After(Duration::from_millis(40), "\"slow done\"".to_owned()),
        "nothing" => ToolAnswer::Now(Ok("null".to_owned())),
        "never" => ToolAnswer::Never,
        "big" => ToolAnswer::Now(Ok(json!("x".repeat(1_000_000)).to_string())),
        "shot" => ToolAnswer::Now(Ok(fixture["shot_result"].to_string())),
        // Written by hand, because the recording has its keys in this order.
        _ => ToolAnswer::Now(Ok(format!(
            r#"{{"name":{},"ns":{},"kind":{},"input":{input},"id":{}}}"#,
            json!(name),
            json!(namespace),
            json!(kind),
            json!(id)
        ))),
    }
}

/// See [`recorded_tool`].
pub enum ToolAnswer {
    Now(Result<String, String>),
    After(Duration, String),
    Never,
}

impl ToolAnswer {
    /// The answer when its time has come.
    pub async fn settle(self) -> Result<String, String> {
        match self {
            Self::Now(answer) => answer,
            Self::After(delay, answer) => {
                tokio::time::sleep(delay).await;
                Ok(answer)
            }
            Self::Never => std::future::pending().await,
        }
    }
}

struct Recorder {
    fixture: Value,
    calls: AtomicUsize,
    notifications: Mutex<Vec<String>>,
    closed: Mutex<Vec<String>>,
    changed: Notify,
}

impl Recorder {
    fn new(fixture: &Value) -> Arc<Self> {
        Arc::new(Self {
            fixture: fixture.clone(),
            calls: AtomicUsize::new(0),
            notifications: Mutex::default(),
            closed: Mutex::default(),
            changed: Notify::new(),
        })
    }
}

#[async_trait]
impl CodeModeSessionDelegate for Recorder {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let kind = serde_json::to_value(call.tool_kind).expect("a kind");
        let answer = recorded_tool(
            &self.fixture,
            &call.tool_name.name,
            call.tool_name.namespace.as_deref(),
            kind.as_str().expect("a string"),
            call.input.as_ref().map_or("null", Json::as_str),
            &call.runtime_tool_call_id.to_string(),
        );
        tokio::select! {
            answer = answer.settle() => {
                {
                    let json = answer.map(|json| Json::parse(json).expect("recorded answers are JSON"));
                    json.map_err(ToolError::from)
                }
            }
            () = cancelled.cancelled() => Err("cancelled".into()),
        }
    }

    async fn notify(&self, notification: CellNotification, _: CancellationToken) {
        let mut notifications = self.notifications.lock().expect("not poisoned");
        notifications.push(notification.text);
    }

    async fn cell_closed(&self, cell_id: CellId) {
        let mut closed = self.closed.lock().expect("not poisoned");
        closed.push(cell_id.to_string());
        self.changed.notify_one();
    }
}

/// A response as the stdio wire writes it, less its timings.
fn as_recorded(response: &CellResponse) -> Value {
    let mut fields = json!({
        "cell_id": response.cell_id(),
        "content_items": response.content_items(),
    });
    let name = match response {
        CellResponse::Yielded { .. } => "Yielded",
        CellResponse::Pending { .. } => "Pending",
        CellResponse::Terminated { .. } => "Terminated",
        CellResponse::Result { error_text, .. } => {
            fields["error_text"] = json!(error_text);
            "Result"
        }
    };
    json!({ name: fields })
}

fn outcome_as_recorded(response: &CellResponse) -> Value {
    let outcome = match response.is_missing() {
        false => json!({"LiveCell": as_recorded(response)}),
        true => json!({"MissingCell": as_recorded(response)}),
    };
    json!({"status": "ok", "value": {"type": "wait/completed", "outcome": outcome}})
}

/// Long strings are recorded by their ends and their length.
fn shortened(value: &mut Value) {
    match value {
        Value::String(text) => {
            let length = text.chars().count();
            if length > 3000 {
                let head: String = text.chars().take(200).collect();
                let tail: String = text.chars().skip(length - 200).collect();
                *text = format!("{head}...[{length}]...{tail}");
            }
        }
        Value::Array(values) => values.iter_mut().for_each(shortened),
        Value::Object(map) => map.values_mut().for_each(shortened),
        _ => {}
    }
}

/// The steps of a case, with the ids and times they leave open filled in.
struct Step<'a> {
    op: &'a str,
    step: &'a Value,
}

impl Step<'_> {
    fn cell(&self, last: &str) -> String {
        match self.step["cell_id"].as_str().expect("a cell id") {
            "LAST" => last.to_owned(),
            id => id.to_owned(),
        }
    }
}

fn steps(case: &Value) -> impl Iterator<Item = Step<'_>> {
    let steps = case["steps"].as_array().expect("steps");
    steps.iter().map(|step| Step {
        op: step["op"].as_str().expect("an op"),
        step,
    })
}

fn check(case: &Value, got: Value, failures: &mut Vec<String>) {
    let mut got = got;
    shortened(&mut got);
    if got != case["expect"] {
        failures.push(format!(
            "{}\n  expected {}\n  got      {got}",
            case["name"], case["expect"]
        ));
    }
}

fn finish(cases: usize, failures: &[String]) {
    assert!(cases >= 100, "the fixture has its cases");
    assert!(
        failures.is_empty(),
        "{} of {cases} cases differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

async fn run_case(fixture: &Value, case: &Value, open: &OpenSession) -> Value {
    let recorder = Recorder::new(fixture);
    let support::Opened { session, provider } = open(recorder.clone()).await;
    let default_tools: Vec<ToolDefinition> =
        serde_json::from_value(fixture["enabled_tools"].clone()).expect("tools");
    let default_tools = ToolSet::from(default_tools);
    let mut last = String::new();
    let mut results: Vec<Value> = Vec::new();
    for step in steps(case) {
        let yield_time = step.step["yield_time_ms"]
            .as_u64()
            .map(Duration::from_millis);
        results.push(match step.op {
            "execute" => {
                let source = step.step["source"].as_str().expect("a source");
                let mut request = ExecuteRequest::new("call-1", source);
                request.yield_time = yield_time;
                request.enabled_tools = match step.step.get("enabled_tools") {
                    Some(tools) => {
                        let tools: Vec<ToolDefinition> =
                            serde_json::from_value(tools.clone()).expect("tools");
                        ToolSet::from(tools)
                    }
                    None => default_tools.clone(),
                };
                let started = session.execute(request).await.expect("admitted");
                last = started.id().clone().to_string();
                let response = started.outcome().await.expect("observed");
                json!({"status": "ok", "value": as_recorded(&response)})
            }
            "wait" => {
                let mut request = WaitRequest::new(cell_id(&step.cell(&last)));
                request.yield_time = yield_time;
                outcome_as_recorded(&session.wait(request).await.expect("observed"))
            }
            "terminate_if_yielded" if !was_yielded(results.last()) => json!("skipped"),
            "terminate" | "terminate_if_yielded" => {
                let cell_id = cell_id(&step.cell(&last));
                outcome_as_recorded(&session.terminate(cell_id).await.expect("terminated"))
            }
            other => panic!("unknown step {other}"),
        });
    }
    let expected = case["expect"]["closed_cells"]
        .as_array()
        .map_or(0, Vec::len);
    while recorder.closed.lock().expect("not poisoned").len() < expected {
        recorder.changed.notified().await;
    }
    let mut closed = recorder.closed.lock().expect("not poisoned").clone();
    closed.sort();
    session.shutdown().await;
    provider.shutdown().await;
    json!({
        "results": results,
        "notifications": *recorder.notifications.lock().expect("not poisoned"),
        "closed_cells": closed,
        "tool_calls": recorder.calls.load(Ordering::SeqCst),
    })
}

fn cell_id(id: &str) -> CellId {
    id.parse().expect("not empty")
}

fn was_yielded(result: Option<&Value>) -> bool {
    result.is_some_and(|result| result["value"].get("Yielded").is_some())
}

/// How a case gets its session.
type OpenSession = dyn Fn(Arc<Recorder>) -> futures::future::BoxFuture<'static, support::Opened>;

fn run_all(open: &OpenSession) {
    support::run(async {
        let fixture = fixture();
        let cases = fixture["cases"].as_array().expect("cases");
        let mut failures = Vec::new();
        for case in cases {
            let got = run_case(&fixture, case, open).await;
            check(case, got, &mut failures);
        }
        finish(cases.len(), &failures);
    });
}

#[test]
fn every_case_passes_in_process() {
    run_all(&|recorder| Box::pin(support::open_in_process(recorder, Limits::default())));
}

#[test]
fn cells_end_as_recorded_when_they_are_cut_after_every_turn() {
    support::run(async {
        let fixture = fixture();
        let default_tools: Vec<ToolDefinition> =
            serde_json::from_value(fixture["enabled_tools"].clone()).expect("tools");
        let (mut failures, mut run, mut cuts, mut calls) = (Vec::new(), 0, 0, 0);
        for case in fixture["cases"].as_array().expect("cases") {
            let ends_at_once = case["expect"]["results"][0]["value"].get("Result");
            let mut steps = steps(case);
            let (Some(expected), Some(step), None) = (ends_at_once, steps.next(), steps.next())
            else {
                continue;
            };
            let source = step.step["source"].as_str().expect("a source");
            let tools = match step.step.get("enabled_tools") {
                Some(tools) => serde_json::from_value(tools.clone()).expect("tools"),
                None => default_tools.clone(),
            };
            let recorder = Recorder::new(&fixture);
            let request = ExecuteRequest::new("call-1", source).tools(tools);
            let cut = cut_after_every_turn(recorder, request, SessionOptions::default()).await;
            let items = cut.responses.iter().flat_map(CellResponse::content_items);
            let items: Vec<_> = items.collect();
            let last = cut.responses.last().expect("an end");
            let mut got = json!({
                "content_items": items,
                "error_text": as_recorded(last)["Result"]["error_text"],
            });
            shortened(&mut got);
            let expected = json!({
                "content_items": expected["content_items"],
                "error_text": expected["error_text"],
            });
            // A call that its cell did not wait for may end with the process before it begins.
            let made = case["expect"]["tool_calls"].as_u64().unwrap_or(0);
            if got != expected || cut.calls as u64 > made {
                let name = &case["name"];
                failures.push(format!("{name}\n  expected {expected}\n  got      {got}"));
            }
            run += 1;
            cuts += cut.cuts;
            calls += cut.calls;
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
        assert!(
            run >= 100 && calls >= 25 && cuts >= calls,
            "{run} cells, {cuts} cuts, {calls} calls"
        );
    });
}

#[test]
fn every_case_passes_in_a_worker_process() {
    run_all(&|recorder| Box::pin(support::open(recorder, Limits::default())));
}

#[test]
fn every_case_passes_over_the_stdio_wire() {
    support::run(async {
        let fixture = fixture();
        let cases = fixture["cases"].as_array().expect("cases");
        let mut failures = Vec::new();
        for case in cases {
            let got = run_case_over_stdio(&fixture, case).await;
            check(case, got, &mut failures);
        }
        finish(cases.len(), &failures);
    });
}

async fn run_case_over_stdio(fixture: &Value, case: &Value) -> Value {
    let mut client = Client::start(&["serve"]);
    client.recorded = Some(fixture.clone());
    client.hello(&[], &["yield-observation"]).await;
    client.open("s").await;
    let mut last = String::new();
    let mut results: Vec<Value> = Vec::new();
    for step in steps(case) {
        let yield_time = step.step["yield_time_ms"].clone();
        let mut result = match step.op {
            "execute" => {
                let tools = step
                    .step
                    .get("enabled_tools")
                    .unwrap_or(&fixture["enabled_tools"]);
                let id = client
                    .execute("s", &step.step["source"], tools, &yield_time)
                    .await;
                let started = client.response(id).await;
                last = started["value"]["cellId"]
                    .as_str()
                    .expect("an id")
                    .to_owned();
                client.initial_response(id).await
            }
            "wait" => {
                let id = client.wait("s", &step.cell(&last), &yield_time).await;
                client.response(id).await
            }
            "terminate_if_yielded" if !was_yielded(results.last()) => json!("skipped"),
            "terminate" | "terminate_if_yielded" => {
                let id = client.terminate("s", &step.cell(&last)).await;
                client.response(id).await
            }
            other => panic!("unknown step {other}"),
        };
        without_timings(&mut result);
        results.push(result);
    }
    let expected = case["expect"]["closed_cells"]
        .as_array()
        .map_or(0, Vec::len);
    client.until_closed(expected).await;
    let mut closed = client.closed.clone();
    closed.sort();
    let got = json!({
        "results": results,
        "notifications": client.notifications,
        "closed_cells": closed,
        "tool_calls": client.calls,
    });
    client.end_of_input().await;
    assert!(client.exit().await.success(), "{}", case["name"]);
    got
}

#[test]
fn every_case_passes_over_the_grpc_wire() {
    support::run(async {
        let fixture = fixture();
        let cases = fixture["cases"].as_array().expect("cases");
        let mut failures = Vec::new();
        for way in [GrpcWay::Streams, GrpcWay::Tcp, GrpcWay::CutByHost] {
            for case in cases {
                let got = run_case_over_grpc(&fixture, case, way).await;
                check(case, got, &mut failures);
            }
        }
        finish(cases.len(), &failures);
    });
}

/// How a case is run over gRPC.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GrpcWay {
    /// On standard streams.
    Streams,
    Tcp,
    /// On standard streams, with output that the host makes fit: a budget that all fits.
    CutByHost,
}

/// The records have no text of the error beside its field, as a host that makes output
/// fit adds it.
fn without_error_items(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let error = fields.get("error_text").and_then(Value::as_str);
            let expected = error.map(|error| format!("Script error:\n{error}"));
            let items = fields
                .get_mut("content_items")
                .and_then(Value::as_array_mut);
            if let (Some(expected), Some(items)) = (expected, items) {
                let last = items.pop().expect("the error's text");
                assert_eq!(last["text"], json!(expected));
            }
            fields.values_mut().for_each(without_error_items);
        }
        Value::Array(values) => values.iter_mut().for_each(without_error_items),
        _ => {}
    }
}

async fn run_case_over_grpc(fixture: &Value, case: &Value, way: GrpcWay) -> Value {
    use grpc_client::{definition, outcome, started, wait_as_recorded, wire};

    let mut host = match way {
        GrpcWay::Tcp => grpc_client::Host::tcp().await,
        GrpcWay::Streams | GrpcWay::CutByHost => grpc_client::Host::stdio().await,
    };
    let mut open = wire::OpenSessionRequest::default();
    if way == GrpcWay::CutByHost {
        open.set_output_truncation(wire::OutputTruncation::Server);
    }
    let session = host.open(open).await;
    let seen = Arc::new(grpc_client::Seen::default());
    let calls = session.subscribe(&[]).await;
    let grpc_client::Session {
        requests: session,
        lease,
    } = session;
    tokio::spawn(seen.clone().read(lease));
    let answering = answer_calls(fixture.clone(), session.clone(), (calls, seen.clone()));
    let answering = tokio::spawn(answering);
    let mut last = String::new();
    let mut results: Vec<Value> = Vec::new();
    for (n, step) in steps(case).enumerate() {
        let yield_time = step.step["yield_time_ms"].as_u64();
        results.push(match step.op {
            "execute" => {
                let source = step.step["source"].as_str().expect("a source");
                let mut request = session.request(&n.to_string(), source);
                let tools = step.step.get("enabled_tools");
                let tools = tools.unwrap_or(&fixture["enabled_tools"]);
                let tools = tools.as_array().expect("tools").iter();
                request.enabled_tools = tools.map(definition).collect();
                request.yield_time_ms = yield_time;
                request.max_output_tokens = Some(u64::from(u32::MAX));
                let executed = host.client.execute(request).await.expect("admitted");
                let mut events = executed.into_inner();
                last = started(&mut events).await;
                let outcome = outcome(&mut events).await;
                json!({"status": "ok", "value": grpc_client::as_recorded(&outcome)})
            }
            "wait" => {
                // The default of the other ways in.
                let yield_time = yield_time.unwrap_or(10_000);
                let cell = step.cell(&last);
                let waited = session.wait(&n.to_string(), &cell, yield_time).await;
                wait_as_recorded(&waited.expect("observed"))
            }
            "terminate_if_yielded" if !was_yielded(results.last()) => json!("skipped"),
            "terminate" | "terminate_if_yielded" => {
                let request = wire::TerminateRequest {
                    session_id: session.id.clone(),
                    cell_id: step.cell(&last),
                    max_output_tokens: None,
                };
                let terminated = host.client.terminate(request).await.expect("terminated");
                wait_as_recorded(&terminated.into_inner())
            }
            other => panic!("unknown step {other}"),
        });
    }
    let expected = case["expect"]["closed_cells"]
        .as_array()
        .map_or(0, Vec::len);
    // Each stream has its own pace: the lease may be ahead of the calls.
    while seen.closed.lock().expect("not poisoned").len() < expected
        || *seen.calls.lock().expect("not poisoned") < *seen.sent.lock().expect("not poisoned")
    {
        seen.changed.notified().await;
    }
    let mut closed = seen.closed.lock().expect("not poisoned").clone();
    closed.sort();
    if way == GrpcWay::CutByHost {
        results.iter_mut().for_each(without_error_items);
    }
    session.close().await;
    answering.await.expect("no panic");
    json!({
        "results": results,
        "notifications": *seen.notifications.lock().expect("not poisoned"),
        "closed_cells": closed,
        "tool_calls": *seen.calls.lock().expect("not poisoned"),
    })
}

/// Answers calls as the tools of the recording do, until the session is closed.
async fn answer_calls(
    fixture: Value,
    session: grpc_client::Requests,
    (mut calls, seen): (
        tonic::Streaming<grpc_client::wire::ToolCall>,
        Arc<grpc_client::Seen>,
    ),
) {
    while let Ok(Some(call)) = calls.message().await {
        *seen.calls.lock().expect("not poisoned") += 1;
        seen.changed.notify_one();
        let name = call.tool_name.expect("a name");
        let kind = match call.tool_kind {
            2 => "freeform",
            _ => "function",
        };
        let input = call
            .input_json
            .map(|json| String::from_utf8(json).expect("text"));
        let answer = recorded_tool(
            &fixture,
            &name.name,
            name.namespace.as_deref(),
            kind,
            input.as_deref().unwrap_or("null"),
            &call.runtime_tool_call_id,
        );
        let session = session.clone();
        tokio::spawn(async move {
            let answer = answer.settle().await;
            session.try_complete(&call.invocation_id, answer).await.ok();
        });
    }
}

/// Durations differ from run to run.
pub fn without_timings(value: &mut Value) {
    if let Value::Object(map) = value {
        map.retain(|key, _| !key.ends_with("_ns"));
        map.values_mut().for_each(without_timings);
    }
}
