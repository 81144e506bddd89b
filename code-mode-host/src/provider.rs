//! The provider: workers for sessions, and the sessions.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_protocol::native::WorkerInfo;
use code_mode_protocol::{
    CodeModeSession, CodeModeSessionDelegate, CodeModeSessionProvider, Json, Limits, SessionError,
};
use interprocess::local_socket::tokio::{Stream, prelude::*};
use interprocess::local_socket::{GenericFilePath, ToFsName};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::connection::{Connection, ConnectionError};
use crate::process::{self, SpawnError};
use crate::worker::Worker;
use crate::{HostSession, ProviderOptions, Sandbox, WorkerSource, locate};

/// Makes sessions in worker processes.
///
/// Its methods must be called within a tokio runtime with I/O and time. Dropping
/// it shuts every session down and ends every process it started.
pub struct Provider {
    workers: Arc<Workers>,
    token: CancellationToken,
    sessions: Mutex<Vec<std::sync::Weak<HostSession>>>,
}

/// No worker can be had.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// It could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// It was started, or was there, and cannot be used.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// There is nobody at the socket, or it is not of this user.
    #[error("cannot connect to a worker at {}: {error}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The refusal.
        error: io::Error,
    },
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

/// Workers that are ready or about to be.
pub(crate) struct Workers {
    options: ProviderOptions,
    program: Option<PathBuf>,
    /// Being started, or ready for as long as their result is not taken.
    ahead: Mutex<VecDeque<Ahead>>,
    used: std::sync::atomic::AtomicBool,
    token: CancellationToken,
}

/// How long the start of a spare waits after a session took the one before: that
/// session's first cells are to have the processors for themselves. One that is wanted
/// before is started at once.
const REFILL_DELAY: Duration = Duration::from_millis(250);

/// A worker that was started ahead, or soon will be.
struct Ahead {
    worker: oneshot::Receiver<Result<Worker, ProviderError>>,
    /// A session waits for it: start now.
    wanted: Arc<Notify>,
}

impl Workers {
    fn ahead(&self) -> MutexGuard<'_, VecDeque<Ahead>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker for a session; one that was started ahead, if there is one.
    pub(crate) async fn take(self: &Arc<Self>) -> Result<Worker, ProviderError> {
        loop {
            let ready = self.ahead().pop_front();
            self.refill(REFILL_DELAY);
            let Some(ready) = ready else {
                return self.start().await;
            };
            ready.wanted.notify_one();
            match ready.worker.await {
                // It may have died while it waited for a session.
                Ok(Ok(mut worker)) => {
                    if !worker.child.as_mut().is_some_and(process::Child::has_ended) {
                        return Ok(worker);
                    }
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(ProviderError::ShuttingDown),
            }
        }
    }

    /// Starts as many workers as are to be kept ready, after a while.
    fn refill(self: &Arc<Self>, delay: Duration) {
        if self.program.is_none() || self.token.is_cancelled() {
            return;
        }
        let mut ahead = self.ahead();
        while ahead.len() < self.options.prewarmed {
            let (ready, receiver) = oneshot::channel();
            let workers = Arc::downgrade(self);
            let token = self.token.clone();
            let wanted = Arc::new(Notify::new());
            ahead.push_back(Ahead {
                worker: receiver,
                wanted: wanted.clone(),
            });
            tokio::spawn(async move {
                tokio::select! {
                    () = token.cancelled() => return,
                    () = wanted.notified() => {}
                    // A timer of no time at all still takes a millisecond.
                    () = tokio::time::sleep(delay), if !delay.is_zero() => {}
                    () = std::future::ready(()), if delay.is_zero() => {}
                }
                let Some(workers) = workers.upgrade() else {
                    return;
                };
                tokio::select! {
                    () = token.cancelled() => {}
                    // Where nobody takes it any more, the worker is dropped and so
                    // killed.
                    started = workers.start() => drop(ready.send(started)),
                }
            });
        }
    }

    async fn start(&self) -> Result<Worker, ProviderError> {
        let worker = match (&self.program, &self.options.worker) {
            (Some(program), _) => {
                let started = process::start(program, &self.options).await?;
                self.greet(started.socket, Some(started.child)).await?
            }
            (None, WorkerSource::Socket(path)) => {
                if self.used.swap(true, std::sync::atomic::Ordering::Relaxed) {
                    return Err(ProviderError::Used);
                }
                let stream = connect(path)
                    .await
                    .map_err(|error| ProviderError::Connect {
                        path: path.clone(),
                        error,
                    })?;
                self.greet(stream, None).await?
            }
            (None, _) => return Err(SpawnError::NotFound.into()),
        };
        let missing = worker.connection.info.missing_layers();
        if !missing.is_empty() {
            match self.options.sandbox {
                Sandbox::Required => return Err(ProviderError::Sandbox(missing.join("; "))),
                Sandbox::BestEffort => {
                    tracing::info!(
                        "the worker's sandbox is not complete: {}",
                        missing.join("; ")
                    );
                }
                Sandbox::Off => {}
            }
        }
        Ok(worker)
    }

    async fn greet(
        &self,
        stream: Stream,
        child: Option<process::Child>,
    ) -> Result<Worker, ProviderError> {
        let memory = child.as_ref().and_then(process::Child::memory);
        let greeting = Connection::open(stream, memory);
        match tokio::time::timeout(self.options.handshake_timeout, greeting).await {
            Ok(Ok(connection)) => Ok(Worker { connection, child }),
            // The reason a worker refuses to lock itself in is the most useful
            // thing to say.
            Ok(Err(ConnectionError::Rejected(why)))
                if self.options.sandbox == Sandbox::Required =>
            {
                Err(ProviderError::Sandbox(why))
            }
            Ok(Err(ConnectionError::Ended)) => Err(match child {
                Some(mut child) => ConnectionError::Died(child.wait().await),
                None => ConnectionError::Ended,
            }
            .into()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(ConnectionError::TimedOut.into()),
        }
    }
}

/// Connects to a worker that listens, if it belongs to this user.
async fn connect(path: &std::path::Path) -> io::Result<Stream> {
    let stream = Stream::connect(path.to_fs_name::<GenericFilePath>()?).await?;
    #[cfg(target_os = "linux")]
    {
        let ours = rustix::process::geteuid().as_raw();
        let theirs = stream.peer_creds()?.euid();
        if theirs != Some(ours) && theirs != Some(0) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "it belongs to another user",
            ));
        }
    }
    Ok(stream)
}

