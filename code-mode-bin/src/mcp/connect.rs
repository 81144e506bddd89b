//! Connecting to a server: its program or its address, and the greeting.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use rmcp::model::{
    ClientCapabilities, ClientConfig, ElicitRequestParams, ElicitResult, Implementation,
    ProtocolVersion,
};
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, NotificationContext, RequestContext,
    RunningService, serve_client_with_lifecycle,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientHandler, ErrorData, RoleClient};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;

use super::config::{Server, Transport};
use super::lines::{Lines, MAX_MESSAGE};
use super::sse;
use super::stdio_server::{Era, Probed, ServerProcess, StartError, probe};
use super::texts::short;
use super::upstream::Ears;

/// The client's side of a connection to a server.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) name: String,
    pub(super) relist: Arc<Notify>,
    pub(super) ears: Arc<Ears>,
}

impl ClientHandler for Client {
    fn get_info(&self) -> ClientConfig {
        let mut capabilities = ClientCapabilities::builder().enable_elicitation().build();
        // Whether a page can be opened is asked when a server wants one.
        capabilities.elicitation = serde_json::from_value(json!({"form": {}, "url": {}})).ok();
        let mut config = ClientConfig::new(
            capabilities,
            Implementation::new("code-mode", env!("CARGO_PKG_VERSION")),
        );
        // A handshake is of the era of sessions.
        config.protocol_version = ProtocolVersion::V_2025_11_25;
        config
    }

    async fn create_elicitation(
        &self,
        params: ElicitRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        Ok(self.ears.answers.elicit(&self.name, params).await)
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.relist.notify_one();
    }
}

pub(super) type Running = RunningService<RoleClient, Client>;

/// Why a server could not be connected to.
pub(super) struct Refused {
    pub(super) why: String,
    /// When to try again; `None`: not by itself.
    pub(super) retry: Option<Retry>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    Soon,
    /// The program may be installed one day.
    NotFound,
}

impl Refused {
    fn soon(why: impl ToString) -> Self {
        Self {
            why: why.to_string(),
            retry: Some(Retry::Soon),
        }
    }
}

/// A connection to the server, greeted, and its process where it has one.
pub(super) async fn connect(
    config: &Server,
    client: Client,
) -> Result<(Running, Option<ServerProcess>), Refused> {
    let limit = config.startup_timeout;
    match &config.transport {
        Transport::Stdio { .. } => connect_stdio(config, client).await,
        Transport::Http { url, headers } => {
            let transport = http_transport(url, headers).map_err(Refused::soon)?;
            let lifecycle = ClientLifecycleMode::Auto {
                preferred_versions: vec![ProtocolVersion::V_2026_07_28],
                legacy_version: Some(ProtocolVersion::V_2025_11_25),
            };
            let running = serve_client_with_lifecycle(client, transport, lifecycle);
            match tokio::time::timeout(limit, running).await {
                Ok(Ok(running)) => Ok((running, None)),
                Ok(Err(error))
                    if error.is_authorization_required() || http_words(&error).contains("403") =>
                {
                    Err(Refused {
                        why: format!(
                            "needs a login: put a token into the headers of {:?}",
                            config.name
                        ),
                        retry: None,
                    })
                }
                Ok(Err(error)) => Err(Refused::soon(http_words(&error))),
                Err(_) => Err(Refused::soon(format!("no answer within {limit:?}"))),
            }
        }
        Transport::Sse { url, headers } => {
            let transport = sse::connect(url, headers).await.map_err(Refused::soon)?;
            let running =
                serve_client_with_lifecycle(client, transport, ClientLifecycleMode::Initialize);
            match tokio::time::timeout(limit, running).await {
                Ok(Ok(running)) => Ok((running, None)),
                Ok(Err(error)) => Err(Refused::soon(http_words(&error))),
                Err(_) => Err(Refused::soon(format!("no answer within {limit:?}"))),
            }
        }
    }
}

