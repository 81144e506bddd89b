//! `exec` and `wait` as a client calls them, with scripted servers behind and scripted cells.

use std::sync::Arc;

use code_mode_host::{ContentItem, Provider, ProviderOptions, RuntimeToolCallId, WorkerSource};
use code_mode_protocol::wire::frame::MAX_FRAME_BYTES;
use code_mode_protocol::wire::native::{
    CellEnd, FromWorker, JsonText, ToWorker, Used, VERSION, WireTool, WorkerInfo,
};
use code_mode_protocol::wire::reader::{MaxMessage, MessageReader};
use rmcp::service::serve_server;
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines, ReadHalf, WriteHalf,
};

use super::handler::Handler;
use super::{Gateway, GatewayOptions};
use crate::upstream::scripted::{Script, broker};

/// A worker whose cells are scripts: a source is a JSON array of steps, `["text", TEXT]`,
/// `["call", TOOL]` or `["hang"]`.
fn scripted_worker() -> DuplexStream {
    let (host, worker) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let (reader, writer) = tokio::io::split(worker);
        let max = MaxMessage {
            frame: MAX_FRAME_BYTES,
            texts: MAX_FRAME_BYTES,
        };
        let mut worker = Worker {
            messages: MessageReader::new(reader, max),
            writer,
            tools: Vec::new(),
            cell: None,
        };
        worker.work().await;
    });
    host
}

struct Worker {
    messages: MessageReader<ReadHalf<DuplexStream>, ToWorker>,
    writer: WriteHalf<DuplexStream>,
    tools: Vec<WireTool>,
    cell: Option<Cell>,
}

struct Cell {
    number: u64,
    steps: std::vec::IntoIter<Value>,
    output: Vec<ContentItem>,
    calls: u32,
}

impl Worker {
    async fn send(&mut self, message: FromWorker) {
        for part in message.encode().expect("encodes").into_parts() {
            let _ = self.writer.write_all(&part).await;
        }
    }

    async fn work(&mut self) {
        while let Ok(Some(message)) = self.messages.next().await {
            match message {
                ToWorker::Hello { .. } => {
                    let info = WorkerInfo {
                        version: VERSION,
                        capabilities: vec![],
                        v8_version: "0".to_owned(),
                        v8_heap_sandbox: false,
                        sandbox: vec![],
                    };
                    self.send(FromWorker::Ready(info)).await;
                }
                ToWorker::Tools { tools, .. } => self.tools = tools,
                ToWorker::Execute { cell, source, .. } => {
                    let steps: Vec<Value> = serde_json::from_str(&source).expect("a script");
                    self.cell = Some(Cell {
                        number: cell,
                        steps: steps.into_iter(),
                        output: Vec::new(),
                        calls: 0,
                    });
                    self.step().await;
                }
                ToWorker::ToolResult { result, .. } => {
                    let text = result.unwrap_or_else(|failure| failure.message);
                    if let Some(cell) = &mut self.cell {
                        cell.output.push(ContentItem::text(text));
                        self.step().await;
                    }
                }
                ToWorker::Collect {
                    cell, observation, ..
                } => {
                    let output = self
                        .cell
                        .as_mut()
                        .map(|cell| std::mem::take(&mut cell.output));
                    let observed = FromWorker::Observed {
                        cell,
                        observation,
                        items: output.unwrap_or_default().into(),
                        frozen: None,
                    };
                    self.send(observed).await;
                }
                ToWorker::Terminate { .. } => self.end(CellEnd::Terminated).await,
                ToWorker::Shutdown => self.send(FromWorker::ShutDown).await,
                _ => {}
            }
        }
    }

    /// Goes on with the cell until it waits for something.
    async fn step(&mut self) {
        while let Some(cell) = &mut self.cell {
            let Some(step) = cell.steps.next() else {
                return self.end(CellEnd::Completed).await;
            };
            let argument = step[1].as_str().unwrap_or_default();
            match step[0].as_str() {
                Some("text") => cell.output.push(ContentItem::text(argument)),
                Some("call") => {
                    cell.calls += 1;
                    let tool = self.tools.iter().position(|tool| tool.name == argument);
                    let call = FromWorker::ToolCall {
                        cell: cell.number,
                        call: RuntimeToolCallId(cell.calls),
                        tool: tool.expect("a tool") as u32,
                        input: Some(JsonText::Unchecked("{}".to_owned())),
                        site: None,
                    };
                    return self.send(call).await;
                }
                _ => return,
            }
        }
    }

    async fn end(&mut self, end: CellEnd) {
        if let Some(cell) = self.cell.take() {
            let ended = FromWorker::Ended {
                cell: cell.number,
                items: cell.output.into(),
                end,
                used: Used::default(),
            };
            self.send(ended).await;
        }
    }
}

/// A client of a gateway, in the era of sessions.
struct Client {
    gateway: Arc<Gateway>,
    lines: Lines<BufReader<ReadHalf<DuplexStream>>>,
    writer: WriteHalf<DuplexStream>,
    last_id: u64,
    /// How a person answers.
    answer: &'static str,
}

