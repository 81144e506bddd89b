//! A client of the gRPC wire, as the Codex CLI is one.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::support::program;

#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    reason = "generated from code_mode.proto"
)]
pub mod wire {
    tonic::include_proto!("codex.code_mode.v1");
}

pub use wire::code_mode_host_client::CodeModeHostClient;

/// The program, serving gRPC.
pub struct Host {
    pub child: Child,
    pub client: CodeModeHostClient<Channel>,
    /// What it prints of its address.
    pub address: Option<String>,
}

impl Host {
    /// On its standard input and output.
    pub async fn stdio() -> Self {
        let mut command = Command::new(program());
        command.arg("serve");
        Self::stdio_of(command).await
    }

    /// A host that is started by this command and the option that says where to listen.
    pub async fn stdio_of(command: Command) -> Self {
        let mut child = start(command, "grpc+stdio://");
        let output = child.stdout.take().expect("piped");
        let input = child.stdin.take().expect("piped");
        let streams = Mutex::new(Some(TokioIo::new(tokio::io::join(output, input))));
        let connect = tower::service_fn(move |_| {
            let streams = streams.lock().expect("not poisoned").take();
            std::future::ready(streams.ok_or(io::Error::from(io::ErrorKind::ConnectionReset)))
        });
        let endpoint = Endpoint::from_static("http://code-mode-host");
        let channel = endpoint.connect_with_connector(connect).await;
        Self::new(child, channel.expect("connected"), None)
    }

    /// On a port of this machine.
    pub async fn tcp() -> Self {
        Self::tcp_with(&[]).await
    }

    /// On a port of this machine, with further options.
    pub async fn tcp_with(options: &[&str]) -> Self {
        let (child, address) = listening("grpc://127.0.0.1:0", options).await;
        let channel = Endpoint::from_shared(address.clone()).expect("a URL");
        let channel = channel.connect().await.expect("connected");
        Self::new(child, channel, Some(address))
    }

    /// A host and a connection to it.
    pub fn new(child: Child, channel: Channel, address: Option<String>) -> Self {
        let client = CodeModeHostClient::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        Self {
            child,
            client,
            address,
        }
    }

    /// Opens a session. Its events are read from the returned lease.
    pub async fn open(&mut self, request: wire::OpenSessionRequest) -> Session {
        let opened = self.client.open_session(request).await;
        let mut lease = opened.expect("opened").into_inner();
        let Some(wire::session_event::Event::Opened(opened)) = next(&mut lease).await.event else {
            panic!("the first event is another");
        };
        let requests = Requests {
            client: self.client.clone(),
            id: opened.session_id,
        };
        Session { requests, lease }
    }

    /// Ends the connection, and says how the program ends.
    pub async fn gone(self) -> ExitStatus {
        let Self {
            mut child, client, ..
        } = self;
        drop(client);
        child.wait().await.expect("it ends")
    }
}

/// The program, listening at an address; what it prints of the one that it really is.
pub async fn listening(listen: &str, options: &[&str]) -> (Child, String) {
    let mut command = Command::new(program());
    command.arg("serve").args(options);
    let mut child = start(command, listen);
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let line = output.lines().next_line().await.expect("text");
    (child, line.expect("it says where it listens"))
}

fn start(mut command: Command, listen: &str) -> Child {
    command
        .args(["--listen", listen])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the program starts")
}

/// The next message of a stream.
pub async fn next<T>(stream: &mut Streaming<T>) -> T {
    let message = stream.message().await.expect("a message");
    message.expect("the stream goes on")
}

/// A session of a client that answers no call by itself.
pub struct Session {
    pub requests: Requests,
    pub lease: Streaming<wire::SessionEvent>,
}

impl std::ops::Deref for Session {
    type Target = Requests;

    fn deref(&self) -> &Requests {
        &self.requests
    }
}

/// A request to a session.
#[derive(Clone)]
pub struct Requests {
    pub client: CodeModeHostClient<Channel>,
    pub id: String,
}

impl Requests {
    /// A request for a cell. Its execution's id is `execution`.
    pub fn request(&self, execution: &str, source: &str) -> wire::ExecuteRequest {
        wire::ExecuteRequest {
            session_id: self.id.clone(),
            execution_id: execution.to_owned(),
            tool_call_id: "call-1".to_owned(),
            source: source.to_owned(),
            enabled_tools: vec![definition(&json!({
                "name": "echo", "description": "", "kind": "function",
                "tool_name": {"name": "echo", "namespace": null},
            }))],
            yield_time_ms: Some(60_000),
            max_output_tokens: None,
        }
    }

