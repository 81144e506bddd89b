//! The native wire: what the provider and a worker say to each other. How that
//! becomes bytes is in [`crate::message`].
//!
//! The provider greets, the worker answers with what it is; then one session is
//! opened, and many requests are in flight at once, each with an id of the
//! provider's choosing. Neither side ever waits for its writes before it reads on.
//!
//! Tool definitions travel only when they change ([`ToWorker::Tools`]); JSON
//! travels as text and is checked by whoever turns it into something.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::frame::{Content, FrameError};
use crate::gather::{Text, Texts};
use crate::message::{self, Loans};
use crate::{CellId, ClaimedJson, Limits, PendingOutcome, SessionError, ToolDefinition, ToolKind};

/// The version of the wire this crate speaks.
pub const VERSION: u32 = 1;

/// What both sides can do beyond version 1's requests. There is none yet; a
/// capability the other side requires and this list lacks ends the handshake.
pub const CAPABILITIES: &[&str] = &[];

/// From the provider to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// The first message.
    Hello {
        /// Versions the provider speaks.
        versions: Vec<u32>,
        /// Capabilities it cannot do without.
        required_capabilities: Vec<String>,
    },
    /// Opens the worker's one session.
    Open {
        /// What its cells may use.
        limits: Limits,
        /// Stored values it starts with: key and JSON text.
        stored: Vec<(String, String)>,
    },
    /// Defines a set of tools for the executes that name it. The worker keeps
    /// the last one only.
    Tools {
        /// The set's name.
        id: u64,
        /// Its tools.
        tools: Vec<WireTool>,
    },
    /// Runs a cell. Answered when its first observation ends.
    Execute {
        /// The request's name.
        request: u64,
        /// The new cell's name.
        cell_id: CellId,
        /// The set of tools, defined before.
        tools: u64,
        /// The source.
        source: String,
        /// How long to observe.
        yield_time: Duration,
        /// Whether to freeze the cell when it has no work.
        to_pending: bool,
    },
    /// Observes a cell.
    Wait {
        /// The request's name.
        request: u64,
        /// Which cell.
        cell_id: CellId,
        /// How long.
        yield_time: Duration,
        /// Whether to freeze the cell when it has no work.
        to_pending: bool,
    },
    /// Stops a cell. Answered when it has stopped.
    Terminate {
        /// The request's name.
        request: u64,
        /// Which cell.
        cell_id: CellId,
    },
    /// Ends a request's observation with what there is.
    YieldNow {
        /// The execute or wait.
        request: u64,
    },
    /// A request's answer is no longer wanted; the cell is not touched, and what
    /// the answer would have carried is kept for the next observation.
    Cancel {
        /// The execute or wait.
        request: u64,
    },
    /// A tool's answer: JSON text, or the error.
    ToolResult {
        /// The call.
        call: u64,
        /// The answer.
        result: Result<String, String>,
    },
    /// A notification was delivered.
    Notified {
        /// The call.
        call: u64,
    },
    /// The provider can read the worker's memory: very large texts are to be
    /// [lent](crate::message::Loans).
    Lend,
    /// A text that was lent has been read.
    Returned {
        /// Its name.
        loan: u64,
    },
    /// Stops everything. Answered by [`FromWorker::ShutDown`].
    Shutdown,
    /// Makes a system call natively and reports what the kernel said. Only a
    /// worker started with `--probe` answers; it is how the sandbox is tested
    /// from the inside.
    Probe {
        /// Its name, from the worker's own list.
        name: String,
    },
}

impl ToWorker {
    /// The frame that carries the message, and its large texts that follow.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] where it cannot be serialised, which no message of
    /// this type can fail to be.
    pub fn encode(self) -> Result<Content, FrameError> {
        message::encode(self, None)
    }
}

impl Texts for ToWorker {
    fn texts(&mut self, visit: &mut dyn FnMut(&mut dyn Text)) {
        match self {
            Self::Open { stored, .. } => stored.iter_mut().for_each(|(_, json)| visit(json)),
            Self::Execute { source, .. } => visit(source),
            Self::ToolResult { result, .. } => match result {
                Ok(text) | Err(text) => visit(text),
            },
            _ => {}
        }
    }
}