impl Client {
    async fn of(script: &Script, policy: &str, answer: &'static str) -> Self {
        let broker = broker(vec![script.server("s")], policy, None).await;
        let worker = WorkerSource::in_memory(scripted_worker);
        let options = ProviderOptions::default().worker(worker).prewarmed(0);
        let provider = Arc::new(Provider::new(options).expect("nothing to find"));
        let gateway = Arc::new(Gateway::new(broker, provider, GatewayOptions::default()));
        let (client, server) = tokio::io::duplex(1 << 20);
        let handler = Handler::new(gateway.0.clone());
        tokio::spawn(async move {
            let running = serve_server(handler, tokio::io::split(server)).await;
            running.expect("a client").waiting().await
        });
        let (reader, writer) = tokio::io::split(client);
        let mut client = Self {
            gateway,
            lines: BufReader::new(reader).lines(),
            writer,
            last_id: 0,
            answer,
        };
        let hello = json!({
            "protocolVersion": "2025-06-18",
            "capabilities": {"elicitation": {}},
            "clientInfo": {"name": "test", "version": "1"},
        });
        client.request("initialize", hello).await;
        client
            .send(json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))
            .await;
        client
    }

    async fn send(&mut self, message: Value) {
        let line = format!("{message}\n");
        self.writer.write_all(line.as_bytes()).await.expect("sent");
    }

    async fn request(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        self.send(json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
            .await;
        loop {
            let line = self.lines.next_line().await.expect("read").expect("open");
            let message: Value = serde_json::from_str(&line).expect("JSON");
            if message["method"] == "elicitation/create" {
                let answer = json!({"action": "accept", "content": {"answer": self.answer}});
                self.send(json!({"jsonrpc": "2.0", "id": message["id"], "result": answer}))
                    .await;
            } else if message["id"] == id && message.get("method").is_none() {
                return message["result"].clone();
            }
        }
    }

    /// Calls a tool; returns the texts of its answer.
    async fn call(&mut self, name: &str, arguments: Value) -> Vec<String> {
        let params = json!({"name": name, "arguments": arguments});
        let result = self.request("tools/call", params).await;
        let blocks = result["content"].as_array().expect("blocks");
        let texts = blocks.iter().map(|block| block["text"].as_str());
        let texts = texts.map(|text| text.expect("a text").to_owned());
        texts.collect()
    }

    async fn exec(&mut self, steps: Value) -> Vec<String> {
        let arguments = json!({"code": steps.to_string(), "yield_time_ms": 50});
        self.call("exec", arguments).await
    }
}

#[tokio::test]
async fn a_program_runs_and_the_answer_says_what_became_of_its_calls() {
    let script = Script::echo(&["a", "b"]);
    let mut client = Client::of(&script, "{}", "no").await;
    let steps = json!([["text", "x"], ["call", "s__a"], ["call", "s__b"]]);
    let said = client.exec(steps).await;
    // The status is first: clients cut at the end.
    assert_eq!(said[0], "status: completed\ncalls: 2 ran (s/a, s/b)");
    assert_eq!(said[1], "x");
    assert!(said[2].contains("\"text\":\"a\""), "{said:?}");
    client.gateway.end().await;
}

#[tokio::test]
async fn a_program_that_goes_on_is_waited_for_by_its_id_and_stopped() {
    let script = Script::echo(&["a"]);
    let mut client = Client::of(&script, "{}", "no").await;
    let said = client.exec(json!([["text", "x"], ["hang"]])).await;
    assert_eq!(
        said,
        ["status: running\ncell_id: 1 (call wait to continue)", "x"]
    );
    let wait = json!({"cell_id": "1", "yield_time_ms": 1});
    let said = client.call("wait", wait).await;
    assert!(said[0].starts_with("status: running"), "{said:?}");
    let stop = json!({"cell_id": "1", "terminate": true});
    assert_eq!(
        client.call("wait", stop.clone()).await,
        ["status: terminated"]
    );
    // A repeated wait gets the same end.
    let again = client.call("wait", stop).await;
    assert!(
        again[0].starts_with("status: terminated\n(all of its output"),
        "{again:?}"
    );
    client.gateway.end().await;
}

#[tokio::test]
async fn a_person_is_asked_on_the_request_that_runs_the_program() {
    for (answer, calls, said) in [("once", 1, "ran"), ("no", 0, "denied")] {
        let script = Script::echo(&["rm"]);
        let mut client = Client::of(&script, r#"{"ask": ["s/rm"]}"#, answer).await;
        let texts = client.exec(json!([["call", "s__rm"]])).await;
        assert!(texts[0].contains(&format!("1 {said}")), "{texts:?}");
        assert_eq!(script.received("tools/call").len(), calls);
        client.gateway.end().await;
    }
}

#[tokio::test]
async fn what_is_wrong_about_a_request_is_said_and_runs_nothing() {
    let script = Script::echo(&["a"]);
    let mut client = Client::of(&script, "{}", "no").await;
    for (tool, arguments, said) in [
        ("exec", json!({}), "exec: code is missing"),
        (
            "exec",
            json!({"code": "[]", "session_id": "x"}),
            "no session \"x\" exists",
        ),
        ("wait", json!({"cell_id": "9"}), "no cell \"9\" exists"),
        (
            "wait",
            json!({"cell_id": "9", "decision": "perhaps"}),
            "wait: decision is allow",
        ),
    ] {
        let texts = client.call(tool, arguments).await;
        assert!(texts[0].starts_with(said), "{texts:?}");
    }
    client.gateway.end().await;
}

#[tokio::test]
async fn programs_that_have_not_begun_are_weighed_together() {
    let mut client = Client::of(&Script::echo(&["a"]), "{}", "no").await;
    let server = client.gateway.0.clone();
    let rooms: Vec<_> = (0..4).map(|_| server.room_for(64 << 20)).collect();
    assert!(rooms.iter().all(Option::is_some));
    let said = client.exec(json!([["text", "x"]])).await;
    assert!(said[0].contains("256 MiB already"), "{said:?}");
    drop(rooms);
    let said = client.exec(json!([["text", "x"]])).await;
    assert_eq!(said, ["status: completed", "x"]);
    client.gateway.end().await;
}