    /// Starts a cell; its events.
    pub async fn execute(&self, execution: &str, source: &str) -> Streaming<wire::ExecuteEvent> {
        let request = self.request(execution, source);
        let executed = self.client.clone().execute(request).await;
        let mut events = executed.expect("admitted").into_inner();
        started(&mut events).await;
        events
    }

    /// Runs a cell to its first outcome.
    pub async fn exec(&self, execution: &str, source: &str) -> wire::ExecutionOutcome {
        let mut events = self.execute(execution, source).await;
        outcome(&mut events).await
    }

    pub async fn wait(
        &self,
        id: &str,
        cell: &str,
        yield_time_ms: u64,
    ) -> Result<wire::WaitResponse, tonic::Status> {
        let request = wire::WaitRequest {
            session_id: self.id.clone(),
            cell_id: cell.to_owned(),
            wait_id: id.to_owned(),
            yield_time_ms,
            max_output_tokens: None,
        };
        let response = self.client.clone().wait(request).await?;
        Ok(response.into_inner())
    }

    pub async fn subscribe(&self, tools: &[&str]) -> Streaming<wire::ToolCall> {
        let names = tools.iter().map(|name| wire::ToolName {
            name: (*name).to_owned(),
            namespace: None,
        });
        let request = wire::SubscribeToToolCallsRequest {
            session_id: self.id.clone(),
            tool_names: names.collect(),
        };
        let subscribed = self.client.clone().subscribe_to_tool_calls(request).await;
        subscribed.expect("subscribed").into_inner()
    }

    /// Completes a call that is there.
    pub async fn complete(&self, call: &str, result: Result<String, String>) {
        self.try_complete(call, result).await.expect("completed");
    }

    /// Completes a call that may be gone.
    pub async fn try_complete(
        &self,
        call: &str,
        result: Result<String, String>,
    ) -> Result<(), tonic::Status> {
        use wire::complete_tool_call_request::Outcome;
        let request = wire::CompleteToolCallRequest {
            session_id: self.id.clone(),
            invocation_id: call.to_owned(),
            outcome: Some(match result {
                Ok(json) => Outcome::Succeeded(wire::ToolCallSucceeded {
                    output_json: json.into_bytes(),
                }),
                Err(message) => Outcome::Failed(wire::ToolCallFailed { message }),
            }),
        };
        self.client.clone().complete_tool_call(request).await?;
        Ok(())
    }

    /// Closes the session.
    pub async fn close(&self) {
        let session_id = self.id.clone();
        let request = wire::CloseSessionRequest { session_id };
        let closed = self.client.clone().close_session(request).await;
        closed.expect("closed");
    }
}

