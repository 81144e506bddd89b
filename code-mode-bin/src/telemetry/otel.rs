//! Traces and metrics for OpenTelemetry, over OTLP/HTTP, and metrics for Prometheus.
//!
//! The spans are those of `code-mode-host` and of the wires. Metrics come from an observer
//! around every session's delegate. Without a request for either, neither exists.

use std::sync::OnceLock;
use std::time::Duration;

use code_mode_host::{Propagation, TraceContext};
use code_mode_system::Refused;
use opentelemetry::KeyValue;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{
    MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus::TextEncoder;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterFn, filter_fn};

use super::trace_listen::{self, ListenError, Telling};
use super::{LastLines, Wanted, meters, subscribe};

/// How long the last export may take at the end.
const LAST_EXPORT: Duration = Duration::from_secs(3);

/// Where traces and metrics go.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Telemetry")]
pub(crate) struct TelemetryArgs {
    /// Send traces and metrics by OTLP/HTTP, as the standard OTEL_* variables say; setting
    /// OTEL_EXPORTER_OTLP_ENDPOINT does so too
    #[arg(long)]
    otel: bool,
    /// Send traces to this URL as it stands, by OTLP/HTTP in JSON; `serve` sends the spans
    /// of the Codex CLI's host, and with --otel all
    #[arg(long, value_name = "URL")]
    otel_trace_exporter: Option<String>,
    /// Send traces to whoever connects a WebSocket to this address, `ws://IP:PORT`: each
    /// batch is one message, in the same JSON
    #[arg(long, value_name = "URL", conflicts_with = "otel_trace_exporter", value_parser = trace_listen::address)]
    otel_trace_listen: Option<std::net::SocketAddr>,
}

/// Why telemetry cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TelemetryError {
    /// An exporter cannot be made.
    #[error("no telemetry: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Metrics cannot be given to Prometheus.
    #[error("no metrics: {0}")]
    Prometheus(#[from] opentelemetry_sdk::error::OTelSdkError),
    /// Nobody can connect to get traces.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// What Prometheus is given.
static REGISTRY: OnceLock<prometheus::Registry> = OnceLock::new();

/// Exports until it is dropped.
#[derive(Debug)]
pub(crate) struct Telemetry {
    traces: Option<SdkTracerProvider>,
    telling: Option<Telling>,
    metrics: Option<SdkMeterProvider>,
    /// Dropped after the others, whose last words are logged.
    _log: Option<LastLines>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(traces) = &self.traces {
            let _ = traces.shutdown_with_timeout(LAST_EXPORT);
        }
        if let Some(telling) = &self.telling {
            telling.end(LAST_EXPORT);
        }
        if let Some(metrics) = &self.metrics {
            let _ = metrics.shutdown_with_timeout(LAST_EXPORT);
        }
    }
}

impl TelemetryArgs {
    /// Begins to log, and to send the requested signals. Call it once, before a runtime is
    /// started.
    pub(crate) fn begin(&self, wanted: Wanted) -> Result<Telemetry, TelemetryError> {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let by_variable =
            is_set("OTEL_EXPORTER_OTLP_ENDPOINT") || is_set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let everything = self.otel || by_variable;
        let (traces, telling) = match self.exporter(everything)? {
            None => (None, None),
            Some((exporter, telling)) => {
                let traces = SdkTracerProvider::builder()
                    .with_resource(resource(wanted))
                    .with_batch_exporter(exporter)
                    .build();
                (Some(traces), telling)
            }
        };
        // Its exporters send what the Codex CLI's host sends by them.
        let is_codex = wanted.is_host
            && !everything
            && (self.otel_trace_exporter.is_some() || self.otel_trace_listen.is_some());
        let exporting = traces.as_ref().map(|traces| {
            tracing_opentelemetry::layer()
                .with_tracer(traces.tracer("code-mode"))
                .with_filter(exported(is_codex))
                .boxed()
        });
        let log = subscribe(exporting, wanted);
        let metrics = metrics(everything, wanted)?;
        if let Some(metrics) = &metrics {
            meters::begin(metrics);
        }
        Ok(Telemetry {
            traces,
            telling,
            metrics,
            _log: log,
        })
    }