impl Provider {
    /// A provider with these options; starts its first worker at once.
    ///
    /// # Errors
    /// [`SpawnError::NotFound`] where the worker program is to be found and is
    /// not there.
    pub fn new(options: ProviderOptions) -> Result<Self, ProviderError> {
        let program = match &options.worker {
            WorkerSource::Find => Some(locate::find().ok_or(SpawnError::NotFound)?),
            WorkerSource::Program(path) => Some(path.clone()),
            WorkerSource::Socket(_) => None,
        };
        let token = CancellationToken::new();
        let workers = Arc::new(Workers {
            options,
            program,
            ahead: Mutex::default(),
            used: std::sync::atomic::AtomicBool::new(false),
            token: token.clone(),
        });
        workers.refill(Duration::ZERO);
        Ok(Self {
            workers,
            token,
            sessions: Mutex::default(),
        })
    }

    /// Opens a session with limits of its own, and values that its cells find
    /// stored.
    ///
    /// # Errors
    /// As [`CodeModeSessionProvider::create_session`], and
    /// [`SessionError::Limit`] where the values are more than may be stored.
    pub async fn open_session(
        &self,
        delegate: Arc<dyn CodeModeSessionDelegate>,
        limits: Limits,
        stored: Vec<(String, Json)>,
    ) -> Result<Arc<HostSession>, SessionError> {
        if self.token.is_cancelled() {
            return Err(SessionError::ShuttingDown);
        }
        let options = ProviderOptions {
            limits,
            ..self.workers.options.clone()
        };
        let session = HostSession::open(
            self.workers.clone(),
            options,
            delegate,
            stored,
            self.token.child_token(),
        )
        .await?;
        let session = Arc::new(session);
        let mut sessions = self.sessions();
        sessions.retain(|known| known.strong_count() > 0);
        sessions.push(Arc::downgrade(&session));
        Ok(session)
    }

    /// Takes a worker, asks it what it is, and has it try `probes` from inside
    /// its sandbox (with [`ProviderOptions::probe`] set); then ends it.
    ///
    /// # Errors
    /// [`ProviderError`] where no worker can be had, or it dies of a probe: then
    /// the error is [`ConnectionError::Ended`].
    pub async fn examine(
        &self,
        probe: Option<&str>,
    ) -> Result<(WorkerInfo, Result<Option<String>, crate::ExitReason>), ProviderError> {
        let Worker {
            mut connection,
            mut child,
        } = self.workers.take().await?;
        let Some(name) = probe else {
            return Ok((connection.info, Ok(None)));
        };
        let name = name.to_owned();
        connection
            .outbound
            .send(code_mode_protocol::native::ToWorker::Probe { name });
        match connection.inbound.next().await {
            Ok(Some(code_mode_protocol::native::FromWorker::Probed { outcome, .. })) => {
                Ok((connection.info, Ok(outcome)))
            }
            Ok(Some(_)) => Err(ConnectionError::Unexpected.into()),
            Err(_) | Ok(None) => {
                let reason = match &mut child {
                    Some(child) => child.wait().await,
                    None => crate::ExitReason::Unknown,
                };
                Ok((connection.info, Err(reason)))
            }
        }
    }

    /// Shuts every session down; returns when their processes have ended.
    pub async fn shutdown(&self) {
        self.token.cancel();
        let sessions: Vec<_> = {
            let mut sessions = self.sessions();
            sessions.drain(..).filter_map(|s| s.upgrade()).collect()
        };
        self.workers.ahead().clear();
        futures::future::join_all(sessions.iter().map(|session| session.shutdown())).await;
    }

    fn sessions(&self) -> MutexGuard<'_, Vec<std::sync::Weak<HostSession>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

#[async_trait]
impl CodeModeSessionProvider for Provider {
    async fn create_session(
        &self,
        delegate: Arc<dyn CodeModeSessionDelegate>,
    ) -> Result<Arc<dyn CodeModeSession>, SessionError> {
        let limits = self.workers.options.limits.clone();
        Ok(self.open_session(delegate, limits, Vec::new()).await?)
    }
}
