//! Logs; and, on request, traces and metrics, where the program was built with
//! its feature `otel`, as by default.

#[cfg(feature = "otel")]
mod meters;
#[cfg(not(feature = "otel"))]
mod off;
#[cfg(feature = "otel")]
mod otel;
#[cfg(feature = "otel")]
mod trace_listen;

#[cfg(not(feature = "otel"))]
pub(crate) use code_mode_serve::NoTelemetry as ServeTelemetry;
#[cfg(feature = "otel")]
pub(crate) use meters::{metered, watched};
#[cfg(not(feature = "otel"))]
pub(crate) use off::{TelemetryArgs, metered, watched};
#[cfg(feature = "otel")]
pub(crate) use otel::{ServeTelemetry, TelemetryArgs};

use code_mode_system::StandardError;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// What a command wants besides what its user asks for.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(
    not(feature = "otel"),
    allow(dead_code, reason = "only traces and metrics use it")
)]
pub(crate) struct Wanted {
    /// Whether the command can export metrics.
    pub(crate) metrics_page: bool,
    /// It is a host of the Codex CLI's, and named so in its traces.
    pub(crate) is_host: bool,
    /// It serves clients, who may leave its standard error unread: then lines are left out
    /// instead of waited for.
    pub(crate) serves: bool,
    /// Its output says what others log as warnings.
    pub(crate) reports: bool,
}

/// Lines of the log that wait for a reader of standard error.
const UNREAD_LINES: usize = 4096;

/// Logs go to standard error, as many as `RUST_LOG` asks for; by default warnings. Spans
/// go to `exporting` too. The returned guard sends the last lines when it is dropped.
fn subscribe(
    exporting: Option<Box<dyn Layer<Registry> + Send + Sync>>,
    wanted: Wanted,
) -> Option<WorkerGuard> {
    let (writer, guard) = match wanted.serves {
        true => {
            let builder = NonBlockingBuilder::default();
            let builder = builder.buffered_lines_limit(UNREAD_LINES).lossy(true);
            let (writer, guard) = builder.finish(StandardError);
            (BoxMakeWriter::new(writer), Some(guard))
        }
        false => (BoxMakeWriter::new(|| StandardError), None),
    };
    let level = match wanted.reports {
        true => "error",
        false => "warn",
    };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},rmcp=off,opentelemetry=error")));
    // The library logs the code of a login.
    let filter = match "rmcp::transport::auth=off".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let log = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_filter(filter);
    tracing_subscriber::registry()
        .with(exporting)
        .with(log)
        .init();
    guard
}

/// Begins to log, for a command that sends nothing.
pub(crate) fn log_only() {
    subscribe(None, Wanted::default());
}
