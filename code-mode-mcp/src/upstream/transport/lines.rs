//! Messages of a server at its two pipes, one on a line.
//!
//! The answer to a call is passed on as it came: the protocol's types would take a result
//! with an odd key for another kind of answer, and drop what they do not know.

use std::collections::HashSet;
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

use super::process::{Era, era_of};

/// The largest message.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;
/// Where the id of a message that is too large is looked for.
const HEAD: usize = 256;

pub(crate) struct Lines<R, W> {
    read: R,
    write: Arc<tokio::sync::Mutex<Option<W>>>,
    /// The present line so far; kept here because reading may be cancelled.
    line: Vec<u8>,
    /// The line is too large: its rest is skipped.
    skipping: bool,
    /// Calls without an answer.
    calls: Arc<Mutex<HashSet<RequestId>>>,
    skipped: u64,
    late_probe: LateProbe,
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
        Self {
            read,
            write: Arc::new(tokio::sync::Mutex::new(Some(write))),
            line: Vec::new(),
            skipping: false,
            calls: Arc::default(),
            skipped: 0,
            late_probe: LateProbe::default(),
        }
    }

    /// The place of a late answer to a probe.
    pub(crate) fn late_probe(&self) -> LateProbe {
        self.late_probe.clone()
    }

    /// The next line that is whole and not too large; `Err` has the beginning of one that
    /// is.
    async fn next_line(&mut self) -> Option<Result<Vec<u8>, Vec<u8>>> {
        loop {
            let available = self.read.fill_buf().await.ok()?;
            if available.is_empty() {
                return None;
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(available.len(), |at| at + 1);
            if !self.skipping && self.line.len() + taken <= MAX_MESSAGE {
                self.line.extend_from_slice(&available[..taken]);
            } else if !self.skipping {
                self.skipping = true;
                let missing = HEAD.saturating_sub(self.line.len()).min(taken);
                self.line.extend_from_slice(&available[..missing]);
                self.line.truncate(HEAD);
                self.line.shrink_to_fit();
            }
            self.read.consume(taken);
            if end.is_some() {
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
        let mut message: Value = serde_json::from_slice(line).ok()?;
        if let Some(era) = era_of(&message) {
            let _ = self.late_probe.0.set(era);
            return None;
        }
        let id: Option<RequestId> = message
            .get("id")
            .and_then(|id| serde_json::from_value(id.clone()).ok());
        if let Some(id) = id
            && message.get("method").is_none()
            && self.calls().remove(&id)
            && let Some(result) = message.get_mut("result")
        {
            let result = result.take();
            let asked = serde_json::from_value::<InputRequiredResult>(result.clone());
            let result = match asked {
                Ok(asked) => ServerResult::InputRequiredResult(asked),
                Err(_) => ServerResult::CustomResult(CustomResult::new(result)),
            };
            return Some(JsonRpcMessage::response(result, id));
        }
        serde_json::from_value(message).ok()
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, HashSet<RequestId>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The substitute for a message that is too large: an error for its call, where
    /// the id is at its beginning; else for every call.
    fn too_large(&self, head: &[u8]) -> Option<RxJsonRpcMessage<RoleClient>> {
        let head = String::from_utf8_lossy(head);
        let mut calls = self.calls();
        let is_meant = |id: &RequestId| {
            let id = serde_json::to_string(id).unwrap_or_default();
            head.contains(&format!("\"id\":{id},")) || head.contains(&format!("\"id\": {id},"))
        };
        let meant = calls.iter().find(|id| is_meant(id)).cloned();
        let id = meant.or_else(|| calls.iter().next().cloned())?;
        calls.remove(&id);
        let text = format!("the answer is larger than {} MiB", MAX_MESSAGE >> 20);
        Some(JsonRpcMessage::error(
            ErrorData::internal_error(text, None),
            Some(id),
        ))
    }
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
        if let JsonRpcMessage::Request(request) = &item
            && matches!(request.request, ClientRequest::CallToolRequest(_))
        {
            self.calls().insert(request.id.clone());
        }
        let line = serde_json::to_vec(&item).map(|mut line| {
            line.push(b'\n');
            line
        });
        let write = self.write.clone();
        async move {
            let line = line?;
            let mut write = write.lock().await;
            let closed = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
            let pipe = write.as_mut().ok_or_else(closed)?;
            pipe.write_all(&line).await?;
            pipe.flush().await
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            let message = match self.next_line().await? {
                Ok(line) => self.message(&line),
                Err(head) => self.too_large(&head),
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
        *self.write.lock().await = None;
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
    async fn a_late_answer_to_the_probe_is_dropped_and_its_era_kept() {
        let (mut lines, mut server) = calling(&[1]).await;
        let late =
            r#"{"jsonrpc":"2.0","id":"code-mode-probe","error":{"code":-32022,"message":"no"}}"#;
        let written = format!("{late}\n{{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{{}}}}\n");
        server.write_all(written.as_bytes()).await.expect("written");
        assert_eq!(json_of(&lines.receive().await.expect("a result"))["id"], 1);
        assert_eq!(lines.late_probe().era(), Some(Era::Modern));
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
