//! Every limit is an answer.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What one session's cells may use. Past a limit the caller gets an error that names it
/// and its value; the process and all other cells live on. Two kinds are softer: past
/// [`max_yield_time`](field@Self::max_yield_time) an observation ends with a yield, and past
/// those on ended cells the oldest result is dropped, and said to be. Where a limit is an
/// `Option`, `None` means without a limit.
///
/// Serialises with the units in the names of its fields (see [`Limit`]).
///
/// ```
/// # use code_mode_protocol::Limits;
/// let limits = Limits::default().max_heap_bytes(64 << 20).max_live_cells(16);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
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
    /// Cells of one session that have ended and whose result nobody has taken.
    /// Past it the oldest result is dropped, and a `wait` for that cell says so.
    /// Default 4,096.
    pub max_ended_cells: usize,
    /// Output and error texts of such results together, in bytes. Past it the
    /// oldest are dropped. Default 64 MiB.
    pub max_ended_bytes: usize,
    /// Tool calls and notifications of one cell without an answer. Default
    /// 16,384.
    pub max_pending_tool_calls: usize,
    /// Timers of one cell that have not run. Default 65,536.
    pub max_pending_timers: usize,
    /// What a session keeps, in bytes: keys, values, and
    /// [`STORED_VALUE_OVERHEAD`](Self::STORED_VALUE_OVERHEAD) for each value.
    /// Default 128 MiB.
    pub max_stored_bytes: usize,
    /// One source, one tool input, one tool result, one notification and one stored
    /// value, in bytes of text. Default 64 MiB.
    pub max_frame_bytes: usize,
}

impl Limits {
    /// The least heap a cell can start and report an error with.
    pub const MIN_HEAP_BYTES: usize = 8 << 20;

    /// What a stored value costs beyond the bytes of its key and its text: the
    /// entries and allocations that hold it.
    pub const STORED_VALUE_OVERHEAD: usize = 512;

    /// The most bytes of a stored value's key.
    pub const MAX_KEY_BYTES: usize = 64 << 10;

    /// The most bytes of an error text. A longer one is cut in the middle, and says
    /// so.
    pub const MAX_ERROR_BYTES: usize = 64 << 10;

    /// How long an observation lasts by default.
    pub const DEFAULT_YIELD_TIME: Duration = Duration::from_secs(10);

    /// The heap limit in force: [`max_heap_bytes`](field@Self::max_heap_bytes), but
    /// at least [`MIN_HEAP_BYTES`](Self::MIN_HEAP_BYTES).
    pub fn heap_bytes(&self) -> usize {
        self.max_heap_bytes.max(Self::MIN_HEAP_BYTES)
    }

    /// What a stored value counts against
    /// [`max_stored_bytes`](field@Self::max_stored_bytes).
    pub fn stored_value_bytes(key: &str, json: &str) -> usize {
        key.len() + json.len() + Self::STORED_VALUE_OVERHEAD
    }

    /// These limits, none of them beyond its value in `most`.
    #[must_use]
    pub fn at_most(self, most: &Self) -> Self {
        let time = |own: Option<Duration>, most: Option<Duration>| match (own, most) {
            (Some(own), Some(most)) => Some(own.min(most)),
            (one, other) => one.or(other),
        };
        Self {
            max_heap_bytes: self.max_heap_bytes.min(most.max_heap_bytes),
            max_cpu_time: time(self.max_cpu_time, most.max_cpu_time),
            max_wall_time: time(self.max_wall_time, most.max_wall_time),
            max_yield_time: time(self.max_yield_time, most.max_yield_time),
            max_output_bytes: self.max_output_bytes.min(most.max_output_bytes),
            max_live_cells: self.max_live_cells.min(most.max_live_cells),
            max_ended_cells: self.max_ended_cells.min(most.max_ended_cells),
            max_ended_bytes: self.max_ended_bytes.min(most.max_ended_bytes),
            max_pending_tool_calls: self.max_pending_tool_calls.min(most.max_pending_tool_calls),
            max_pending_timers: self.max_pending_timers.min(most.max_pending_timers),
            max_stored_bytes: self.max_stored_bytes.min(most.max_stored_bytes),
            max_frame_bytes: self.max_frame_bytes.min(most.max_frame_bytes),
        }
    }

    /// How long an observation lasts that asked for `requested`.
    pub fn yield_time(&self, requested: Option<Duration>) -> Duration {
        let asked = requested.unwrap_or(Self::DEFAULT_YIELD_TIME);
        self.max_yield_time.map_or(asked, |max| asked.min(max))
    }
}

macro_rules! setters {
    ($($name:ident: $type:ty),* $(,)?) => {
        impl Limits {
            $(
                #[doc = concat!("These limits with another [`", stringify!($name), "`](field@Self::", stringify!($name), ").")]
                #[must_use]
                pub fn $name(mut self, $name: $type) -> Self {
                    self.$name = $name;
                    self
                }
            )*
        }
    };
}

setters! {
    max_heap_bytes: usize,
    max_cpu_time: Option<Duration>,
    max_wall_time: Option<Duration>,
    max_yield_time: Option<Duration>,
    max_output_bytes: usize,
    max_live_cells: usize,
    max_ended_cells: usize,
    max_ended_bytes: usize,
    max_pending_tool_calls: usize,
    max_pending_timers: usize,
    max_stored_bytes: usize,
    max_frame_bytes: usize,
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
            max_ended_cells: 4096,
            max_ended_bytes: 64 << 20,
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
    /// [`Limits::max_heap_bytes`](field@Limits::max_heap_bytes).
    Heap,
    /// [`Limits::max_cpu_time`](field@Limits::max_cpu_time).
    CpuTime,
    /// [`Limits::max_wall_time`](field@Limits::max_wall_time).
    WallTime,
    /// [`Limits::max_output_bytes`](field@Limits::max_output_bytes).
    Output,
    /// [`Limits::max_live_cells`](field@Limits::max_live_cells).
    LiveCells,
    /// [`Limits::max_pending_tool_calls`](field@Limits::max_pending_tool_calls).
    PendingToolCalls,
    /// [`Limits::max_pending_timers`](field@Limits::max_pending_timers).
    PendingTimers,
    /// [`Limits::max_stored_bytes`](field@Limits::max_stored_bytes).
    StoredBytes,
    /// [`Limits::max_frame_bytes`](field@Limits::max_frame_bytes).
    Frame,
    /// The log of one cell in the journal of its durable session; an option of the journal.
    Journal,
}

impl Limit {
    /// Its name and its unit, as errors have them: `heap` and `bytes`.
    pub fn name_and_unit(self) -> (&'static str, &'static str) {
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
            Self::Journal => ("journal", "bytes"),
        }
    }

    /// The value that these limits set, in bytes, milliseconds or a count; `None` where there is no
    /// such limit.
    pub fn of(self, limits: &Limits) -> Option<u64> {
        let ms = |time: Option<Duration>| u64::try_from(time?.as_millis()).ok();
        match self {
            Self::Heap => Some(limits.heap_bytes() as u64),
            Self::CpuTime => ms(limits.max_cpu_time),
            Self::WallTime => ms(limits.max_wall_time),
            Self::Output => Some(limits.max_output_bytes as u64),
            Self::LiveCells => Some(limits.max_live_cells as u64),
            Self::PendingToolCalls => Some(limits.max_pending_tool_calls as u64),
            Self::PendingTimers => Some(limits.max_pending_timers as u64),
            Self::StoredBytes => Some(limits.max_stored_bytes as u64),
            Self::Frame => Some(limits.max_frame_bytes as u64),
            Self::Journal => None,
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
