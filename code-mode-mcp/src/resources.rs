//! Resources and prompts of the servers: listed under their servers' names, decided by the
//! policy like calls, and asked of the server that lists them.
//!
//! To the policy a resource is `SERVER/resource:ADDRESS`, and a prompt is `SERVER/prompt:NAME`.

use std::sync::Arc;
use std::time::Duration;

use code_mode_protocol::text::{clean, line};
use code_mode_protocol::{Json, ToolDefinition, ToolError, ToolName};
use futures::future::join_all;
use rmcp::ErrorData;
use rmcp::RoleClient;
use rmcp::model::{
    ClientRequest, CompleteRequestParams, CompleteResult, ErrorCode, GetPromptRequestParams,
    GetPromptResponse, ListPromptsRequest, ListPromptsResult, ListResourceTemplatesRequest,
    ListResourceTemplatesResult, ListResourcesRequest, ListResourcesResult, PaginatedRequestParams,
    ReadResourceRequestParams, ReadResourceResponse, Reference, ResultType,
};
use rmcp::service::{Peer, ServiceError};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use wildmatch::WildMatchPattern;

use crate::address::oddity;
use crate::broker::Broker;
use crate::caller::CallContext;
use crate::policy::{Claims, Decision};
use crate::texts::clean_texts;
use crate::upstream::pages;

/// How long a server may take to list what it has.
const LISTING: Duration = Duration::from_secs(5);
const LISTING_AGAIN: Duration = Duration::from_millis(500);
const READING: Duration = Duration::from_secs(60);
/// Between a server's name and what it calls its own.
const BETWEEN: &str = "__";
/// The longest template and address that are compared.
const LONGEST_TEMPLATE: usize = 1000;
const LONGEST_ADDRESS: usize = 8000;

/// What servers list beside tools.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Prompts,
    Resources,
    Templates,
}

impl Kind {
    /// The key of the items in a page.
    fn key(self) -> &'static str {
        match self {
            Self::Prompts => "prompts",
            Self::Resources => "resources",
            Self::Templates => "resourceTemplates",
        }
    }

    /// The member of an item that names it.
    fn name(self) -> &'static str {
        match self {
            Self::Prompts => "name",
            Self::Resources => "uri",
            Self::Templates => "uriTemplate",
        }
    }

    fn request(self, params: Option<PaginatedRequestParams>) -> ClientRequest {
        let (method, extensions) = (Default::default(), Default::default());
        match self {
            Self::Prompts => ClientRequest::ListPromptsRequest(ListPromptsRequest {
                method,
                params,
                extensions,
            }),
            Self::Resources => ClientRequest::ListResourcesRequest(ListResourcesRequest {
                method: Default::default(),
                params,
                extensions,
            }),
            Self::Templates => {
                ClientRequest::ListResourceTemplatesRequest(ListResourceTemplatesRequest {
                    method: Default::default(),
                    params,
                    extensions,
                })
            }
        }
    }

    /// How the policy calls an item.
    fn policy_name(self, name: &str) -> String {
        match self {
            Self::Prompts => format!("prompt:{name}"),
            Self::Resources | Self::Templates => format!("resource:{name}"),
        }
    }
}

/// An item and its server.
struct Listed {
    server: String,
    peer: Peer<RoleClient>,
    /// Its name at its server.
    name: String,
    /// Its name for clients, which has no secrets.
    shown: String,
    /// The item with harmless texts, under the name for clients.
    item: Value,
}

impl Listed {
    /// A server may list an item twice.
    fn is_same(&self, other: &Self) -> bool {
        self.server == other.server && self.name == other.name
    }
}

