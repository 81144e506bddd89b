//! Connecting to a server: its program or its address, and the greeting.

use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{
    ClientCapabilities, ClientConfig, ElicitRequestParams, ElicitResult, Implementation,
    ProtocolVersion,
};
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, NotificationContext, RequestContext,
    RunningService, serve_client_with_lifecycle,
};
use rmcp::transport::Transport as Connection;
use rmcp::{ClientHandler, ErrorData, RoleClient};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::error::{ConnectError, HttpFailure};
use super::start::Start;
use super::transport::{
    Bounded, Era, Lines, Probed, ServerProcess, connect_sse, probe, streamable_http,
};
use super::{UpstreamEvents, helper};
use crate::config::{STARTUP, ServerConfig, Transport};
use crate::login::Login;
use crate::texts::short;

/// The client's side of a connection to a server.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) name: String,
    pub(crate) relist: Arc<Notify>,
    pub(crate) events: Arc<UpstreamEvents>,
    pub(super) start: Start,
}

impl ClientHandler for Client {
    fn get_info(&self) -> ClientConfig {
        let mut capabilities = ClientCapabilities::builder()
            .enable_elicitation()
            .enable_tasks()
            .build();
        // The client's ability to open a page is checked when a server wants one.
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
        Ok(self.events.elicitations.elicit(&self.name, params).await)
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.relist.notify_one();
    }
}

pub(crate) type Running = RunningService<RoleClient, Client>;

/// A connection to the server, greeted, and its process where it has one.
pub(crate) async fn connect(
    config: &ServerConfig,
    client: Client,
    login: Option<&Login>,
) -> Result<(Running, Option<ServerProcess>), ConnectError> {
    let limit = config.startup_timeout;
    match &config.transport {
        Transport::Stdio { .. } => connect_stdio(config, client).await,
        Transport::Http(address) => {
            let headers = helper::headers(config, address, &client.events.secrets).await?;
            let greeting = async |lifecycle| {
                let transport = streamable_http(&address.url, &headers, login.cloned())?;
                let running = greet(client.clone(), transport, lifecycle).await;
                running.map_err(|error| HttpFailure::of_greeting(&error).into())
            };
            let greeted = async {
                let both = ClientLifecycleMode::Auto {
                    preferred_versions: vec![ProtocolVersion::V_2026_07_28],
                    legacy_version: Some(ProtocolVersion::V_2025_11_25),
                };
                match greeting(both).await {
                    // Some older servers answer a method that they do not know with an empty result.
                    Err(ConnectError::Http(HttpFailure::NotTheProtocol)) => {
                        greeting(ClientLifecycleMode::Initialize).await
                    }
                    greeted => greeted,
                }
            };
            match tokio::time::timeout(limit, greeted).await {
                Ok(Ok(running)) => Ok((running, None)),
                Ok(Err(ConnectError::Http(failure))) => {
                    Err(ConnectError::of_http(failure, config, login))
                }
                Ok(Err(error)) => Err(error),
                Err(_) => Err(ConnectError::TimedOut(limit)),
            }
        }
        Transport::Sse(address) => {
            let mut headers = helper::headers(config, address, &client.events.secrets).await?;
            if let Some(login) = login
                && let Some(token) = login.token().await
            {
                headers.insert("Authorization".to_owned(), format!("Bearer {token}"));
            }
            let until = tokio::time::Instant::now() + limit;
            let connected = async {
                let transport = connect_sse(&address.url, &headers).await?;
                let running = greet(client, transport, ClientLifecycleMode::Initialize).await;
                running.map_err(|error| HttpFailure::of_greeting(&error).into())
            };
            match tokio::time::timeout_at(until, connected).await {
                Ok(Ok(running)) => Ok((running, None)),
                Ok(Err(ConnectError::Http(failure))) => {
                    if let (HttpFailure::Unauthorized(401), Some(login)) = (&failure, login)
                        && let Some(refused) = login.saved_token()
                    {
                        // The next attempt has the new one.
                        let _ = login.instead_of(&refused).await;
                    }
                    Err(ConnectError::of_http(failure, config, login))
                }
                Ok(Err(error)) => Err(error),
                Err(_) => Err(ConnectError::TimedOut(limit)),
            }
        }
        #[cfg(test)]
        Transport::Memory(script) => {
            let (read, write) = tokio::io::split(script.start());
            let transport = Lines::new(tokio::io::BufReader::new(read), write);
            let running = greet(client, transport, ClientLifecycleMode::Initialize).await;
            running
                .map(|running| (running, None))
                .map_err(|error| ConnectError::Greeting(error.to_string()))
        }
    }
}

