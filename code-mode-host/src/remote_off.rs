//! Workers of other machines, in a build without the feature `remote`: nobody can name a host.

use std::convert::Infallible;

use tokio::io::DuplexStream;

use crate::error::ProviderError;
use crate::worker::ConnectionError;

/// A host of workers on another machine. Without the feature `remote` a value of it does not exist.
#[derive(Clone, Debug)]
pub struct RemoteHost(Infallible);

/// Why the host of workers on another machine cannot be used. Without the feature `remote` a value
/// of it does not exist.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum RemoteError {}

pub(crate) async fn connect(host: &RemoteHost) -> Result<DuplexStream, RemoteError> {
    match host.0 {}
}

pub(crate) fn refused(host: &RemoteHost, _: ConnectionError) -> RemoteError {
    match host.0 {}
}

pub(crate) fn is_cut(_: &ProviderError) -> bool {
    false
}

pub(crate) fn said_by(_: &std::io::Error) -> Option<String> {
    None
}
