//! The program's metrics.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use code_mode_host::{
    CellEnded, CellId, CellNotification, CellStarted, CodeModeSessionDelegate, Json,
    NestedToolCall, Provider, ToolCallFinished, ToolError, Turn,
};
use code_mode_system::Refused;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Histogram, Meter, MeterProvider, UpDownCounter};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use tokio_util::sync::CancellationToken;

static METERS: OnceLock<Meters> = OnceLock::new();

/// Begins to count.
pub(super) fn begin(provider: &SdkMeterProvider) {
    let _ = METERS.set(Meters::new(provider));
}

/// Shows a number of something that is there now, where somebody wants the numbers.
/// `look` gives `None` once it is gone.
pub(super) fn gauge(
    name: &'static str,
    unit: &'static str,
    what: &'static str,
    look: impl Fn() -> Option<u64> + Send + Sync + 'static,
) {
    let Some(Meters { meter, .. }) = METERS.get() else {
        return;
    };
    let gauge = meter.u64_observable_gauge(name);
    let gauge = gauge.with_unit(unit).with_description(what);
    // The meter keeps the callback; the built value is only a handle.
    gauge.with_callback(observing(look)).build();
}

/// Reports the present values to an instrument.
fn observing(
    look: impl Fn() -> Option<u64> + Send + Sync + 'static,
) -> impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + 'static {
    move |observer| {
        if let Some(value) = look() {
            observer.observe(value, &[]);
        }
    }
}

/// Shows how many of something there ever were, as [`gauge`] does.
fn counter(
    name: &'static str,
    what: &'static str,
    look: impl Fn() -> Option<u64> + Send + Sync + 'static,
) {
    let Some(Meters { meter, .. }) = METERS.get() else {
        return;
    };
    let counter = meter.u64_observable_counter(name);
    let counter = counter.with_unit("{worker}").with_description(what);
    counter.with_callback(observing(look)).build();
}

/// Shows how many clients were refused, by reason.
pub(super) fn refusals(count: impl Fn(Refused) -> u64 + Send + Sync + 'static) {
    let Some(Meters { meter, .. }) = METERS.get() else {
        return;
    };
    let counter = meter.u64_observable_counter("code_mode.refused");
    let counter = counter.with_description("Requests and connections that were not let in");
    let observe = move |observer: &dyn AsyncInstrument<u64>| {
        for why in Refused::ALL {
            observer.observe(count(why), &[KeyValue::new("error.type", why.as_str())]);
        }
    };
    counter.with_callback(observe).build();
}

/// A provider whose workers are counted, where somebody wants the numbers.
pub(crate) fn watched(provider: Provider) -> Arc<Provider> {
    let provider = Arc::new(provider);
    let look = |of: fn(&Provider) -> u64| {
        let provider = Arc::downgrade(&provider);
        move || provider.upgrade().map(|provider| of(&provider))
    };
    gauge(
        "code_mode.worker.spare",
        "{worker}",
        "Workers that are ready and serve no session",
        look(|provider| provider.workers().spare),
    );
    gauge(
        "code_mode.worker.serving",
        "{worker}",
        "Workers that serve a session",
        look(|provider| provider.workers().serving),
    );
    gauge(
        "code_mode.worker.memory",
        "By",
        "Resident memory of the workers",
        look(Provider::worker_memory),
    );
    counter(
        "code_mode.worker.started",
        "Workers that were ever ready",
        look(|provider| provider.workers().started),
    );
    counter(
        "code_mode.worker.restarts",
        "Workers that took the place of one that was lost",
        look(|provider| provider.workers().restarted),
    );
    counter(
        "code_mode.worker.lost",
        "Workers that ended otherwise than in order",
        look(|provider| provider.workers().lost),
    );
    provider
}

/// The borders of the buckets for times: from cells that end within a millisecond to calls that wait
/// for a person.
const SECONDS: [f64; 16] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// The instruments. Where the semantic conventions for generative AI have a name, it is
/// theirs.
struct Meters {
    meter: Meter,
    cells: Histogram<f64>,
    processor: Histogram<f64>,
    queued: Histogram<f64>,
    peak_heap: Histogram<u64>,
    live: UpDownCounter<i64>,
    calls: Histogram<f64>,
}

impl Meters {
    fn new(provider: &SdkMeterProvider) -> Self {
        let meter = provider.meter("code-mode");
        let seconds = |name: &'static str, what: &'static str| {
            let histogram = meter.f64_histogram(name).with_unit("s");
            let histogram = histogram.with_boundaries(SECONDS.to_vec());
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
                .with_boundaries((20..=32).map(|power| f64::from(power).exp2()).collect())
                .build(),
            live: meter
                .i64_up_down_counter("code_mode.cell.live")
                .with_description("Cells that have not ended")
                .build(),
            calls: seconds(
                "gen_ai.client.operation.duration",
                "How long a tool call took",
            ),
            meter,
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
    ) -> Result<Json, ToolError> {
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