/// What the servers list of a kind, without what the policy denies. A server that fails has
/// nothing.
async fn listed(broker: &Broker, kind: Kind) -> Vec<Listed> {
    let until = Instant::now() + LISTING;
    let lists = broker.upstreams.iter().filter_map(|upstream| {
        let peer = upstream.peer()?;
        let capabilities = peer.peer_info()?.capabilities.clone();
        let has_any = match kind {
            Kind::Prompts => capabilities.prompts.is_some(),
            Kind::Resources | Kind::Templates => capabilities.resources.is_some(),
        };
        has_any.then_some(async move {
            let request = |params| kind.request(params);
            // A server that was too slow once keeps the others waiting for less.
            let until = match upstream.listed_late(kind.key()) {
                true => until - LISTING + LISTING_AGAIN,
                false => until,
            };
            let items = pages(&peer, kind.key(), until, request).await;
            upstream.set_listed_late(kind.key(), Instant::now() >= until);
            let items = items.unwrap_or_default().into_iter();
            let listed = items.filter_map(|item| of_server(broker, kind, upstream.name(), item));
            let listed = listed.map(|(name, shown, item)| Listed {
                server: upstream.name().to_owned(),
                peer: peer.clone(),
                name,
                shown,
                item,
            });
            listed.collect::<Vec<_>>()
        })
    });
    join_all(lists).await.into_iter().flatten().collect()
}

/// An item's name, its name for clients, and what they see of it. `None` where it cannot be shown,
/// or the policy denies it.
fn of_server(
    broker: &Broker,
    kind: Kind,
    server: &str,
    mut item: Value,
) -> Option<(String, String, Value)> {
    let name = item.get(kind.name())?.as_str()?.to_owned();
    // The policy decides about addresses; its defaults do not deny their template.
    let is_denied = match kind {
        Kind::Templates => broker.policy.forbids(server, &kind.policy_name(&name)),
        Kind::Prompts | Kind::Resources => is_denied(broker, kind, server, &name),
    };
    if clean(&name) != name || is_denied {
        return None;
    }
    broker.secrets.hide_json(&mut item);
    clean_texts(&mut item, false);
    // Cleaning may have joined what an invisible character parted.
    broker.secrets.hide_json(&mut item);
    let hidden = broker.secrets.hide(&name);
    let shown = match kind {
        Kind::Prompts => format!("{server}{BETWEEN}{hidden}"),
        Kind::Resources | Kind::Templates => hidden,
    };
    if kind != Kind::Prompts {
        let title = item.get("name").and_then(Value::as_str).unwrap_or_default();
        item["name"] = format!("{server}: {}", line(title, 200)).into();
    }
    item[kind.name()] = shown.as_str().into();
    Some((name, shown, item))
}

fn is_denied(broker: &Broker, kind: Kind, server: &str, name: &str) -> bool {
    let (decision, _) =
        broker
            .policy
            .decide(server, &kind.policy_name(name), Claims::READING, None);
    decision == Decision::Deny
}

/// The items as the protocol has them; malformed ones are left out.
fn items<T: DeserializeOwned>(listed: Vec<Listed>) -> Vec<T> {
    let items = listed.into_iter().map(|listed| listed.item);
    items
        .filter_map(|item| serde_json::from_value(item).ok())
        .collect()
}

pub(crate) async fn prompts(broker: &Broker) -> ListPromptsResult {
    ListPromptsResult::with_all_items(items(listed(broker, Kind::Prompts).await))
}

pub(crate) async fn resources(broker: &Broker) -> ListResourcesResult {
    ListResourcesResult::with_all_items(items(listed(broker, Kind::Resources).await))
}

pub(crate) async fn templates(broker: &Broker) -> ListResourceTemplatesResult {
    let mut templates = listed(broker, Kind::Templates).await;
    templates.retain(|template| {
        !is_denied(broker, Kind::Templates, &template.server, &template.name)
            || broker.policy.allows_any_resource(&template.server)
    });
    ListResourceTemplatesResult::with_all_items(items(templates))
}

/// Gets a prompt from the server that lists it.
pub(crate) async fn prompt(
    broker: &Broker,
    mut request: GetPromptRequestParams,
    context: Arc<dyn CallContext>,
) -> Result<GetPromptResponse, ErrorData> {
    let mut found = listed(broker, Kind::Prompts).await;
    found.retain(|prompt| prompt.shown == request.name);
    found.dedup_by(|a, b| a.is_same(b));
    let prompt = only_one(found, "prompt", &request.name)?;
    request.name = prompt.name.clone();
    request.meta = None;
    let arguments = request.arguments.clone().unwrap_or_default();
    let getting = async {
        let mut prompt = answered(broker, prompt.peer.get_prompt_once(request)).await?;
        if let GetPromptResponse::Complete(result) = &mut prompt {
            result.result_type.get_or_insert(ResultType::COMPLETE);
        }
        Ok(prompt)
    };
    let name = Kind::Prompts.policy_name(&prompt.name);
    broker
        .read(context, &prompt.server, &name, &arguments, getting)
        .await
}

