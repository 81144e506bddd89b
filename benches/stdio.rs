//! A client of the stdio wire that does as little as possible.

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

pub struct Client {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    last_id: u64,
}

impl Client {
    /// Starts the program and opens one session.
    pub async fn start(program: &Path) -> Self {
        let mut child = Command::new(program)
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let mut client = Self {
            stdin: child.stdin.take().expect("piped"),
            stdout: child.stdout.take().expect("piped"),
            child,
            last_id: 1,
        };
        let hello = r#"{"type":"connection/hello","supportedVersions":[1],"requiredCapabilities":[],"optionalCapabilities":[]}"#;
        client.send(hello).await;
        client.receive().await;
        let open = r#"{"type":"operation/request","id":1,"request":{"method":"session/open","sessionId":"s"}}"#;
        client.send(open).await;
        client.receive().await;
        client
    }

    async fn send(&mut self, message: &str) {
        let length = u32::try_from(message.len()).expect("small").to_le_bytes();
        let mut frame = Vec::with_capacity(message.len() + 4);
        frame.extend(length);
        frame.extend(message.as_bytes());
        self.stdin.write_all(&frame).await.expect("written");
    }

    async fn receive(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.stdout.read_exact(&mut length).await.expect("a frame");
        let mut content = vec![0; u32::from_le_bytes(length) as usize];
        self.stdout.read_exact(&mut content).await.expect("a frame");
        content
    }

    /// Runs a cell to its end, answering each call with its input.
    pub async fn exec(&mut self, source: &str, tools: &str) {
        self.last_id += 1;
        let id = self.last_id;
        let source = serde_json::Value::from(source);
        let request = format!(
            r#"{{"type":"operation/request","id":{id},"request":{{"method":"session/execute","sessionId":"s","request":{{"tool_call_id":"c","enabled_tools":{tools},"source":{source},"yield_time_ms":60000,"max_output_tokens":null}}}}}}"#
        );
        self.send(&request).await;
        loop {
            let message = self.receive().await;
            let start = &message[..message.len().min(60)];
            let is = |kind: &str| start.windows(kind.len()).any(|w| w == kind.as_bytes());
            if is("cell/closed") {
                return;
            }
            if is("delegate/request") {
                let text = std::str::from_utf8(&message).expect("text");
                let after = |mark: &str| &text[text.find(mark).expect("a field") + mark.len()..];
                let call: u64 = after("\"id\":")
                    .split(',')
                    .next()
                    .and_then(|id| id.parse().ok())
                    .expect("an id");
                let input = after("\"input\":").strip_suffix("}}}").expect("an end");
                let answer = format!(
                    r#"{{"type":"delegate/response","id":{call},"result":{{"status":"ok","value":{{"type":"tool/result","result":{input}}}}}}}"#
                );
                self.send(&answer).await;
            }
        }
    }

    /// Ends the program.
    pub async fn end(mut self) {
        drop(self.stdin);
        self.child.wait().await.expect("a status");
    }
}
