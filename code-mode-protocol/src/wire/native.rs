//! The native wire: what the host and a worker say to each other.
//!
//! The host greets and the worker answers with what it is; then the host opens the
//! one session, and many cells run at once. A message is bincode in a
//! [frame](super::frame); its large texts follow the frame. Neither side ever waits
//! for its writes before it reads on.
//!
//! The host decides what a session does; the worker runs cells. A cell has its number
//! in the session, a tool call its cell and its place in the cell. What can be stale
//! has a number: an observation's is the host's, and counts up.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Bounded;
use super::frame::{Frame, FrameBuilder, FrameError, LARGE_TEXT, MAX_FRAME_BYTES};
use super::texts::{TextMut, Texts};
use crate::{
    ContentItem, Determinism, InvalidJson, Json, LimitExceeded, Limits, RuntimeToolCallId,
    SandboxLayer, SourcePosition, ToolAnswer, ToolDefinition, ToolError, ToolKind, ToolName, Turn,
};

/// The version of the wire this crate speaks.
pub const VERSION: u32 = 8;

/// Capabilities beyond the requests of [`VERSION`]. None exists yet; a
/// capability that the other side requires and this list lacks ends the handshake.
pub const CAPABILITIES: &[&str] = &[];

/// The most items, stored values or announced texts of one message. A worker sends
/// more in several messages.
pub const MAX_PARTS: usize = 4096;

/// The largest frame of a worker's message, in bytes. A worker sends more small texts
/// in several messages; large ones follow the frame. Decoding a frame of this size
/// takes the host a few milliseconds.
pub const MAX_WORKER_FRAME: usize = 2 << 20;

/// A list in one message of a worker.
pub type Parts<T> = Bounded<T, MAX_PARTS>;

/// The calls that a frozen cell waits for; where there are more, the first of them.
pub type CallIds = Bounded<RuntimeToolCallId, { 1 << 16 }>;

/// From the host to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// The first message.
    Hello {
        /// Versions the host speaks.
        versions: Vec<u32>,
        /// Capabilities it cannot do without.
        required_capabilities: Vec<String>,
    },
    /// Opens the worker's one session.
    Open {
        /// What its cells may use.
        limits: Limits,
        /// As [`SessionOptions::guided`](crate::SessionOptions::guided).
        guided: bool,
    },
    /// Values that the session has stored: key and JSON text.
    Store {
        /// Some of them.
        values: Vec<(String, String)>,
    },
    /// Defines a set of tools for the executes that name it. The worker keeps the
    /// last one only.
    Tools {
        /// The set's number.
        id: u64,
        /// Its tools.
        tools: Vec<WireTool>,
    },
    /// Values that the next cell finds stored, instead of those of the session: it is one that runs
    /// again, and finds what it found when it began.
    View {
        /// Some of them: key and JSON text.
        values: Vec<(String, String)>,
    },
    /// Runs a cell, with its observation number 1.
    Execute {
        /// The new cell.
        cell: u64,
        /// The set of tools, defined before.
        tools: u64,
        /// The source.
        source: String,
        /// Whether to freeze the cell when it has no work.
        to_pending: bool,
        /// Globals of the cell besides: name and value as JSON text.
        constants: Vec<(String, String)>,
        /// As [`ExecuteRequest::determinism`](field@crate::ExecuteRequest::determinism).
        determinism: Option<Determinism>,
        /// The cell ran before, and continues after the turns of `determinism`.
        resumed: Option<Resumed>,
        /// After so long without work the cell says that it is [idle](FromWorker::Idle), and again each
        /// time that as much has passed.
        idle_after: Option<Duration>,
        /// The `traceparent` of the cell's span, or of
        /// [`ExecuteRequest::trace_context`](field@crate::ExecuteRequest::trace_context).
        traceparent: Option<String>,
    },
    /// Observes a cell: its next yield, or that it is frozen, is reported.
    Observe {
        /// Which cell.
        cell: u64,
        /// The observation's number. It takes the place of an earlier one.
        observation: u64,
        /// Whether to freeze the cell when it has no work. Either way, a frozen cell
        /// continues.
        to_pending: bool,
    },
    /// Ends an observation with the output there is.
    Collect {
        /// Which cell.
        cell: u64,
        /// Which observation.
        observation: u64,
        /// Not before the cell has run for this long: the time that it waited for an
        /// isolate is not its observer's.
        after: Duration,
    },
    /// Stops the clock of a cell's wall time, or restarts it.
    Pause {
        /// Which cell.
        cell: u64,
        /// Whether it stands still.
        paused: bool,
    },
    /// Stops a cell.
    Terminate {
        /// Which cell.
        cell: u64,
    },
    /// A tool's answer as JSON text, or the error.
    ToolResult {
        /// The calling cell.
        cell: u64,
        /// The call.
        call: RuntimeToolCallId,
        /// The answer.
        result: Result<String, ToolFailure>,
    },
    /// The oldest notification of a cell that was not delivered yet, is.
    Notified {
        /// The cell.
        cell: u64,
    },
    /// Stops everything. Answered by [`FromWorker::ShutDown`].
    Shutdown,
    /// Makes a system call natively and reports what the kernel said. Only a worker
    /// started with `--probe` answers; it is how the sandbox is tested from the
    /// inside.
    Probe {
        /// Its name, from the worker's own list.
        name: String,
    },
}

