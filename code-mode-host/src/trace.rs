//! What happened in cells, one JSON object a line, and what writes it.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use code_mode_protocol::{
    CallOutcome, CellEnded, CellId, CellNotification, CellOutcome, CellResponse, CellStarted,
    CellStats, CodeModeSessionDelegate, ContentItem, Determinism, ExecuteRequest, Json,
    NestedToolCall, ToolAnswer, ToolCallFinished, ToolDefinition, ToolError, ToolName, Turn,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// The version of the lines that [`Recorder`] writes.
pub const TRACE_VERSION: u32 = 2;

/// One line of a trace.
#[derive(Debug, Deserialize, Serialize)]
pub struct TraceLine {
    /// When, in milliseconds since the trace began.
    pub at_ms: f64,
    /// What happened.
    pub event: TraceEvent,
}

/// Something that happened. What a program says or passes on is there only in a trace
/// with contents; its sizes always are.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceEvent {
    /// The first line.
    Began {
        /// [`TRACE_VERSION`].
        version: u32,
        /// Milliseconds since 1970.
        unix_ms: u64,
        /// Whether contents are there.
        contents: bool,
    },
    /// A program was handed over.
    Executed {
        /// The cell.
        cell: String,
        /// Bytes of its source.
        source_bytes: usize,
        /// How many tools it may call.
        tools: usize,
        /// With contents: what it takes to run it again.
        #[serde(skip_serializing_if = "Option::is_none")]
        program: Option<TracedProgram>,
    },
    /// A cell was admitted.
    CellStarted {
        /// The cell.
        cell: String,
    },
    /// A call was made.
    CallStarted {
        /// The cell.
        cell: String,
        /// The call.
        call: String,
        /// The tool.
        tool: ToolName,
        /// Bytes of the input.
        input_bytes: usize,
        /// With contents: the input, if there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        input: Option<Json>,
        /// The line of the source that made it, from 1; only in guided sessions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        line: Option<u32>,
    },
    /// With contents: what a call was answered.
    CallAnswered {
        /// The cell.
        cell: String,
        /// The call.
        call: String,
        /// The answer.
        answer: Result<Json, ToolError>,
    },
    /// A call has ended.
    CallFinished {
        /// The cell.
        cell: String,
        /// The call.
        call: String,
        /// [`CallOutcome::as_str`].
        outcome: String,
        /// How long it took.
        duration_ms: f64,
        /// Bytes of the result.
        output_bytes: usize,
    },
    /// A cell said something.
    Notified {
        /// The cell.
        cell: String,
        /// Bytes of the text.
        bytes: usize,
        /// With contents: the text.
        #[serde(skip_serializing_if = "Option::is_none")]
        text: Option<String>,
    },
    /// A cell continues.
    Turn {
        /// The cell.
        cell: String,
        /// When, and why.
        turn: Turn,
    },
    /// An observation ended.
    Observed {
        /// The cell.
        cell: String,
        /// Whether the cell still runs.
        yielded: bool,
        /// Bytes of its output.
        bytes: usize,
        /// With contents: the output.
        #[serde(skip_serializing_if = "Option::is_none")]
        items: Option<Vec<ContentItem>>,
        /// With contents: why the cell failed.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A cell has ended.
    CellEnded {
        /// The cell.
        cell: String,
        /// [`CellOutcome::as_str`].
        outcome: String,
        /// The limit, or how the process was lost.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// What it used.
        used: CellStats,
    },
}

/// What it takes to run a cell again.
#[derive(Debug, Deserialize, Serialize)]
pub struct TracedProgram {
    /// The source.
    pub source: String,
    /// The tools, as they are on a wire: [`definitions`](Self::definitions) has them whole.
    pub tools: Vec<ToolDefinition>,
    /// The names of those that answer with the results of MCP servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mcp_tools: Vec<String>,
    /// The session's stored values.
    pub stored: Vec<(String, Json)>,
    /// Globals besides.
    pub constants: Vec<(String, Json)>,
    /// Where time and randomness came from.
    pub determinism: Option<Determinism>,
    /// Whether its session is [guided](crate::SessionOptions::guided).
    #[serde(default = "is_guided")]
    pub guided: bool,
}

impl TracedProgram {
    /// The tools, as the program had them.
    pub fn definitions(&self) -> Vec<ToolDefinition> {
        let whole = |tool: &ToolDefinition| match self.mcp_tools.contains(&tool.name) {
            true => tool.clone().answer(ToolAnswer::McpResult),
            false => tool.clone(),
        };
        self.tools.iter().map(whole).collect()
    }
}

/// Earlier traces are all of guided sessions.
fn is_guided() -> bool {
    true
}

/// Writes what happens in a session's cells, and hands everything on to a delegate.
///
/// A line that cannot be written is lost, and said once at the level `warn`.
pub struct Recorder {
    delegate: Arc<dyn CodeModeSessionDelegate>,
    out: Mutex<Out>,
    began: Instant,
    contents: bool,
    guided: bool,
}

struct Out {
    writer: Box<dyn Write + Send>,
    has_failed: bool,
}

