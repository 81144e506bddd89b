//! The text of the `exec` and `wait` tools.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::required::required;
use super::schema::{Style, render};
use super::{MCP_TYPES, type_of};
use crate::{ToolAnswer, ToolDefinition, ToolKind, normalize_tool_name};

const EXEC: &str = r#"Runs raw JavaScript (no JSON around it, no code fence) as an async ES module in a fresh V8 isolate: top-level `await` works, and nothing of an earlier cell's variables is left.

- There is no file system, no network, no Node and no `console`: everything outside the program is reached through `tools`. Static and dynamic imports fail.
- `await tools.NAME(input)` calls a nested tool; it gives the tool's result, or throws an `Error` with the tool's message. Start independent calls together with `Promise.all`.
- `ALL_TOOLS` is an array of `{ name, description }` of every nested tool; search it for tools that are not described here.
- An optional first line `// @exec: {"yield_time_ms": 10000, "max_output_tokens": 1000}` sets how long to wait before the cell yields, and the budget for what you are shown.
- If the cell still runs when it yields, you get its cell id and go on with the `wait` tool.

Globals besides the language's own:
- `text(value)`: adds text to the output; objects as JSON, errors with their stack.
- `image(value, detail?)`: adds an image: a `data:` URL, `{ image_url, detail? }` or an MCP image block. `detail` is "auto", "low", "high" (the default) or "original".
- `audio(value)`: adds a sound: a `data:` URL, `{ audio_url }` or an MCP audio block.
- `content(value)`: adds one MCP content block or an array of them.
- `generatedImage(result)`: adds the image of an image generation result, and its `output_hint`.
- `store(key, value)`, `load(key)`: keeps a JSON-serialisable value for later cells of the session, and gives a copy of it.
- `notify(value)`: sends text at once, while the cell runs.
- `yield_control()`: hands over the output so far and keeps running.
- `exit()`: ends the cell successfully at once.
- `setTimeout(callback, ms?)`, `clearTimeout(id)`: a pending timer does not keep the cell alive.
- `as_settled(promises)`: async iterable of `{ index, status, value | reason }` in the order the promises settle; `stream_settled(promises, f)` awaits `f` for each."#;

const WAIT: &str = r#"Waits for a cell that `exec` left running and returns its output since the last observation, and its end if it ends.

- `cell_id`: the id that `exec` gave.
- `yield_time_ms`: how long to wait for more before the cell yields again; default 10000.
- `max_tokens`: the budget for what you are shown.
- `terminate`: true stops the cell instead; it returns what it had put out."#;

const DEFERRED: &str = "More tools than these can be called: they are named in `ALL_TOOLS` with a short description, and not described here.";

/// The description of the `exec` tool for a model.
///
/// `tools` are declared in full, under a heading for each namespace, but for those that
/// are [deferred](ToolDefinition::deferred) or [hidden](ToolDefinition::hidden); where there are such, or `deferred` is true, a
/// line says that `ALL_TOOLS` names more.
pub fn exec_tool(tools: &[ToolDefinition], deferred: bool) -> String {
    let mut text = EXEC.to_owned();
    let deferred = deferred || tools.iter().any(|tool| tool.deferred);
    let tools: Vec<&ToolDefinition> = tools
        .iter()
        .filter(|tool| !tool.deferred && !tool.hidden)
        .collect();
    if deferred {
        text.push_str("\n\n");
        text.push_str(DEFERRED);
    }
    if tools.iter().any(|tool| mcp_result(tool).is_some()) {
        text.push_str(&format!("\n\nShared MCP types:\n```ts\n{MCP_TYPES}\n```"));
    }
    let mut namespaces: BTreeMap<Option<&str>, Vec<&ToolDefinition>> = BTreeMap::new();
    for tool in tools {
        let namespace = tool.tool_name.namespace.as_deref();
        namespaces.entry(namespace).or_default().push(tool);
    }
    for (namespace, tools) in namespaces {
        if let Some(namespace) = namespace {
            text.push_str(&format!("\n\n## {namespace}"));
        }
        for tool in tools {
            text.push_str("\n\n");
            text.push_str(&tool_section(tool));
        }
    }
    text
}

/// The description of the `wait` tool for a model.
pub fn wait_tool() -> &'static str {
    WAIT
}

/// One nested tool as a section: its name, its description, its declaration.
pub fn tool_section(tool: &ToolDefinition) -> String {
    let description = match tool.description.trim() {
        "" => String::new(),
        description => format!("{description}\n\n"),
    };
    format!(
        "### `{}`\n{description}exec tool declaration:\n```ts\n{}\n```",
        normalize_tool_name(&tool.name),
        declaration(tool)
    )
}

/// One nested tool as a TypeScript declaration.
///
/// A schema that says nothing usable gives `unknown`; a tool whose output schema
/// is that of an MCP `CallToolResult`, or that belongs to an `mcp__` namespace,
/// returns `CallToolResult`, with the type of its structured content if known.
pub fn declaration(tool: &ToolDefinition) -> String {
    let (name, signature) = signature(tool, Style::Recorded, true);
    format!("declare const tools: {{ {name}{signature}; }};")
}