/// Greets a server over a connection whose messages are bounded.
async fn greet<T: Connection<RoleClient> + 'static>(
    client: Client,
    transport: T,
    lifecycle: ClientLifecycleMode,
) -> Result<Running, ClientInitializeError> {
    serve_client_with_lifecycle(client, Bounded::new(transport), lifecycle).await
}

/// Starts the program and greets it: in the way it answers a probe, and without one
/// where it does not survive that.
async fn connect_stdio(
    config: &ServerConfig,
    client: Client,
) -> Result<(Running, Option<ServerProcess>), ConnectError> {
    let began = Instant::now();
    let limit = config.startup_timeout;
    let mut way = None;
    for attempt in 0..3 {
        let (process, mut stdin, mut stdout) =
            ServerProcess::start(config, &client.events.secrets)?;
        client.start.hears(process.last_words());
        let (era, read_already) = match way {
            Some(era) => (era, Vec::new()),
            None => match probe(&mut stdin, &mut stdout, began + limit).await {
                Probed::Speaks(era) => (era, Vec::new()),
                Probed::Silent(read) => (Era::Legacy, read),
                Probed::Ended if attempt == 0 => {
                    way = Some(Era::Legacy);
                    continue;
                }
                Probed::Ended => return Err(ConnectError::Ended(ended_how(process).await)),
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
        let late_probe = transport.late_probe();
        let greeting = greet(client.clone(), transport, lifecycle);
        let in_time = async {
            tokio::select! {
                greeted = greeting => Ok(greeted),
                limit = too_late(config, &process, began) => Err(limit),
            }
        };
        match in_time.await {
            Ok(Ok(running)) => return Ok((running, Some(process))),
            // A slow server of the stateless era: it answered the probe after the greeting.
            Ok(Err(_)) | Err(_) if way.is_none() && late_probe.era() == Some(Era::Modern) => {
                way = Some(Era::Modern);
            }
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
                return Err(ConnectError::Ended(ended_how(process).await));
            }
            // Its input cannot be written to.
            Ok(Err(ClientInitializeError::TransportError { .. })) => {
                return Err(ConnectError::Ended(ended_how(process).await));
            }
            Ok(Err(error)) => {
                let why = with_last_words(short(&error.to_string()), &process);
                return Err(ConnectError::Greeting(why));
            }
            Err(limit) => {
                let last_words = with_last_words(String::new(), &process);
                return Err(ConnectError::Silent { limit, last_words });
            }
        }
    }
    Err(ConnectError::NoWay)
}

/// Waits until a program has had its time to start; returns that time. Launchers download for a
/// minute at their first start, and say so: a program that has written to its standard error has
/// two minutes, where the configuration does not name a time.
async fn too_late(config: &ServerConfig, process: &ServerProcess, began: Instant) -> Duration {
    const BUSY: Duration = Duration::from_secs(120);
    const LOOK_EVERY: Duration = Duration::from_millis(500);
    loop {
        let is_silent = process.last_words().text().is_empty();
        let limit = match is_silent || config.startup_timeout != STARTUP {
            true => config.startup_timeout,
            false => BUSY,
        };
        let left = limit.saturating_sub(began.elapsed());
        if left.is_zero() {
            return limit;
        }
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
    }
}

/// Ends a server that was greeted and is not wanted.
pub(crate) async fn end(running: Running, process: Option<ServerProcess>) {
    let _ = running.cancel().await;
    if let Some(process) = process {
        process.end().await;
    }
}

pub(crate) async fn ended_how(mut process: ServerProcess) -> String {
    let status = tokio::time::timeout(Duration::from_secs(1), process.ended()).await;
    let how = match status {
        Ok(Some(status)) => format!("ended ({status})"),
        _ => "closed its output".to_owned(),
    };
    with_last_words(how, &process)
}

fn with_last_words(what: String, process: &ServerProcess) -> String {
    match process.last_words().text() {
        words if words.is_empty() => what,
        words => format!("{what}: {words}"),
    }
}