/// A [`ToolError`] on its way into a cell, whose data is JSON text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolFailure {
    /// What went wrong.
    pub message: String,
    /// As [`ToolError::code`](field@ToolError::code).
    pub code: Option<i64>,
    /// As [`ToolError::data`](field@ToolError::data).
    pub data: Option<String>,
}

impl ToolFailure {
    /// The bytes of its texts.
    pub fn bytes(&self) -> usize {
        self.message.len() + self.data.as_ref().map_or(0, String::len)
    }
}

impl From<ToolError> for ToolFailure {
    fn from(error: ToolError) -> Self {
        Self {
            message: error.message,
            code: error.code,
            data: error.data.map(Json::into_string),
        }
    }
}

/// From a worker to the host.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// The answer to a greeting that fits.
    Ready(WorkerInfo),
    /// The answer to one that does not; the worker ends.
    Rejected {
        /// Why.
        reason: String,
    },
    /// A cell calls a tool.
    ToolCall {
        /// The calling cell.
        cell: u64,
        /// The call's place in the cell: 1, 2, ...
        call: RuntimeToolCallId,
        /// The tool's place in the cell's set.
        tool: u32,
        /// Its input.
        input: Option<JsonText>,
        /// Where in the source it was made; only in guided sessions.
        site: Option<SourcePosition>,
    },
    /// A cell notifies.
    Notify {
        /// The cell.
        cell: u64,
        /// What it says.
        text: String,
    },
    /// Output of an observation whose other output does not fit this message.
    Output {
        /// The cell.
        cell: u64,
        /// Some items; more follow.
        items: Parts<ContentItem>,
    },
    /// Ends an observation.
    Observed {
        /// The cell.
        cell: u64,
        /// Which observation.
        observation: u64,
        /// The (last) output.
        items: Parts<ContentItem>,
        /// The cell is frozen, and these calls have no answer that was let in.
        frozen: Option<CallIds>,
    },
    /// Values that a cell stored; they are the session's when it ends.
    Stored {
        /// The cell.
        cell: u64,
        /// Key and value.
        writes: Parts<(String, JsonText)>,
    },
    /// A cell that runs again begins its last recorded turn: what it does from here on may be new.
    Live {
        /// The cell.
        cell: u64,
    },
    /// A cell waits, and has nothing to do before a call is answered or a timer is due.
    Idle {
        /// The cell.
        cell: u64,
        /// When its next timer is due: not within [`least_rest`] of its `idle_after`.
        wakes_in: Option<Duration>,
    },
    /// A turn of a cell that reports its turns.
    Turn {
        /// The cell.
        cell: u64,
        /// When, and why.
        turn: Turn,
    },
    /// A cell's JavaScript has ended. Nothing more comes of the cell.
    Ended {
        /// The cell.
        cell: u64,
        /// The (last) output.
        items: Parts<ContentItem>,
        /// How it ended.
        end: CellEnd,
        /// What it used.
        used: Used,
    },
    /// A cell has not stopped a while after this limit was hit: V8 cannot be
    /// interrupted in what it does.
    Stuck {
        /// The cell.
        cell: u64,
        /// The limit.
        limit: LimitExceeded,
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

/// JSON from a worker. Its sender, which has it from V8, need not parse it; decoding
/// it does, and refuses anything but a [`Json`].
#[derive(Debug)]
pub enum JsonText {
    /// To be sent.
    Unchecked(String),
    /// Received.
    Checked(Json),
}

impl JsonText {
    /// The value.
    ///
    /// # Errors
    /// Those of [`Json::parse`], where the text was not received but made here.
    pub fn into_json(self) -> Result<Json, InvalidJson> {
        match self {
            Self::Unchecked(text) => Json::parse(text),
            Self::Checked(json) => Ok(json),
        }
    }

    /// The bytes of the text.
    #[allow(clippy::len_without_is_empty, reason = "no JSON value is empty")]
    pub fn len(&self) -> usize {
        match self {
            Self::Unchecked(text) => text.len(),
            Self::Checked(json) => json.as_str().len(),
        }
    }

    /// Takes the text out, and leaves a short value.
    pub(crate) fn take(&mut self) -> String {
        match std::mem::replace(self, Self::Unchecked("0".to_owned())) {
            Self::Unchecked(text) => text,
            Self::Checked(json) => json.into_string(),
        }
    }
}

impl Serialize for JsonText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unchecked(text) => serializer.serialize_str(text),
            Self::Checked(json) => serializer.serialize_str(json.as_str()),
        }
    }
}

