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
mod unread;

#[cfg(not(feature = "otel"))]
pub(crate) use code_mode_serve::NoTelemetry as ServeTelemetry;
#[cfg(feature = "otel")]
pub(crate) use meters::{metered, watched};
#[cfg(not(feature = "otel"))]
pub(crate) use off::{TelemetryArgs, metered, watched};
#[cfg(feature = "otel")]
pub(crate) use otel::{ServeTelemetry, TelemetryArgs};

use code_mode_system::StandardError;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Filter, Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

pub(crate) use unread::LastLines;
use unread::Unread;

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

/// What the log is a layer of.
type Log = Layered<Option<Box<dyn Layer<Registry> + Send + Sync>>, Registry>;

/// Logs go to standard error, as many as `RUST_LOG` asks for; by default warnings. Spans
/// go to `exporting` too. The returned guard sends the last lines when it is dropped.
fn subscribe(
    exporting: Option<Box<dyn Layer<Registry> + Send + Sync>>,
    wanted: Wanted,
) -> Option<LastLines> {
    let unread = wanted.serves.then(Unread::default);
    let writer = match &unread {
        Some(unread) => BoxMakeWriter::new(unread.clone()),
        None => BoxMakeWriter::new(|| StandardError),
    };
    let log = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_filter(filter(wanted));
    tracing_subscriber::registry()
        .with(exporting)
        .with(log)
        .init();
    unread.map(LastLines)
}

/// The filter of `RUST_LOG`, or else one for warnings.
fn filter(wanted: Wanted) -> Box<dyn Filter<Log> + Send + Sync> {
    // The library logs the code of a login.
    const LOGINS: &str = "rmcp::transport::auth";
    if let Ok(asked) = EnvFilter::try_from_default_env() {
        return match format!("{LOGINS}=off").parse() {
            Ok(directive) => Box::new(asked.add_directive(directive)),
            Err(_) => Box::new(asked),
        };
    }
    // Making an EnvFilter is a fortieth of a worker's start.
    let level = match wanted.reports {
        true => LevelFilter::ERROR,
        false => LevelFilter::WARN,
    };
    let targets = Targets::new().with_default(level);
    let targets = targets.with_target("rmcp", LevelFilter::OFF);
    Box::new(targets.with_target("opentelemetry", LevelFilter::ERROR))
}

/// Begins to log, for a command that sends nothing.
pub(crate) fn log_only() {
    subscribe(None, Wanted::default());
}
