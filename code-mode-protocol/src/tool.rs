//! Tools as an agent core defines them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Json;

/// What an agent core calls a tool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolName {
    /// The name within its namespace.
    pub name: String,
    /// For example `mcp__server` for the tools of an MCP server.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// What a tool takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolKind {
    /// A JSON value, as its input schema says.
    Function,
    /// Free text.
    Freeform,
}

/// One tool that a cell may call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ToolDefinition {
    /// The name a cell reaches it by, once [normalised](normalize_tool_name).
    pub name: String,
    /// The name its invocations carry.
    pub tool_name: ToolName,
    /// What it does, for a model.
    pub description: String,
    /// What it takes.
    pub kind: ToolKind,
    /// JSON Schema of the input.
    #[serde(default)]
    pub input_schema: Option<Json>,
    /// JSON Schema of the result.
    #[serde(default)]
    pub output_schema: Option<Json>,
    /// Whether it is left out of [`describe::exec_tool`](crate::describe::exec_tool)'s
    /// text. It can be called all the same, and `ALL_TOOLS` says how. Default false; a
    /// definition on a wire has no such field.
    #[serde(skip)]
    pub deferred: bool,
    /// Whether it can be called and nothing names it: no text for a model, not `ALL_TOOLS`, no
    /// search. Default false; a definition on a wire has no such field.
    #[serde(skip)]
    pub hidden: bool,
    /// What the delegate's answer to a call is; default [`ToolAnswer::Value`]. A
    /// definition on a wire has no such field.
    #[serde(skip)]
    pub answer: ToolAnswer,
    /// Whether a call may run a second time without harm: after a restart, a durable session repeats a
    /// call of which nobody knows whether it ran. Default false; a definition on a wire has no such
    /// field.
    #[serde(skip)]
    pub idempotent: bool,
    /// The type of earlier results as TypeScript, for the declaration of a tool without output schema;
    /// a comment in it may say where the type comes from.
    /// [`Shape::typescript`](crate::describe::Shape::typescript) makes one. Only guided sessions show
    /// it. Default none; a definition on a wire has no such field.
    #[serde(skip)]
    pub observed: Option<String>,
}

/// What a delegate answers to a call of a tool, and so what the cell gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ToolAnswer {
    /// The value itself.
    #[default]
    Value,
    /// The `CallToolResult` of an MCP server, as JSON. A cell of a
    /// [guided](crate::SessionOptions::guided) session gets the value in it: structured
    /// content, the text or what it holds as JSON, or the blocks; `isError` throws; and
    /// `tools.NAME.raw(input)` gives the whole. In other sessions the cell gets the answer
    /// as it is.
    McpResult,
}

/// Why a tool call failed. The cell's `ToolError` carries it: `message`, and `code` and
/// `data` where they are set.
///
/// ```
/// # use code_mode_protocol::ToolError;
/// let error = ToolError::new("no such file").code(-32002);
/// assert_eq!(error.to_string(), "no such file");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct ToolError {
    /// What went wrong, for the model.
    pub message: String,
    /// A number that a program can tell errors apart by, such as a JSON-RPC error code.
    /// Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i64>,
    /// Anything else a program may want to know. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Json>,
    /// What became of the call, for observers; the cell does not see it. Default
    /// [`ToolFailure::Failed`].
    #[serde(default, skip_serializing_if = "ToolFailure::is_plain")]
    pub failure: ToolFailure,
}

/// What became of a tool call that ended with an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolFailure {
    /// The tool failed.
    #[default]
    Failed,
    /// A policy or a person did not let it run; the message is the reason.
    Blocked,
    /// The tool was reached, and nobody knows what it did.
    Unknown,
}

impl ToolFailure {
    fn is_plain(&self) -> bool {
        *self == Self::Failed
    }
}