/// Reads a resource from the server that lists its address, or that has a template for it; from
/// `server` alone where one is named.
pub(crate) async fn resource(
    broker: &Broker,
    mut request: ReadResourceRequestParams,
    server: Option<&str>,
    context: Arc<dyn CallContext>,
) -> Result<ReadResourceResponse, ErrorData> {
    let is_asked = |listed: &Listed| server.is_none_or(|server| listed.server == server);
    let mut found = listed(broker, Kind::Resources).await;
    found.retain(|resource| resource.shown == request.uri && is_asked(resource));
    found.dedup_by(|a, b| a.is_same(b));
    let has_address = !found.is_empty();
    if !has_address {
        if let Some(why) = oddity(&request.uri) {
            return Err(ErrorData::invalid_params(why, None));
        }
        found = listed(broker, Kind::Templates).await;
        found.retain(|template| fits(&template.name, &request.uri) && is_asked(template));
        // Several templates of one server may fit.
        found.dedup_by(|a, b| a.server == b.server);
    }
    let resource = only_one(found, "resource", &request.uri)?;
    if has_address {
        request.uri = resource.name;
    }
    request.meta = None;
    let name = Kind::Resources.policy_name(&request.uri);
    let reading = async {
        let mut read = answered(broker, resource.peer.read_resource_once(request)).await?;
        if let ReadResourceResponse::Complete(result) = &mut read {
            result.result_type.get_or_insert(ResultType::COMPLETE);
        }
        Ok(read)
    };
    broker
        .read(context, &resource.server, &name, &Map::new(), reading)
        .await
}

/// Asks the server of a prompt or a template for the values that an argument may have. It completes
/// nothing where the server does not offer that, or where the policy wants a person's approval:
/// clients ask at each key.
pub(crate) async fn completion(
    broker: &Broker,
    mut request: CompleteRequestParams,
) -> Result<CompleteResult, ErrorData> {
    let (kind, what, name) = match &request.r#ref {
        Reference::Prompt(prompt) => (Kind::Prompts, "prompt", prompt.name.clone()),
        Reference::Resource(template) => {
            (Kind::Templates, "resource template", template.uri.clone())
        }
        _ => return Ok(CompleteResult::default()),
    };
    let mut found = listed(broker, kind).await;
    found.retain(|listed| listed.shown == name);
    found.dedup_by(|a, b| a.is_same(b));
    let listed = only_one(found, what, &name)?;
    let policy_name = kind.policy_name(&listed.name);
    let (decision, _) = broker
        .policy
        .decide(&listed.server, &policy_name, Claims::READING, None);
    let info = listed.peer.peer_info();
    let is_offered = info.is_some_and(|info| info.capabilities.completions.is_some());
    if decision != Decision::Allow || !is_offered {
        return Ok(CompleteResult::default());
    }
    request.r#ref = match kind {
        Kind::Prompts => Reference::for_prompt(listed.name),
        Kind::Resources | Kind::Templates => Reference::for_resource(listed.name),
    };
    request.meta = None;
    let mut completed = answered(broker, listed.peer.complete(request)).await?;
    completed.result_type.get_or_insert(ResultType::COMPLETE);
    for value in &mut completed.completion.values {
        *value = broker.secrets.hide(&clean(value));
    }
    Ok(completed)
}

/// The tool by which programs read resources.
const READER: &str = "read_resource";

/// The definition of the tool by which programs read resources.
pub(crate) fn reader() -> ToolDefinition {
    let text = json!({"type": "string"});
    let input = json!({
        "type": "object",
        "properties": {"server": text, "uri": text},
        "required": ["server", "uri"],
    });
    let content = json!({
        "type": "object",
        "properties": {"uri": text, "mimeType": text, "text": text, "blob": text},
        "required": ["uri"],
    });
    let output = json!({
        "type": "object",
        "properties": {"contents": {"type": "array", "items": content}},
        "required": ["contents"],
    });
    let description = "Reads a resource of a server; `read_resource(server, uri)` is short for it. Bytes are base64 in `blob`.";
    ToolDefinition::function(READER, description)
        .input_schema(Json::from_value(&input).ok())
        .output_schema(Json::from_value(&output).ok())
}

