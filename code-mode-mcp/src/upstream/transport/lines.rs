//! Messages of a server at its two pipes, one on a line.
//!
//! The answer to a call is passed on as it came: the protocol's types would take a result
//! with an odd key for another kind of answer, and drop what they do not know.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rmcp::RoleClient;
use rmcp::model::{
    ClientRequest, CustomResult, ErrorData, InputRequiredResult, JsonRpcMessage, RequestId,
    ServerResult,
};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::process::{Era, era_of};

/// The largest message.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;
/// A line that is longer has no end, and reading it costs for ever.
const LONGEST_LINE: usize = 4 * MAX_MESSAGE;
/// The most values in one message: each costs up to sixteen times its text in memory.
pub(super) const MAX_VALUES: usize = 4_000_000;
/// How much of each end of a message that is too large is kept, to find its id.
const KEPT: usize = 256;

pub(crate) struct Lines<R, W> {
    read: R,
    write: Arc<tokio::sync::Mutex<Pipe<W>>>,
    /// Lines for the pipe, in the order of sending, and how many there were.
    given: mpsc::UnboundedSender<Vec<u8>>,
    sent: u64,
    /// The present line so far; kept here because reading may be cancelled.
    line: Vec<u8>,
    /// The line is too large: its rest is skipped.
    skipping: bool,
    /// The bytes of the present line, skipped ones too.
    length: usize,
    /// Requests without an answer.
    open: Mutex<HashMap<RequestId, Asked>>,
    skipped: u64,
    late_probe: LateProbe,
}

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// A call of a tool.
    Call,
    /// Anything else: a listing for one.
    Other,
}

/// The side of a pipe that is written to.
struct Pipe<W> {
    /// `None` once it is closed.
    open: Option<W>,
    given: mpsc::UnboundedReceiver<Vec<u8>>,
    /// Lines that were written.
    written: u64,
}

impl<W: AsyncWrite + Unpin> Pipe<W> {
    /// Writes lines in the order in which they were given, up to this one.
    async fn write_until(&mut self, number: u64) -> Result<(), std::io::Error> {
        while self.written < number {
            let closed = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
            let pipe = self.open.as_mut().ok_or_else(closed)?;
            let line = self.given.try_recv().map_err(|_| closed())?;
            self.written += 1;
            pipe.write_all(&line).await?;
            pipe.flush().await?;
        }
        Ok(())
    }
}

/// The answer to a probe that came after the greeting had begun. It belongs to no request of
/// the connection, so [`Lines`] drops it and keeps the era that it names.
#[derive(Clone, Debug, Default)]
pub(crate) struct LateProbe(Arc<OnceLock<Era>>);

impl LateProbe {
    /// The era, once the answer has come.
    pub(crate) fn era(&self) -> Option<Era> {
        self.0.get().copied()
    }
}

