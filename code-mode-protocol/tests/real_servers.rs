//! How a model sees the tools of real MCP servers, as the npm registry
//! publishes them: `@modelcontextprotocol/server-filesystem`, `-memory` and
//! `-everything`, each 2026.8.31, by their answers to `tools/list`.

use std::collections::BTreeMap;

use code_mode_protocol::{Json, ToolDefinition, ToolName, describe, normalize_tool_name};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct McpTool {
    name: String,
    #[serde(default)]
    description: String,
    input_schema: Option<Json>,
    output_schema: Option<Json>,
}

fn servers() -> BTreeMap<String, Vec<ToolDefinition>> {
    let servers: BTreeMap<String, Vec<McpTool>> =
        serde_json::from_str(include_str!("mcp_servers.json")).expect("the fixture is JSON");
    let definition = |server: &str, tool: McpTool| {
        let name = format!("mcp__{server}__{}", tool.name);
        ToolDefinition::function(name, tool.description)
            .tool_name(ToolName::namespaced(format!("mcp__{server}"), tool.name))
            .input_schema(tool.input_schema)
            .output_schema(tool.output_schema)
    };
    servers
        .into_iter()
        .map(|(server, tools)| {
            let tools = tools.into_iter().map(|tool| definition(&server, tool));
            (server.clone(), tools.collect())
        })
        .collect()
}

#[test]
fn the_tools_of_real_servers_are_described_as_before() {
    for (server, tools) in servers() {
        let sections: Vec<String> = tools.iter().map(describe::tool_section).collect();
        insta::assert_snapshot!(server, sections.join("\n\n"));
    }
}

#[test]
fn the_same_tools_give_the_same_text_with_each_tool_and_the_shared_types_once() {
    for (server, tools) in servers() {
        let text = describe::exec_tool(&tools, true);
        assert_eq!(text, describe::exec_tool(&tools, true));
        assert_eq!(text.matches("type CallToolResult").count(), 1);
        assert_eq!(text.matches(&format!("\n## mcp__{server}\n")).count(), 1);
        for tool in &tools {
            let name = normalize_tool_name(&tool.name);
            assert_eq!(text.matches(&format!("### `{name}`\n")).count(), 1);
        }
    }
}
