//! `code-mode mcp --http`, as raw HTTP/1.
#![cfg(unix)]

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::mcp_client::mad;
use crate::support::{program, run};

const TOKEN: &str = "a-token-that-nobody-guesses";

/// A gateway before a server of the tests' own, and its address.
async fn gateway(options: &[&str]) -> (Child, String) {
    gateway_before(&format!("mad={}", mad("plain")), options).await
}

async fn gateway_before(server: &str, options: &[&str]) -> (Child, String) {
    let mut child = Command::new(program())
        .args(["mcp", "--server", server, "--http", "127.0.0.1:0"])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the program starts");
    let mut said = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    loop {
        let line = said.next_line().await.expect("read").expect("its address");
        if let Some((_, rest)) = line.split_once("http://") {
            let address: String = rest.chars().take_while(|c| *c != '/').collect();
            tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
            return (child, address);
        }
    }
}

/// Sends a request with these further headers.
async fn sent(address: &str, method: &str, headers: &str, body: &Value) -> TcpStream {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = format!(
        "{method} /mcp HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n\
         Content-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    stream
}

fn hello() -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"}}})
}

/// The status of the answer to `initialize` with these further headers.
async fn initialize(address: &str, headers: &str) -> u16 {
    let mut stream = sent(address, "POST", headers, &hello()).await;
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.expect("an answer");
    let status = String::from_utf8_lossy(&status);
    status
        .split(' ')
        .nth(1)
        .expect("a status")
        .parse()
        .expect("a number")
}

#[test]
fn half_sent_requests_of_strangers_lock_nobody_out() {
    run(async {
        let tokens = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(tokens.path(), TOKEN).expect("written");
        let tokens = tokens.path().to_str().expect("text");
        let (_child, address) = gateway(&["--token-file", tokens]).await;
        let mut strangers = Vec::new();
        for _ in 0..1100 {
            let mut stranger = TcpStream::connect(&address).await.expect("connected");
            // Those that lost their places may be closed already.
            let _ = stranger.write_all(b"POST /mcp HTTP/1.1\r\nHost: x").await;
            strangers.push(stranger);
        }
        assert_eq!(initialize(&address, "").await, 401);
        let token = format!("Authorization: Bearer {TOKEN}\r\n");
        assert_eq!(initialize(&address, &token).await, 200);
        let last = strangers.last_mut().expect("a stranger");
        let open = last.try_read(&mut [0; 64]).expect_err("nothing was said");
        assert_eq!(open.kind(), std::io::ErrorKind::WouldBlock);
    });
}

#[test]
fn without_a_token_a_page_of_another_local_server_is_no_client() {
    run(async {
        let (_child, address) = gateway(&[]).await;
        assert_eq!(initialize(&address, "").await, 200);
        let own = format!("Origin: http://{address}\r\n");
        assert_eq!(initialize(&address, &own).await, 200);
        for origin in [
            "http://localhost:3000",
            "http://127.0.0.1",
            "https://example.org",
        ] {
            let origin = format!("Origin: {origin}\r\n");
            assert_eq!(initialize(&address, &origin).await, 403, "{origin}");
        }
    });
}

#[test]
fn what_a_deleted_session_has_begun_ends_with_it() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let [gate, notes] = ["gate", "notes"].map(|name| folder.path().join(name));
        let server = format!(
            "mad=sh -c 'while [ ! -e {} ]; do sleep 0.02; done; exec {} {}'",
            gate.display(),
            mad("noting").replace('\'', ""),
            notes.display(),
        );
        let (_child, address) = gateway_before(&server, &[]).await;
        let session = async || {
            let mut answer = String::new();
            let mut stream = sent(&address, "POST", "", &hello()).await;
            stream.read_to_string(&mut answer).await.expect("an answer");
            let lines = answer.lines();
            let mut ids = lines.filter_map(|line| line.strip_prefix("mcp-session-id: "));
            format!("Mcp-Session-Id: {}\r\n", ids.next().expect("a session"))
        };
        let exec = |code: &str| {
            json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {
                "name": "exec", "_meta": {"progressToken": 1},
                "arguments": {"code": code, "yield_time_ms": 60_000}}})
        };
        let deleted = session().await;
        let mut pending = sent(
            &address,
            "POST",
            &deleted,
            &exec("await tools.mad__slow({})"),
        )
        .await;
        // Its stream has begun, so the program is held.
        pending.read_exact(&mut [0; 12]).await.expect("an answer");
        let mut gone = sent(&address, "DELETE", &deleted, &Value::Null).await;
        let mut status = [0; 12];
        gone.read_exact(&mut status).await.expect("an answer");
        assert_eq!(&status, b"HTTP/1.1 202");
        std::fs::write(&gate, "").expect("written");
        let mut said = String::new();
        let code = "text((await tools.mad__echo({})).called)";
        let mut other = sent(&address, "POST", &session().await, &exec(code)).await;
        other.read_to_string(&mut said).await.expect("an answer");
        assert!(said.contains("status: completed"), "{said}");
        let notes = std::fs::read_to_string(&notes).expect("notes");
        assert!(
            notes.contains("call of echo") && !notes.contains("call of slow"),
            "{notes}"
        );
    });
}
