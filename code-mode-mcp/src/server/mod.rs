//! The server in front: an MCP client's requests become cells.

mod answer;
mod arguments;
mod cell;
mod changes;
mod client;
mod definitions;
mod delegate;
mod direct;
mod durable;
mod exec;
mod handler;
mod http;
mod http_sessions;
mod in_flight;
mod kept;
mod observe;
mod progress;
mod questions;
mod seal;
mod session;
mod sessions;
#[cfg(unix)]
mod socket;
mod store;
mod stream;
#[cfg(test)]
mod tests;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use code_mode_host::Provider;
use code_mode_system::{Listener, TokenFile};
use rmcp::ErrorData;
use rmcp::model::{CallToolResponse, CallToolResult, ContentBlock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use durable::{DurableError, DurableFolder};
pub use http::MAX_CONNECTIONS as MAX_HTTP_CONNECTIONS;
pub use store::Store;

use crate::broker::Broker;
use crate::policy::Pattern;
use seal::Seal;
use sessions::Sessions;

type Response = Result<CallToolResponse, ErrorData>;

/// The answer to a request that its client has cancelled.
fn cancelled() -> Response {
    Err(ErrorData::internal_error("cancelled", None))
}

/// A failure that the model can read.
fn failure(text: impl Into<String>) -> CallToolResponse {
    CallToolResult::error(vec![ContentBlock::text(text.into())]).into()
}

/// What all clients of a gateway share.
struct Shared {
    broker: Arc<Broker>,
    sessions: Arc<Sessions>,
    direct: Vec<Pattern>,
    patience: Option<Duration>,
    seal: Seal,
    /// Room for programs that have not begun, in KiB.
    not_begun: Arc<Semaphore>,
}

/// The bytes that programs of all clients may have which have not begun.
const MAX_NOT_BEGUN: usize = 256 << 20;

impl Shared {
    /// Room for a program of so many bytes until it begins; `None` where others take it all.
    fn room_for(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024)).ok()?;
        self.not_begun.clone().try_acquire_many_owned(kib).ok()
    }
}

/// How a gateway serves its clients.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct GatewayOptions {
    /// Tools that are offered beside `exec`. Default none.
    pub direct: Vec<Pattern>,
    /// Keeps stored values from one session to the next. Default nowhere.
    pub store: Option<Store>,
    /// Keeps sessions with their programs and questions, so that they outlive the gateway. Default
    /// nowhere.
    pub durable: Option<DurableFolder>,
    /// The longest time until an answer to a client that shows no progress: then the program is
    /// left running. Default 50 s, and 4 s for a client that has the name of its library.
    pub patience: Option<Duration>,
}

/// A gateway: clients in front, a [`Broker`] with its servers behind, and a session of cells
/// for each client.
pub struct Gateway(Arc<Shared>);

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gateway")
    }
}

impl Gateway {
    /// A gateway over a broker, whose programs run as cells of the provider. Must be called within
    /// a tokio runtime.
    pub fn new(broker: Arc<Broker>, provider: Arc<Provider>, options: GatewayOptions) -> Self {
        let seal = match &options.durable {
            Some(folder) => Seal::with(folder.key.clone()),
            None => Seal::new(),
        };
        Self(Arc::new(Shared {
            sessions: Sessions::new(broker.clone(), provider, options.store, options.durable),
            broker,
            direct: options.direct,
            patience: options.patience,
            seal,
            not_begun: Arc::new(Semaphore::new(MAX_NOT_BEGUN / 1024)),
        }))
    }

    /// Continues the sessions of the folder for durable ones. It returns when they are there; their programs
    /// run on.
    pub async fn resume(&self) {
        self.0.sessions.resume().await;
    }

    /// Serves the client at standard input and output until it leaves, or
    /// [`shut_down`](Self::shut_down) is called.
    pub async fn serve_stdio(&self) {
        let stdin = tokio::io::BufReader::new(tokio::io::stdin());
        stream::serve(self.0.clone(), stdin, tokio::io::stdout(), |_| {}).await;
    }

    /// Serves the clients of shims that connect to a socket of this user, until nobody has been
    /// connected for `linger`, or [`shut_down`](Self::shut_down) is called.
    #[cfg(unix)]
    pub async fn serve_socket(&self, listener: Listener, linger: Duration) {
        socket::serve(&self.0, listener, linger).await;
    }

    /// Serves streamable HTTP at `/mcp` until [`shut_down`](Self::shut_down) is called.
    /// `tokens`: who may use it; empty means everybody who reaches the address.
    pub async fn serve_http(&self, listener: Listener, tokens: Option<TokenFile>) {
        http::serve(self.0.clone(), listener, tokens).await;
    }

    /// Stops taking requests.
    pub fn shut_down(&self) {
        self.0.broker.shutdown.cancel();
    }

    /// Ends every cell, saves stored values, and ends the servers.
    pub async fn end(&self) {
        self.0.sessions.end().await;
        self.0.broker.end().await;
    }
}
