//! Sessions over HTTP, and the requests that end with them.
//!
//! A client that deletes its session waits for nothing any more. The library continues to answer
//! the session's open requests for some seconds, in which a held program would begin. This module
//! cancels those requests at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::Stream;
use rmcp::model::{ClientJsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::common::server_side_http::ServerSseMessage;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::session::{SessionId, SessionManager};
use tokio_util::sync::CancellationToken;

/// The header by which a request names its session.
const SESSION: &str = "mcp-session-id";

/// Tokens of the sessions that are open, cancelled when one is closed.
#[derive(Clone, Debug, Default)]
pub(super) struct Closings(Arc<Mutex<HashMap<String, CancellationToken>>>);

impl Closings {
    fn open(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes when the session that a request names is closed; never where it names none.
    pub(super) async fn closed(&self, request: Option<&http::request::Parts>) {
        let id = request.and_then(|parts| parts.headers.get(SESSION)?.to_str().ok());
        let Some(id) = id else {
            return std::future::pending().await;
        };
        // One that is not there was closed a moment ago.
        let token = self.open().get(id).cloned();
        if let Some(token) = token {
            token.cancelled().await;
        }
    }
}

/// The library's sessions, with their closings.
#[derive(Debug, Default)]
pub(super) struct HttpSessions {
    pub(super) inner: LocalSessionManager,
    pub(super) closings: Closings,
}

impl SessionManager for HttpSessions {
    type Error = <LocalSessionManager as SessionManager>::Error;
    type Transport = <LocalSessionManager as SessionManager>::Transport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), Self::Error> {
        let (id, transport) = self.inner.create_session().await?;
        let token = CancellationToken::new();
        self.closings.open().insert(id.to_string(), token);
        Ok((id, transport))
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, Self::Error> {
        self.inner.initialize_session(id, message).await
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, Self::Error> {
        self.inner.has_session(id).await
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), Self::Error> {
        let token = self.closings.open().remove(&**id);
        if let Some(token) = token {
            token.cancel();
        }
        self.inner.close_session(id).await
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        self.inner.create_stream(id, message).await
    }

    async fn accept_message(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<(), Self::Error> {
        self.inner.accept_message(id, message).await
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        self.inner.create_standalone_stream(id).await
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        self.inner.resume(id, last_event_id).await
    }
}
