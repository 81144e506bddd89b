//! A client of `code-mode mcp` that speaks raw JSON over the standard streams.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::support::program;

/// The revision with stateless requests.
pub const MODERN: &str = "2026-07-28";

/// What a person answers to a question.
pub type Person = fn(&Value) -> Value;

pub struct Client {
    /// What the program keeps from one start to the next.
    caches: Option<tempfile::TempDir>,
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    last_id: u64,
    /// What a person answers, in turn.
    pub answers: Vec<Value>,
    /// What a person answers to a question after these.
    pub person: Person,
    /// Questions that reached the person.
    pub asked: Vec<Value>,
    pub notifications: Vec<Value>,
    /// Answers that came before the one that a test waited for.
    early: Vec<Value>,
    modern: bool,
}

/// The command of the mad server.
pub fn mad(kind: &str) -> String {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mad_server.py");
    format!("python3 '{}' {kind}", script.display())
}

/// A file with this content: a policy, or a configuration.
pub fn file_of(content: &Value) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), content.to_string()).expect("written");
    file
}

pub fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().expect("UTF-8")
}

/// The cell that a status names.
pub fn cell_id(status: &str) -> &str {
    let (_, rest) = status.split_once("cell_id: ").expect("a cell");
    rest.split_whitespace().next().expect("its name")
}

impl Client {
    /// Starts the program with these options.
    pub fn start(arguments: &[&str]) -> Self {
        let caches = tempfile::tempdir().expect("a folder");
        let mut client = Self::start_with_caches(arguments, caches.path());
        client.caches = Some(caches);
        client
    }

    /// Starts the program, which keeps what it keeps in this folder, and whose gateway ends with it.
    pub fn start_with_caches(arguments: &[&str], caches: &std::path::Path) -> Self {
        let mut all = vec!["--linger", "0ms"];
        all.extend(arguments);
        Self::start_in(&all, caches)
    }

    /// Starts the program, whose gateways have their place and their caches in this folder.
    pub fn start_in(arguments: &[&str], folder: &std::path::Path) -> Self {
        Self::start_at(arguments, folder, std::path::Path::new("."))
    }

    /// As [`Client::start_in`], with another working folder.
    pub fn start_at(arguments: &[&str], folder: &std::path::Path, at: &std::path::Path) -> Self {
        let mut command = Command::new(program());
        command
            .current_dir(at)
            .arg("mcp")
            .args(arguments)
            .env("XDG_CACHE_HOME", folder)
            .env("XDG_STATE_HOME", folder)
            .env("XDG_RUNTIME_DIR", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("the program starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self {
            caches: None,
            input: child.stdin.take(),
            child,
            lines,
            last_id: 0,
            answers: Vec::new(),
            person: |_| json!({"action": "cancel"}),
            asked: Vec::new(),
            notifications: Vec::new(),
            early: Vec::new(),
            modern: false,
        }
    }

    /// Starts the program before one mad server, which is called `mad`.
    pub async fn before(kind: &str, more: &[&str], capabilities: Value) -> Self {
        let server = format!("mad={}", mad(kind));
        let mut arguments = vec!["--server", &server];
        arguments.extend(more);
        let mut client = Self::start(&arguments);
        client.initialize(capabilities).await;
        client
    }

    /// Requests of this client are stateless.
    pub fn modern(mut self) -> Self {
        self.modern = true;
        self
    }

    pub async fn initialize(&mut self, capabilities: Value) -> Value {
        let answer = self
            .request(
                "initialize",
                json!({
                    "protocolVersion": "2025-06-18",
                    "capabilities": capabilities,
                    "clientInfo": {"name": "test", "version": "1"},
                }),
            )
            .await;
        self.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))
            .await;
        answer["result"].clone()
    }

    pub async fn send(&mut self, message: &Value) {
        self.send_line(&message.to_string()).await;
    }

    pub async fn send_line(&mut self, line: &str) {
        let input = self.input.as_mut().expect("open");
        input
            .write_all(format!("{line}\n").as_bytes())
            .await
            .expect("written");
    }

    /// Sends a request; returns its id.
    pub async fn begin(&mut self, method: &str, mut params: Value) -> u64 {
        self.last_id += 1;
        if self.modern {
            let meta = json!({
                "io.modelcontextprotocol/protocolVersion": MODERN,
                "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
                "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
            });
            params["_meta"] = meta;
        }
        let id = self.last_id;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
            .await;
        id
    }

    async fn message(&mut self) -> Value {
        let line = self.lines.next_line().await.expect("read");
        serde_json::from_str(&line.expect("a message")).expect("JSON")
    }

    /// Reads until a notification of this method comes, and no request.
    pub async fn notified(&mut self, method: &str) {
        loop {
            let message = self.message().await;
            assert!(message.get("id").is_none(), "{message}");
            let is_awaited = message["method"] == method;
            self.notifications.push(message);
            if is_awaited {
                return;
            }
        }
    }

    /// The answer to a request. It answers questions to the person meanwhile.
    pub async fn answer(&mut self, id: u64) -> Value {
        if let Some(place) = self.early.iter().position(|message| message["id"] == id) {
            return self.early.remove(place);
        }
        loop {
            let message = self.message().await;
            match (message.get("method"), message.get("id")) {
                (Some(_), Some(asked)) => {
                    let asked = asked.clone();
                    self.asked.push(message["params"].clone());
                    let answer = match self.answers.is_empty() {
                        true => (self.person)(&message["params"]),
                        false => self.answers.remove(0),
                    };
                    self.send(&json!({"jsonrpc": "2.0", "id": asked, "result": answer}))
                        .await;
                }
                (Some(_), None) => self.notifications.push(message),
                _ if message["id"] == id => return message,
                _ => self.early.push(message),
            }
        }
    }

    /// The next answer to whichever request.
    pub async fn next_answer(&mut self) -> Value {
        loop {
            let message = self.message().await;
            if message.get("method").is_none() {
                return message;
            }
        }
    }

    pub async fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.begin(method, params).await;
        self.answer(id).await
    }

    /// Calls one of the program's tools.
    pub async fn call(&mut self, tool: &str, arguments: Value) -> Value {
        let params = json!({"name": tool, "arguments": arguments});
        let answer = self.request("tools/call", params).await;
        assert!(answer["error"].is_null(), "{answer}");
        answer["result"].clone()
    }

    /// Runs a program; the texts of the answer.
    pub async fn exec(&mut self, code: &str) -> Vec<String> {
        texts(&self.call("exec", json!({"code": code})).await)
    }

    /// Leaves; returns the program's exit status.
    pub async fn leave(mut self) -> Option<i32> {
        self.input = None;
        self.child.wait().await.expect("it ends").code()
    }

    /// Leaves; returns the messages that come after that.
    pub async fn said_when_it_leaves(mut self) -> Vec<String> {
        self.input = None;
        let mut said = Vec::new();
        while let Some(line) = self.lines.next_line().await.expect("read") {
            said.push(line);
        }
        said
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    pub async fn ended(&mut self) -> Option<i32> {
        self.child.wait().await.expect("it ends").code()
    }
}

/// The texts of a result's blocks; the status, which comes first, is last.
pub fn texts(result: &Value) -> Vec<String> {
    let blocks = result["content"].as_array().expect("blocks");
    let texts = blocks.iter().filter_map(|block| block["text"].as_str());
    let mut texts: Vec<_> = texts.map(str::to_owned).collect();
    if texts
        .first()
        .is_some_and(|text| text.starts_with("status: "))
    {
        texts.rotate_left(1);
    }
    texts
}