/// Whether a call of this name reads a resource.
pub(crate) fn is_reader(name: &ToolName) -> bool {
    *name == ToolName::plain(READER)
}

/// Reads a resource for a program, which is under the policy as a client's reading is.
pub(crate) async fn read(
    broker: &Broker,
    input: Option<&Json>,
    context: Arc<dyn CallContext>,
) -> Result<Json, ToolError> {
    #[derive(Deserialize)]
    struct Input {
        server: String,
        uri: String,
    }
    let input: Option<Input> = input.and_then(|input| input.to().ok());
    let Input { server, uri } = input.ok_or("read_resource takes a server and a uri")?;
    let request = ReadResourceRequestParams::new(uri);
    match resource(broker, request, Some(&server), context).await {
        Ok(ReadResourceResponse::Complete(result)) => {
            let contents = json!({"contents": result.contents});
            Json::from_value(&contents).map_err(|error| ToolError::new(error.to_string()))
        }
        Ok(_) => Err(
            "the server asks a question before the resource is read, which only clients answer"
                .into(),
        ),
        Err(error) => Err(ToolError::new(error.message).code(i64::from(error.code.0))),
    }
}

/// Whether an address may be made from a template: its literal parts are in their places, and it
/// begins with a scheme. The server decides the rest.
fn fits(template: &str, address: &str) -> bool {
    let begin = template.split('{').next().unwrap_or_default();
    let is_known = begin.contains(':');
    if !is_known || template.len() > LONGEST_TEMPLATE || address.len() > LONGEST_ADDRESS {
        return false;
    }
    let mut pattern = String::new();
    for (number, part) in template.split('{').enumerate() {
        let literal = match number {
            0 => part,
            _ => part.split_once('}').map_or("", |(_, literal)| literal),
        };
        if number > 0 {
            pattern.push('*');
        }
        pattern.push_str(literal);
    }
    // Addresses have no NUL, which the library would take for any single character.
    WildMatchPattern::<'*', '\0'>::new(&pattern).matches(address)
}

/// The only one of those that were found. A name that two servers list belongs to neither.
fn only_one(mut found: Vec<Listed>, what: &str, name: &str) -> Result<Listed, ErrorData> {
    let name = line(name, 300);
    let why = match (found.pop(), found.as_slice()) {
        (Some(one), []) => return Ok(one),
        (None, _) => format!("no server lists a {what} {name:?}"),
        (Some(last), others) => {
            let servers = others.iter().chain([&last]);
            let servers: Vec<_> = servers.map(|one| line(&one.server, 100)).collect();
            format!(
                "the {what} {name:?} is ambiguous: it is listed by {}",
                servers.join(" and ")
            )
        }
    };
    Err(ErrorData::invalid_params(why, None))
}

async fn answered<T>(
    broker: &Broker,
    answer: impl Future<Output = Result<T, ServiceError>>,
) -> Result<T, ErrorData> {
    match tokio::time::timeout(READING, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(ServiceError::McpError(mut error))) => {
            // A code of old servers that no client should meet.
            if error.code == ErrorCode::RESOURCE_NOT_FOUND {
                error.code = ErrorCode::INVALID_PARAMS;
            }
            error.message = broker.secrets.hide(&error.message).into();
            if let Some(data) = &mut error.data {
                broker.secrets.hide_json(data);
            }
            Err(error)
        }
        Ok(Err(error)) => {
            let text = broker.secrets.hide(&error.to_string());
            Err(ErrorData::internal_error(text, None))
        }
        Err(_) => Err(ErrorData::internal_error(
            "the server does not answer",
            None,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_fits_a_template_by_its_literal_parts() {
        assert!(fits("file:///{path}", "file:///a/b"));
        assert!(fits("db://{table}/rows{?from,to}", "db://t/rows?from=1"));
        assert!(!fits("db://{table}/rows", "file:///etc/passwd"));
        // A template without a scheme would take every address.
        assert!(!fits("{+address}", "file:///etc/passwd"));
    }
}
