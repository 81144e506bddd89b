//! The tools `exec` and `wait` as a client lists them.

use code_mode_protocol::describe::guided_wait_tool;
use std::sync::Arc;

use rmcp::model::{MetaObject, Tool, ToolAnnotations};
use serde_json::{Value, json};

/// A schema of ours. Some providers refuse anything but a plain object at the top.
fn tool(name: &'static str, description: String, properties: Value, required: &[&str]) -> Tool {
    let schema = json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    });
    let schema = schema.as_object().cloned().unwrap_or_default();
    Tool::new(name, description, Arc::new(schema))
}

/// A client that gives its model tools by their names alone gives it these at once.
fn always_loaded() -> MetaObject {
    let mut meta = MetaObject::default();
    meta.insert("anthropic/alwaysLoad".to_owned(), Value::Bool(true));
    meta
}

pub(crate) fn exec_tool(description: &str) -> Tool {
    let properties = json!({
        "code": {"type": "string", "description": "The program: JavaScript or TypeScript, no code fence."},
        "yield_time_ms": {"type": "integer", "minimum": 0, "description": "How long to wait for the program before it is left running. Default: as long as this client waits."},
        "max_output_tokens": {"type": "integer", "minimum": 0, "description": "Budget of the output; default 10000."},
        "session_id": {"type": "string", "description": "The session of an earlier answer, for its stored values. Without one the connection's session is used, or a new one is opened."},
    });
    tool("exec", description.to_owned(), properties, &["code"])
        .with_title("Run a JavaScript program over the tools of all MCP servers")
        .with_meta(always_loaded())
        // What a program does is what its calls do.
        .with_annotations(
            ToolAnnotations::new()
                .read_only(false)
                .destructive(true)
                .idempotent(false)
                .open_world(true),
        )
}

pub(crate) fn wait_tool() -> Tool {
    let properties = json!({
        "cell_id": {"type": "string", "description": "The cell_id that exec gave. Without one: the first program of this session that ends or asks."},
        "yield_time_ms": {"type": "integer", "minimum": 0, "description": "How long to wait for more. Default: as long as this client waits."},
        "max_output_tokens": {"type": "integer", "minimum": 0, "description": "Budget of the output; default 10000."},
        "terminate": {"type": "boolean", "description": "true stops the program."},
        "from": {"type": "integer", "minimum": 0, "description": "Shows the output of this cell again, from this byte on, instead of waiting; an answer that left output out says from where."},
        "decision": {"type": "string", "description": "The user's decision on calls that wait for approval, where the policy lets you pass it on: allow, program, session or deny."},
    });
    tool("wait", guided_wait_tool().to_owned(), properties, &[])
        .with_title("Wait for a running JavaScript program")
        .with_meta(always_loaded())
        .with_annotations(
            ToolAnnotations::new()
                .read_only(false)
                .destructive(false)
                .idempotent(false)
                .open_world(true),
        )
}
