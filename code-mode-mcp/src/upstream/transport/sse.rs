//! The transport with two addresses, of the protocol's first revision: a stream of
//! server-sent events, whose first names the address to post to. Some servers keep it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use rmcp::RoleClient;
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use sse_stream::{Sse, SseStream};

use super::MAX_MESSAGE;
use super::http::{header_map, http_client};
use super::lines::{MAX_VALUES, has_more_values};
use crate::upstream::error::{ConnectError, HttpFailure, SseError};

/// How long the stream may take to name its second address.
const ENDPOINT: Duration = Duration::from_secs(10);

pub(crate) struct SseTransport {
    client: reqwest::Client,
    endpoint: url::Url,
    headers: http::HeaderMap,
    events: BoxStream<'static, Sse>,
}

/// Opens the stream and waits for the second address.
pub(crate) async fn connect(
    url: &str,
    headers: &BTreeMap<String, String>,
) -> Result<SseTransport, ConnectError> {
    let client = http_client()?;
    let headers: http::HeaderMap = header_map(headers)?.into_iter().collect();
    let opened = client
        .get(url)
        .headers(headers.clone())
        .header(http::header::ACCEPT, "text/event-stream")
        .send();
    let opened = opened
        .await
        .map_err(|error| HttpFailure::of_reqwest(&error))?;
    match opened.status().as_u16() {
        200 => {}
        status @ (401 | 403) => return Err(HttpFailure::Unauthorized(status).into()),
        status => return Err(HttpFailure::Status(status).into()),
    }
    let base = opened.url().clone();
    let bytes = without_endless_events(opened.bytes_stream(), MAX_MESSAGE);
    let events = SseStream::from_bytes_stream(bytes.boxed());
    let mut events = events.filter_map(async |event| event.ok()).boxed();
    let endpoint = async {
        while let Some(event) = events.next().await {
            if event.event.as_deref() == Some("endpoint") {
                return event.data;
            }
        }
        None
    };
    let endpoint = tokio::time::timeout(ENDPOINT, endpoint)
        .await
        .ok()
        .flatten()
        .ok_or(ConnectError::NoEndpoint)?;
    let endpoint = base
        .join(endpoint.trim())
        .map_err(ConnectError::BadEndpoint)?;
    if endpoint.origin() != base.origin() {
        return Err(ConnectError::ForeignEndpoint);
    }
    Ok(SseTransport {
        client,
        endpoint,
        headers,
        events,
    })
}

/// Ends the stream at an event of more than `most` bytes, which a reader would keep in memory. Each
/// chunk that comes out is a line or a part of one: the reader drops the rest of a chunk behind a
/// line that it does not understand, and must not drop the end of an event with it.
pub(crate) fn without_endless_events<E>(
    bytes: impl Stream<Item = Result<Bytes, E>>,
    most: usize,
) -> impl Stream<Item = Result<Bytes, E>> {
    let mut event = 0_usize;
    let mut is_line_empty = true;
    let lines = bytes.flat_map(|chunk| {
        let mut parts = Vec::new();
        match chunk {
            Err(error) => parts.push(Err(error)),
            Ok(mut rest) => {
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    parts.push(Ok(rest.split_to(end + 1)));
                }
                if !rest.is_empty() {
                    parts.push(Ok(rest));
                }
            }
        }
        futures::stream::iter(parts)
    });
    lines.take_while(move |part| {
        for byte in part.iter().flat_map(|part| part.iter()) {
            event += 1;
            match byte {
                // An empty line ends an event.
                b'\n' if is_line_empty => event = 0,
                b'\n' => is_line_empty = true,
                b'\r' => {}
                _ => is_line_empty = false,
            }
        }
        let fits = event <= most;
        async move { fits }
    })
}

impl Transport<RoleClient> for SseTransport {
    type Error = SseError;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), SseError>> + Send + 'static {
        let body = serde_json::to_vec(&item);
        let post = self
            .client
            .post(self.endpoint.clone())
            .headers(self.headers.clone())
            .header(http::header::CONTENT_TYPE, "application/json");
        async move {
            let body = body.map_err(SseError::Encode)?;
            let sent = post.body(body).send().await;
            let answer = sent.map_err(|error| SseError::Post(error.without_url()))?;
            match answer.status() {
                status if status.is_success() => Ok(()),
                status => Err(SseError::Status(status.as_u16())),
            }
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            let event = self.events.next().await?;
            let data = event.data.unwrap_or_default();
            if has_more_values(data.as_bytes(), MAX_VALUES) {
                tracing::debug!("an event with too many values was skipped");
                continue;
            }
            // Other events are skipped, as on the other transports.
            if let Ok(message) = serde_json::from_str(&data) {
                return Some(message);
            }
        }
    }

    async fn close(&mut self) -> Result<(), SseError> {
        self.events = futures::stream::empty().boxed();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_ends_at_an_endless_event_and_not_at_many_short_ones() {
        let count = async |chunk: &'static [u8]| {
            let chunks =
                futures::stream::repeat_with(move || Ok::<_, ()>(Bytes::from_static(chunk)));
            without_endless_events(chunks.take(100), 64).count().await
        };
        assert_eq!(count(b"data: 12\n\n").await, 200);
        assert_eq!(count(b"data: 12\r\n\r\n").await, 200);
        assert_eq!(count(b"data: 12\n").await, 7);
        let halves =
            ["data: 12\n", "\n"].map(|half| Ok::<_, ()>(Bytes::from_static(half.as_bytes())));
        let chunks = futures::stream::iter(halves).cycle().take(100);
        assert_eq!(without_endless_events(chunks, 64).count().await, 100);
    }

    #[tokio::test]
    async fn a_line_that_is_not_understood_hides_no_end_of_an_event() {
        let chunk = Bytes::from_static(b"data: 12345678\nx\n\n");
        let chunks =
            futures::stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(chunk.clone())));
        let bounded = without_endless_events(chunks, 64);
        let events = SseStream::from_bytes_stream(bounded.boxed());
        let longest = events
            .filter_map(async |event| event.ok()?.data)
            .map(|data| data.len())
            .fold(0, |longest, length| async move { longest.max(length) });
        assert!(longest.await <= 64);
    }
}
