//! The limits of a session that a client opens.

use std::time::Duration;

use code_mode_host::Limits;

/// This program's limits, with what a client asks for: the heap of each cell in bytes,
/// and the longest observation in milliseconds, which this program's own still bounds.
pub(crate) fn session_limits(
    own: &Limits,
    heap_bytes: Option<u64>,
    max_yield_time_ms: Option<u64>,
) -> Limits {
    let mut limits = own.clone();
    if let Some(heap) = heap_bytes {
        limits.max_heap_bytes = usize::try_from(heap).unwrap_or(usize::MAX);
    }
    if let Some(ms) = max_yield_time_ms {
        let asked = Duration::from_millis(ms);
        let own = limits.max_yield_time.unwrap_or(asked);
        limits.max_yield_time = Some(own.min(asked));
    }
    limits
}