/// One nested tool as a TypeScript declaration for guided sessions: required properties come first,
/// either kind in the schema's own order; a property with a default is optional and shows it; and
/// a tool that requires nothing has an optional argument, and one that takes nothing has none.
pub fn guided_declaration(tool: &ToolDefinition) -> String {
    let (name, signature) = signature(tool, Style::Guided, true);
    format!("declare const tools: {{ {name}{signature}; }};")
}

/// How much a signature says, from the most to the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Arguments and result, with comments between `/*` and `*/`.
    Everything,
    /// Arguments and result without comments.
    Types,
    /// Arguments alone.
    Arguments,
    /// Required arguments alone, and how many others there are.
    Required,
}

/// A tool's name and signature on one line, as a method of `tools`, for guided sessions; see
/// [`guided_declaration`]. What follows a comment is still code.
///
/// ```
/// # use code_mode_protocol::{ToolDefinition, Json, describe::{Detail, guided_signature}};
/// let schema = r#"{"required": ["to"], "properties": {"n": {"description": "how many"}, "to": {}}}"#;
/// let tool = ToolDefinition::function("take", "").input_schema(Json::parse(schema.to_owned()).ok());
/// let signature = |detail| guided_signature(&tool, detail);
/// assert_eq!(
///     signature(Detail::Everything),
///     "take(args: { to: unknown; n?: unknown; /* how many */ }): Promise<unknown>;",
/// );
/// assert_eq!(signature(Detail::Arguments), "take(args: { to: unknown; n?: unknown; });");
/// assert_eq!(signature(Detail::Required), "take(args: { to: unknown; /* 1 optional */ });");
/// ```
pub fn guided_signature(tool: &ToolDefinition, detail: Detail) -> String {
    let (style, has_result) = match detail {
        Detail::Everything => (Style::GuidedOnOneLine, true),
        Detail::Types => (Style::GuidedWithoutComments, true),
        Detail::Arguments => (Style::GuidedWithoutComments, false),
        Detail::Required => (Style::GuidedRequired, false),
    };
    let (name, signature) = signature(tool, style, has_result);
    format!("{name}{signature};")
}

/// The name of a tool, and what it takes and gives.
fn signature(tool: &ToolDefinition, style: Style, has_result: bool) -> (String, String) {
    let type_of = |schema: &Value| render(schema, style);
    let parameters = match tool.kind {
        ToolKind::Freeform => "input: string".to_owned(),
        ToolKind::Function => match schema(&tool.input_schema) {
            Some(schema) if style.is_guided() => guided_parameters(&schema, style),
            Some(schema) => format!("args: {}", type_of(&schema)),
            None => "args?: unknown".to_owned(),
        },
    };
    let name = normalize_tool_name(&tool.name);
    if !has_result {
        return (name, format!("({parameters})"));
    }
    let result = match mcp_result(tool) {
        Some(Some(structured)) => format!("CallToolResult<{}>", type_of(&structured)),
        Some(None) => "CallToolResult".to_owned(),
        None => match (schema(&tool.output_schema), &tool.observed) {
            (Some(schema), _) => type_of(&schema),
            (None, Some(observed)) if style.is_guided() => observed.clone(),
            (None, _) => "unknown".to_owned(),
        },
    };
    (name, format!("({parameters}): Promise<{result}>"))
}

fn guided_parameters(schema: &Value, style: Style) -> String {
    let is_combined = ["$ref", "anyOf", "oneOf", "allOf", "const", "enum"]
        .iter()
        .any(|key| schema.get(key).is_some());
    let is_object = schema.get("type").is_none_or(|kind| kind == "object");
    if is_combined || !is_object {
        return format!("args: {}", render(schema, style));
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    let needs_some = schema
        .as_object()
        .is_some_and(|all| required(all).next().is_some());
    let takes_more = schema
        .get("additionalProperties")
        .is_some_and(|more| *more != false);
    match needs_some {
        true => format!("args: {}", render(schema, style)),
        false if properties.is_none_or(Map::is_empty) && !takes_more => String::new(),
        false => format!("args?: {}", render(schema, style)),
    }
}

fn schema(json: &Option<crate::Json>) -> Option<Value> {
    json.as_ref()?.to().ok()
}

/// Whether a tool returns an MCP result, and the schema of its structured
/// content where there is one.
fn mcp_result(tool: &ToolDefinition) -> Option<Option<Value>> {
    if tool.answer == ToolAnswer::McpResult {
        // A cell gets the result's content.
        return None;
    }
    let of_mcp = tool
        .tool_name
        .namespace
        .as_deref()
        .is_some_and(|namespace| namespace.starts_with("mcp__"));
    let Some(output) = schema(&tool.output_schema) else {
        return of_mcp.then_some(None);
    };
    let is =
        |pointer: &str, name: &str| output.pointer(pointer).and_then(Value::as_str) == Some(name);
    if is("/properties/content/type", "array") && is("/properties/isError/type", "boolean") {
        let structured = output.pointer("/properties/structuredContent").cloned();
        return Some(structured.filter(|schema| type_of(schema) != "unknown"));
    }
    of_mcp.then_some(Some(output))
}