impl ToolError {
    /// An error with a message alone.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: None,
            data: None,
            failure: ToolFailure::Failed,
        }
    }

    /// The error of a call that a policy or a person did not let run, with the reason.
    pub fn blocked(reason: impl Into<String>) -> Self {
        Self {
            failure: ToolFailure::Blocked,
            ..Self::new(reason)
        }
    }

    /// The error of a call that reached its tool, and of which nobody knows what it did.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self {
            failure: ToolFailure::Unknown,
            ..Self::new(message)
        }
    }

    /// The error of a call whose answer is no longer wanted.
    pub fn cancelled() -> Self {
        Self::new("the call was cancelled")
    }

    /// Sets the code.
    #[must_use]
    pub fn code(mut self, code: i64) -> Self {
        self.code = Some(code);
        self
    }

    /// Sets the data.
    #[must_use]
    pub fn data(mut self, data: Json) -> Self {
        self.data = Some(data);
        self
    }
}

impl From<String> for ToolError {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

impl From<&str> for ToolError {
    fn from(message: &str) -> Self {
        Self::new(message)
    }
}

impl ToolDefinition {
    /// A function without a namespace, whose input and result may be any JSON.
    pub fn function(name: impl Into<String>, description: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            tool_name: ToolName {
                name: name.clone(),
                namespace: None,
            },
            name,
            description: description.into(),
            kind: ToolKind::Function,
            input_schema: None,
            output_schema: None,
            deferred: false,
            hidden: false,
            answer: ToolAnswer::Value,
            idempotent: false,
            observed: None,
        }
    }

    /// Sets the name that invocations carry, where it differs from the name a cell uses.
    #[must_use]
    pub fn tool_name(mut self, tool_name: ToolName) -> Self {
        self.tool_name = tool_name;
        self
    }

    /// Sets what the tool takes.
    #[must_use]
    pub fn kind(mut self, kind: ToolKind) -> Self {
        self.kind = kind;
        self
    }

    /// Sets the JSON Schema of the input.
    #[must_use]
    pub fn input_schema(mut self, schema: Option<Json>) -> Self {
        self.input_schema = schema;
        self
    }

    /// Sets the JSON Schema of the result.
    #[must_use]
    pub fn output_schema(mut self, schema: Option<Json>) -> Self {
        self.output_schema = schema;
        self
    }

    /// Sets whether the tool is left out of the text for a model.
    #[must_use]
    pub fn deferred(mut self, deferred: bool) -> Self {
        self.deferred = deferred;
        self
    }

    /// Sets whether the tool can be called and nothing names it.
    #[must_use]
    pub fn hidden(mut self, hidden: bool) -> Self {
        self.hidden = hidden;
        self
    }

    /// Sets whether a call may run a second time without harm.
    #[must_use]
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = idempotent;
        self
    }

    /// Sets the type of earlier results.
    #[must_use]
    pub fn observed(mut self, type_of_results: Option<String>) -> Self {
        self.observed = type_of_results;
        self
    }

    /// Sets what the delegate answers to a call.
    #[must_use]
    pub fn answer(mut self, answer: ToolAnswer) -> Self {
        self.answer = answer;
        self
    }
}

impl ToolName {
    /// A name without a namespace.
    pub fn plain(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: None,
        }
    }

    /// A name in a namespace.
    pub fn namespaced(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: Some(namespace.into()),
        }
    }
}

/// The tools of one `execute`, in definition order. Shared, because an agent
/// core hands over the same definitions time and again: the provider sends them
/// to a worker only when they changed.
pub type ToolSet = Arc<[ToolDefinition]>;

/// The property of `tools` that a tool of this name is reached by: every
/// character outside `[A-Za-z0-9_$]`, and a leading digit, becomes `_`.
///
/// ```
/// # use code_mode_protocol::normalize_tool_name;
/// assert_eq!(normalize_tool_name("read-file.v2"), "read_file_v2");
/// assert_eq!(normalize_tool_name("1st"), "_st");
/// ```
pub fn normalize_tool_name(name: &str) -> String {
    let mut normalized: String = name
        .chars()
        .enumerate()
        .map(|(i, c)| match c {
            '0'..='9' if i > 0 => c,
            'a'..='z' | 'A'..='Z' | '_' | '$' => c,
            _ => '_',
        })
        .collect();
    if normalized.is_empty() {
        normalized.push('_');
    }
    normalized
}
