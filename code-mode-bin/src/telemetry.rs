//! Traces and metrics for OpenTelemetry, over OTLP/HTTP.
//!
//! The spans are those of `code-mode-host`. Metrics come from an observer around every
//! session's delegate. Where nothing is asked for, neither is there.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{
    CellEnded, CellId, CellNotification, CellStarted, CodeModeSessionDelegate, Json,
    NestedToolCall, ToolCallFinished, Turn,
};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, UpDownCounter};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::{MetricExporter, Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio_util::sync::CancellationToken;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{FilterFn, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// How long what was collected may take to leave at the end.
const LAST_EXPORT: Duration = Duration::from_secs(3);

/// Where traces and metrics go.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Telemetry")]
pub(crate) struct TelemetryArgs {
    /// Send traces and metrics by OTLP/HTTP, as the standard OTEL_* variables say; setting
    /// OTEL_EXPORTER_OTLP_ENDPOINT does so too
    #[arg(long)]
    otel: bool,
    /// Send traces to this URL as it stands, by OTLP/HTTP in JSON
    #[arg(long, value_name = "URL")]
    otel_trace_exporter: Option<String>,
}

/// Why telemetry cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TelemetryError {
    /// An exporter cannot be made.
    #[error("no telemetry: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

static METERS: OnceLock<Meters> = OnceLock::new();

/// Logs go to standard error, as many as `RUST_LOG` asks for; by default warnings. Spans
/// go to `traces` too.
fn subscribe(traces: Option<&SdkTracerProvider>) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,rmcp=off,opentelemetry=error"));
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_filter(filter);
    let exporting = traces.map(|traces| {
        tracing_opentelemetry::layer()
            .with_tracer(traces.tracer("code-mode"))
            .with_filter(own_spans())
    });
    tracing_subscriber::registry()
        .with(exporting)
        .with(log)
        .init();
}

/// What is collected leaves until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(traces) = &self.traces {
            let _ = traces.shutdown_with_timeout(LAST_EXPORT);
        }
        if let Some(metrics) = &self.metrics {
            let _ = metrics.shutdown_with_timeout(LAST_EXPORT);
        }
    }
}

/// Begins to log, for a command that sends nothing.
pub(crate) fn log_only() {
    subscribe(None);
}

impl TelemetryArgs {
    /// Begins to log, and to send what is asked for. To be called once, before a runtime is
    /// started.
    pub(crate) fn begin(&self) -> Result<Telemetry, TelemetryError> {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let by_variable =
            is_set("OTEL_EXPORTER_OTLP_ENDPOINT") || is_set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let wanted = self.otel || by_variable;
        if !wanted && self.otel_trace_exporter.is_none() {
            subscribe(None);
            return Ok(Telemetry::default());
        }
        // A second call finds one installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let exporter = SpanExporter::builder().with_http();
        let exporter = match &self.otel_trace_exporter {
            Some(url) => exporter
                .with_protocol(Protocol::HttpJson)
                .with_endpoint(url.clone()),
            None => exporter,
        };
        let traces = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_batch_exporter(exporter.build()?)
            .build();
        subscribe(Some(&traces));
        let metrics = match wanted {
            true => {
                let exporter = MetricExporter::builder().with_http().build()?;
                let metrics = SdkMeterProvider::builder()
                    .with_resource(resource())
                    .with_periodic_exporter(exporter)
                    .build();
                let _ = METERS.set(Meters::new(&metrics));
                Some(metrics)
            }
            false => None,
        };
        Ok(Telemetry {
            traces: Some(traces),
            metrics,
        })
    }
}

fn resource() -> Resource {
    Resource::builder()
        .with_service_name("code-mode")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

/// What is exported: this program's spans, not those of what it is built on.
fn own_spans() -> FilterFn {
    filter_fn(|metadata| {
        metadata.target().starts_with("code_mode") && *metadata.level() <= tracing::Level::INFO
    })
}

/// A span descends from what a W3C `traceparent` says; one that does not parse is ignored.
pub(crate) fn descend(span: &tracing::Span, traceparent: Option<&str>) {
    struct Carrier<'a>(&'a str);
    impl Extractor for Carrier<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            (key == "traceparent").then_some(self.0)
        }
        fn keys(&self) -> Vec<&str> {
            vec!["traceparent"]
        }
    }
    if let Some(traceparent) = traceparent {
        let context = TraceContextPropagator::new().extract(&Carrier(traceparent));
        // Without an exporter there is nothing to descend.
        let _ = span.set_parent(context);
    }
}

