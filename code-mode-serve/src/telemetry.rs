//! What serving needs of the program's telemetry.

use code_mode_host::Propagation;
use code_mode_system::Refused;

/// The program's telemetry, as far as the wires use it. Every method has a default that does
/// nothing.
pub trait Telemetry: Propagation + 'static {
    /// The metrics in the text format of Prometheus; `None` where the program collects none.
    fn metrics_page(&self) -> Option<String> {
        None
    }

    /// Exports the number of open sessions. `count` returns `None` once serving has ended.
    fn watch_sessions(&self, count: Box<dyn Fn() -> Option<u64> + Send + Sync>) {
        let _ = count;
    }

    /// Exports how many clients were refused, by reason.
    fn watch_refusals(&self, count: Box<dyn Fn(Refused) -> u64 + Send + Sync>) {
        let _ = count;
    }
}

/// No telemetry at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTelemetry;

impl Propagation for NoTelemetry {}

impl Telemetry for NoTelemetry {}