impl Session {
    /// The events of the lease up to one that `wanted` takes.
    pub async fn until<T>(
        &mut self,
        wanted: impl Fn(wire::session_event::Event) -> Option<T>,
    ) -> T {
        loop {
            let event = next(&mut self.lease).await.event.expect("an event");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    }

    /// Waits until a cell is closed; its closing.
    pub async fn cell_closed(&mut self) -> wire::CellClosed {
        self.until(|event| match event {
            wire::session_event::Event::CellClosed(closed) => Some(closed),
            _ => None,
        })
        .await
    }
}

/// The id of the cell that was started.
pub async fn started(events: &mut Streaming<wire::ExecuteEvent>) -> String {
    match next(events).await.event {
        Some(wire::execute_event::Event::Started(started)) => started.cell_id,
        other => panic!("not started: {other:?}"),
    }
}

/// The outcome that comes next.
pub async fn outcome(events: &mut Streaming<wire::ExecuteEvent>) -> wire::ExecutionOutcome {
    match next(events).await.event {
        Some(wire::execute_event::Event::Outcome(outcome)) => outcome,
        other => panic!("no outcome: {other:?}"),
    }
}

/// The texts of an outcome.
pub fn texts(outcome: &wire::ExecutionOutcome) -> Vec<&str> {
    let texts = outcome.content_items.iter().map(|item| match &item.item {
        Some(wire::content_item::Item::Text(text)) => text.text.as_str(),
        other => panic!("no text: {other:?}"),
    });
    texts.collect()
}

/// A definition of the stdio wire as a message.
pub fn definition(json: &Value) -> wire::ToolDefinition {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let schema = |value: &Value| (!value.is_null()).then(|| value.to_string().into_bytes());
    wire::ToolDefinition {
        name: text(&json["name"]),
        tool_name: Some(wire::ToolName {
            name: text(&json["tool_name"]["name"]),
            namespace: json["tool_name"]["namespace"].as_str().map(str::to_owned),
        }),
        description: text(&json["description"]),
        kind: match json["kind"].as_str() {
            Some("freeform") => wire::ToolKind::Freeform,
            _ => wire::ToolKind::Function,
        }
        .into(),
        input_schema_json: schema(&json["input_schema"]),
        output_schema_json: schema(&json["output_schema"]),
    }
}

/// An outcome as the stdio wire writes it, less its timings.
pub fn as_recorded(outcome: &wire::ExecutionOutcome) -> Value {
    use wire::content_item::Item;
    use wire::execution_outcome::Outcome;
    let items = outcome.content_items.iter().map(|item| match &item.item {
        Some(Item::Text(text)) => json!({"type": "input_text", "text": text.text}),
        Some(Item::Image(image)) => {
            let detail = match image.detail() {
                wire::ImageDetail::Unspecified => Value::Null,
                wire::ImageDetail::Auto => json!("auto"),
                wire::ImageDetail::Low => json!("low"),
                wire::ImageDetail::High => json!("high"),
                wire::ImageDetail::Original => json!("original"),
            };
            json!({"type": "input_image", "image_url": image.image_url, "detail": detail})
        }
        Some(Item::Audio(audio)) => json!({"type": "input_audio", "audio_url": audio.audio_url}),
        None => Value::Null,
    });
    let mut fields = json!({
        "cell_id": outcome.cell_id,
        "content_items": items.collect::<Vec<_>>(),
    });
    let name = match &outcome.outcome {
        Some(Outcome::Yielded(_)) => "Yielded",
        Some(Outcome::Terminated(_)) => "Terminated",
        Some(Outcome::Completed(completed)) => {
            fields["error_text"] = json!(completed.error_text);
            "Result"
        }
        None => "nothing",
    };
    json!({ name: fields })
}

/// What `Wait` and `Terminate` answered, as the stdio wire writes it.
pub fn wait_as_recorded(response: &wire::WaitResponse) -> Value {
    use wire::wait_response::State;
    let outcome = match response.state.as_ref().expect("a state") {
        State::LiveCell(outcome) => json!({"LiveCell": as_recorded(outcome)}),
        State::MissingCell(outcome) => json!({"MissingCell": as_recorded(outcome)}),
    };
    json!({"status": "ok", "value": {"type": "wait/completed", "outcome": outcome}})
}

/// What a session's client has seen, and a bell that rings when it sees more.
#[derive(Default)]
pub struct Seen {
    pub calls: Mutex<u64>,
    /// Calls that the host says it has sent.
    pub sent: Mutex<u64>,
    pub notifications: Mutex<Vec<String>>,
    pub closed: Mutex<Vec<String>>,
    pub changed: Notify,
}

impl Seen {
    /// Reads a lease to its end.
    pub async fn read(self: Arc<Self>, mut lease: Streaming<wire::SessionEvent>) {
        use wire::session_event::Event;
        while let Ok(Some(event)) = lease.message().await {
            match event.event {
                Some(Event::Notification(notification)) => {
                    let mut seen = self.notifications.lock().expect("not poisoned");
                    seen.push(notification.text);
                }
                Some(Event::CellClosed(closed)) => {
                    *self.sent.lock().expect("not poisoned") += closed.final_tool_call_sequence;
                    let mut seen = self.closed.lock().expect("not poisoned");
                    seen.push(closed.cell_id);
                }
                _ => {}
            }
            self.changed.notify_one();
        }
    }
}

/// The status line and the text of an answer to plain HTTP.
pub(crate) async fn http(address: &str, request: &str) -> (String, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("connected");
    let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.lines().next().expect("a status").to_owned();
    (status, body.to_owned())
}
