//! Why a server cannot be reached, and why a call gave no result.

use std::error::Error;
use std::time::Duration;

use code_mode_protocol::text::line;
use rmcp::ErrorData;
use rmcp::service::ClientInitializeError;
use rmcp::transport::streamable_http_client::StreamableHttpError;

use super::helper::HelperError;
use crate::config::ServerConfig;
use crate::login::Login;

/// Why a call gave no result.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The call was never sent.
    NotSent(String),
    /// The call was sent, and its outcome is unknown.
    MayHaveRun(String),
    /// The server answered with an error.
    Rpc(ErrorData),
}

/// Why a server could not be connected to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Start(#[from] StartError),
    /// The program ended, or closed its output; how, with its last words.
    #[error("{0}")]
    Ended(String),
    #[error("the greeting failed: {0}")]
    Greeting(String),
    #[error("no answer to the greeting within {limit:?}{last_words}")]
    Silent { limit: Duration, last_words: String },
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("no way to greet it was found")]
    NoWay,
    /// What a person has to do, in words.
    #[error("{0}")]
    NeedsLogin(String),
    #[error("its login cannot be renewed now")]
    NotRenewed,
    /// No login can help: the configuration has what the server refuses.
    #[error("{0}: it needs other credentials in the headers of {1:?}")]
    NeedsHeaders(HttpFailure, String),
    #[error("headersHelper: {0}")]
    Helper(#[from] HelperError),
    #[error(transparent)]
    Http(#[from] HttpFailure),
    #[error("{0}")]
    Header(#[from] HeaderError),
    #[error("no client for HTTP: {0}")]
    Client(#[source] reqwest::Error),
    #[error("the stream names no address to post to")]
    NoEndpoint,
    #[error("the stream names an address that cannot be used: {0}")]
    BadEndpoint(#[source] url::ParseError),
    #[error("the stream names an address of another origin")]
    ForeignEndpoint,
    #[error("its tools cannot be listed: {0}")]
    Listing(String),
    #[error("its tools cannot be listed in time")]
    ListingTimedOut,
}

/// Why a server's program does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The program does not exist.
    #[error("not found: {0}")]
    NotFound(String),
    /// It cannot be started.
    #[error("cannot be started: {0}")]
    Spawn(std::io::Error),
}

/// Why a message could not be posted to a server with two addresses.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SseError {
    #[error("the message cannot be encoded: {0}")]
    Encode(#[source] serde_json::Error),
    #[error("the message could not be posted: {0}")]
    Post(#[source] reqwest::Error),
    #[error("the server answered the message with status {0}")]
    Status(u16),
}

/// When to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    Soon,
    /// The program may be installed one day.
    Rarely,
    /// Once a person has logged in.
    AtLogin,
    /// Only when the configuration changes.
    Never,
}

impl ConnectError {
    /// A failure of a connection to this server, to which a person may be able to log in.
    pub(super) fn of_http(
        failure: HttpFailure,
        server: &ServerConfig,
        login: Option<&Login>,
    ) -> Self {
        let has_helper = server
            .address()
            .is_some_and(|address| address.headers_helper.is_some());
        match failure.login_words(&server.name) {
            Some(_) if login.is_some_and(Login::failed_for_now) => Self::NotRenewed,
            Some(words) if login.is_some() => Self::NeedsLogin(words),
            // The helper may have other headers soon.
            Some(_) if !has_helper => Self::NeedsHeaders(failure, server.name.clone()),
            _ => failure.into(),
        }
    }

    pub(crate) fn retry(&self) -> Retry {
        match self {
            Self::NeedsLogin(_) => Retry::AtLogin,
            Self::NeedsHeaders(..) => Retry::Never,
            Self::Start(StartError::NotFound(_)) => Retry::Rarely,
            _ => Retry::Soon,
        }
    }
}

/// A header of a configuration that HTTP does not allow.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("headers: {0:?} is not the name of a header")]
    Name(String),
    #[error("headers.{0}: not the value of a header")]
    Value(String),
}

/// How a request over HTTP failed: never with the body that a server sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HttpFailure {
    /// The server refuses the credentials, or wants some.
    #[error("the server answered with status {0}")]
    Unauthorized(u16),
    /// It wants these scopes, which it may not name.
    #[error("the server wants more scopes")]
    MissingScopes(Option<String>),
    #[error("the server answered with status {0}")]
    Status(u16),
    /// The server no longer knows the session.
    #[error("the server answered with status 404")]
    SessionExpired,
    #[error("the server redirects to another origin")]
    Redirect,
    #[error("the server cannot be reached")]
    Unreachable,
    #[error("the server does not answer")]
    TimedOut,
    #[error("the server's answer is not a message of the protocol")]
    NotTheProtocol,
}

impl HttpFailure {
    /// Whether the server refused the request for the sake of who asked: it did nothing.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Unauthorized(_) | Self::MissingScopes(_))
    }

    /// What a person has to do about it who can log in to this server.
    pub(crate) fn login_words(&self, server: &str) -> Option<String> {
        let server = quoted(&line(server, 100))?;
        let scopes = match self {
            Self::Unauthorized(401) => {
                return Some(format!("needs a login: `code-mode mcp login {server}`"));
            }
            Self::MissingScopes(scopes) => scopes.as_deref().unwrap_or_default(),
            _ => return None,
        };
        // The server's words become a part of a command only where no shell can misread them.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._:/+-".contains(c);
        let all = scopes.split_whitespace().take(20);
        let all = all.filter(|scope| scope.len() <= 100 && scope.chars().all(is_plain));
        let plain = all.filter(|scope| scope.starts_with(|c: char| c.is_ascii_alphanumeric()));
        let options: String = plain.map(|scope| format!(" --scope {scope}")).collect();
        Some(format!(
            "needs a login for more: `code-mode mcp login {server}{options}`"
        ))
    }

    fn status(status: u16) -> Self {
        match status {
            401 | 403 => Self::Unauthorized(status),
            status => Self::Status(status),
        }
    }

    /// The failure in the chain of an error's sources.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<StreamableHttpError<reqwest::Error>>() {
                return Self::of_streamable(error);
            }
            if let Some(error) = error.downcast_ref::<reqwest::Error>() {
                return Self::of_reqwest(error);
            }
            match error.downcast_ref::<SseError>() {
                Some(SseError::Status(status)) => return Self::status(*status),
                Some(SseError::Post(error)) => return Self::of_reqwest(error),
                Some(SseError::Encode(_)) | None => {}
            }
            next = error.source();
        }
        Self::NotTheProtocol
    }

    /// The failure of a greeting.
    pub(crate) fn of_greeting(error: &ClientInitializeError) -> Self {
        match error {
            ClientInitializeError::TransportError { error, .. } => Self::of(error.error.as_ref()),
            // The older handshake was tried last.
            ClientInitializeError::LegacyFallbackFailed { fallback, .. } => {
                Self::of_greeting(fallback)
            }
            _ => Self::NotTheProtocol,
        }
    }

    fn of_streamable(error: &StreamableHttpError<reqwest::Error>) -> Self {
        match error {
            StreamableHttpError::Client(error) => Self::of_reqwest(error),
            StreamableHttpError::HttpStatus(error) => Self::status(error.status),
            StreamableHttpError::AuthRequired(_) => Self::Unauthorized(401),
            StreamableHttpError::InsufficientScope(error) => {
                Self::MissingScopes(error.required_scope.clone())
            }
            StreamableHttpError::SessionExpired => Self::SessionExpired,
            // The library has no type for other statuses: its text begins with `HTTP`, the
            // status and a space.
            StreamableHttpError::UnexpectedServerResponse(text) => text
                .strip_prefix("HTTP ")
                .and_then(|rest| rest.get(..3)?.parse().ok())
                .map_or(Self::NotTheProtocol, Self::status),
            StreamableHttpError::SessionRecoveryTimeout
            | StreamableHttpError::ControlRequestTimeout => Self::TimedOut,
            StreamableHttpError::UnexpectedEndOfStream
            | StreamableHttpError::TransportChannelClosed
            | StreamableHttpError::Io(_) => Self::Unreachable,
            _ => Self::NotTheProtocol,
        }
    }

    pub(crate) fn of_reqwest(error: &reqwest::Error) -> Self {
        match error.status() {
            Some(status) => Self::status(status.as_u16()),
            None if error.is_redirect() => Self::Redirect,
            None if error.is_timeout() => Self::TimedOut,
            None if error.is_connect() || error.is_request() => Self::Unreachable,
            None => Self::NotTheProtocol,
        }
    }
}

