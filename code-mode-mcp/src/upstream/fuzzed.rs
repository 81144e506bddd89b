//! What the fuzzer reaches of the reading of servers: lines, events and listings.

use std::collections::HashSet;
use std::io::Cursor;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use rmcp::model::{JsonRpcMessage, NumberOrString};
use rmcp::transport::Transport;
use serde_json::Value;
use sse_stream::SseStream;

use super::claims::StrictestClaims;
use super::listing::tool_of;
use super::transport::{Lines, without_endless_events};
use crate::names::identifiers;
use crate::texts::clean_definition;

/// Reads bytes as those of a server's standard output, while the calls 1 to 4 have no answer.
/// Each of them is answered once at most.
pub fn read_lines(bytes: &[u8]) {
    let mut lines = Lines::new(Cursor::new(bytes.to_vec()), Vec::new());
    lines.await_answers((1..=4).map(NumberOrString::Number));
    let mut answered = HashSet::new();
    // Everything is there already, so nothing is waited for.
    while let Some(Some(message)) = lines.receive().now_or_never() {
        let id = match message {
            JsonRpcMessage::Response(answer) => Some(answer.id),
            JsonRpcMessage::Error(error) => error.id,
            JsonRpcMessage::Request(_) | JsonRpcMessage::Notification(_) => None,
        };
        if let Some(NumberOrString::Number(id @ 1..=4)) = id {
            assert!(answered.insert(id), "a call was answered twice");
        }
    }
}

/// Reads bytes as a stream of events, in chunks of some bytes. No event is longer than the bound.
pub fn read_events(bytes: &[u8], chunk: usize) {
    const MOST: usize = 64;
    let chunks: Vec<_> = bytes
        .chunks(chunk.max(1))
        .map(|chunk| Ok::<_, std::io::Error>(Bytes::copy_from_slice(chunk)))
        .collect();
    let bounded = without_endless_events(futures::stream::iter(chunks), MOST);
    let mut events = SseStream::from_bytes_stream(bounded.boxed());
    while let Some(Some(event)) = events.next().now_or_never() {
        let data = event.ok().and_then(|event| event.data);
        assert!(data.is_none_or(|data| data.len() <= MOST));
    }
}

/// Reads JSON as the items of a listing; each of them gets a distinct identifier.
pub fn read_listing(items: Vec<Value>) {
    let mut tools = Vec::new();
    for mut item in items {
        clean_definition(&mut item);
        tools.extend(tool_of(item));
    }
    StrictestClaims::default().apply(&mut tools);
    let pairs: Vec<_> = tools.iter().map(|tool| ("s", tool.name.as_str())).collect();
    let names = identifiers(&pairs);
    let known: HashSet<_> = pairs.iter().collect();
    let distinct: HashSet<_> = names.iter().collect();
    assert_eq!(known.len(), distinct.len(), "two tools of one name");
}
