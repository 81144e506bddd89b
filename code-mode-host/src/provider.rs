//! The provider: sessions, and the workers they share.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_protocol::{
    CodeModeSession, CodeModeSessionDelegate, CodeModeSessionProvider, SessionError, SessionOptions,
};
use tokio_util::sync::CancellationToken;

use crate::lend::LentWorker;
use crate::process::{Purpose, SpawnError};
use crate::session::{HostSession, Settings, Shared};
use crate::source::Source;
use crate::spares::Workers;
use crate::worker::{ConnectionError, WorkerStats};
use crate::{ProviderOptions, RemoteError};

/// How long a callback that was cancelled may take to return before its cell's end is
/// reported without it.
const CALLBACK_GRACE: Duration = Duration::from_millis(500);

/// How long an observation may last beyond its time where a worker does not answer.
const COLLECT_GRACE: Duration = Duration::from_secs(10);

/// Makes sessions whose cells run in worker processes.
///
/// Its methods must be called within a tokio runtime with I/O and time. Dropping it
/// shuts every session down and ends every process it started.
pub struct Provider {
    workers: Arc<Workers>,
    token: CancellationToken,
    sessions: Mutex<Vec<Weak<Shared>>>,
}

/// No worker can be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The worker program is not there, or could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A worker was started, or was there, and cannot be used.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// There is nobody at the socket, or it is another user's.
    #[error("cannot connect to a worker at {}: {error}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The refusal.
        #[source]
        error: io::Error,
    },
    /// The host of workers on another machine cannot be used.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Workers that are no processes of this program's cannot be lent.
    #[error("there are no worker processes here to lend")]
    NothingToLend,
    /// Layers of the sandbox are missing and were required.
    #[error("the sandbox is not complete: {0}")]
    Sandbox(String),
    /// The worker at the socket was used by a session already.
    #[error("the worker that was connected to serves one session only")]
    Used,
    /// Shutdown has begun.
    #[error("the provider is shutting down")]
    ShuttingDown,
}

impl From<ProviderError> for SessionError {
    fn from(error: ProviderError) -> Self {
        match error {
            ProviderError::ShuttingDown => Self::ShuttingDown,
            error => Self::Unavailable(Arc::new(error)),
        }
    }
}

impl Provider {
    /// A provider with these options; starts the spare workers that they ask for at once.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`SpawnError::NotFound`] where the worker program must be found and is not
    /// there.
    pub fn new(options: ProviderOptions) -> Result<Self, ProviderError> {
        let token = CancellationToken::new();
        let spares = options.prewarmed;
        let source = Source::new(options, Purpose::Serve)?;
        Ok(Self {
            workers: Workers::new(source, spares, token.clone()),
            token,
            sessions: Mutex::default(),
        })
    }

    /// Shuts every session down; returns when their processes have ended.
    pub async fn shutdown(&self) {
        self.token.cancel();
        let sessions: Vec<_> = self.sessions().drain(..).collect();
        let sessions: Vec<_> = sessions.iter().filter_map(Weak::upgrade).collect();
        self.workers.clear();
        let shutdowns = sessions.iter().map(Shared::shut_down_and_wait);
        futures::future::join_all(shutdowns).await;
    }

    /// Starts a worker for a provider elsewhere, which reaches it by way of
    /// [`WorkerSource::Remote`](crate::WorkerSource::Remote). Its sessions' limits are at
    /// most [`ProviderOptions::limits`](field@ProviderOptions::limits) of this one.
    ///
    /// # Errors
    /// [`ProviderError::ShuttingDown`], [`ProviderError::Spawn`], and
    /// [`ProviderError::NothingToLend`] where workers are not processes.
    pub async fn lend(&self) -> Result<LentWorker, ProviderError> {
        match self.token.is_cancelled() {
            true => Err(ProviderError::ShuttingDown),
            false => self.workers.source().lend().await,
        }
    }

    /// Figures of the workers now.
    pub fn workers(&self) -> WorkerStats {
        self.workers.source().census().stats()
    }

    /// Memory of the workers that are there, in bytes: resident pages, those that several
    /// workers share counted for each. It reads a file for each worker. 0 where the system
    /// has no `/proc`, and for workers that are no processes of this program's.
    pub fn worker_memory(&self) -> u64 {
        self.workers.source().census().resident_bytes()
    }

    fn sessions(&self) -> MutexGuard<'_, Vec<Weak<Shared>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provider")
            .field("options", self.workers.source().options())
            .finish_non_exhaustive()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

#[async_trait]
impl CodeModeSessionProvider for Provider {
    async fn open_session(
        &self,
        delegate: Arc<dyn CodeModeSessionDelegate>,
        session: SessionOptions,
    ) -> Result<Arc<dyn CodeModeSession>, SessionError> {
        if self.token.is_cancelled() {
            return Err(SessionError::ShuttingDown);
        }
        let worker = self.workers.prove().await?;
        let options = self.workers.source().options();
        let limits = session.limits.clone();
        let limits = limits.unwrap_or_else(|| options.limits.clone());
        let settings = Settings {
            stop_grace: options.stop_grace,
            callback_grace: CALLBACK_GRACE,
            collect_grace: COLLECT_GRACE,
            // What was connected to once cannot be replaced.
            idle: match self.workers.source().can_start_many() {
                true => options.idle_timeout,
                false => Duration::MAX,
            },
        };
        let shared = Shared::open(
            self.workers.clone(),
            delegate,
            (limits, settings),
            session,
            self.token.child_token(),
        )?;
        if let Some(worker) = worker {
            shared.attach(worker);
        }
        let mut sessions = self.sessions();
        if sessions.len() == sessions.capacity() {
            sessions.retain(|known| known.strong_count() > 0);
        }
        sessions.push(Arc::downgrade(&shared));
        Ok(Arc::new(HostSession::new(shared)))
    }
}
