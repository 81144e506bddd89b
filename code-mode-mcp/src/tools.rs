//! All servers' tools as a session's tools, and what the model reads of them.

use std::sync::Arc;

use code_mode_protocol::describe::{ToolGroup, ToolsFrom, guided_exec_tool};
use code_mode_protocol::{Json, ToolAnswer, ToolDefinition, ToolName, ToolSet};
use serde_json::Value;

use crate::names::identifiers;
use crate::policy::{Decision, Policy};
use crate::resources;
use crate::upstream::{State, Status, Upstream, UpstreamTool};

/// The tools at one moment, with their texts. It never changes.
#[derive(Debug)]
pub(crate) struct Tools {
    /// For cells; after the servers' tools comes the one that reads resources, where a server has
    /// some.
    pub(crate) definitions: ToolSet,
    /// The servers' tools in the same order.
    pub(crate) entries: Vec<ToolEntry>,
    /// What a client is shown of `exec`.
    pub(crate) description: String,
    /// The states that they were made of.
    made_of: Vec<(Status, Arc<Vec<UpstreamTool>>)>,
}

/// What tools are made of: of a server that has only got older, they are the same.
fn made_of(state: &State) -> (Status, Arc<Vec<UpstreamTool>>) {
    (state.status.clone(), state.tools.clone())
}

/// One tool and its server.
pub(crate) struct ToolEntry {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) tool: UpstreamTool,
    pub(crate) identifier: String,
}

impl std::fmt::Debug for ToolEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.identifier)
    }
}

impl Tools {
    /// The tools of these servers as they are now. `before` lends its definitions where they
    /// are the same.
    pub(crate) fn of(
        upstreams: &[Arc<Upstream>],
        policy: &Policy,
        describe_tokens: usize,
        before: Option<&Self>,
    ) -> Self {
        let mut states: Vec<(&Arc<Upstream>, State)> = upstreams
            .iter()
            .map(|upstream| (upstream, upstream.state()))
            .collect();
        let made_of = states.iter().map(|(_, state)| made_of(state)).collect();
        states.sort_by_key(|(upstream, _)| upstream.name());
        let listed: Vec<(&Arc<Upstream>, &UpstreamTool)> = states
            .iter()
            .flat_map(|(upstream, state)| state.tools.iter().map(move |tool| (*upstream, tool)))
            .collect();
        let pairs: Vec<(&str, &str)> = listed
            .iter()
            .map(|(upstream, tool)| (upstream.name(), tool.name.as_str()))
            .collect();
        let identifiers = identifiers(&pairs);
        let mut definitions: Vec<ToolDefinition> = listed
            .iter()
            .zip(&identifiers)
            .map(|((upstream, tool), identifier)| definition(upstream, tool, identifier, policy))
            .collect();
        if upstreams.iter().any(|upstream| upstream.has_resources()) {
            definitions.push(resources::reader());
        }
        let description = description(&states, &definitions, describe_tokens);
        let entries = listed
            .into_iter()
            .zip(identifiers)
            .map(|((upstream, tool), identifier)| ToolEntry {
                upstream: upstream.clone(),
                tool: tool.clone(),
                identifier,
            })
            .collect();
        let definitions = match before {
            Some(before) if *before.definitions == *definitions => before.definitions.clone(),
            _ => ToolSet::from(definitions),
        };
        Self {
            definitions,
            entries,
            description,
            made_of,
        }
    }

    /// Whether they are what the servers list now.
    pub(crate) fn are_of(&self, upstreams: &[Arc<Upstream>]) -> bool {
        let now = upstreams.iter().map(|upstream| made_of(&upstream.state()));
        let is_same = |(then, now): (&(Status, Arc<Vec<UpstreamTool>>), _)| {
            let (status, tools): (Status, Arc<Vec<UpstreamTool>>) = now;
            then.0 == status && Arc::ptr_eq(&then.1, &tools)
        };
        self.made_of.len() == upstreams.len() && self.made_of.iter().zip(now).all(is_same)
    }

    /// Whether a client would see the same as before.
    pub(crate) fn shows_the_same_as(&self, other: &Self) -> bool {
        self.description == other.description && Arc::ptr_eq(&self.definitions, &other.definitions)
    }

    /// The identifiers that a wrong one may have been meant for.
    pub(crate) fn near(&self, wrong: &str) -> Vec<&str> {
        let names = self.entries.iter().map(|entry| entry.identifier.as_str());
        names
            .filter(|name| strsim::jaro_winkler(name, wrong) > 0.7)
            .take(4)
            .collect()
    }

    /// The tool that an invocation names.
    pub(crate) fn entry(&self, name: &ToolName) -> Option<&ToolEntry> {
        let server = name.namespace.as_deref()?;
        self.entries
            .iter()
            .find(|entry| entry.tool.name == name.name && entry.upstream.name() == server)
    }

    /// The tool of this identifier.
    pub(crate) fn by_identifier(&self, identifier: &str) -> Option<&ToolEntry> {
        self.entries
            .iter()
            .find(|entry| entry.identifier == identifier)
    }
}

fn definition(
    upstream: &Upstream,
    tool: &UpstreamTool,
    identifier: &str,
    policy: &Policy,
) -> ToolDefinition {
    let (decision, _) = policy.decide(upstream.name(), &tool.name, tool.claims, None);
    let schema = |schema: &Option<Value>| schema.as_ref().and_then(|s| Json::from_value(s).ok());
    let description = match decision {
        Decision::Deny => format!("(denied by the policy) {}", tool.description),
        _ => tool.description.clone(),
    };
    ToolDefinition::function(identifier, description)
        .tool_name(ToolName::namespaced(upstream.name(), &tool.name))
        .input_schema(schema(&tool.input_schema))
        .output_schema(schema(&tool.output_schema))
        .observed(upstream.shapes.earlier(tool))
        .answer(ToolAnswer::McpResult)
        .idempotent(tool.claims.read_only)
}

fn description(
    states: &[(&Arc<Upstream>, State)],
    tools: &[ToolDefinition],
    budget: usize,
) -> String {
    let mut groups: Vec<ToolGroup> = states
        .iter()
        .map(|(upstream, state)| {
            let name = upstream.name();
            let own = tools
                .iter()
                .filter(|tool| tool.tool_name.namespace.as_deref() == Some(name));
            ToolGroup {
                name,
                remark: match state.status {
                    Status::Ready => None,
                    Status::Starting(_) => Some("starting: a program that uses it waits for it"),
                    Status::Down(_) => Some("down now: its tools may fail"),
                },
                instructions: state.instructions.as_deref(),
                tools: own.collect(),
            }
        })
        .collect();
    let own = tools
        .iter()
        .filter(|tool| tool.tool_name.namespace.is_none());
    groups.insert(
        0,
        ToolGroup {
            name: "",
            remark: None,
            instructions: None,
            tools: own.collect(),
        },
    );
    guided_exec_tool(ToolsFrom::Servers, &groups, budget)
}
