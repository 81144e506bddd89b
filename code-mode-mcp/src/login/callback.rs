//! The address on this machine to which the browser comes back with the answer to a login.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use code_mode_protocol::text::line;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use url::Url;

use super::LoginError;

const PATH: &str = "/callback";
/// How long a browser may take to ask.
const REQUEST: Duration = Duration::from_secs(10);
/// How long the last page may take to arrive.
const LAST_PAGE: Duration = Duration::from_secs(1);
/// Connections at once. Browsers open some that they do not use.
const MAX_CONNECTIONS: usize = 16;
/// How much of an authorization server's words is shown.
const SHOWN: usize = 300;

/// What the browser came back with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Callback {
    Code {
        code: String,
        /// Who gave it, where the authorization server says so.
        issuer: Option<String>,
    },
    Denied(String),
}

impl Callback {
    /// The answer in an address; `None` where it is not the answer to the login with this state.
    pub(super) fn read(url: &Url, state: &str) -> Option<Self> {
        let parameter = |name: &str| {
            let mut pairs = url.query_pairs();
            let (_, value) = pairs.find(|(key, _)| key == name)?;
            Some(value.into_owned())
        };
        if parameter("state")? != state {
            return None;
        }
        if let Some(error) = parameter("error") {
            let words = parameter("error_description").unwrap_or_default();
            let words = format!("{error} {words}");
            return Some(Self::Denied(line(words.trim(), SHOWN)));
        }
        Some(Self::Code {
            code: parameter("code")?,
            issuer: parameter("iss"),
        })
    }
}

/// The listening address.
pub(super) struct CallbackAddress {
    listener: TcpListener,
    url: String,
}

impl CallbackAddress {
    /// Listens on a free port, or on this one: a client that was registered by hand has it in its
    /// registration, with the name `localhost`.
    pub(super) async fn open(port: Option<u16>) -> Result<Self, LoginError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap_or(0)));
        let failed = |source| LoginError::Listen {
            address: address.to_string(),
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let host = match port {
            Some(_) => format!("localhost:{}", bound.port()),
            None => bound.to_string(),
        };
        let url = format!("http://{host}{PATH}");
        Ok(Self { listener, url })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Serves browsers, and sends each answer to the login with this state. Other requests are
    /// refused, and end nothing. After the receiver is dropped, it completes the requests that have begun.
    pub(super) async fn serve(self, state: String, answers: mpsc::Sender<Callback>) {
        let state: Arc<str> = state.into();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
                Some(_) = connections.join_next() => continue,
                () = answers.closed() => break,
            };
            let Ok((stream, _)) = accepted else {
                // It can be out of descriptors for a moment.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (state, answers) = (state.clone(), answers.clone());
            connections.spawn(async move {
                let service = service_fn(|request| answer(request, &state, &answers));
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(REQUEST)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                let _ = connection.await;
            });
        }
        let all = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_PAGE, all).await;
    }
}

async fn answer(
    request: Request<Incoming>,
    state: &str,
    answers: &mpsc::Sender<Callback>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let uri = request.uri();
    let base = Url::parse("http://localhost").ok();
    let url = base.and_then(|base| base.join(uri.path_and_query()?.as_str()).ok());
    let is_ours = request.method() == Method::GET && uri.path() == PATH;
    let callback = url.filter(|_| is_ours);
    let callback = callback.and_then(|url| Callback::read(&url, state));
    let (status, words) = match callback {
        None => (
            StatusCode::NOT_FOUND,
            "This address belongs to no login that runs now.",
        ),
        Some(callback) => {
            let words = match &callback {
                Callback::Code { .. } => {
                    "The terminal completes the login. You can close this page."
                }
                Callback::Denied(_) => "The login was refused; the terminal says why.",
            };
            // Full or closed: there is an answer already.
            let _ = answers.try_send(callback);
            (StatusCode::OK, words)
        }
    };
    let page = format!("<!doctype html><meta charset=utf-8><title>code-mode</title><p>{words}\n");
    let mut response = Response::new(Full::new(Bytes::from(page)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let html = header::HeaderValue::from_static("text/html; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, html);
    // The address of this page has the code in it.
    let nothing = header::HeaderValue::from_static("no-referrer");
    headers.insert(header::REFERRER_POLICY, nothing);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Option<Callback> {
        let url = Url::parse(&format!("http://127.0.0.1:1/callback?{query}")).expect("an address");
        Callback::read(&url, "s1")
    }

    #[test]
    fn only_the_state_of_this_login_has_an_answer() {
        assert_eq!(read("code=c"), None);
        assert_eq!(read("code=c&state=s2"), None);
        assert_eq!(read("state=s1"), None);
        assert_eq!(read("error=access_denied"), None);
        let code = Callback::Code {
            code: "c d".to_owned(),
            issuer: Some("https://a.invalid".to_owned()),
        };
        assert_eq!(
            read("code=c+d&state=s1&iss=https%3A%2F%2Fa.invalid"),
            Some(code)
        );
        let denied = read("error=access_denied&error_description=no%1b[2J&state=s1&code=c");
        let is_clean = |why: &str| why.starts_with("access_denied no") && !why.contains('\u{1b}');
        assert!(matches!(denied, Some(Callback::Denied(why)) if is_clean(&why)));
    }
}