impl FromWorker {
    /// The frame that carries the message, and its large texts that follow.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] where it cannot be serialised, which no message of
    /// this type can fail to be.
    pub fn encode(self) -> Result<Content, FrameError> {
        message::encode(self, None)
    }

    /// Like [`encode`](Self::encode), but very large texts do not follow: they are kept
    /// in `loans`, for the provider to read.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    pub fn encode_lending(self, loans: &Loans) -> Result<Content, FrameError> {
        message::encode(self, Some(loans))
    }
}

impl Texts for FromWorker {
    fn texts(&mut self, visit: &mut dyn FnMut(&mut dyn Text)) {
        match self {
            Self::ToolCall {
                input: Some(json), ..
            } => visit(json),
            Self::Notify { text, .. } => visit(text),
            Self::Committed { writes, .. } => writes.iter_mut().for_each(|(_, json)| visit(json)),
            Self::Answer {
                outcome: Ok(outcome),
                ..
            } => outcome.texts(visit),
            _ => {}
        }
    }
}

/// What a worker needs to know of a tool; its name is already normalised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireTool {
    /// The property of `tools`.
    pub name: String,
    /// For `ALL_TOOLS`.
    pub description: String,
    /// Its kind.
    pub kind: ToolKind,
}

impl From<&ToolDefinition> for WireTool {
    fn from(tool: &ToolDefinition) -> Self {
        Self {
            name: crate::normalize_tool_name(&tool.name),
            description: tool.description.clone(),
            kind: tool.kind,
        }
    }
}

/// From a worker to the provider.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// The answer to a greeting that fits.
    Ready(WorkerInfo),
    /// The answer to one that does not; the worker ends.
    Rejected {
        /// Why.
        reason: String,
    },
    /// Answers an execute, a wait or a terminate.
    Answer {
        /// The request.
        request: u64,
        /// Its outcome.
        outcome: Result<PendingOutcome, SessionError>,
    },
    /// A cell calls a tool.
    ToolCall {
        /// The call's name, unique in the session.
        call: u64,
        /// The calling cell.
        cell_id: CellId,
        /// The call's place in the cell.
        runtime_tool_call_id: u32,
        /// The tool's place in the cell's set.
        tool: u32,
        /// Its input.
        input: Option<ClaimedJson>,
    },
    /// A cell notifies.
    Notify {
        /// The call's name, unique in the session.
        call: u64,
        /// The cell.
        cell_id: CellId,
        /// What it says.
        text: String,
    },
    /// A call's answer is no longer wanted.
    CallCancelled {
        /// The call.
        call: u64,
    },
    /// A cell completed and these values are the session's now, by their keys. Comes
    /// before the answer that reports the end.
    Committed {
        /// Which cell.
        cell_id: CellId,
        /// What it wrote.
        writes: Vec<(String, ClaimedJson)>,
    },
    /// A cell is gone; nothing more comes of it.
    CellClosed {
        /// Which.
        cell_id: CellId,
    },
    /// No isolate runs any more; the worker ends.
    ShutDown,
    /// Answers [`ToWorker::Probe`]: what the kernel said, in words.
    Probed {
        /// The probe.
        name: String,
        /// `None` where the worker knows no such probe.
        outcome: Option<String>,
    },
}

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// The version of the wire it chose.
    pub version: u32,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// V8's version.
    pub v8_version: String,
    /// The layers of its sandbox.
    pub sandbox: Vec<SandboxLayer>,
    /// By which the provider sees whether it can read the worker's memory.
    pub sample: Sample,
}

/// Bytes that nobody can guess, and where they are in a worker's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Where they are.
    pub address: u64,
    /// The bytes.
    pub content: [u8; 16],
}

impl WorkerInfo {
    /// The layers that do not hold, in words; empty where all do.
    pub fn missing_layers(&self) -> Vec<String> {
        self.sandbox
            .iter()
            .filter_map(|layer| match &layer.state {
                LayerState::Holds(_) => None,
                LayerState::Missing(why) => Some(format!("{}: {why}", layer.name)),
            })
            .collect()
    }
}

/// One layer of a worker's sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLayer {
    /// Its name, for example `seccomp`.
    pub name: String,
    /// Whether it holds.
    pub state: LayerState,
}

/// Whether a layer of the sandbox holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerState {
    /// It does; how, in words.
    Holds(String),
    /// It does not; why, in words.
    Missing(String),
}
