//! Requests of an agent core to a session, and their responses.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    CellId, CellOutcome, ContentItem, Determinism, Json, RuntimeToolCallId, ToolSet, TraceContext,
};

/// Run one cell.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExecuteRequest {
    /// The agent core's name for the model's call; tool calls and notifications
    /// carry it.
    pub tool_call_id: String,
    /// The tools the cell may call.
    pub enabled_tools: ToolSet,
    /// Raw JavaScript, evaluated as an async ES module.
    pub source: String,
    /// How long the first observation lasts; default
    /// [`Limits::DEFAULT_YIELD_TIME`](crate::Limits::DEFAULT_YIELD_TIME).
    pub yield_time: Option<Duration>,
    /// The budget of the first observation's output, in tokens of about four bytes.
    /// The session cuts the output as [`truncate`](crate::truncate) does. Default:
    /// nothing is cut.
    pub max_output_tokens: Option<u64>,
    /// Globals that the cell finds besides its own, as values: name and JSON. One that
    /// has the name of a helper takes its place. Default none.
    pub constants: Vec<(String, Json)>,
    /// Where time and randomness come from; default the machine.
    pub determinism: Option<Determinism>,
    /// The agent's span. The spans of the cell and of its calls descend from it where the provider
    /// has a `Propagation`, and the log lines of the cell's worker name the span above them.
    /// Default none: they descend from the span that is current.
    pub trace_context: Option<TraceContext>,
    /// Cancelled by the caller to end this request's observation with what there
    /// is. It never touches the cell.
    pub yield_now: CancellationToken,
    /// Cancelled by the caller (at the end of a turn, say) to terminate the cell,
    /// whether or not somebody observes it.
    pub parent: Option<CancellationToken>,
}

impl ExecuteRequest {
    /// A request to run `source` with no tools and every default.
    pub fn new(tool_call_id: impl Into<String>, source: impl Into<String>) -> Self {
        Self {
            tool_call_id: tool_call_id.into(),
            enabled_tools: ToolSet::from([]),
            source: source.into(),
            yield_time: None,
            max_output_tokens: None,
            constants: Vec::new(),
            determinism: None,
            trace_context: None,
            yield_now: CancellationToken::new(),
            parent: None,
        }
    }

    /// Sets the tools the cell may call.
    #[must_use]
    pub fn tools(mut self, tools: impl Into<ToolSet>) -> Self {
        self.enabled_tools = tools.into();
        self
    }

    /// Sets how long the first observation lasts.
    #[must_use]
    pub fn yield_time(mut self, yield_time: Duration) -> Self {
        self.yield_time = Some(yield_time);
        self
    }

    /// Sets the budget of the first observation's output.
    #[must_use]
    pub fn max_output_tokens(mut self, tokens: u64) -> Self {
        self.max_output_tokens = Some(tokens);
        self
    }

    /// Sets the globals that the cell finds besides its own.
    #[must_use]
    pub fn constants(mut self, constants: Vec<(String, Json)>) -> Self {
        self.constants = constants;
        self
    }

    /// Sets where time and randomness come from.
    #[must_use]
    pub fn determinism(mut self, determinism: Determinism) -> Self {
        self.determinism = Some(determinism);
        self
    }

    /// Sets the span that the cell descends from.
    #[must_use]
    pub fn trace_context(mut self, context: Option<TraceContext>) -> Self {
        self.trace_context = context;
        self
    }

    /// Sets the token that ends the first observation with what there is.
    #[must_use]
    pub fn yield_now(mut self, token: CancellationToken) -> Self {
        self.yield_now = token;
        self
    }

    /// Sets the token that terminates the cell.
    #[must_use]
    pub fn parent(mut self, token: CancellationToken) -> Self {
        self.parent = Some(token);
        self
    }
}

/// Observe a cell.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WaitRequest {
    /// Which.
    pub cell_id: CellId,
    /// How long the observation lasts; default
    /// [`Limits::DEFAULT_YIELD_TIME`](crate::Limits::DEFAULT_YIELD_TIME).
    pub yield_time: Option<Duration>,
    /// As in [`ExecuteRequest::max_output_tokens`](field@ExecuteRequest::max_output_tokens).
    pub max_output_tokens: Option<u64>,
    /// As in [`ExecuteRequest::yield_now`](field@ExecuteRequest::yield_now).
    pub yield_now: CancellationToken,
    /// The agent core's name for the model's call of `wait`; the span of the request carries it.
    /// Default none.
    pub tool_call_id: Option<String>,
}

impl WaitRequest {
    /// A request to observe `cell_id` for the default time.
    pub fn new(cell_id: CellId) -> Self {
        Self {
            cell_id,
            yield_time: None,
            max_output_tokens: None,
            yield_now: CancellationToken::new(),
            tool_call_id: None,
        }
    }

    /// Sets how long the observation lasts.
    #[must_use]
    pub fn yield_time(mut self, yield_time: Duration) -> Self {
        self.yield_time = Some(yield_time);
        self
    }

    /// Sets the budget of the output.
    #[must_use]
    pub fn max_output_tokens(mut self, tokens: u64) -> Self {
        self.max_output_tokens = Some(tokens);
        self
    }