/// Starts the program and greets it: in the way it answers a probe, and without one
/// where it does not survive that.
async fn connect_stdio(
    config: &Server,
    client: Client,
) -> Result<(Running, Option<ServerProcess>), Refused> {
    let limit = config.startup_timeout;
    let mut way = None;
    for attempt in 0..3 {
        let started = ServerProcess::start(config, &client.ears.secrets);
        let (process, mut stdin, mut stdout) = started.map_err(|error| Refused {
            why: error.to_string(),
            retry: Some(match error {
                StartError::NotFound(_) => Retry::NotFound,
                StartError::Spawn(_) => Retry::Soon,
            }),
        })?;
        let (era, read_already) = match way {
            Some(era) => (era, Vec::new()),
            None => match probe(&mut stdin, &mut stdout).await {
                Probed::Speaks(era, read) => (era, read),
                Probed::Ended if attempt == 0 => {
                    way = Some(Era::Legacy);
                    continue;
                }
                Probed::Ended => return Err(Refused::soon(ended_how(process).await)),
            },
        };
        let lifecycle = match era {
            Era::Modern => ClientLifecycleMode::Discover {
                preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            },
            Era::Legacy => ClientLifecycleMode::Initialize,
        };
        let stdout = std::io::Cursor::new(read_already).chain(stdout);
        let transport = Lines::new(tokio::io::BufReader::new(stdout), stdin);
        let greeting = serve_client_with_lifecycle(client.clone(), transport, lifecycle);
        match tokio::time::timeout(limit, greeting).await {
            Ok(Ok(running)) => return Ok((running, Some(process))),
            // It has taken the probe for its era after all.
            Ok(Err(ClientInitializeError::JsonRpcError(error)))
                if error.code.0 == -32022 && era == Era::Legacy =>
            {
                way = Some(Era::Modern);
            }
            Ok(Err(ClientInitializeError::ConnectionClosed(_))) if way.is_none() && attempt < 2 => {
                way = Some(Era::Legacy);
            }
            Ok(Err(ClientInitializeError::ConnectionClosed(_))) => {
                return Err(Refused::soon(ended_how(process).await));
            }
            Ok(Err(error)) => {
                let why = format!("the greeting failed: {}", short(&error.to_string()));
                return Err(Refused::soon(with_last_words(why, &process)));
            }
            Err(_) => {
                let why = format!("no answer to the greeting within {limit:?}");
                return Err(Refused::soon(with_last_words(why, &process)));
            }
        }
    }
    Err(Refused::soon("no way to greet it was found"))
}

/// Ends a server that was greeted and is not wanted.
pub(super) async fn end(running: Running, process: Option<ServerProcess>) {
    let _ = running.cancel().await;
    if let Some(process) = process {
        process.end().await;
    }
}

pub(super) async fn ended_how(mut process: ServerProcess) -> String {
    let status = tokio::time::timeout(Duration::from_secs(1), process.ended()).await;
    let how = match status {
        Ok(Some(status)) => format!("ended ({status})"),
        _ => "closed its output".to_owned(),
    };
    with_last_words(how, &process)
}

fn with_last_words(what: String, process: &ServerProcess) -> String {
    match process.last_words() {
        words if words.is_empty() => what,
        words => format!("{what}: {words}"),
    }
}

/// A failure of HTTP in words: its status or its kind, never the body a server sent.
pub(super) fn http_words(error: &dyn std::fmt::Display) -> String {
    let text = without_addresses(&error.to_string());
    let status = text
        .split(|c: char| !c.is_ascii_digit())
        .find(|digits| digits.len() == 3 && (digits.starts_with('4') || digits.starts_with('5')));
    match status {
        Some("401" | "403") => format!(
            "the server answered with status {}: it needs a login, or another token in its headers",
            status.unwrap_or_default()
        ),
        Some(status) => format!("the server answered with status {status}"),
        None if text.contains("redirect") => "the server redirects to another origin".to_owned(),
        None if text.contains("onnect") || text.contains("sending request") => {
            "the server cannot be reached".to_owned()
        }
        None if text.contains("imed out") || text.contains("timeout") => {
            "the server does not answer".to_owned()
        }
        None => "the server's answer is no message of the protocol".to_owned(),
    }
}

/// The text without the addresses in it, whose numbers and words say nothing.
fn without_addresses(text: &str) -> String {
    let mut pieces = text.split(" for url (");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |text, piece| {
        text + piece.split_once(')').map_or("", |(_, rest)| rest)
    })
}

fn http_transport(
    url: &str,
    headers: &BTreeMap<String, String>,
) -> Result<StreamableHttpClientTransport<reqwest::Client>, String> {
    let mut config = StreamableHttpClientTransportConfig::with_uri(url)
        .max_sse_event_size(MAX_MESSAGE)
        .max_json_response_size(MAX_MESSAGE)
        .max_concurrent_requests(256)
        // A call is not sent again on a new session: it may have run.
        .reinit_on_expired_session(false);
    config = config.custom_headers(header_map(headers)?);
    let client = sse::http_client()?;
    Ok(StreamableHttpClientTransport::with_client(client, config))
}

/// Headers of a configuration.
pub(super) fn header_map(
    headers: &BTreeMap<String, String>,
) -> Result<HashMap<HeaderName, HeaderValue>, String> {
    let mut map = HashMap::new();
    for (name, value) in headers {
        let name: HeaderName = name
            .parse()
            .map_err(|_| format!("headers: {name:?} is no name of a header"))?;
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| format!("headers.{name}: not the value of a header"))?;
        value.set_sensitive(true);
        map.insert(name, value);
    }
    Ok(map)
}
