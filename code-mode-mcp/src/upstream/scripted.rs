//! A server for tests: a script at the other end of a stream in memory.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::sync::Notify;

use crate::audit::AuditLog;
use crate::broker::Broker;
use crate::config::{CALL, STARTUP, ServerConfig, Transport};
use crate::policy::Policy;
use crate::secrets::Secrets;

/// What a script does with a call.
pub(crate) enum Reply {
    /// A result.
    Result(Value),
    /// A JSON-RPC error.
    Error(Value),
    /// No answer.
    Silence,
    /// The server closes its streams.
    Close,
}

type Calls = dyn Fn(&str, &Value) -> Reply + Send + Sync;

/// A server with these tools, and what it does with a call.
#[derive(Clone)]
pub(crate) struct Script {
    tools: Arc<Mutex<Value>>,
    calls: Arc<Calls>,
    announced: Arc<Notify>,
    /// The results of other methods, one for each request; the last one stays.
    results: Arc<Mutex<HashMap<String, VecDeque<Value>>>>,
    /// Every message that came, in order.
    pub(crate) received: Arc<Mutex<Vec<Value>>>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

/// The result of a call that has one text.
pub(crate) fn text(text: &str) -> Reply {
    Reply::Result(json!({"content": [{"type": "text", "text": text}]}))
}

impl Script {
    pub(crate) fn new(
        tools: Value,
        calls: impl Fn(&str, &Value) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self {
            tools: Arc::new(Mutex::new(tools)),
            calls: Arc::new(calls),
            announced: Arc::default(),
            results: Arc::default(),
            received: Arc::default(),
        }
    }

    /// A server with these tools that answers each call with the tool's name.
    pub(crate) fn echo(tools: &[&str]) -> Self {
        let tools: Vec<Value> = tools.iter().map(|name| json!({"name": name})).collect();
        Self::new(Value::from(tools), |tool, _| text(tool))
    }

    fn tools(&self) -> MutexGuard<'_, Value> {
        self.tools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server lists other tools from now on.
    pub(crate) fn set_tools(&self, tools: Value) {
        *self.tools() = tools;
    }

    /// The server answers each request of a method so.
    pub(crate) fn answers(self, method: &str, result: Value) -> Self {
        self.answers_in_turn(method, [result])
    }

    /// The server answers the requests of a method with one result after the other, and then with the
    /// last one.
    pub(crate) fn answers_in_turn(
        self,
        method: &str,
        results: impl IntoIterator<Item = Value>,
    ) -> Self {
        let results = results.into_iter().collect();
        self.results().insert(method.to_owned(), results);
        self
    }

    fn results(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Value>>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The messages of a method that came.
    pub(crate) fn received(&self, method: &str) -> Vec<Value> {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let of_method = received
            .iter()
            .filter(|message| message["method"] == method);
        of_method.cloned().collect()
    }

    /// Begins one life of the server; returns the client's end.
    pub(crate) fn start(&self) -> DuplexStream {
        let (client, server) = tokio::io::duplex(1 << 20);
        tokio::spawn(self.clone().live(server));
        client
    }

    /// The server says that its tools have changed.
    pub(crate) fn announce(&self) {
        self.announced.notify_one();
    }

    async fn live(self, stream: DuplexStream) {
        let (read, mut write) = tokio::io::split(stream);
        let mut lines = BufReader::new(read).lines();
        loop {
            let line = tokio::select! {
                line = lines.next_line() => line,
                () = self.announced.notified() => {
                    let method = "notifications/tools/list_changed";
                    let message = json!({"jsonrpc": "2.0", "method": method});
                    let _ = write.write_all(format!("{message}\n").as_bytes()).await;
                    continue;
                }
            };
            let Ok(Some(line)) = line else {
                return;
            };
            let message: Value = serde_json::from_str(&line).expect("the client sends JSON");
            let reply = self.reply(&message);
            self.received
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(message.clone());
            let id = &message["id"];
            let line = match reply {
                Reply::Result(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
                Reply::Error(error) => json!({"jsonrpc": "2.0", "id": id, "error": error}),
                Reply::Silence => continue,
                Reply::Close => return,
            };
            let _ = write.write_all(format!("{line}\n").as_bytes()).await;
        }
    }

    fn reply(&self, message: &Value) -> Reply {
        match message["method"].as_str() {
            Some("initialize") => Reply::Result(json!({
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {"listChanged": true}, "resources": {}, "prompts": {}, "completions": {}},
                "serverInfo": {"name": "scripted", "version": "1"},
            })),
            Some("tools/list") => Reply::Result(json!({"tools": *self.tools()})),
            Some("tools/call") => {
                let tool = message["params"]["name"].as_str().expect("a name");
                (self.calls)(tool, &message["params"]["arguments"])
            }
            Some(method) if message.get("id").is_some() => match self.next_result(method) {
                Some(result) => Reply::Result(result),
                None => Reply::Error(json!({"code": -32601, "message": "unknown method"})),
            },
            _ => Reply::Silence,
        }
    }

    fn next_result(&self, method: &str) -> Option<Value> {
        let mut results = self.results();
        let results = results.get_mut(method)?;
        match results.len() {
            1 => results.front().cloned(),
            _ => results.pop_front(),
        }
    }

    pub(crate) fn server(&self, name: &str) -> ServerConfig {
        ServerConfig {
            is_shared: true,
            name: name.to_owned(),
            transport: Transport::Memory(self.clone()),
            startup_timeout: STARTUP,
            call_timeout: CALL,
            enabled_tools: None,
            disabled_tools: Vec::new(),
            unusable: None,
        }
    }

    pub(crate) fn server_with_timeout(&self, name: &str, call: Duration) -> ServerConfig {
        ServerConfig {
            call_timeout: call,
            ..self.server(name)
        }
    }
}

/// A broker of these servers, which have started.
pub(crate) async fn broker(
    servers: Vec<ServerConfig>,
    policy: &str,
    audit: Option<AuditLog>,
) -> Arc<Broker> {
    let policy: Policy = serde_json::from_str(policy).expect("a policy");
    let broker = Broker::of(servers, policy, Secrets::default(), 4000, audit);
    broker.all_started().await;
    broker
}
