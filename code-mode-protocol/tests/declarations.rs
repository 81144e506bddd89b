//! Declarations of MCP tools have the form that models already know from the
//! Codex CLI.

use code_mode_protocol::{Json, ToolDefinition, ToolName, describe};
use serde_json::Value;

#[test]
fn every_recorded_declaration_is_reproduced() {
    let recorded: Value =
        serde_json::from_str(include_str!("declarations.json")).expect("the fixture is JSON");
    let pairs = recorded["pairs"].as_array().expect("pairs");
    assert!(pairs.len() >= 10);
    for pair in pairs {
        let name = pair["name"].as_str().expect("a name");
        let schema = |key: &str| {
            let value = &pair[key];
            (!value.is_null()).then(|| Json::from_value(value).expect("a schema"))
        };
        let tool = ToolDefinition::function(format!("mcp__probe__{name}"), "")
            .tool_name(ToolName::namespaced("mcp__probe", name))
            .input_schema(schema("input_schema"))
            .output_schema(schema("output_schema"));
        assert_eq!(
            describe::declaration(&tool),
            pair["declaration"].as_str().expect("a declaration"),
            "{name}"
        );
    }
}
