//! What serving needs of the program's telemetry.

use tracing::Span;

/// The program's telemetry, as far as the wires use it. Every method has a default that does
/// nothing.
pub trait Telemetry: Send + Sync + 'static {
    /// The current span as a W3C `traceparent`; `None` where no traces are exported.
    fn traceparent(&self) -> Option<String> {
        None
    }

    /// Makes `span` a child of the span that a W3C `traceparent` names. A `traceparent` that
    /// does not parse is ignored.
    fn set_parent(&self, span: &Span, traceparent: Option<&str>) {
        let _ = (span, traceparent);
    }

    /// The metrics in the text format of Prometheus; `None` where the program collects none.
    fn metrics_page(&self) -> Option<String> {
        None
    }

    /// Exports the number of open sessions. `count` returns `None` once serving has ended.
    fn watch_sessions(&self, count: Box<dyn Fn() -> Option<u64> + Send + Sync>) {
        let _ = count;
    }
}

/// No telemetry at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTelemetry;

impl Telemetry for NoTelemetry {}
