//! What a journal holds of a session, as its core records it.

use std::time::Duration;

use code_mode_protocol::{
    CellOutcome, ContentItem, Json, LimitExceeded, RuntimeToolCallId, SourcePosition, ToolError,
    ToolFailure, ToolSet, Turn,
};
use serde::{Deserialize, Serialize};

/// One thing that must be on disk, in the order of what happens.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    /// A cell was admitted.
    Began { cell: u64, program: Box<Program> },
    /// A step of a cell's log.
    Step { cell: u64, step: Step },
    /// Observers have so many items of a cell's output.
    Taken { cell: u64, items: u64 },
    /// The delegate has so many notifications of a cell.
    Notified { cell: u64, notifications: u64 },
    /// A cell's JavaScript has ended, and these values are the session's.
    Ended {
        cell: u64,
        end: Box<EndRecord>,
        writes: Vec<(String, Json)>,
        /// The version of the session's values with these.
        version: u64,
    },
    /// Nobody needs the cell any more.
    Closed { cell: u64 },
}

/// What it takes to run a cell again.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) tool_call_id: String,
    pub(crate) source: String,
    pub(crate) tools: ToolSet,
    pub(crate) constants: Vec<(String, Json)>,
    pub(crate) seed: u64,
    /// When the cell began, in milliseconds since 1970.
    pub(crate) start_ms: f64,
    pub(crate) to_pending: bool,
    /// The version of the session's values that it found.
    pub(crate) view: u64,
}

/// A step of a cell's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// What let the cell continue, and when by its clock.
    Turn(Turn),
    /// It calls a tool: on disk before the delegate sees the call.
    Intent {
        call: RuntimeToolCallId,
        /// The tool's place in the cell's set.
        tool: u32,
        input: Option<Json>,
    },
    /// The delegate gets the call again.
    Attempt {
        call: RuntimeToolCallId,
        attempt: u32,
    },
    /// A call's answer: on disk before the cell sees it.
    Answer {
        call: RuntimeToolCallId,
        result: Result<Json, ErrorRecord>,
    },
    /// Whether the cell is frozen when it has no work.
    Mode { to_pending: bool },
    /// The cell runs again from its first line, in another worker or process; when, in milliseconds since 1970.
    Cut { at_ms: f64 },
    /// The deadlines stand still, or run again; when, in milliseconds since 1970.
    Paused { paused: bool, at_ms: f64 },
}

impl Step {
    /// What the step counts against the limit of a cell's log, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        const OVERHEAD: usize = 64;
        OVERHEAD
            + match self {
                Self::Intent { input, .. } => input.as_ref().map_or(0, |json| json.as_str().len()),
                Self::Answer {
                    result: Ok(json), ..
                } => json.as_str().len(),
                Self::Answer {
                    result: Err(error), ..
                } => {
                    let data = error.data.as_ref().map_or(0, |json| json.as_str().len());
                    error.message.len() + data
                }
                _ => 0,
            }
    }
}

/// A [`ToolError`], in a form without optional fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ErrorRecord {
    message: String,
    code: Option<i64>,
    data: Option<Json>,
    failure: ToolFailure,
}

impl From<ToolError> for ErrorRecord {
    fn from(error: ToolError) -> Self {
        Self {
            message: error.message,
            code: error.code,
            data: error.data,
            failure: error.failure,
        }
    }
}

impl From<ErrorRecord> for ToolError {
    fn from(record: ErrorRecord) -> Self {
        let mut error = Self::new(record.message);
        error.code = record.code;
        error.data = record.data;
        error.failure = record.failure;
        error
    }
}

/// How a cell ended, with what nobody has taken of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct EndRecord {
    pub(crate) outcome: OutcomeRecord,
    pub(crate) error: Option<(String, Option<SourcePosition>)>,
    /// Items that were taken before.
    pub(crate) before: u64,
    /// The output after them.
    pub(crate) items: Vec<ContentItem>,
    /// The notifications that the delegate does not have.
    pub(crate) notifications: Vec<String>,
}

