//! Workers on another machine.
//!
//! The session stays here: its rules, its stored values, its tools. Only the worker, which
//! nobody trusts anyway, is elsewhere. A machine that is lost costs what a worker that is
//! lost costs: its running cells. The next worker may come from another one.

mod options;
mod stream;

use std::time::Duration;

use code_mode_protocol::text::clean_line;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

pub use options::RemoteHost;

use crate::error::ProviderError;
use crate::worker::ConnectionError;

use stream::{Receiving, Sending};
use wire::workers_client::WorkersClient;

/// The messages and the client, as `proto/workers.proto` defines them.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    reason = "generated from proto/workers.proto, which has the documentation"
)]
mod wire {
    tonic::include_proto!("code_mode.v1");
}

/// A silent host gets a ping after this time, and how long its
/// answer may take.
const ASK_AFTER: Duration = Duration::from_secs(20);
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// How much a host may send before it gets more flow-control credit.
const WINDOW: u32 = 4 << 20;

/// A host cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The address is invalid.
    #[error("`{url}` is not the address of a host: {why}")]
    Address {
        /// As it was given, without what may be a password.
        url: String,
        /// The problem, as text.
        why: &'static str,
    },
    /// The trusted roots or this program's certificate cannot be used.
    #[error("no TLS with the host {url}: {}", reasons(source))]
    Tls {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The address does not answer, or the TLS handshake with it fails.
    #[error(
        "cannot connect to the host {url}: {}{}",
        reasons(source),
        tls_hint(source)
    )]
    Connect {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// It refuses.
    #[error("the host {url} refuses: {}{}", words(source), plain_hint(url, source))]
    Refused {
        /// Where.
        url: String,
        /// Its answer.
        #[source]
        source: Box<Status>,
    },
    /// A worker of it cannot be used.
    #[error("the host {url}: {source}")]
    Worker {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: ConnectionError,
    },
    /// A file with a token or certificates cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The token is missing.
    #[error("no bearer token is set")]
    NoToken,
    /// The token cannot be sent.
    #[error("the bearer token has characters that cannot be sent")]
    Token,
    /// It would be read on the way.
    #[error("a bearer token is sent only to https:// or to this machine, not to {0}")]
    TokenInTheClear(String),
}

/// Whether a host was lost before it said anything, which it did not decide.
pub(crate) fn is_cut(error: &ProviderError) -> bool {
    match error {
        // A status that a host sent has no cause here.
        ProviderError::Remote(RemoteError::Refused { source, .. }) => {
            std::error::Error::source(&**source).is_some()
        }
        ProviderError::Remote(RemoteError::Worker {
            source: ConnectionError::Ended | ConnectionError::Io(_),
            ..
        }) => true,
        _ => false,
    }
}

/// What a host says of the end of its worker, or the network of the host's.
pub(crate) fn said_by(error: &std::io::Error) -> Option<String> {
    let status = error.get_ref()?.downcast_ref::<Status>()?;
    Some(match status.code() {
        tonic::Code::Aborted => format!("its process {}", words(status)),
        _ => format!("its host was lost: {}", words(status)),
    })
}

/// What a host says of an error, as it may be shown: it is a stranger's text.
fn words(status: &Status) -> String {
    const LONGEST: usize = 300;
    let words: String = status.message().chars().take(LONGEST).collect();
    let words = clean_line(&words);
    match words.is_empty() {
        true => status.code().description().to_owned(),
        false => words,
    }
}

/// A hint where a connection by TLS fails at its first byte.
fn tls_hint(source: &tonic::transport::Error) -> &'static str {
    match reasons(source).contains("InvalidContentType") {
        true => " (it does not speak TLS: its address begins with http://)",
        false => "",
    }
}

/// A hint where a connection without TLS ends before the host has answered.
fn plain_hint(url: &str, status: &Status) -> &'static str {
    // An answer of the host has no cause.
    let is_cut = std::error::Error::source(status).is_some();
    match is_cut && url.starts_with("http:") {
        true => " (a host that speaks TLS has an address that begins with https://)",
        false => "",
    }
}

/// An error and what caused it, for a library that leaves its causes out of its text.
fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some say what their cause says.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Connects to a new worker of a host.
///
/// Each has a separate connection, so that a balancer can spread them, and so that what one
/// session sends keeps no other waiting.
pub(crate) async fn connect(
    host: &RemoteHost,
) -> Result<impl AsyncRead + AsyncWrite + Send + use<>, RemoteError> {
    let url = || host.shown();
    let address = host.address()?;
    let (tls, token) = (host.tls(&address)?, host.token(&address)?);
    let endpoint = Endpoint::from_shared(address.url).and_then(|endpoint| match tls {
        Some(tls) => endpoint.tls_config(tls),
        None => Ok(endpoint),
    });
    let endpoint = endpoint
        .map_err(|source| RemoteError::Tls { url: url(), source })?
        .http2_keep_alive_interval(ASK_AFTER)
        .keep_alive_timeout(ANSWER_WITHIN)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .tcp_nodelay(true);
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|source| RemoteError::Connect { url: url(), source })?;
    let (sending, chunks) = Sending::new();
    let mut request = Request::new(chunks);
    if let Some(token) = token {
        let mut value: MetadataValue<_> = format!("Bearer {token}")
            .parse()
            .map_err(|_| RemoteError::Token)?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    // The greeting goes out without waiting for the first word of an answer, which a
    // balancer may hold back until there is more of it.
    let answered = async move {
        let mut client =
            WorkersClient::new(channel).max_decoding_message_size(stream::MAX_CHUNK * 2);
        client.serve(request).await.map(Response::into_inner)
    };
    Ok(tokio::io::join(Receiving::new(answered), sending))
}

/// Why a worker could not be greeted: what its host said, where it is that.
pub(crate) fn refused(host: &RemoteHost, error: ConnectionError) -> RemoteError {
    let url = host.shown();
    let status = match &error {
        ConnectionError::Io(error) => error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Status>()),
        _ => None,
    };
    match status.cloned().map(Box::new) {
        Some(source) => RemoteError::Refused { url, source },
        None => RemoteError::Worker { url, source: error },
    }
}
