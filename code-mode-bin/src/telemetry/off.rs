//! Telemetry of a program that was built without it.

use std::convert::Infallible;
use std::sync::Arc;

use code_mode_host::{CodeModeSessionDelegate, Provider};

use tracing_appender::non_blocking::WorkerGuard;

use super::{Wanted, subscribe};

/// No options.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct TelemetryArgs {}

impl TelemetryArgs {
    /// Begins to log.
    pub(crate) fn begin(&self, wanted: Wanted) -> Result<Option<WorkerGuard>, Infallible> {
        Ok(subscribe(None, wanted))
    }
}

/// There are no traces to descend from.
pub(crate) fn descend(_: &tracing::Span, _: Option<&str>) {}

/// There are no traces.
pub(crate) fn traceparent() -> Option<String> {
    None
}

/// Nobody counts.
pub(crate) fn metered(
    delegate: Arc<dyn CodeModeSessionDelegate>,
) -> Arc<dyn CodeModeSessionDelegate> {
    delegate
}

/// Nobody counts.
pub(crate) fn watched(provider: Provider) -> Arc<Provider> {
    Arc::new(provider)
}

/// Nobody counts.
pub(crate) fn gauge(
    _: &'static str,
    _: &'static str,
    _: &'static str,
    _: impl Fn() -> Option<u64> + Send + Sync + 'static,
) {
}

/// There is none.
pub(crate) fn metrics_page() -> Option<String> {
    None
}
