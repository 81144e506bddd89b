//! Looking at workers from the outside: what `code-mode doctor` does.

use std::time::Duration;

use code_mode_protocol::SandboxLayer;

use crate::error::ProviderError;
use crate::process::{ExitReason, Purpose};
use crate::source::Source;
use crate::worker::ConnectionError;
use crate::{ProviderOptions, SpawnError};

/// How long a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a worker reports of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerReport {
    /// V8's version.
    pub v8_version: String,
    /// Whether V8 was built with its heap sandbox.
    pub v8_heap_sandbox: bool,
    /// The layers of its sandbox; empty for a worker in this process.
    pub sandbox: Vec<SandboxLayer>,
    /// Whether its process is a copy of a template, which has loaded the program already; not so,
    /// it was started from the program's file. `None` for a worker that another machine started.
    pub is_copy: Option<bool>,
}

/// Starts workers to look at them. They serve no session.
pub struct Examiner {
    source: Source,
}

impl Examiner {
    /// An examiner of the workers that a provider with these options would start.
    ///
    /// # Errors
    /// [`SpawnError::NotFound`] where the worker program must be found and is not
    /// there.
    pub fn new(options: ProviderOptions) -> Result<Self, SpawnError> {
        Source::new(options, Purpose::Examine).map(|source| Self { source })
    }

    /// What a new worker reports of itself.
    ///
    /// # Errors
    /// [`ProviderError`] where no worker can be had.
    pub async fn report(&self) -> Result<WorkerReport, ProviderError> {
        let (connection, child) = self.source.connect().await?;
        Ok(WorkerReport {
            v8_version: connection.info.v8_version,
            v8_heap_sandbox: connection.info.v8_heap_sandbox,
            sandbox: connection.info.sandbox,
            is_copy: child.map(|child| child.is_copy()),
        })
    }

    /// Makes a new worker try something from inside its sandbox. `Ok` is what came of it,
    /// `None` for a probe that the worker does not know; the inner `Err` is how the
    /// worker's process ended of it.
    ///
    /// # Errors
    /// [`ProviderError`] where no worker can be had, or it does not answer.
    pub async fn probe(
        &self,
        name: &str,
    ) -> Result<Result<Option<String>, ExitReason>, ProviderError> {
        let (mut connection, child) = self.source.connect().await?;
        let probed = tokio::time::timeout(PROBE_TIMEOUT, connection.probe(name)).await;
        match probed {
            Ok(Ok(outcome)) => Ok(Ok(outcome)),
            Ok(Err(ConnectionError::Ended)) => Ok(Err(match child {
                Some(mut child) => child.wait().await,
                None => ExitReason::Unknown,
            })),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(ConnectionError::TimedOut.into()),
        }
    }
}

impl std::fmt::Debug for Examiner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Examiner").finish_non_exhaustive()
    }
}
