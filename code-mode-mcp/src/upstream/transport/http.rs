//! Streamable HTTP, and what every client of HTTP here has in common.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;

use super::MAX_MESSAGE;
use super::paced::Paced;
use crate::login::Login;
use crate::upstream::error::{ConnectError, HeaderError, HttpFailure};

const CONNECT: Duration = Duration::from_secs(10);

/// The largest answer that comes as one JSON text: the library makes values of it before anybody
/// can count them.
const MAX_JSON: usize = 16 << 20;
/// Requests that run at once.
const MAX_REQUESTS: usize = 256;

pub(crate) type StreamableHttp = StreamableHttpClientTransport<Paced>;

/// A client for HTTP that keeps credentials to the address they were given for.
pub(super) fn http_client() -> Result<reqwest::Client, ConnectError> {
    code_mode_system::prepare_http_clients();
    let same_origin = reqwest::redirect::Policy::custom(|attempt| {
        let from = attempt.previous().last().map(url::Url::origin);
        match from == Some(attempt.url().origin()) && attempt.previous().len() < 5 {
            true => attempt.follow(),
            false => attempt.error("a redirect to another origin"),
        }
    });
    reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .redirect(same_origin)
        .build()
        .map_err(ConnectError::Client)
}

/// The transport to an address, with the login to it where there can be one.
pub(crate) fn streamable_http(
    url: &str,
    headers: &BTreeMap<String, String>,
    login: Option<Login>,
) -> Result<StreamableHttp, ConnectError> {
    let config = StreamableHttpClientTransportConfig::with_uri(url)
        .max_sse_event_size(MAX_MESSAGE)
        .max_json_response_size(MAX_JSON)
        .max_concurrent_requests(MAX_REQUESTS)
        // A call is not sent again on a new session: it may have run.
        .reinit_on_expired_session(false)
        .custom_headers(header_map(headers)?);
    let client = Paced {
        client: http_client()?,
        login,
    };
    Ok(StreamableHttpClientTransport::with_client(client, config))
}

/// What a server says to somebody who shows it nothing: its challenge, where it wants a login. It is
/// asked in the way of a call, for many servers refuse other requests for other reasons.
pub(crate) async fn challenge(url: &str) -> Result<Option<String>, ConnectError> {
    let ping = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
    let answer = http_client()?
        .post(url)
        .header(http::header::ACCEPT, "application/json, text/event-stream")
        .header(http::header::CONTENT_TYPE, "application/json")
        .timeout(CONNECT)
        .body(ping.to_string())
        .send();
    let answer = answer
        .await
        .map_err(|error| HttpFailure::of_reqwest(&error))?;
    if answer.status() != http::StatusCode::UNAUTHORIZED {
        return Ok(None);
    }
    let challenges = answer.headers().get_all(http::header::WWW_AUTHENTICATE);
    let mut challenges = challenges.iter().filter_map(|value| value.to_str().ok());
    let is_bearer = |value: &&str| {
        value
            .get(..6)
            .is_some_and(|word| word.eq_ignore_ascii_case("bearer"))
    };
    Ok(challenges.find(is_bearer).map(str::to_owned))
}

/// Headers of a configuration.
pub(super) fn header_map(
    headers: &BTreeMap<String, String>,
) -> Result<HashMap<HeaderName, HeaderValue>, HeaderError> {
    let mut map = HashMap::new();
    for (name, value) in headers {
        let header: HeaderName = name.parse().map_err(|_| HeaderError::Name(name.clone()))?;
        let mut value =
            HeaderValue::from_str(value).map_err(|_| HeaderError::Value(header.to_string()))?;
        value.set_sensitive(true);
        map.insert(header, value);
    }
    Ok(map)
}