impl Recorder {
    /// A recorder that writes lines to `writer`. With `contents`, sources, inputs,
    /// answers and output are written too, as replay needs them.
    pub fn new(
        delegate: Arc<dyn CodeModeSessionDelegate>,
        writer: Box<dyn Write + Send>,
        contents: bool,
    ) -> Self {
        let recorder = Self {
            delegate,
            out: Mutex::new(Out {
                writer,
                has_failed: false,
            }),
            began: Instant::now(),
            contents,
            guided: true,
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        recorder.write(TraceEvent::Began {
            version: TRACE_VERSION,
            unix_ms: since.map_or(0, |since| since.as_millis() as u64),
            contents,
        });
        recorder
    }

    /// Sets whether the session is guided; default true.
    #[must_use]
    pub fn guided(mut self, guided: bool) -> Self {
        self.guided = guided;
        self
    }

    /// Time from now on, and new randomness, both of which a replay can repeat: for a request whose
    /// cell is recorded with contents.
    pub fn determinism() -> Determinism {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Determinism {
            seed: uuid::Uuid::new_v4().as_u64_pair().0,
            start_ms: since.unwrap_or_default().as_millis() as f64,
            turns: None,
        }
    }

    /// Whether contents are written.
    pub fn has_contents(&self) -> bool {
        self.contents
    }

    /// A program was handed over; reported by the caller of execute, since a delegate
    /// does not see it. `stored` is what the session had stored before.
    pub fn executed(&self, cell: &CellId, request: &ExecuteRequest, stored: Vec<(String, Json)>) {
        let program = self.contents.then(|| TracedProgram {
            source: request.source.clone(),
            tools: request.enabled_tools.to_vec(),
            mcp_tools: (request.enabled_tools.iter())
                .filter(|tool| tool.answer == ToolAnswer::McpResult)
                .map(|tool| tool.name.clone())
                .collect(),
            stored,
            constants: request.constants.clone(),
            determinism: request.determinism.clone(),
            guided: self.guided,
        });
        self.write(TraceEvent::Executed {
            cell: cell.to_string(),
            source_bytes: request.source.len(),
            tools: request.enabled_tools.len(),
            program,
        });
    }

    /// An observation ended; reported by its observer.
    pub fn observed(&self, response: &CellResponse) {
        let items = response.content_items();
        let error = match response {
            CellResponse::Result { error_text, .. } => error_text.clone(),
            _ => None,
        };
        self.write(TraceEvent::Observed {
            cell: response.cell_id().to_string(),
            yielded: !response.is_final(),
            bytes: items.iter().map(ContentItem::bytes).sum(),
            items: self.contents.then(|| items.to_vec()),
            error: error.filter(|_| self.contents),
        });
    }

    fn write(&self, event: TraceEvent) {
        let line = TraceLine {
            at_ms: ms(self.began.elapsed()),
            event,
        };
        let Ok(mut text) = serde_json::to_vec(&line) else {
            return;
        };
        text.push(b'\n');
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let written = out
            .writer
            .write_all(&text)
            .and_then(|()| out.writer.flush());
        if let Err(error) = written
            && !std::mem::replace(&mut out.has_failed, true)
        {
            tracing::warn!(%error, "the trace cannot be written");
        }
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("contents", &self.contents)
            .finish_non_exhaustive()
    }
}

fn ms(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[async_trait]
impl CodeModeSessionDelegate for Recorder {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        let (cell, id) = (
            call.cell_id.to_string(),
            call.runtime_tool_call_id.to_string(),
        );
        let answer = self.delegate.invoke_tool(call, cancelled).await;
        if self.contents {
            self.write(TraceEvent::CallAnswered {
                cell,
                call: id,
                answer: answer.clone(),
            });
        }
        answer
    }

    async fn notify(&self, notification: CellNotification, cancelled: CancellationToken) {
        self.write(TraceEvent::Notified {
            cell: notification.cell_id.to_string(),
            bytes: notification.text.len(),
            text: self.contents.then(|| notification.text.clone()),
        });
        self.delegate.notify(notification, cancelled).await;
    }

    async fn cell_closed(&self, cell_id: CellId) {
        self.delegate.cell_closed(cell_id).await;
    }

    fn cell_started(&self, cell: &CellStarted) {
        self.write(TraceEvent::CellStarted {
            cell: cell.cell_id.to_string(),
        });
        self.delegate.cell_started(cell);
    }

    fn cell_ended(&self, cell: &CellEnded) {
        self.write(TraceEvent::CellEnded {
            cell: cell.cell_id.to_string(),
            outcome: cell.outcome.as_str().to_owned(),
            reason: match &cell.outcome {
                CellOutcome::Limit(limit) => Some(limit.to_string()),
                CellOutcome::Lost(why) => Some(why.clone()),
                _ => None,
            },
            used: cell.stats,
        });
        self.delegate.cell_ended(cell);
    }

    fn tool_call_started(&self, call: &NestedToolCall) {
        self.write(TraceEvent::CallStarted {
            cell: call.cell_id.to_string(),
            call: call.runtime_tool_call_id.to_string(),
            tool: call.tool_name.clone(),
            input_bytes: call.input.as_ref().map_or(0, |json| json.as_str().len()),
            input: call.input.clone().filter(|_| self.contents),
            line: call.site.map(|site| site.line),
        });
        self.delegate.tool_call_started(call);
    }

    fn tool_call_finished(&self, call: &ToolCallFinished) {
        self.write(TraceEvent::CallFinished {
            cell: call.cell_id.to_string(),
            call: call.runtime_tool_call_id.to_string(),
            outcome: call.outcome.as_str().to_owned(),
            duration_ms: ms(call.duration),
            output_bytes: match call.outcome {
                CallOutcome::Succeeded { bytes } => bytes,
                _ => 0,
            },
        });
        self.delegate.tool_call_finished(call);
    }

    fn turn(&self, cell_id: &CellId, turn: Turn) {
        self.write(TraceEvent::Turn {
            cell: cell_id.to_string(),
            turn,
        });
        self.delegate.turn(cell_id, turn);
    }
}
