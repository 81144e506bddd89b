//! The tools of a server, as it lists them.

use std::collections::HashSet;
use std::time::Duration;

use rmcp::RoleClient;
use rmcp::model::{ClientRequest, ListToolsRequest};
use rmcp::service::Peer;
use serde_json::Value;

use super::error::ConnectError;
use super::pages::{NotListed, pages};
use crate::config::ServerConfig;
use crate::policy::Claims;
use crate::secrets::Secrets;
use crate::texts::{clean_definition, short};

/// How long one listing may take.
const LISTING: Duration = Duration::from_secs(10);

/// A tool as its server lists it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UpstreamTool {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) input_schema: Option<Value>,
    pub(crate) output_schema: Option<Value>,
    pub(crate) claims: Claims,
    /// The whole definition, to offer it directly and to see it change.
    pub(crate) definition: Value,
}

/// Lists the tools; malformed ones are left out.
pub(crate) async fn list(
    peer: &Peer<RoleClient>,
    config: &ServerConfig,
    secrets: &Secrets,
) -> Result<Vec<UpstreamTool>, ConnectError> {
    let until = tokio::time::Instant::now() + LISTING;
    let listed = pages(peer, "tools", until, |params| {
        ClientRequest::ListToolsRequest(ListToolsRequest {
            method: Default::default(),
            params,
            extensions: Default::default(),
        })
    });
    let listed = listed.await.map_err(|error| match error {
        NotListed::Failed(error) => ConnectError::Listing(short(&error.to_string())),
        NotListed::TimedOut => ConnectError::ListingTimedOut,
    })?;
    let mut names = HashSet::new();
    let mut tools: Vec<UpstreamTool> = Vec::new();
    for mut definition in listed {
        secrets.hide_json(&mut definition);
        clean_definition(&mut definition);
        // Cleaning may have joined what an invisible character parted.
        secrets.hide_json(&mut definition);
        if let Some(tool) = tool_of(definition)
            && config.wants(&tool.name)
            && names.insert(tool.name.clone())
        {
            tools.push(tool);
        }
    }
    tools.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tools)
}

/// A tool of a listing; `None` where it has no name.
pub(super) fn tool_of(definition: Value) -> Option<UpstreamTool> {
    let text = |key: &str| definition.get(key).and_then(Value::as_str);
    let hint = |key: &str| {
        definition
            .pointer(&format!("/annotations/{key}"))
            .and_then(Value::as_bool)
    };
    let schema = |key: &str| {
        definition
            .get(key)
            .filter(|schema| schema.is_object())
            .cloned()
    };
    let name = text("name").filter(|name| !name.is_empty() && name.len() <= 512)?;
    Some(UpstreamTool {
        name: name.to_owned(),
        description: text("description")
            .or(text("title"))
            .unwrap_or_default()
            .to_owned(),
        input_schema: schema("inputSchema"),
        output_schema: schema("outputSchema"),
        claims: Claims {
            read_only: hint("readOnlyHint") == Some(true),
            destructive: hint("destructiveHint") == Some(true),
        },
        definition,
    })
}