impl<R, W> Lines<R, W>
where
    R: AsyncBufRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    pub(crate) fn new(read: R, write: W) -> Self {
        let (given, lines) = mpsc::unbounded_channel();
        Self {
            read,
            write: Arc::new(tokio::sync::Mutex::new(Pipe {
                open: Some(write),
                given: lines,
                written: 0,
            })),
            given,
            sent: 0,
            line: Vec::new(),
            skipping: false,
            length: 0,
            open: Mutex::default(),
            skipped: 0,
            late_probe: LateProbe::default(),
        }
    }

    /// Calls with these ids have been sent.
    pub(crate) fn await_answers(&self, ids: impl Iterator<Item = RequestId>) {
        self.open().extend(ids.map(|id| (id, Asked::Call)));
    }

    /// The place of a late answer to a probe.
    pub(crate) fn late_probe(&self) -> LateProbe {
        self.late_probe.clone()
    }

    /// The next line that is whole and not too large; `Err` has both ends of one that is.
    async fn next_line(&mut self) -> Option<Result<Vec<u8>, Vec<u8>>> {
        loop {
            let available = self.read.fill_buf().await.ok()?;
            if available.is_empty() {
                return None;
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(available.len(), |at| at + 1);
            self.length += taken;
            if self.length > LONGEST_LINE {
                tracing::warn!("a server's line does not end: its connection is ended");
                return None;
            }
            if !self.skipping && self.line.len() + taken <= MAX_MESSAGE {
                self.line.extend_from_slice(&available[..taken]);
            } else if !self.skipping {
                self.skipping = true;
                self.line.extend_from_slice(&available[..taken.min(KEPT)]);
                self.line.drain(KEPT..);
                self.line.shrink_to_fit();
            }
            if self.skipping {
                self.line
                    .extend_from_slice(&available[taken.saturating_sub(KEPT)..taken]);
                let excess = self.line.len().saturating_sub(2 * KEPT);
                self.line.drain(KEPT..KEPT + excess);
            }
            self.read.consume(taken);
            if end.is_some() {
                self.length = 0;
                let line = std::mem::take(&mut self.line);
                return Some(match std::mem::take(&mut self.skipping) {
                    true => Err(line),
                    false => Ok(line),
                });
            }
        }
    }

    /// The message on a line; `None` where the line has no message.
    fn message(&self, line: &[u8]) -> Option<RxJsonRpcMessage<RoleClient>> {
        if has_more_values(line, MAX_VALUES) {
            let why = format!("has more than {MAX_VALUES} values");
            return self.unreadable(line, &why);
        }
        let Ok(mut message) = serde_json::from_slice::<Value>(line) else {
            return self.unreadable(line, "is not JSON that every parser takes");
        };
        if let Some(era) = era_of(&message) {
            let _ = self.late_probe.0.set(era);
            return None;
        }
        let id: Option<RequestId> = message
            .get("id")
            .and_then(|id| serde_json::from_value(id.clone()).ok());
        let is_answer = message.get("method").is_none_or(Value::is_null);
        let answered = id.filter(|_| is_answer);
        let answered = answered.and_then(|id| self.open().remove_entry(&id));
        let Some((id, Asked::Call)) = answered else {
            return serde_json::from_value(message).ok();
        };
        if let Some(result) = message.get_mut("result") {
            let result = result.take();
            let asks = ["inputRequests", "requestState"]
                .iter()
                .any(|key| result.get(key).is_some());
            // The copy is only made of what may be a question.
            let asked = asks.then(|| serde_json::from_value::<InputRequiredResult>(result.clone()));
            let result = match asked {
                Some(Ok(asked)) => ServerResult::InputRequiredResult(asked),
                Some(Err(_)) | None => ServerResult::CustomResult(CustomResult::new(result)),
            };
            return Some(JsonRpcMessage::response(result, id));
        }
        Some(serde_json::from_value(message).unwrap_or_else(|_| {
            let error = ErrorData::internal_error("the answer has neither result nor error", None);
            JsonRpcMessage::error(error, Some(id))
        }))
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<RequestId, Asked>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The substitute for an answer that cannot be read: an error for the request whose id it has.
    /// Without an id only a single call can be meant.
    fn unreadable(&self, text: &[u8], why: &str) -> Option<RxJsonRpcMessage<RoleClient>> {
        // Servers write logs between their messages.
        if !text.trim_ascii_start().starts_with(b"{") {
            return None;
        }
        let members = members(text);
        let has = |wanted: &str| members.iter().any(|(name, _)| *name == wanted.as_bytes());
        if has("method") || !has("jsonrpc") {
            return None;
        }
        let mut open = self.open();
        let meant = open.keys().find(|id| is_id(&members, text, id)).cloned();
        let single = || match open.iter().next() {
            Some((id, Asked::Call)) if open.len() == 1 && !has("id") => Some(id.clone()),
            _ => None,
        };
        let id = meant.or_else(single)?;
        open.remove(&id);
        let error = ErrorData::internal_error(format!("the answer {why}"), None);
        Some(JsonRpcMessage::error(error, Some(id)))
    }

    fn too_large(&self, ends: &[u8]) -> Option<RxJsonRpcMessage<RoleClient>> {
        let why = format!("is larger than {} MiB", MAX_MESSAGE >> 20);
        self.unreadable(ends, &why)
    }
}

/// Whether a text of JSON has more values than this, about. An object counts as eight of them, as
/// it takes so much more memory.
pub(super) fn has_more_values(text: &[u8], most: usize) -> bool {
    let weight = |byte: &u8| match byte {
        b'{' => 8,
        b',' | b'[' => 1,
        _ => 0,
    };
    // This is enough for nearly every message; texts with many commas need the slower look.
    if text.iter().map(weight).sum::<usize>() <= most {
        return false;
    }
    let (mut values, mut is_text, mut is_escaped) = (0, false, false);
    for byte in text {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => is_text = !is_text,
            byte if !is_text => values += weight(byte),
            _ => {}
        }
    }
    values > most
}

