//! Where workers come from, and what they must be to be used.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use code_mode_protocol::SandboxLayer;
use code_mode_protocol::wire::native::WorkerInfo;
use interprocess::local_socket::tokio::{Stream, prelude::*};
use interprocess::local_socket::{GenericFilePath, ToFsName};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::ProviderError;
use crate::lend::LentWorker;
use crate::options::InMemory;
use crate::process::{self, Child, Purpose, Said, SpawnError, Starter};
use crate::worker::{Connection, ConnectionError, Worker, WorkerMetrics};
use crate::{ProviderOptions, RemoteHost, Sandbox, WorkerSource, locate, remote};

/// Starts workers, or connects to them.
pub(crate) struct Source {
    options: ProviderOptions,
    kind: Kind,
    purpose: Purpose,
    warned: Once,
    _starter: Starter,
    /// The workers from here.
    metrics: Arc<WorkerMetrics>,
}

enum Kind {
    Program(PathBuf),
    Socket(PathBuf),
    InMemory(InMemory),
    Remote(RemoteHost),
}

impl Source {
    /// The source that the options name.
    ///
    /// # Errors
    /// [`SpawnError::NotFound`] where the program must be found and is not there.
    pub(crate) fn new(options: ProviderOptions, purpose: Purpose) -> Result<Self, SpawnError> {
        let kind = match &options.worker {
            WorkerSource::Find => Kind::Program(locate::find()?),
            WorkerSource::Program(path) => Kind::Program(path.clone()),
            WorkerSource::Socket(path) => Kind::Socket(path.clone()),
            WorkerSource::InMemory(connect) => Kind::InMemory(connect.clone()),
            WorkerSource::Remote(host) => Kind::Remote(host.clone()),
        };
        Ok(Self {
            options,
            kind,
            purpose,
            warned: Once::new(),
            _starter: Starter::new(),
            metrics: Arc::default(),
        })
    }

    pub(crate) fn options(&self) -> &ProviderOptions {
        &self.options
    }

    pub(crate) fn metrics(&self) -> &WorkerMetrics {
        &self.metrics
    }

    /// A new worker.
    pub(crate) async fn start(&self) -> Result<Worker, ProviderError> {
        let (connection, child) = self.connect().await?;
        let counted = self.metrics.started(child.as_ref().and_then(Child::id));
        Ok(Worker::new(connection, child, counted))
    }

    /// A connection to a new worker that has answered the greeting.
    pub(crate) async fn connect(&self) -> Result<(Connection, Option<Child>), ProviderError> {
        let (connection, child) = match &self.kind {
            Kind::Program(program) => self.start_process(program).await?,
            Kind::Socket(path) => {
                let stream = connect(path)
                    .await
                    .map_err(|error| ProviderError::Connect {
                        path: path.clone(),
                        error,
                    })?;
                self.greet(stream, None).await?
            }
            // Boxed: its state would make that of every start many times as large.
            Kind::Remote(host) => match Box::pin(self.borrow(host)).await {
                // A host that dies just now says nothing; a balancer knows another.
                Err(error) if remote::is_cut(&error) => Box::pin(self.borrow(host)).await?,
                borrowed => borrowed?,
            },
            Kind::InMemory(connect) => self.greet(connect.stream(), None).await?,
        };
        self.check_sandbox(&connection.info)?;
        Ok((connection, child))
    }

    /// A connection to a new process of this program that has answered the greeting.
    async fn start_process(
        &self,
        program: &Path,
    ) -> Result<(Connection, Option<Child>), ProviderError> {
        loop {
            let started = process::start(program, &self.options, self.purpose).await?;
            let process = Some((started.child, started.said));
            match self.greet(started.socket, process).await {
                // It may have failed to become a worker after it was taken. There is one at most, and the next
                // process says why, or does better.
                Err(error) if started.was_ahead => {
                    tracing::debug!(%error, "the worker that was made ahead does not answer");
                }
                greeted => return greeted,
            }
        }
    }

    /// A connection to a new worker of another machine that has answered the greeting.
    async fn borrow(
        &self,
        host: &RemoteHost,
    ) -> Result<(Connection, Option<Child>), ProviderError> {
        let connecting = remote::connect(host);
        let limit = self.options.handshake_timeout;
        let stream = match tokio::time::timeout(limit, connecting).await {
            Ok(stream) => stream?,
            Err(_) => return Err(remote::refused(host, ConnectionError::TimedOut).into()),
        };
        match self.greet(stream, None).await {
            Err(ProviderError::Connection(error)) => Err(remote::refused(host, error).into()),
            greeted => greeted,
        }
    }

    /// A new worker for somebody else's provider, which greets it.
    ///
    /// # Errors
    /// [`ProviderError::Spawn`], and [`ProviderError::NothingToLend`] where workers are not
    /// this program's processes.
    pub(crate) async fn lend(&self) -> Result<LentWorker, ProviderError> {
        let Kind::Program(program) = &self.kind else {
            return Err(ProviderError::NothingToLend);
        };
        let started = process::start(program, &self.options, Purpose::Lend).await?;
        let counted = self.metrics.started(started.child.id());
        let (socket, child) = (started.socket, started.child);
        Ok(LentWorker::new(socket, child, counted, &self.options))
    }

    async fn greet<S>(
        &self,
        stream: S,
        process: Option<(Child, Said)>,
    ) -> Result<(Connection, Option<Child>), ProviderError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let greeting = Connection::open(stream);
        match tokio::time::timeout(self.options.handshake_timeout, greeting).await {
            Ok(Ok(connection)) => Ok((connection, process.map(|(child, _)| child))),
            Ok(Err(ConnectionError::Ended)) => Err(match process {
                Some((mut child, said)) => ConnectionError::Died {
                    how: child.wait().await,
                    last_words: said.last_words().await,
                },
                None => ConnectionError::Ended,
            }
            .into()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(ConnectionError::TimedOut.into()),
        }
    }

    fn check_sandbox(&self, info: &WorkerInfo) -> Result<(), ProviderError> {
        let missing = SandboxLayer::missing(&info.sandbox);
        // A worker in the agent's own process has no layers to miss, nor to hold.
        let has_none = info.sandbox.is_empty();
        match self.options.sandbox {
            Sandbox::Required if has_none => Err(ProviderError::Sandbox(
                "a worker in this process has no sandbox".to_owned(),
            )),
            Sandbox::Required if !missing.is_empty() => {
                Err(ProviderError::Sandbox(missing.join("; ")))
            }
            Sandbox::BestEffort if !missing.is_empty() => {
                self.warned.call_once(|| {
                    tracing::warn!(
                        "workers run without a part of their sandbox: {}. `code-mode doctor` shows all layers; docs/sandbox.md says how to have them",
                        missing.join("; ")
                    );
                });
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Connects to a worker that listens, if it belongs to this user.
async fn connect(path: &Path) -> std::io::Result<Stream> {
    let stream = Stream::connect(path.to_fs_name::<GenericFilePath>()?).await?;
    #[cfg(target_os = "linux")]
    {
        let ours = rustix::process::geteuid().as_raw();
        let theirs = stream.peer_creds()?.euid();
        if theirs != Some(ours) && theirs != Some(0) {
            return Err(std::io::Error::new(
                std::io::ErrorKind::PermissionDenied,
                "it belongs to another user",
            ));
        }
    }
    Ok(stream)
}
