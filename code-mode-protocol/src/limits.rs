//! Every limit is an answer.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What one session's cells may use. Past any of these the caller gets an error
/// that names the limit and its value; the process and all other cells live on.
///
/// Serialises with the units in the names of its fields (see [`Limit`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of one cell in bytes: its JavaScript heap, array buffers and
    /// external strings. Default 256 MiB. Values below
    /// [`Limits::MIN_HEAP_BYTES`] are raised to it.
    pub max_heap_bytes: usize,
    /// Processor time of one cell. Default 5 minutes.
    pub max_cpu_time: Option<Duration>,
    /// Time from the start of one cell to its end. Default none: a tool may
    /// wait for a person.
    pub max_wall_time: Option<Duration>,
    /// The longest one observation may last before it yields, whatever the
    /// request asks for. Default none.
    pub max_yield_time: Option<Duration>,
    /// Output of one cell not yet observed, in bytes of text and URLs. Default
    /// 16 MiB.
    pub max_output_bytes: usize,
    /// Cells of one session that have not ended. Default 1,024.
    pub max_live_cells: usize,
    /// Tool calls and notifications of one cell without an answer. Default
    /// 16,384.
    pub max_pending_tool_calls: usize,
    /// Timers of one cell that have not run. Default 65,536.
    pub max_pending_timers: usize,
    /// Keys and values a session keeps, in bytes. Default 128 MiB.
    pub max_stored_bytes: usize,
    /// One message between the provider and a worker, and so one source, one
    /// tool input and one tool result, in bytes. Default 64 MiB.
    pub max_frame_bytes: usize,
}

impl Limits {
    /// The least heap a cell can start and report an error with.
    pub const MIN_HEAP_BYTES: usize = 8 << 20;

    /// How long an observation lasts by default.
    pub const DEFAULT_YIELD_TIME: Duration = Duration::from_secs(10);

    /// The heap limit in force: [`max_heap_bytes`](Self::max_heap_bytes), but
    /// at least [`MIN_HEAP_BYTES`](Self::MIN_HEAP_BYTES).
    pub fn heap_bytes(&self) -> usize {
        self.max_heap_bytes.max(Self::MIN_HEAP_BYTES)
    }

    /// How long an observation lasts that asked for `requested`.
    pub fn yield_time(&self, requested: Option<Duration>) -> Duration {
        let asked = requested.unwrap_or(Self::DEFAULT_YIELD_TIME);
        self.max_yield_time.map_or(asked, |max| asked.min(max))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_heap_bytes: 256 << 20,
            max_cpu_time: Some(Duration::from_secs(300)),
            max_wall_time: None,
            max_yield_time: None,
            max_output_bytes: 16 << 20,
            max_live_cells: 1024,
            max_pending_tool_calls: 16_384,
            max_pending_timers: 65_536,
            max_stored_bytes: 128 << 20,
            max_frame_bytes: 64 << 20,
        }
    }
}

/// The name of a limit, as errors and options spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Limit {
    /// [`Limits::max_heap_bytes`].
    Heap,
    /// [`Limits::max_cpu_time`].
    CpuTime,
    /// [`Limits::max_wall_time`].
    WallTime,
    /// [`Limits::max_output_bytes`].
    Output,
    /// [`Limits::max_live_cells`].
    LiveCells,
    /// [`Limits::max_pending_tool_calls`].
    PendingToolCalls,
    /// [`Limits::max_pending_timers`].
    PendingTimers,
    /// [`Limits::max_stored_bytes`].
    StoredBytes,
    /// [`Limits::max_frame_bytes`].
    Frame,
}

impl Limit {
    fn name_and_unit(self) -> (&'static str, &'static str) {
        match self {
            Self::Heap => ("heap", "bytes"),
            Self::CpuTime => ("CPU time", "ms"),
            Self::WallTime => ("wall time", "ms"),
            Self::Output => ("output", "bytes"),
            Self::LiveCells => ("live cells", "cells"),
            Self::PendingToolCalls => ("pending tool calls", "calls"),
            Self::PendingTimers => ("pending timers", "timers"),
            Self::StoredBytes => ("stored values", "bytes"),
            Self::Frame => ("frame", "bytes"),
        }
    }

    /// What to say when `value` of this limit was exceeded.
    pub fn exceeded(self, value: u64) -> LimitExceeded {
        LimitExceeded { limit: self, value }
    }
}

/// A limit was hit: which, and its value in bytes, milliseconds or a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitExceeded {
    /// Which limit.
    pub limit: Limit,
    /// Its value.
    pub value: u64,
}

impl fmt::Display for LimitExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, unit) = self.limit.name_and_unit();
        write!(f, "{name} limit of {} {unit} exceeded", self.value)
    }
}

impl std::error::Error for LimitExceeded {}
