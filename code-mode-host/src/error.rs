//! Why no worker can be had.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use code_mode_protocol::SessionError;

use crate::RemoteError;
use crate::process::SpawnError;
use crate::worker::ConnectionError;

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
    /// Only workers that are processes of this program can be lent.
    #[error("this provider has only workers that cannot be lent")]
    NothingToLend,
    /// Layers of the sandbox are missing and were required.
    #[error("the sandbox is not complete: {0}")]
    Sandbox(String),
    /// A session needs a part that this build leaves out.
    #[error("this program was built without the feature `{0}` of code-mode-host")]
    NotBuilt(&'static str),
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
