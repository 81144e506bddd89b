//! A client for streamable HTTP whose servers cannot make it connect without a pause, and which
//! shows them the token of a login.
//!
//! A server names the pause before its stream is opened again (`retry`), and may end each
//! stream at once. With `retry: 0` it would have hundreds of connections a second.

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use http::{HeaderName, HeaderValue};
use rmcp::model::{ClientJsonRpcMessage, JsonRpcMessage, RequestId};
use rmcp::transport::streamable_http_client::{
    StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
    StreamableHttpResponseLimits,
};
use sse_stream::Sse;

use super::lines::{MAX_VALUES, has_more_values};
use crate::login::Login;
use crate::upstream::error::HttpFailure;

/// The shortest and the longest pause that a server may name, in milliseconds.
const RETRY: std::ops::RangeInclusive<u64> = 1_000..=60_000;

/// The client.
#[derive(Clone)]
pub(crate) struct Paced {
    pub(super) client: reqwest::Client,
    /// The login to the server, where there can be one.
    pub(super) login: Option<Login>,
}

/// The tokens that one request is sent with: that of the login, and another where the server refuses it.
struct Tokens<'a> {
    login: Option<&'a Login>,
    now: Option<String>,
}

impl<'a> Tokens<'a> {
    async fn of(login: Option<&'a Login>) -> Self {
        let now = match login {
            Some(login) => login.token().await,
            None => None,
        };
        Self { login, now }
    }

    /// Whether the request can be sent again with another token, which is `now` then.
    async fn has_another(&mut self, is_refused: bool) -> bool {
        let (Some(login), Some(refused), true) = (self.login.take(), &self.now, is_refused) else {
            return false;
        };
        let another = login.instead_of(refused).await;
        let is_there = another.is_some();
        self.now = another;
        is_there
    }
}

/// Whether the server refuses the token of a request, which then did nothing.
fn is_refused<T>(sent: &Result<T, Error>) -> bool {
    let failure = sent.as_ref().err().map(|error| HttpFailure::of(error));
    failure == Some(HttpFailure::Unauthorized(401))
}

type Events = BoxStream<'static, Result<Sse, sse_stream::Error>>;
type Headers = HashMap<HeaderName, HeaderValue>;
type Error = StreamableHttpError<reqwest::Error>;

fn paced(events: Events) -> Events {
    let paced = events.map(|event| {
        event.map(|mut event| {
            let pause = event.retry;
            event.retry = pause.map(|pause| pause.clamp(*RETRY.start(), *RETRY.end()));
            let data = event.data.as_deref().unwrap_or_default();
            if has_more_values(data.as_bytes(), MAX_VALUES) {
                tracing::debug!("an event with too many values was emptied");
                event.data = None;
            }
            event
        })
    });
    paced.boxed()
}

/// Whether an answer is one to this request: a server that answers with another's, or with none,
/// would be waited for.
fn is_answer_to(answer: &StreamableHttpPostResponse, request: Option<&RequestId>) -> bool {
    match (answer, request) {
        (StreamableHttpPostResponse::Accepted, Some(_)) => false,
        (StreamableHttpPostResponse::Json(message, _), Some(id)) => match message {
            JsonRpcMessage::Response(answer) => answer.id == *id,
            JsonRpcMessage::Error(error) => error.id.as_ref().is_none_or(|of| of == id),
            JsonRpcMessage::Request(_) | JsonRpcMessage::Notification(_) => false,
        },
        _ => true,
    }
}

impl StreamableHttpClient for Paced {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<StreamableHttpPostResponse, Error> {
        let limits = StreamableHttpResponseLimits::default();
        self.post_message_with_response_limits(
            uri,
            message,
            session_id,
            auth_header,
            custom_headers,
            limits,
        )
        .await
    }

    async fn post_message_with_response_limits(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: Headers,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, Error> {
        let request = match &message {
            JsonRpcMessage::Request(request) => Some(request.id.clone()),
            _ => None,
        };
        let mut tokens = Tokens::of(self.login.as_ref()).await;
        let again = tokens.login.map(|_| message.clone());
        let post = |message, token: Option<String>| {
            self.client.post_message_with_response_limits(
                uri.clone(),
                message,
                session_id.clone(),
                token.or_else(|| auth_header.clone()),
                custom_headers.clone(),
                limits,
            )
        };
        let mut posted = post(message, tokens.now.clone()).await;
        if let Some(message) = again
            && tokens.has_another(is_refused(&posted)).await
        {
            posted = post(message, tokens.now.clone()).await;
        }
        let answer = posted?;
        if !is_answer_to(&answer, request.as_ref()) {
            let what = "the answer is not one to the request";
            return Err(StreamableHttpError::UnexpectedServerResponse(what.into()));
        }
        Ok(match answer {
            StreamableHttpPostResponse::Sse(events, session) => {
                StreamableHttpPostResponse::Sse(paced(events), session)
            }
            answer => answer,
        })
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<(), Error> {
        let token = Tokens::of(self.login.as_ref()).await.now;
        let deleted =
            self.client
                .delete_session(uri, session_id, token.or(auth_header), custom_headers);
        deleted.await
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<Events, Error> {
        let most = super::MAX_MESSAGE;
        self.get_stream_with_max_sse_event_size(
            uri,
            session_id,
            last_event_id,
            auth_header,
            custom_headers,
            most,
        )
        .await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: Headers,
        max_sse_event_size: usize,
    ) -> Result<Events, Error> {
        let mut tokens = Tokens::of(self.login.as_ref()).await;
        loop {
            let opened = self.client.get_stream_with_max_sse_event_size(
                uri.clone(),
                session_id.clone(),
                last_event_id.clone(),
                tokens.now.clone().or_else(|| auth_header.clone()),
                custom_headers.clone(),
                max_sse_event_size,
            );
            let opened = opened.await;
            if !tokens.has_another(is_refused(&opened)).await {
                return Ok(paced(opened?));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_names_no_pause_shorter_than_a_second() {
        let events = "retry: 0\ndata: a\n\nretry: 2000\ndata: b\n\nretry: 99999999\ndata: c\n\n";
        let bytes = futures::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::from(events))]);
        let events = sse_stream::SseStream::from_bytes_stream(bytes).boxed();
        let pauses: Vec<_> = paced(events)
            .map(|event| event.expect("an event").retry)
            .collect()
            .await;
        assert_eq!(pauses, [Some(1_000), Some(2_000), Some(60_000)]);
    }
}
