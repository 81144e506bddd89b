//! How a cell ends, and what it used: for those who count, show and record.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{CellId, LimitExceeded, NestedToolCall, RuntimeToolCallId, ToolFailure, ToolName};

/// How a cell ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CellOutcome {
    /// Its program completed.
    Completed,
    /// It called `exit()`.
    Exited,
    /// It called `exit(STATUS)` in a guided session, and the status is not 0.
    ExitedWith(u8),
    /// It threw, or did not compile.
    ScriptError,
    /// It hit a limit.
    Limit(LimitExceeded),
    /// It was terminated.
    Terminated,
    /// Its process was lost; why, in words.
    Lost(String),
    /// Its session was shut down.
    ShutDown,
    /// The cell did not exist.
    Missing,
}

impl CellOutcome {
    /// The outcome in one word, for metrics: `completed`, `exited`, `script_error`,
    /// `limit`, `terminated`, `lost`, `shut_down`, `missing`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Exited | Self::ExitedWith(_) => "exited",
            Self::ScriptError => "script_error",
            Self::Limit(_) => "limit",
            Self::Terminated => "terminated",
            Self::Lost(_) => "lost",
            Self::ShutDown => "shut_down",
            Self::Missing => "missing",
        }
    }

    /// Whether the program did what it was written to do.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Completed | Self::Exited)
    }
}

/// What a cell used.
///
/// As text, in traces and on the stdio wire, its times are milliseconds to the microsecond: `wall_ms`,
/// `processor_ms`, `queued_ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CellStats {
    /// From its admission to its end, by the host's clock.
    #[serde(rename = "wall_ms", with = "milliseconds")]
    pub wall: Duration,
    /// Processor time of its thread, as its worker says; zero where its worker was lost.
    #[serde(rename = "processor_ms", with = "milliseconds")]
    pub processor: Duration,
    /// How much of the wall time it waited for an isolate, as its worker says.
    #[serde(rename = "queued_ms", with = "milliseconds")]
    pub queued: Duration,
    /// The most of its heap that was in use when V8 looked, in bytes, as its worker says.
    pub peak_heap_bytes: u64,
    /// Output in bytes, observed or not.
    pub output_bytes: u64,
    /// Tool calls it made.
    pub calls: u32,
    /// Calls whose error the cell got; see [`CallOutcome::is_failure`].
    pub calls_failed: u32,
    /// Calls that had no answer when it ended. They were cancelled; those that had reached their
    /// tool may have run.
    pub calls_cancelled: u32,
}

mod milliseconds {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64((time.as_secs_f64() * 1e6).round() / 1e3)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let milliseconds = f64::deserialize(from)?;
        Duration::try_from_secs_f64(milliseconds / 1e3).map_err(D::Error::custom)
    }
}

/// Time and randomness of a cell that can be run again as it was.
///
/// `Date`, `performance.now`, `Math.random` and `crypto` then come from here, and time
/// stands still within a turn but for a little at each look.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Determinism {
    /// Where randomness begins.
    pub seed: u64,
    /// What time it is when the cell begins, in milliseconds since 1970.
    pub start_ms: f64,
    /// The recorded turns, in order, for a replay. Without them the cell runs
    /// by the clock, and each of its turns is reported to
    /// [`turn`](crate::CodeModeSessionDelegate::turn).
    pub turns: Option<Vec<Turn>>,
}

/// A turn of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// When, in milliseconds since the cell began.
    pub at_ms: f64,
    /// Because of what.
    pub cause: TurnCause,
}

/// The cause of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnCause {
    /// The answer to a tool call.
    Answer(RuntimeToolCallId),
    /// A timer, by its number.
    Timer(u32),
}

/// A cell was admitted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CellStarted {
    /// Its id.
    pub cell_id: CellId,
    /// The `tool_call_id` of the execute.
    pub tool_call_id: String,
}

impl CellStarted {
    /// As a session makes it, for tests of a delegate.
    pub fn new(cell_id: CellId, tool_call_id: String) -> Self {
        Self {
            cell_id,
            tool_call_id,
        }
    }
}

/// A cell's program will not run again.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CellEnded {
    /// Its id.
    pub cell_id: CellId,
    /// The `tool_call_id` of the execute.
    pub tool_call_id: String,
    /// How it ended.
    pub outcome: CellOutcome,
    /// What it used.
    pub stats: CellStats,
}

impl CellEnded {
    /// As a session makes it, for tests of a delegate.
    pub fn new(
        cell_id: CellId,
        tool_call_id: String,
        outcome: CellOutcome,
        stats: CellStats,
    ) -> Self {
        Self {
            cell_id,
            tool_call_id,
            outcome,
            stats,
        }
    }
}

/// How a tool call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallOutcome {
    /// It gave a result, of so many bytes of JSON.
    Succeeded {
        /// The bytes.
        bytes: usize,
    },
    /// It failed: with an error, or with the result of an MCP server whose `isError` is true, where
    /// its tool has [`ToolAnswer::McpResult`](crate::ToolAnswer::McpResult).
    Failed,
    /// It was refused before it reached its tool, because its input does not fit the tool's schema.
    Refused,
    /// A policy or a person did not let it run; see [`ToolError::blocked`](crate::ToolError::blocked).
    Blocked,
    /// It reached its tool, and nobody knows what that did; see
    /// [`ToolError::unknown`](crate::ToolError::unknown).
    Unknown,
    /// Its cell ended before, or must terminate.
    Cancelled,
}

impl From<ToolFailure> for CallOutcome {
    fn from(failure: ToolFailure) -> Self {
        match failure {
            ToolFailure::Failed => Self::Failed,
            ToolFailure::Blocked => Self::Blocked,
            ToolFailure::Unknown => Self::Unknown,
        }
    }
}

impl CallOutcome {
    /// Whether the cell got an error.
    pub fn is_failure(self) -> bool {
        !matches!(self, Self::Succeeded { .. } | Self::Cancelled)
    }

    /// The outcome in one word, for metrics: `succeeded`, `failed`, `refused`, `blocked`, `unknown`,
    /// `cancelled`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded { .. } => "succeeded",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Blocked => "blocked",
            Self::Unknown => "unknown",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A tool call has ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ToolCallFinished {
    /// The calling cell.
    pub cell_id: CellId,
    /// The `tool_call_id` of the execute that started the cell.
    pub tool_call_id: String,
    /// The call's place in the cell.
    pub runtime_tool_call_id: RuntimeToolCallId,
    /// Which tool.
    pub tool_name: ToolName,
    /// How it ended.
    pub outcome: CallOutcome,
    /// How long it took.
    pub duration: Duration,
}

impl ToolCallFinished {
    /// The end of a call.
    pub fn new(call: &NestedToolCall, outcome: CallOutcome, duration: Duration) -> Self {
        Self {
            cell_id: call.cell_id.clone(),
            tool_call_id: call.tool_call_id.clone(),
            runtime_tool_call_id: call.runtime_tool_call_id,
            tool_name: call.tool_name.clone(),
            outcome,
            duration,
        }
    }
}