/// A name as a shell reads it.
fn quoted(name: &str) -> Option<String> {
    let quoted = shlex::try_quote(name).ok()?;
    Some(quoted.into_owned())
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use rmcp::transport::streamable_http_client::{AuthRequiredError, HttpStatusError};

    use super::*;

    #[test]
    fn a_server_puts_no_command_into_the_words_for_a_login() {
        let words = |scopes: &str| {
            let failure = HttpFailure::MissingScopes(Some(scopes.to_owned()));
            failure.login_words("my server").expect("words")
        };
        assert_eq!(
            words("repo;rm files:read $(x) `y` |z * /* =ls --no-browser @x"),
            "needs a login for more: `code-mode mcp login 'my server' --scope files:read`"
        );
    }

    #[test]
    fn a_failure_is_known_by_its_type_and_never_by_a_servers_words() {
        type Http = StreamableHttpError<reqwest::Error>;
        let unexpected = |text: &'static str| Http::UnexpectedServerResponse(Cow::Borrowed(text));
        for (error, failure) in [
            (
                Http::HttpStatus(HttpStatusError::new(503, None)),
                HttpFailure::Status(503),
            ),
            (
                Http::AuthRequired(AuthRequiredError::new("Bearer".to_owned())),
                HttpFailure::Unauthorized(401),
            ),
            (Http::SessionExpired, HttpFailure::SessionExpired),
            (
                unexpected("HTTP 403 Forbidden: 500"),
                HttpFailure::Unauthorized(403),
            ),
            (
                unexpected("HTTP 400 Bad Request: 404 session"),
                HttpFailure::Status(400),
            ),
            (
                unexpected("503 timeout 404 session"),
                HttpFailure::NotTheProtocol,
            ),
        ] {
            assert_eq!(HttpFailure::of(&error), failure, "{error}");
        }
    }
}
