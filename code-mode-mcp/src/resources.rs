//! Resources and prompts of the servers, under their servers' names.

use std::time::Duration;

use futures::future::join_all;
use rmcp::ErrorData;
use rmcp::RoleClient;
use rmcp::model::{
    ErrorCode, GetPromptRequestParams, GetPromptResponse, ListPromptsResult,
    ListResourceTemplatesResult, ListResourcesResult, ReadResourceRequestParams,
    ReadResourceResponse, ResultType,
};
use rmcp::service::{Peer, ServiceError};

use crate::broker::Broker;
use crate::texts::line;

/// How long a server may take to list what it has.
const LISTING: Duration = Duration::from_secs(5);
const READING: Duration = Duration::from_secs(60);
/// Between a server's name and what it calls its own.
const BETWEEN: &str = "__";

/// The servers that are there.
fn ready(broker: &Broker) -> Vec<(String, Peer<RoleClient>)> {
    let upstreams = broker.upstreams.iter();
    upstreams
        .filter_map(|upstream| Some((upstream.name().to_owned(), upstream.peer()?)))
        .collect()
}

/// What each server lists; a server that fails has nothing.
async fn listed<T, F>(
    broker: &Broker,
    list: impl Fn(Peer<RoleClient>) -> F,
) -> Vec<(String, Vec<T>)>
where
    F: Future<Output = Result<Vec<T>, ServiceError>>,
{
    let lists = ready(broker).into_iter().map(|(name, peer)| {
        let listing = list(peer);
        async move {
            let listed = tokio::time::timeout(LISTING, listing).await;
            (name, listed.ok().and_then(Result::ok).unwrap_or_default())
        }
    });
    join_all(lists).await
}

/// A server's description on one line, without secrets.
fn shown(broker: &Broker, description: Option<String>) -> Option<String> {
    description.map(|text| line(&broker.secrets.hide(&text), 1000))
}

pub(crate) async fn prompts(broker: &Broker) -> ListPromptsResult {
    let mut all = Vec::new();
    let lists = listed(broker, |peer| async move { peer.list_all_prompts().await }).await;
    for (server, prompts) in lists {
        for mut prompt in prompts {
            prompt.name = format!("{server}{BETWEEN}{}", prompt.name);
            prompt.description = shown(broker, prompt.description);
            all.push(prompt);
        }
    }
    ListPromptsResult::with_all_items(all)
}

pub(crate) async fn prompt(
    broker: &Broker,
    mut request: GetPromptRequestParams,
) -> Result<GetPromptResponse, ErrorData> {
    for (server, peer) in ready(broker) {
        let own = request.name.strip_prefix(&server);
        if let Some(name) = own.and_then(|rest| rest.strip_prefix(BETWEEN)) {
            request.name = name.to_owned();
            request.meta = None;
            let mut prompt = answered(broker, peer.get_prompt_once(request)).await?;
            if let GetPromptResponse::Complete(result) = &mut prompt {
                result.result_type.get_or_insert(ResultType::COMPLETE);
            }
            return Ok(prompt);
        }
    }
    let unknown = format!("there is no prompt {:?}", request.name);
    Err(ErrorData::invalid_params(unknown, None))
}

pub(crate) async fn resources(broker: &Broker) -> ListResourcesResult {
    let mut all = Vec::new();
    let lists = listed(
        broker,
        |peer| async move { peer.list_all_resources().await },
    )
    .await;
    for (server, resources) in lists {
        for mut resource in resources {
            resource.name = format!("{server}: {}", resource.name);
            resource.description = shown(broker, resource.description);
            all.push(resource);
        }
    }
    ListResourcesResult::with_all_items(all)
}

pub(crate) async fn templates(broker: &Broker) -> ListResourceTemplatesResult {
    let mut all = Vec::new();
    let lists = listed(broker, |peer| async move {
        peer.list_all_resource_templates().await
    });
    for (server, templates) in lists.await {
        for mut template in templates {
            template.name = format!("{server}: {}", template.name);
            all.push(template);
        }
    }
    ListResourceTemplatesResult::with_all_items(all)
}

/// Reads a resource from the server that lists its address, or else from the first that
/// has it.
pub(crate) async fn resource(
    broker: &Broker,
    mut request: ReadResourceRequestParams,
) -> Result<ReadResourceResponse, ErrorData> {
    request.meta = None;
    let lists = listed(
        broker,
        |peer| async move { peer.list_all_resources().await },
    )
    .await;
    let lists_it = |server: &str| {
        let own = lists.iter().find(|(name, _)| name == server);
        own.is_some_and(|(_, all)| all.iter().any(|resource| resource.uri == request.uri))
    };
    let mut servers = ready(broker);
    servers.sort_by_key(|(server, _)| !lists_it(server));
    let mut last = None;
    for (_, peer) in servers {
        match answered(broker, peer.read_resource_once(request.clone())).await {
            Ok(mut read) => {
                if let ReadResourceResponse::Complete(result) = &mut read {
                    result.result_type.get_or_insert(ResultType::COMPLETE);
                }
                return Ok(read);
            }
            Err(error) => last = last.or(Some(error)),
        }
    }
    Err(last.unwrap_or_else(|| {
        ErrorData::invalid_params(format!("no server has {:?}", request.uri), None)
    }))
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