    /// Sets the token that ends the observation with what there is.
    #[must_use]
    pub fn yield_now(mut self, token: CancellationToken) -> Self {
        self.yield_now = token;
        self
    }

    /// Sets the name of the model's call.
    #[must_use]
    pub fn tool_call_id(mut self, id: impl Into<String>) -> Self {
        self.tool_call_id = Some(id.into());
        self
    }
}

/// Stop a cell. A [`CellId`] alone becomes a request without a name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TerminateRequest {
    /// Which.
    pub cell_id: CellId,
    /// As in [`WaitRequest::tool_call_id`](field@WaitRequest::tool_call_id).
    pub tool_call_id: Option<String>,
}

impl TerminateRequest {
    /// A request to stop `cell_id`.
    pub fn new(cell_id: CellId) -> Self {
        Self {
            cell_id,
            tool_call_id: None,
        }
    }

    /// Sets the name of the model's call.
    #[must_use]
    pub fn tool_call_id(mut self, id: impl Into<String>) -> Self {
        self.tool_call_id = Some(id.into());
        self
    }
}

impl From<CellId> for TerminateRequest {
    fn from(cell_id: CellId) -> Self {
        Self::new(cell_id)
    }
}

/// What one observation of a cell returned: the items since the last one, and
/// how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CellResponse {
    /// The cell still runs.
    Yielded {
        /// Which cell.
        cell_id: CellId,
        /// Output since the last observation.
        content_items: Vec<ContentItem>,
    },
    /// The cell has no immediately runnable work and is frozen: neither a timer nor a
    /// tool's answer is let in until the next `wait_to_pending`, and a plain `wait` sets
    /// it free. Only `execute_to_pending` and `wait_to_pending` return this.
    Pending {
        /// Which cell.
        cell_id: CellId,
        /// Output since the last observation.
        content_items: Vec<ContentItem>,
        /// Tool calls that have no answer yet, or one not let in yet, in order of the
        /// calls: `tool-1`, ...
        pending_tool_call_ids: Vec<RuntimeToolCallId>,
    },
    /// The cell was terminated.
    Terminated {
        /// Which cell.
        cell_id: CellId,
        /// Output since the last observation.
        content_items: Vec<ContentItem>,
    },
    /// The cell ended by itself, or was ended by a limit or by the loss of its
    /// process.
    Result {
        /// Which cell.
        cell_id: CellId,
        /// Output since the last observation.
        content_items: Vec<ContentItem>,
        /// Why it failed; `None` where it completed.
        error_text: Option<String>,
        /// Where in the source it failed, if that is known.
        error_position: Option<SourcePosition>,
        /// How it ended, as a type.
        outcome: CellOutcome,
        /// How long the result waited for an observer after the cell had ended.
        buffered_for: Duration,
    },
}

/// A place in a cell's source, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePosition {
    /// Line.
    pub line: u32,
    /// Column, in UTF-16 units.
    pub column: u32,
}

impl CellResponse {
    /// How the cell ended; `None` while it runs.
    pub fn outcome(&self) -> Option<CellOutcome> {
        match self {
            Self::Yielded { .. } | Self::Pending { .. } => None,
            Self::Terminated { .. } => Some(CellOutcome::Terminated),
            Self::Result { outcome, .. } => Some(outcome.clone()),
        }
    }

    /// The response for a nonexistent cell: a `Result` whose outcome is
    /// [`CellOutcome::Missing`] and whose error text is
    /// [`cell_not_found`](crate::cell_not_found).
    pub fn missing(cell_id: &CellId) -> Self {
        Self::missing_because(cell_id.clone(), crate::cell_not_found(cell_id))
    }

    /// The response for a nonexistent cell, with an error text that says more.
    pub fn missing_because(cell_id: CellId, error_text: impl Into<String>) -> Self {
        Self::Result {
            cell_id,
            content_items: Vec::new(),
            error_text: Some(error_text.into()),
            error_position: None,
            outcome: CellOutcome::Missing,
            buffered_for: Duration::ZERO,
        }
    }

    /// Whether the cell does not exist, or its result was taken or dropped before.
    pub fn is_missing(&self) -> bool {
        matches!(
            self,
            Self::Result {
                outcome: CellOutcome::Missing,
                ..
            }
        )
    }

    /// Which cell this is of.
    pub fn cell_id(&self) -> &CellId {
        match self {
            Self::Yielded { cell_id, .. }
            | Self::Pending { cell_id, .. }
            | Self::Terminated { cell_id, .. }
            | Self::Result { cell_id, .. } => cell_id,
        }
    }

    /// The output.
    pub fn content_items(&self) -> &[ContentItem] {
        match self {
            Self::Yielded { content_items, .. }
            | Self::Pending { content_items, .. }
            | Self::Terminated { content_items, .. }
            | Self::Result { content_items, .. } => content_items,
        }
    }

    /// The output, to change it in place.
    pub fn content_items_mut(&mut self) -> &mut Vec<ContentItem> {
        match self {
            Self::Yielded { content_items, .. }
            | Self::Pending { content_items, .. }
            | Self::Terminated { content_items, .. }
            | Self::Result { content_items, .. } => content_items,
        }
    }

    /// Whether the cell has ended.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Yielded { .. } | Self::Pending { .. })
    }
}
