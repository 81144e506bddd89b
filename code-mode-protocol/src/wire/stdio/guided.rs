//! What the capability `guided-sessions-v1` adds to the wire: for the SDKs of this project, which
//! start the program. The Codex CLI never asks for it, and then every message is as before.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    CallOutcome, CellEnded, CellOutcome, CellStats, Json, Limits, SourcePosition, ToolAnswer,
    ToolCallFinished, ToolDefinition, ToolKind, ToolName, TraceContext,
};

/// The name of the capability.
pub const GUIDED: &str = "guided-sessions-v1";

/// `guided` of a `session/open`: the session is guided, and this is how.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GuidedOpen {
    /// As [`SessionOptions::check_inputs`](field@crate::SessionOptions::check_inputs); default true.
    pub check_inputs: Option<bool>,
    /// As [`SessionOptions::require_readable_schemas`](field@crate::SessionOptions::require_readable_schemas).
    pub require_readable_schemas: bool,
    /// Values that cells find stored.
    pub stored: BTreeMap<String, Json>,
    /// What cells may use, at most what the program's own options say.
    pub limits: GuidedLimits,
    /// Whether `session/event` messages are sent.
    pub events: bool,
    /// The name by which the session is kept in the program's journal. By default it is kept nowhere.
    pub durable: Option<String>,
}

/// Limits of a guided session; each that is left out is the program's own.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GuidedLimits {
    max_heap_bytes: Option<usize>,
    max_cpu_time_ms: Option<u64>,
    max_wall_time_ms: Option<u64>,
    max_yield_time_ms: Option<u64>,
    max_output_bytes: Option<usize>,
    max_live_cells: Option<usize>,
    max_pending_tool_calls: Option<usize>,
    max_stored_bytes: Option<usize>,
}

impl GuidedLimits {
    /// These limits, and for those that are left out and as their most `own`.
    pub fn within(self, own: &Limits) -> Limits {
        let mut limits = own.clone();
        let size = |place: &mut usize, asked: Option<usize>| {
            *place = asked.unwrap_or(*place);
        };
        let time = |place: &mut Option<Duration>, asked: Option<u64>| {
            *place = asked.map(Duration::from_millis).or(*place);
        };
        size(&mut limits.max_heap_bytes, self.max_heap_bytes);
        time(&mut limits.max_cpu_time, self.max_cpu_time_ms);
        time(&mut limits.max_wall_time, self.max_wall_time_ms);
        time(&mut limits.max_yield_time, self.max_yield_time_ms);
        size(&mut limits.max_output_bytes, self.max_output_bytes);
        size(&mut limits.max_live_cells, self.max_live_cells);
        size(
            &mut limits.max_pending_tool_calls,
            self.max_pending_tool_calls,
        );
        size(&mut limits.max_stored_bytes, self.max_stored_bytes);
        limits.at_most(own)
    }
}

/// `guided` of a `session/execute`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GuidedExecute {
    /// Globals that the cell finds besides its own.
    pub constants: BTreeMap<String, Json>,
    /// The agent's span, as W3C Trace Context has it.
    pub traceparent: Option<String>,
    /// What tracing systems add to it.
    pub tracestate: Option<String>,
}

impl GuidedExecute {
    /// The agent's span.
    pub fn trace_context(&self) -> Option<TraceContext> {
        TraceContext::new(self.traceparent.as_deref(), self.tracestate.as_deref())
    }
}

/// A tool definition of a guided session. It has members that those of other sessions lack, and
/// defaults where those have none.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuidedDefinition {
    name: String,
    #[serde(default)]
    tool_name: Option<ToolName>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    kind: Option<ToolKind>,
    #[serde(default)]
    input_schema: Option<Json>,
    #[serde(default)]
    output_schema: Option<Json>,
    #[serde(default)]
    deferred: bool,
    #[serde(default)]
    hidden: bool,
    #[serde(default)]
    idempotent: bool,
    #[serde(default)]
    answer: Answer,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    #[default]
    Value,
    McpResult,
}