impl<'de> Deserialize<'de> for JsonText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Json::deserialize(deserializer).map(Self::Checked)
    }
}

/// What a cell used, as its worker says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Processor time of its thread.
    pub processor: Duration,
    /// How long it waited for an isolate.
    pub queued: Duration,
    /// The most of its heap that was in use when V8 looked, in bytes.
    pub peak_heap_bytes: u64,
}

/// How a cell's JavaScript ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CellEnd {
    /// Its module completed.
    Completed,
    /// It called `exit()`.
    Exited {
        /// 0 but in guided sessions, where it may be another.
        status: u8,
    },
    /// It threw, or did not compile.
    Failed {
        /// The error's text.
        text: String,
        /// Where in the source, if that is known.
        position: Option<SourcePosition>,
    },
    /// It hit a limit.
    Limit {
        /// Which, and its value.
        limit: LimitExceeded,
        /// Where in the source it was stopped, if that is known; only in guided sessions.
        position: Option<SourcePosition>,
    },
    /// It was terminated.
    Terminated,
    /// It ran again, and did something else than before; what, in words.
    Diverged {
        /// The difference.
        text: String,
    },
}

/// What a cell that runs again must not report a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// So many items of its output are with the host.
    pub items: u64,
    /// So many of its notifications are.
    pub notifications: u64,
    /// How much of its wall time is over.
    pub wall: Duration,
    /// It was frozen, and is observed again: it takes the answers that came before it freezes again.
    pub thaws: bool,
}

/// How far away the next timer of an idle cell must at least be.
pub fn least_rest(idle_after: Duration) -> Duration {
    idle_after.min(Duration::from_secs(60))
}

/// What a worker needs to know of a tool; its name is normalised already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireTool {
    /// The property of `tools`.
    pub name: String,
    /// For `ALL_TOOLS`.
    pub description: String,
    /// Its kind.
    pub kind: ToolKind,
    /// What its answers are.
    pub answer: ToolAnswer,
    /// Whether nothing names it.
    pub hidden: bool,
    /// What a declaration is made of; `None` where no cell asks for one.
    pub details: Option<ToolDetails>,
}

/// More of a tool, for the sessions that describe tools to their cells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolDetails {
    /// What its invocations carry.
    pub tool_name: ToolName,
    /// JSON Schema of the input, as text.
    pub input_schema: Option<String>,
    /// JSON Schema of the result, as text.
    pub output_schema: Option<String>,
    /// The type of earlier results, as TypeScript.
    pub observed: Option<String>,
}

impl WireTool {
    /// The tool as a worker needs it: with its details in a `guided` session, and
    /// where it is deferred.
    pub fn new(tool: &ToolDefinition, guided: bool) -> Self {
        let text = |json: &Option<Json>| json.as_ref().map(|json| json.as_str().to_owned());
        let details = (guided || tool.deferred).then(|| ToolDetails {
            tool_name: tool.tool_name.clone(),
            input_schema: text(&tool.input_schema),
            output_schema: text(&tool.output_schema),
            observed: tool.observed.clone(),
        });
        Self {
            name: crate::normalize_tool_name(&tool.name),
            description: tool.description.clone(),
            kind: tool.kind,
            answer: tool.answer,
            hidden: tool.hidden,
            details,
        }
    }
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
    /// Whether V8 was built with its heap sandbox.
    pub v8_heap_sandbox: bool,
    /// The layers of its sandbox.
    pub sandbox: Vec<SandboxLayer>,
}