/// A [`CellOutcome`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum OutcomeRecord {
    Completed,
    Exited(u8),
    ScriptError,
    Limit(LimitExceeded),
    Terminated,
    Lost(String),
}

impl From<&CellOutcome> for OutcomeRecord {
    fn from(outcome: &CellOutcome) -> Self {
        match outcome {
            CellOutcome::Completed => Self::Completed,
            CellOutcome::Exited => Self::Exited(0),
            CellOutcome::ExitedWith(status) => Self::Exited(*status),
            CellOutcome::ScriptError => Self::ScriptError,
            CellOutcome::Limit(limit) => Self::Limit(*limit),
            CellOutcome::Lost(why) => Self::Lost(why.clone()),
            _ => Self::Terminated,
        }
    }
}

impl From<OutcomeRecord> for CellOutcome {
    fn from(record: OutcomeRecord) -> Self {
        match record {
            OutcomeRecord::Completed => Self::Completed,
            OutcomeRecord::Exited(0) => Self::Exited,
            OutcomeRecord::Exited(status) => Self::ExitedWith(status),
            OutcomeRecord::ScriptError => Self::ScriptError,
            OutcomeRecord::Limit(limit) => Self::Limit(limit),
            OutcomeRecord::Terminated => Self::Terminated,
            OutcomeRecord::Lost(why) => Self::Lost(why),
        }
    }
}

/// A session as its journal has it.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    pub(crate) stored: Vec<(String, Json)>,
    /// The version of these values.
    pub(crate) version: u64,
    /// The number of the last cell that was admitted; 0 before the first.
    pub(crate) last_cell: u64,
    /// The cells that have not been closed, in order of their numbers.
    pub(crate) cells: Vec<RestoredCell>,
}

/// A cell as its session's journal has it.
#[derive(Debug)]
pub(crate) struct RestoredCell {
    pub(crate) cell: u64,
    pub(crate) tool_call_id: String,
    pub(crate) tools: ToolSet,
    /// As the last step that changed it.
    pub(crate) to_pending: bool,
    pub(crate) taken: u64,
    pub(crate) notified: u64,
    /// Bytes of its log.
    pub(crate) log_bytes: usize,
    /// Where its JavaScript has ended.
    pub(crate) end: Option<EndRecord>,
}

/// A cell's program and log, to run it again.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) program: Program,
    /// The values that it found when it began.
    pub(crate) view: Vec<(String, Json)>,
    pub(crate) steps: Vec<Step>,
    /// How much of its wall time is over by the calendar, without its pauses.
    pub(crate) wall: Duration,
}

/// What a cell repeats that runs again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repeated {
    pub(crate) turns: usize,
    pub(crate) answers: usize,
    /// Calls without a recorded answer.
    pub(crate) unanswered: usize,
}

impl Loaded {
    pub(crate) fn repeated(&self) -> Repeated {
        let count = |is_it: fn(&Step) -> bool| self.steps.iter().filter(|step| is_it(step)).count();
        let answers = count(|step| matches!(step, Step::Answer { .. }));
        let calls = count(|step| matches!(step, Step::Intent { .. }));
        Repeated {
            turns: count(|step| matches!(step, Step::Turn(_))),
            answers,
            unanswered: calls.saturating_sub(answers),
        }
    }
}

/// How much of a cell's wall time is over at a time in milliseconds since 1970: not that of its
/// pauses, the last of which may have no end.
pub(crate) fn wall_time(start_ms: f64, steps: &[Step], now_ms: f64) -> Duration {
    let mut paused_ms = 0.0;
    let mut since = None;
    for step in steps {
        match step {
            Step::Paused {
                paused: true,
                at_ms,
            } => since = since.or(Some(*at_ms)),
            Step::Paused {
                paused: false,
                at_ms,
            } => {
                if let Some(since) = since.take() {
                    paused_ms += (at_ms - since).max(0.0);
                }
            }
            _ => {}
        }
    }
    if let Some(since) = since {
        paused_ms += (now_ms - since).max(0.0);
    }
    let over = (now_ms - start_ms - paused_ms).max(0.0);
    Duration::try_from_secs_f64(over / 1000.0).unwrap_or(Duration::MAX)
}