/// The members of an object that need not be JSON as a whole: each name, and the text from its
/// value on. Members of objects within it do not count.
fn members(text: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut members = Vec::new();
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                let from = at + 1;
                at = from;
                while text.get(at).is_some_and(|byte| *byte != b'"') {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
                let rest = text.get(at + 1..).unwrap_or_default().trim_ascii_start();
                if depth == 1
                    && let Some(name) = text.get(from..at)
                    && let Some(value) = rest.strip_prefix(b":")
                {
                    members.push((name, value.trim_ascii_start()));
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    members
}

/// Whether an answer has this id: as one of its members, or as the last of them where the middle
/// of the text is missing.
fn is_id(members: &[(&[u8], &[u8])], text: &[u8], id: &RequestId) -> bool {
    let Ok(id) = serde_json::to_vec(id) else {
        return false;
    };
    let is_member = members.iter().any(|(name, value)| {
        let after = value
            .strip_prefix(id.as_slice())
            .map(<[u8]>::trim_ascii_start);
        *name == b"id" && after.is_some_and(|after| matches!(after.first(), Some(b',' | b'}')))
    });
    let last = text.trim_ascii_end().strip_suffix(b"}");
    let last = last.and_then(|text| text.trim_ascii_end().strip_suffix(id.as_slice()));
    let last = last.and_then(|text| text.trim_ascii_end().strip_suffix(b":"));
    let name = last.and_then(|text| text.trim_ascii_end().strip_suffix(b"\"id\""));
    is_member || name.is_some_and(|text| text.trim_ascii_end().ends_with(b","))
}

impl<R, W> Transport<RoleClient> for Lines<R, W>
where
    R: AsyncBufRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    type Error = std::io::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), std::io::Error>> + Send + 'static {
        if let JsonRpcMessage::Request(request) = &item {
            let asked = match request.request {
                ClientRequest::CallToolRequest(_) => Asked::Call,
                _ => Asked::Other,
            };
            self.open().insert(request.id.clone(), asked);
        }
        let line = serde_json::to_vec(&item).map(|mut line| {
            line.push(b'\n');
            line
        });
        // The order of lines is that of sending, whichever of their tasks runs first.
        let number = line.map(|line| {
            // This value holds the other end of the pipe open.
            let _ = self.given.send(line);
            self.sent += 1;
            self.sent
        });
        let write = self.write.clone();
        async move { write.lock().await.write_until(number?).await }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            let message = match self.next_line().await? {
                Ok(line) => self.message(&line),
                Err(ends) => self.too_large(&ends),
            };
            if let Some(message) = message {
                return Some(message);
            }
            self.skipped += 1;
            if self.skipped.is_power_of_two() {
                tracing::debug!(lines = self.skipped, "a server's lines were skipped");
            }
        }
    }

    async fn close(&mut self) -> Result<(), std::io::Error> {
        self.write.lock().await.open = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rmcp::model::{CallToolRequest, CallToolRequestParams};
    use serde_json::json;
    use tokio::io::{BufReader, DuplexStream};

    use super::*;

    /// A transport with calls under way, and the server's end of it.
    async fn calling(
        ids: &[i64],
    ) -> (
        Lines<BufReader<tokio::io::ReadHalf<DuplexStream>>, tokio::io::WriteHalf<DuplexStream>>,
        DuplexStream,
    ) {
        let (client, server) = tokio::io::duplex(1 << 20);
        let (read, write) = tokio::io::split(client);
        let mut lines = Lines::new(BufReader::new(read), write);
        for id in ids {
            let call = CallToolRequest::new(CallToolRequestParams::new("t"));
            let call = ClientRequest::CallToolRequest(call);
            let message = JsonRpcMessage::request(call, RequestId::Number(*id));
            lines.send(message).await.expect("sent");
        }
        (lines, server)
    }

    fn json_of(message: &RxJsonRpcMessage<RoleClient>) -> Value {
        serde_json::to_value(message).expect("JSON")
    }

    #[tokio::test]
    async fn an_answer_to_a_call_comes_as_it_was_and_garbage_is_skipped() {
        let (mut lines, mut server) = calling(&[1]).await;
        let result = json!({"zeta": 1, "tools": "odd", "content": []});
        let answer = json!({"jsonrpc": "2.0", "id": 1, "result": result});
        let written = format!("garbage\n\n[1]\n{answer}\n");
        server.write_all(written.as_bytes()).await.expect("written");
        let message = lines.receive().await.expect("a message");
        assert_eq!(json_of(&message)["result"], result);
    }

    #[tokio::test]
    async fn messages_are_written_in_the_order_in_which_they_were_sent() {
        let (mut lines, server) = calling(&[]).await;
        let mut sending = Vec::new();
        for id in 0..10 {
            let ping = ClientRequest::PingRequest(Default::default());
            sending.push(lines.send(JsonRpcMessage::request(ping, RequestId::Number(id))));
        }
        // Their tasks may run in any order.
        for sending in sending.into_iter().rev() {
            sending.await.expect("sent");
        }
        drop(lines);
        let mut written = BufReader::new(server).lines();
        for id in 0..10 {
            let line = written.next_line().await.expect("read").expect("a line");
            let message: Value = serde_json::from_str(&line).expect("JSON");
            assert_eq!(message["id"], id);
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_not_json_fails_its_call_at_once() {
        let nested = "[".repeat(200) + &"]".repeat(200);
        for odd in [r#""\ud800""#, "NaN", "1e400", &nested, "\"\u{0}\""] {
            let (mut lines, mut server) = calling(&[1, 2]).await;
            let written = format!("{{\"jsonrpc\":\"2.0\",\"result\":{odd},\"id\": 2 }}\n");
            server.write_all(written.as_bytes()).await.expect("written");
            assert_eq!(
                json_of(&lines.receive().await.expect("an error"))["id"],
                2,
                "{odd}"
            );
        }
    }

    #[tokio::test]
    async fn a_listing_that_cannot_be_read_fails_at_once() {
        let (mut lines, mut server) = calling(&[1]).await;
        let listing = ClientRequest::ListToolsRequest(Default::default());
        let listing = JsonRpcMessage::request(listing, RequestId::Number(2));
        lines.send(listing).await.expect("sent");
        let nested = "[".repeat(200) + &"]".repeat(200);
        let written =
            format!("{{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{{\"tools\":{nested}}}}}\n");
        server.write_all(written.as_bytes()).await.expect("written");
        let message = json_of(&lines.receive().await.expect("an error"));
        assert_eq!(message["id"], 2);
        assert!(message["error"]["message"].is_string(), "{message}");
    }

    #[tokio::test]
    async fn an_answer_without_a_result_or_an_error_fails_its_call_at_once() {
        for odd in [
            r#""error":"boom""#,
            r#""error":{"code":"E1","message":"x"}"#,
            r#""method":null"#,
        ] {
            let (mut lines, mut server) = calling(&[1, 2]).await;
            let written = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,{odd}}}\n");
            server.write_all(written.as_bytes()).await.expect("written");
            let message = json_of(&lines.receive().await.expect("an error"));
            assert_eq!(message["id"], 1, "{odd}");
            assert!(message["error"]["message"].is_string(), "{odd}");
        }
    }

    #[tokio::test]
    async fn a_log_of_requests_between_the_messages_fails_no_call() {
        let (mut lines, mut server) = calling(&[2]).await;
        let written = concat!(
            "DEBUG recv {\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"tools/call\"}\n",
            "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"tools/call\",\n",
            "{\"at\":NaN,\"jsonrpc\":\"2.0\",\"id\":7,\"deep\":{\"id\":2}}\n",
            "{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{\"right\":true}}\n"
        );
        server.write_all(written.as_bytes()).await.expect("written");
        let message = json_of(&lines.receive().await.expect("a result"));
        assert_eq!(message["result"]["right"], true);
    }

    #[tokio::test]
    async fn an_answer_that_is_too_large_fails_its_call_where_the_id_comes_late() {
        let (mut lines, mut server) = calling(&[1, 2]).await;
        let writing = tokio::spawn(async move {
            server
                .write_all(b"{\"jsonrpc\":\"2.0\",\"result\":\"")
                .await?;
            let chunk = vec![b'x'; 1 << 20];
            for _ in 0..=MAX_MESSAGE / chunk.len() {
                server.write_all(&chunk).await?;
            }
            server.write_all(b"\",\"id\":2}\n").await?;
            std::io::Result::Ok(server)
        });
        assert_eq!(json_of(&lines.receive().await.expect("an error"))["id"], 2);
        assert!(writing.await.expect("no panic").is_ok());
    }

    #[tokio::test]
    async fn a_line_without_an_end_ends_the_connection() {
        let (mut lines, mut server) = calling(&[1]).await;
        let writing = tokio::spawn(async move {
            let chunk = vec![b'x'; 1 << 20];
            while server.write_all(&chunk).await.is_ok() {}
        });
        assert!(lines.receive().await.is_none());
        drop(lines);
        writing.await.expect("no panic");
    }

    #[tokio::test]
    async fn a_late_answer_to_the_probe_is_dropped_and_its_era_kept() {
        let (mut lines, mut server) = calling(&[1]).await;
        let late =
            r#"{"jsonrpc":"2.0","id":"code-mode-probe","error":{"code":-32022,"message":"no"}}"#;
        let written = format!("{late}\n{{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{{}}}}\n");
        server.write_all(written.as_bytes()).await.expect("written");
        assert_eq!(json_of(&lines.receive().await.expect("a result"))["id"], 1);
        assert_eq!(lines.late_probe().era(), Some(Era::Modern));
    }

    #[test]
    fn values_are_counted_and_the_commas_of_texts_are_not() {
        assert!(has_more_values(b"[[],[],[]]", 3));
        assert!(has_more_values(b"[{},{}]", 10));
        assert!(!has_more_values(br#"["a,b,c,d,[{\",,,,"]"#, 3));
        assert!(has_more_values(br#"["\\",1,2,3]"#, 3));
    }

    #[tokio::test]
    async fn an_answer_that_is_too_large_fails_its_call_and_the_next_line_is_read() {
        let (mut lines, mut server) = calling(&[1, 2]).await;
        let writing = tokio::spawn(async move {
            server.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":2,").await?;
            let chunk = vec![b'x'; 1 << 20];
            for _ in 0..=MAX_MESSAGE / chunk.len() {
                server.write_all(&chunk).await?;
            }
            server
                .write_all(b"\n{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n")
                .await?;
            std::io::Result::Ok(server)
        });
        let too_large = json_of(&lines.receive().await.expect("an error"));
        assert_eq!(too_large["id"], 2);
        assert!(
            too_large["error"]["message"]
                .as_str()
                .is_some_and(|m| m.contains("larger than"))
        );
        assert_eq!(json_of(&lines.receive().await.expect("a result"))["id"], 1);
        assert!(writing.await.expect("no panic").is_ok());
    }
}