/// The span that is current, as a W3C `traceparent`; `None` where nothing is exported.
pub(crate) fn traceparent() -> Option<String> {
    let context = tracing::Span::current().context();
    let span = context.span().span_context().clone();
    span.is_valid().then(|| {
        format!(
            "00-{}-{}-{:02x}",
            span.trace_id(),
            span.span_id(),
            span.trace_flags().to_u8()
        )
    })
}

/// The instruments. Where the semantic conventions for generative AI have a name, it is
/// theirs.
struct Meters {
    cells: Histogram<f64>,
    processor: Histogram<f64>,
    queued: Histogram<f64>,
    peak_heap: Histogram<u64>,
    live: UpDownCounter<i64>,
    calls: Histogram<f64>,
    lost: Counter<u64>,
}

impl Meters {
    fn new(provider: &SdkMeterProvider) -> Self {
        use opentelemetry::metrics::MeterProvider;
        let meter = provider.meter("code-mode");
        let seconds = |name: &'static str, what: &'static str| {
            let histogram = meter.f64_histogram(name).with_unit("s");
            histogram.with_description(what).build()
        };
        Self {
            cells: seconds(
                "code_mode.cell.duration",
                "From a cell's admission to its end",
            ),
            processor: seconds("code_mode.cell.processor_time", "Processor time of a cell"),
            queued: seconds(
                "code_mode.cell.queue_time",
                "How long a cell waited for an isolate",
            ),
            peak_heap: meter
                .u64_histogram("code_mode.cell.peak_heap")
                .with_unit("By")
                .with_description("The most of a cell's heap that was in use")
                .build(),
            live: meter
                .i64_up_down_counter("code_mode.cell.live")
                .with_description("Cells that have not ended")
                .build(),
            calls: seconds(
                "gen_ai.client.operation.duration",
                "How long a tool call took",
            ),
            lost: meter
                .u64_counter("code_mode.worker.lost")
                .with_description("Cells whose worker process was lost")
                .build(),
        }
    }
}

/// The delegate with an observer around it that counts, where somebody wants the numbers.
pub(crate) fn metered(
    delegate: Arc<dyn CodeModeSessionDelegate>,
) -> Arc<dyn CodeModeSessionDelegate> {
    match METERS.get() {
        Some(meters) => Arc::new(Metered { delegate, meters }),
        None => delegate,
    }
}

struct Metered {
    delegate: Arc<dyn CodeModeSessionDelegate>,
    meters: &'static Meters,
}

#[async_trait]
impl CodeModeSessionDelegate for Metered {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, String> {
        self.delegate.invoke_tool(call, cancelled).await
    }

    async fn notify(&self, notification: CellNotification, cancelled: CancellationToken) {
        self.delegate.notify(notification, cancelled).await;
    }

    async fn cell_closed(&self, cell_id: CellId) {
        self.delegate.cell_closed(cell_id).await;
    }

    fn cell_started(&self, cell: &CellStarted) {
        self.meters.live.add(1, &[]);
        self.delegate.cell_started(cell);
    }

    fn cell_ended(&self, cell: &CellEnded) {
        let outcome = cell.outcome.as_str();
        let attributes = [KeyValue::new("code_mode.cell.outcome", outcome)];
        let stats = &cell.stats;
        self.meters.live.add(-1, &[]);
        self.meters
            .cells
            .record(stats.wall.as_secs_f64(), &attributes);
        self.meters
            .processor
            .record(stats.processor.as_secs_f64(), &attributes);
        self.meters.queued.record(stats.queued.as_secs_f64(), &[]);
        self.meters.peak_heap.record(stats.peak_heap_bytes, &[]);
        if outcome == "lost" {
            self.meters.lost.add(1, &[]);
        }
        self.delegate.cell_ended(cell);
    }

    fn tool_call_started(&self, call: &NestedToolCall) {
        self.delegate.tool_call_started(call);
    }

    fn tool_call_finished(&self, call: &ToolCallFinished) {
        let outcome = call.outcome.as_str();
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", "execute_tool"),
            KeyValue::new("gen_ai.tool.name", call.tool_name.name.clone()),
        ];
        if outcome != "succeeded" {
            attributes.push(KeyValue::new("error.type", outcome));
        }
        self.meters
            .calls
            .record(call.duration.as_secs_f64(), &attributes);
        self.delegate.tool_call_finished(call);
    }

    fn turn(&self, cell_id: &CellId, turn: Turn) {
        self.delegate.turn(cell_id, turn);
    }
}
