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
    /// What the delegate's answer to a call is; default [`ToolAnswer::Value`]. A
    /// definition on a wire has no such field.
    #[serde(skip)]
    pub answer: ToolAnswer,
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
    /// `tools.NAME.raw(input)` gives the whole. An answer `{"error": {"code", "message",
    /// "data"}}` without `content` is a JSON-RPC error, which throws with these
    /// properties. In other sessions the cell gets the answer as it is.
    McpResult,
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
            answer: ToolAnswer::Value,
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