impl From<GuidedDefinition> for ToolDefinition {
    fn from(given: GuidedDefinition) -> Self {
        let mut definition = Self::function(given.name.as_str(), given.description)
            .input_schema(given.input_schema)
            .output_schema(given.output_schema)
            .answer(match given.answer {
                Answer::Value => ToolAnswer::Value,
                Answer::McpResult => ToolAnswer::McpResult,
            });
        if let Some(name) = given.tool_name {
            definition = definition.tool_name(name);
        }
        definition.kind = given.kind.unwrap_or(ToolKind::Function);
        definition.deferred = given.deferred;
        definition.hidden = given.hidden;
        definition.idempotent = given.idempotent;
        definition
    }
}

/// How a cell ended, and what it used, in JSON.
#[derive(Debug, Serialize)]
pub struct GuidedEnd {
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_position: Option<SourcePosition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stats: Option<CellStats>,
}

#[derive(Debug, Serialize)]
struct Outcome {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Exceeded>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
struct Exceeded {
    name: &'static str,
    value: u64,
    unit: &'static str,
}

impl From<&CellOutcome> for Outcome {
    fn from(outcome: &CellOutcome) -> Self {
        let mut told = Self {
            kind: outcome.as_str(),
            status: None,
            limit: None,
            reason: None,
        };
        match outcome {
            CellOutcome::ExitedWith(status) => told.status = Some(*status),
            CellOutcome::Limit(exceeded) => {
                let (name, unit) = exceeded.limit.name_and_unit();
                told.limit = Some(Exceeded {
                    name,
                    value: exceeded.value,
                    unit,
                });
            }
            CellOutcome::Lost(reason) => told.reason = Some(reason.clone()),
            _ => {}
        }
        told
    }
}

impl GuidedEnd {
    /// The end of a cell whose result has this outcome; `stats` where they are known.
    pub fn new(
        outcome: &CellOutcome,
        error_position: Option<SourcePosition>,
        stats: Option<&CellStats>,
    ) -> Self {
        Self {
            outcome: outcome.into(),
            error_position,
            stats: stats.copied(),
        }
    }
}

/// `event` of a `session/event`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all_fields = "snake_case")]
pub enum SessionEvent<'a> {
    /// `cell/started`.
    #[serde(rename = "cell/started")]
    CellStarted {
        /// The cell.
        cell_id: &'a str,
        /// The `tool_call_id` of its execute.
        call_id: &'a str,
    },
    /// `cell/ended`: its program will not run again.
    #[serde(rename = "cell/ended")]
    CellEnded {
        /// The cell.
        cell_id: &'a str,
        /// The `tool_call_id` of its execute.
        call_id: &'a str,
        /// How, and what it used.
        #[serde(flatten)]
        end: GuidedEnd,
    },
    /// `call/started`.
    #[serde(rename = "call/started")]
    CallStarted {
        /// The calling cell.
        cell_id: &'a str,
        /// The call's place in the cell.
        runtime_tool_call_id: String,
        /// Which tool.
        tool_name: &'a ToolName,
    },
    /// `call/finished`.
    #[serde(rename = "call/finished")]
    CallFinished {
        /// The calling cell.
        cell_id: &'a str,
        /// The call's place in the cell.
        runtime_tool_call_id: String,
        /// Which tool.
        tool_name: &'a ToolName,
        /// `succeeded`, `failed`, `refused`, `blocked`, `unknown` or `cancelled`.
        outcome: &'static str,
        /// How long it took.
        duration_ms: f64,
        /// Of the answer, where it succeeded.
        #[serde(skip_serializing_if = "Option::is_none")]
        bytes: Option<usize>,
    },
}

impl<'a> SessionEvent<'a> {
    /// The end of a cell.
    pub fn cell_ended(ended: &'a CellEnded) -> Self {
        Self::CellEnded {
            cell_id: ended.cell_id.as_str(),
            call_id: &ended.tool_call_id,
            end: GuidedEnd::new(&ended.outcome, None, Some(&ended.stats)),
        }
    }

    /// The end of a call.
    pub fn call_finished(finished: &'a ToolCallFinished) -> Self {
        Self::CallFinished {
            cell_id: finished.cell_id.as_str(),
            runtime_tool_call_id: finished.runtime_tool_call_id.to_string(),
            tool_name: &finished.tool_name,
            outcome: finished.outcome.as_str(),
            duration_ms: finished.duration.as_secs_f64() * 1000.0,
            bytes: match finished.outcome {
                CallOutcome::Succeeded { bytes } => Some(bytes),
                _ => None,
            },
        }
    }
}
