//! All servers' tools as a session's tools, and what the model reads of them.

use std::sync::Arc;

use code_mode_protocol::{Json, ToolAnswer, ToolDefinition, ToolKind, ToolName, ToolSet};
use serde_json::{Value, json};

use super::gateway::Settings;
use super::listing::UpstreamTool;
use super::names::identifiers;
use super::policy::Decision;
use super::texts::{DescribedServer, exec_description};
use super::upstream::{Status, Upstream};

/// The tools at one moment.
pub(super) struct Catalogue {
    /// For cells.
    pub(super) tools: ToolSet,
    /// The same tools in the same order.
    pub(super) entries: Vec<Entry>,
    /// What a client is shown of `exec`.
    pub(super) description: String,
    /// `ALL_SERVERS`.
    pub(super) servers: Json,
}

/// One tool and its server.
pub(super) struct Entry {
    pub(super) upstream: Arc<Upstream>,
    pub(super) tool: UpstreamTool,
    pub(super) identifier: String,
}

impl Catalogue {
    /// The catalogue of these servers as they are now. `before` lends its tools where
    /// they are the same.
    pub(super) fn of(
        upstreams: &[Arc<Upstream>],
        settings: &Settings,
        before: Option<&Self>,
    ) -> Self {
        let mut upstreams: Vec<_> = upstreams.to_vec();
        upstreams.sort_by(|a, b| a.config.name.cmp(&b.config.name));
        let mut entries: Vec<(Arc<Upstream>, UpstreamTool)> = Vec::new();
        for upstream in &upstreams {
            for tool in upstream.tools().iter() {
                entries.push((upstream.clone(), tool.clone()));
            }
        }
        let pairs: Vec<(&str, &str)> = entries
            .iter()
            .map(|(upstream, tool)| (upstream.config.name.as_str(), tool.name.as_str()))
            .collect();
        let identifiers = identifiers(&pairs);
        let tools: Vec<ToolDefinition> = entries
            .iter()
            .zip(&identifiers)
            .map(|((upstream, tool), identifier)| definition(upstream, tool, identifier, settings))
            .collect();
        let description = description(&upstreams, &tools, settings.describe_tokens);
        let servers: Vec<Value> = upstreams
            .iter()
            .map(|upstream| {
                let name = &upstream.config.name;
                json!({
                    "server": name,
                    "status": upstream.status().words(),
                    "toolCount": upstream.tools().len(),
                })
            })
            .collect();
        let entries = entries
            .into_iter()
            .zip(identifiers)
            .map(|((upstream, tool), identifier)| Entry {
                upstream,
                tool,
                identifier,
            })
            .collect();
        let tools = match before {
            Some(before) if *before.tools == *tools => before.tools.clone(),
            _ => ToolSet::from(tools),
        };
        Self {
            tools,
            entries,
            description,
            servers: Json::from_value(&servers).unwrap_or_else(|_| Json::null()),
        }
    }

    /// The tool that an invocation names.
    pub(super) fn entry(&self, name: &ToolName) -> Option<&Entry> {
        let server = name.namespace.as_deref()?;
        self.entries
            .iter()
            .find(|entry| entry.tool.name == name.name && entry.upstream.config.name == server)
    }

    /// The tool of this identifier.
    pub(super) fn by_identifier(&self, identifier: &str) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.identifier == identifier)
    }
}

fn definition(
    upstream: &Upstream,
    tool: &UpstreamTool,
    identifier: &str,
    settings: &Settings,
) -> ToolDefinition {
    let (decision, _) = settings
        .policy
        .decide(&upstream.config.name, &tool.name, tool.claims);
    let schema = |schema: &Option<Value>| schema.as_ref().and_then(|s| Json::from_value(s).ok());
    ToolDefinition {
        name: identifier.to_owned(),
        tool_name: ToolName {
            name: tool.name.clone(),
            namespace: Some(upstream.config.name.clone()),
        },
        description: match decision {
            Decision::Deny => format!("(denied by the policy) {}", tool.description),
            _ => tool.description.clone(),
        },
        kind: ToolKind::Function,
        input_schema: schema(&tool.input_schema),
        output_schema: schema(&tool.output_schema),
        deferred: false,
        answer: ToolAnswer::McpResult,
    }
}

fn description(upstreams: &[Arc<Upstream>], tools: &[ToolDefinition], budget: usize) -> String {
    let instructions: Vec<_> = upstreams.iter().map(|u| u.instructions()).collect();
    let servers: Vec<DescribedServer> = upstreams
        .iter()
        .zip(&instructions)
        .map(|(upstream, instructions)| {
            let name = upstream.config.name.as_str();
            let own = tools
                .iter()
                .filter(|tool| tool.tool_name.namespace.as_deref() == Some(name));
            DescribedServer {
                name,
                is_down: matches!(upstream.status(), Status::Down(_)),
                instructions: instructions.as_deref(),
                tools: own.map(|tool| (tool, renamed(tool))).collect(),
            }
        })
        .collect();
    exec_description(&servers, budget)
}

/// The raw name of a tool whose identifier does not end in it.
fn renamed(tool: &ToolDefinition) -> Option<&str> {
    let raw = tool.tool_name.name.as_str();
    (!tool.name.ends_with(raw)).then_some(raw)
}
