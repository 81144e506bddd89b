//! The tools of a server, as it lists them.

use std::collections::HashSet;
use std::time::Duration;

use rmcp::RoleClient;
use rmcp::model::{ClientRequest, ListToolsRequest, PaginatedRequestParams};
use rmcp::service::{Peer, ServiceError};
use serde_json::Value;

use super::error::ConnectError;
use crate::config::ServerConfig;
use crate::policy::Claims;
use crate::secrets::Secrets;
use crate::texts::{clean_definition, short};

/// Pages and tools of one listing, and its time.
const MAX_PAGES: usize = 100;
const MAX_TOOLS: usize = 10_000;
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
    let mut tools: Vec<UpstreamTool> = Vec::new();
    let mut names = HashSet::new();
    let mut cursor: Option<String> = None;
    let until = tokio::time::Instant::now() + LISTING;
    for _ in 0..MAX_PAGES {
        let params = cursor
            .clone()
            .map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor)));
        let request = ClientRequest::ListToolsRequest(ListToolsRequest {
            method: Default::default(),
            params,
            extensions: Default::default(),
        });
        let page = match tokio::time::timeout_at(until, peer.send_request(request)).await {
            Ok(Ok(page)) => serde_json::to_value(&page).unwrap_or_default(),
            // It has none.
            Ok(Err(ServiceError::McpError(error))) if error.code.0 == -32601 => break,
            Ok(Err(_)) | Err(_) if !tools.is_empty() => break,
            Ok(Err(error)) => {
                return Err(ConnectError::Listing(short(&error.to_string())));
            }
            Err(_) => return Err(ConnectError::ListingTimedOut),
        };
        let listed = page.get("tools").and_then(Value::as_array);
        for definition in listed.into_iter().flatten() {
            let mut definition = definition.clone();
            secrets.hide_json(&mut definition);
            clean_definition(&mut definition);
            if let Some(tool) = tool_of(&definition)
                && config.wants(&tool.name)
                && names.insert(tool.name.clone())
            {
                tools.push(tool);
            }
        }
        let next = page
            .get("nextCursor")
            .and_then(Value::as_str)
            .map(str::to_owned);
        if next.is_none() || next == cursor || tools.len() >= MAX_TOOLS {
            break;
        }
        cursor = next;
    }
    tools.truncate(MAX_TOOLS);
    tools.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tools)
}

/// A tool of a listing; `None` where it has no name.
fn tool_of(definition: &Value) -> Option<UpstreamTool> {
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
        definition: definition.clone(),
    })
}
