//! A client of the stdio wire.

use std::collections::HashMap;
use std::process::{ExitStatus, Stdio};

use bytes::Bytes;
use code_mode_protocol::wire::frame;
use code_mode_protocol::wire::stdio::MAX_FRAME_BYTES;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use crate::conformance::recorded_tool;
use crate::support::program;

/// A client that answers callbacks while it waits for answers.
pub struct Client {
    child: Child,
    stdin: Option<FramedWrite<ChildStdin, LengthDelimitedCodec>>,
    stdout: FramedRead<ChildStdout, LengthDelimitedCodec>,
    last_id: u64,
    responses: HashMap<u64, Value>,
    initial: HashMap<u64, Value>,
    /// Answers of tools that take time.
    later: (mpsc::UnboundedSender<Value>, mpsc::UnboundedReceiver<Value>),
    /// The fixture whose tools answer; without it tools echo their input.
    pub recorded: Option<Value>,
    /// Whether callbacks are left without an answer.
    pub silent: bool,
    pub notifications: Vec<String>,
    pub closed: Vec<String>,
    pub calls: usize,
    /// Every message, in order.
    pub log: Vec<Value>,
}

impl Client {
    /// Starts the program with these arguments.
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(program());
        command.args(arguments).stderr(Stdio::piped());
        Self::spawn(command)
    }

    /// Starts a command that speaks the wire. Its standard error is the command's.
    pub fn spawn(mut command: Command) -> Self {
        // Cargo sets one for tests, and a developer may have others. With them a program makes its first
        // worker as few users' programs do.
        for (name, _) in std::env::vars_os() {
            let is_loaders = name.to_string_lossy().starts_with("LD_") || name == "GLIBC_TUNABLES";
            if is_loaders && !command.as_std().get_envs().any(|(set, _)| set == name) {
                command.env_remove(name);
            }
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let codec = || frame::codec(MAX_FRAME_BYTES);
        Self {
            stdin: child.stdin.take().map(|s| FramedWrite::new(s, codec())),
            stdout: FramedRead::new(child.stdout.take().expect("piped"), codec()),
            child,
            last_id: 0,
            responses: HashMap::new(),
            initial: HashMap::new(),
            later: mpsc::unbounded_channel(),
            recorded: None,
            silent: false,
            notifications: Vec::new(),
            closed: Vec::new(),
            calls: 0,
            log: Vec::new(),
        }
    }

    #[cfg(target_os = "linux")]
    pub fn process_id(&self) -> u32 {
        self.child.id().expect("still running")
    }

    pub async fn send(&mut self, message: &Value) {
        let stdin = self.stdin.as_mut().expect("open");
        // A program that has ended shows by its status.
        let text = match message {
            // Written already, where the order of keys matters.
            Value::String(text) => text.clone(),
            message => message.to_string(),
        };
        let _ = stdin.send(Bytes::from(text)).await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("open").get_mut();
        let _ = stdin.write_all(bytes).await;
        let _ = stdin.flush().await;
    }

    /// The next message; `None` at the end.
    pub async fn receive(&mut self) -> Option<Value> {
        let frame = self.stdout.next().await?.expect("whole frames");
        let message: Value = serde_json::from_slice(&frame).expect("JSON");
        self.log.push(message.clone());
        Some(message)
    }

    pub async fn hello(&mut self, required: &[&str], optional: &[&str]) -> Value {
        self.send(&hello(required, optional)).await;
        self.receive().await.expect("an answer to hello")
    }

    pub async fn request(&mut self, request: Value) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
        self.send(&json!({"type": "operation/request", "id": id, "request": request}))
            .await;
        id
    }

    pub async fn open(&mut self, session: &str) -> Value {
        let id = self
            .request(json!({"method": "session/open", "sessionId": session}))
            .await;
        self.response(id).await
    }

    pub async fn execute(
        &mut self,
        session: &str,
        source: &Value,
        tools: &Value,
        yield_time_ms: &Value,
    ) -> u64 {
        self.request(
            json!({"method": "session/execute", "sessionId": session, "request": {
                "tool_call_id": "call-1", "enabled_tools": tools, "source": source,
                "yield_time_ms": yield_time_ms, "max_output_tokens": null,
            }}),
        )
        .await
    }

    /// Starts a cell that notifies once it is busy, and waits for that.
    pub async fn busy(&mut self, session: &str, source: &str) -> u64 {
        let forever = json!(100_000);
        let id = self
            .execute(session, &json!(source), &json!([]), &forever)
            .await;
        while self.notifications.is_empty() {
            self.step().await;
        }
        id
    }

    pub async fn wait(&mut self, session: &str, cell: &str, yield_time_ms: &Value) -> u64 {
        self.request(json!({"method": "session/wait", "sessionId": session,
            "request": {"cell_id": cell, "yield_time_ms": yield_time_ms}}))
            .await
    }

    pub async fn terminate(&mut self, session: &str, cell: &str) -> u64 {
        self.request(json!({"method": "session/terminate", "sessionId": session, "cellId": cell}))
            .await
    }

    /// Runs a cell to its first observation.
    pub async fn exec(&mut self, session: &str, source: &str, tools: &Value) -> Value {
        let id = self
            .execute(session, &json!(source), tools, &json!(100_000))
            .await;
        let started = self.response(id).await;
        assert_eq!(started["status"], "ok", "{started}");
        self.initial_response(id).await
    }

    /// The result of the `operation/response` to a request.
    pub async fn response(&mut self, id: u64) -> Value {
        loop {
            if let Some(result) = self.responses.remove(&id) {
                return result;
            }
            self.step().await;
        }
    }

    /// The result of the `execute/initialResponse` to a request.
    pub async fn initial_response(&mut self, id: u64) -> Value {
        loop {
            if let Some(result) = self.initial.remove(&id) {
                return result;
            }
            self.step().await;
        }
    }

    pub async fn until_closed(&mut self, cells: usize) {
        while self.closed.len() < cells {
            self.step().await;
        }
    }

    /// Takes in one message, or sends one answer of a slow tool.
    pub async fn step(&mut self) {
        tokio::select! {
            answer = self.later.1.recv() => {
                let answer = answer.expect("the sender lives");
                self.send(&answer).await;
            }
            frame = self.stdout.next() => {
                let frame = frame.expect("the program goes on").expect("whole frames");
                let message: Value = serde_json::from_slice(&frame).expect("JSON");
                self.log.push(message.clone());
                self.take(message).await;
            }
        }
    }

    async fn take(&mut self, message: Value) {
        let id = message["id"].as_u64().unwrap_or_default();
        match message["type"].as_str().expect("a type") {
            "operation/response" => {
                self.responses.insert(id, message["result"].clone());
            }
            "execute/initialResponse" => {
                self.initial.insert(id, message["result"].clone());
            }
            "cell/closed" => {
                let cell = message["cellId"].as_str().expect("a cell");
                self.closed.push(cell.to_owned());
            }
            "delegate/cancel" => {}
            "delegate/request" => self.callback(id, &message["request"]).await,
            other => panic!("unknown message {other}"),
        }
    }

    async fn callback(&mut self, id: u64, request: &Value) {
        if request["type"] == "notification/send" {
            let text = request["text"].as_str().expect("text");
            self.notifications.push(text.to_owned());
            if !self.silent {
                let delivered = json!({"type": "notification/delivered"});
                self.send(&answered(id, &json!({"status": "ok", "value": delivered})))
                    .await;
            }
            return;
        }
        self.calls += 1;
        if self.silent {
            return;
        }
        let call = &request["invocation"];
        let Some(fixture) = &self.recorded else {
            let value = json!({"type": "tool/result", "result": call["input"]});
            let result = json!({"status": "ok", "value": value});
            return self.send(&answered(id, &result)).await;
        };
        let answer = recorded_tool(
            fixture,
            call["tool_name"]["name"].as_str().expect("a name"),
            call["tool_name"]["namespace"].as_str(),
            call["tool_kind"].as_str().expect("a kind"),
            &call["input"].to_string(),
            call["runtime_tool_call_id"].as_str().expect("an id"),
        );
        let later = self.later.0.clone();
        tokio::spawn(async move {
            // The result keeps the order of its keys, so it is not parsed.
            let message = match answer.settle().await {
                Ok(json) => format!(
                    r#"{{"type":"delegate/response","id":{id},"result":{{"status":"ok","value":{{"type":"tool/result","result":{json}}}}}}}"#
                ),
                Err(text) => answered(id, &json!({"status": "error", "message": text})).to_string(),
            };
            let _ = later.send(Value::String(message));
        });
    }

    pub async fn end_of_input(&mut self) {
        self.stdin = None;
    }

    /// Waits for the program to end, and reads what it still says.
    pub async fn exit(&mut self) -> ExitStatus {
        while let Some(frame) = self.stdout.next().await {
            let frame = frame.expect("whole frames");
            self.log.push(serde_json::from_slice(&frame).expect("JSON"));
        }
        self.child.wait().await.expect("a status")
    }

    /// What the program wrote to standard error, once it has ended.
    pub async fn standard_error(&mut self) -> String {
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().expect("piped");
        stderr.read_to_string(&mut text).await.expect("text");
        text
    }
}

fn answered(id: u64, result: &Value) -> Value {
    json!({"type": "delegate/response", "id": id, "result": result})
}

pub fn hello(required: &[&str], optional: &[&str]) -> Value {
    json!({"type": "connection/hello", "supportedVersions": [1],
        "requiredCapabilities": required, "optionalCapabilities": optional})
}