    /// Where spans go, if they go anywhere.
    fn exporter(
        &self,
        everything: bool,
    ) -> Result<Option<(SpanExporter, Option<Telling>)>, TelemetryError> {
        let mut telling = None;
        let to = |url: String| {
            let exporter = SpanExporter::builder().with_http();
            exporter
                .with_protocol(Protocol::HttpJson)
                .with_endpoint(url)
        };
        let exporter = match (&self.otel_trace_exporter, self.otel_trace_listen) {
            (None, None) if !everything => return Ok(None),
            (_, Some(address)) => {
                let (listeners, thread) = trace_listen::start(address)?;
                telling = Some(thread);
                // It goes by no address: the listeners take the place of the client.
                to("http://listeners/".to_owned()).with_http_client(listeners)
            }
            (Some(url), None) => to(url.clone()),
            (None, None) => SpanExporter::builder().with_http(),
        };
        code_mode_system::prepare_http_clients();
        Ok(Some((exporter.build()?, telling)))
    }
}

/// Where metrics go, if they go anywhere.
fn metrics(everything: bool, wanted: Wanted) -> Result<Option<SdkMeterProvider>, TelemetryError> {
    if !everything && !wanted.metrics_page {
        return Ok(None);
    }
    let mut metrics = SdkMeterProvider::builder().with_resource(resource(wanted));
    if everything {
        metrics = metrics.with_periodic_exporter(MetricExporter::builder().with_http().build()?);
    }
    if wanted.metrics_page {
        let registry = prometheus::Registry::new();
        let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone());
        metrics = metrics.with_reader(exporter.build()?);
        let _ = REGISTRY.set(registry);
    }
    Ok(Some(metrics.build()))
}

fn resource(wanted: Wanted) -> Resource {
    let resource = Resource::builder()
        .with_service_name("code-mode")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    match wanted.is_host {
        true => resource.with_attribute(KeyValue::new("env", "code-mode-host")),
        false => resource,
    }
    .build()
}

/// Selects this program's spans for export, without those of its libraries. `is_codex`:
/// those alone that the Codex CLI's host has too; each descends from the next one that is
/// exported.
fn exported(is_codex: bool) -> FilterFn<impl Fn(&tracing::Metadata<'_>) -> bool> {
    filter_fn(move |metadata| {
        let is_own =
            metadata.target().starts_with("code_mode") && *metadata.level() <= tracing::Level::INFO;
        is_own && (!is_codex || metadata.is_span() && metadata.name().starts_with("code_mode"))
    })
}

/// The program's telemetry, for the wires.
pub(crate) struct ServeTelemetry;

/// The two headers of W3C Trace Context, as they are sent and as they came.
#[derive(Default)]
struct Headers {
    traceparent: Option<String>,
    tracestate: Option<String>,
}

impl Extractor for Headers {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.traceparent.as_deref(),
            "tracestate" => self.tracestate.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

impl Injector for Headers {
    fn set(&mut self, key: &str, value: String) {
        match key {
            "traceparent" => self.traceparent = Some(value),
            "tracestate" => self.tracestate = Some(value),
            _ => {}
        }
    }
}

impl Propagation for ServeTelemetry {
    fn context(&self, span: &tracing::Span) -> Option<TraceContext> {
        if span.is_disabled() {
            // Without an exporter no span has a context.
            return None;
        }
        let mut headers = Headers::default();
        TraceContextPropagator::new().inject_context(&span.context(), &mut headers);
        TraceContext::new(
            headers.traceparent.as_deref(),
            headers.tracestate.as_deref(),
        )
    }

    fn set_parent(&self, span: &tracing::Span, parent: &TraceContext) {
        let headers = Headers {
            traceparent: Some(parent.traceparent.clone()),
            tracestate: parent.tracestate.clone(),
        };
        let context = TraceContextPropagator::new().extract(&headers);
        // Without an exporter the span has no parent to set.
        let _ = span.set_parent(context);
    }
}

impl code_mode_serve::Telemetry for ServeTelemetry {
    fn metrics_page(&self) -> Option<String> {
        let families = REGISTRY.get()?.gather();
        TextEncoder::new().encode_to_string(&families).ok()
    }

    fn watch_refusals(&self, count: Box<dyn Fn(Refused) -> u64 + Send + Sync>) {
        meters::refusals(count);
    }

    fn watch_sessions(&self, count: Box<dyn Fn() -> Option<u64> + Send + Sync>) {
        meters::gauge(
            "code_mode.session.live",
            "{session}",
            "Sessions of the gRPC wire",
            count,
        );
    }
}