#[allow(private_interfaces, reason = "as in the trait")]
impl Texts for ToWorker {
    fn texts(&mut self, visit: &mut dyn FnMut(TextMut<'_>)) {
        match self {
            Self::Store { values } | Self::View { values } => values
                .iter_mut()
                .for_each(|(_, json)| visit(TextMut::Plain(json))),
            Self::Execute { source, .. } => visit(TextMut::Plain(source)),
            Self::ToolResult {
                result: Ok(text) | Err(ToolFailure { message: text, .. }),
                ..
            } => visit(TextMut::Plain(text)),
            _ => {}
        }
    }
}

#[allow(private_interfaces, reason = "as in the trait")]
impl Texts for FromWorker {
    fn texts(&mut self, visit: &mut dyn FnMut(TextMut<'_>)) {
        match self {
            Self::ToolCall {
                input: Some(json), ..
            } => visit(TextMut::Json(json)),
            Self::Notify { text, .. } => visit(TextMut::Plain(text)),
            Self::Output { items, .. }
            | Self::Observed { items, .. }
            | Self::Ended { items, .. } => items
                .as_mut_slice()
                .iter_mut()
                .for_each(|item| item.texts(visit)),
            Self::Stored { writes, .. } => writes
                .as_mut_slice()
                .iter_mut()
                .for_each(|(_, json)| visit(TextMut::Json(json))),
            _ => {}
        }
    }
}

impl ToWorker {
    /// The message as a frame.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] where a text or the frame has 4 GiB or more.
    pub fn encode(self) -> Result<Frame, FrameError> {
        encode(self)
    }
}

impl ToWorker {
    /// The number of [`Execute`](Self::Execute) among the messages.
    pub(crate) const EXECUTE: u32 = 5;
}

impl FromWorker {
    /// The number of [`Ended`](Self::Ended) among the messages.
    pub(crate) const ENDED: u32 = 10;

    /// The message as a frame.
    ///
    /// # Errors
    /// As [`ToWorker::encode`].
    pub fn encode(self) -> Result<Frame, FrameError> {
        encode(self)
    }
}

/// A text that follows its message's frame.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Announced {
    /// Which of the message's texts it is.
    pub(crate) number: u32,
    pub(crate) bytes: u32,
}

/// What follows a frame.
pub(crate) type Announcements = Bounded<Announced, MAX_PARTS>;

/// The limit makes bincode check a length against what a frame can hold before it
/// allocates that much.
fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_FRAME_BYTES>()
}

pub(crate) fn malformed(error: impl ToString) -> FrameError {
    FrameError::Malformed(error.to_string())
}

/// The message in a frame's content.
pub(crate) fn decode<T: DeserializeOwned>(content: &[u8]) -> Result<T, FrameError> {
    let (message, read) =
        bincode::serde::decode_from_slice(content, config()).map_err(malformed)?;
    match content.len() - read {
        0 => Ok(message),
        more => Err(malformed(format!("{more} bytes after the message"))),
    }
}

/// The value that a frame's content begins with.
pub(crate) fn decode_start<T: DeserializeOwned>(content: &[u8]) -> Option<T> {
    let decoded = bincode::serde::decode_from_slice(content, config());
    decoded.ok().map(|(value, _)| value)
}

fn encode<T: Serialize + Texts>(mut message: T) -> Result<Frame, FrameError> {
    let mut announced = Vec::new();
    let mut texts = Vec::new();
    let mut number = 0;
    let mut room = 64;
    let mut too_large = None;
    message.texts(&mut |text| {
        let len = text.len();
        if len >= LARGE_TEXT {
            match u32::try_from(len) {
                Ok(bytes) => announced.push(Announced { number, bytes }),
                Err(_) => too_large = Some(FrameError::TooLarge(len as u64)),
            }
            texts.push(text.take());
        } else {
            // Growing a buffer step by step costs more than filling it.
            room += len + 16;
        }
        number += 1;
    });
    if let Some(too_large) = too_large {
        return Err(too_large);
    }
    let announced = Announcements::from(announced);
    let mut frame = FrameBuilder::with_room(room);
    bincode::serde::encode_into_std_write((&announced, &message), &mut frame, config())
        .map_err(malformed)?;
    frame.finish(texts)
}
