//! What clients use beside `exec`: tools that are offered directly, resources and prompts.

use std::sync::Arc;

use code_mode_host::{Json, ToolError};
use rmcp::ErrorData;
use rmcp::model::{CallToolRequestParams, CallToolResult, ContentBlock};
use serde_json::Value;

use super::cell::{CanAsk, Cell};
use super::client::Client;
use super::delegate::{CellCall, Maker};
use super::observe::asking_meanwhile;
use super::session::name_in_records;
use super::{Response, failure};
use crate::caller::CallContext;

/// Calls a tool that is offered beside `exec`. Policy and audit log hold for it too; there is
/// no cell, and so a client of the stateless era cannot answer for it.
pub(crate) async fn direct(client: &Client<'_>, request: &CallToolRequestParams) -> Response {
    let (sessions, broker) = (&client.server.sessions, &client.server.broker);
    let session = match client.has_own_session() {
        true => client.own_session().await,
        false => sessions.open().await.map_err(|error| error.to_string()),
    };
    let session = match session {
        Ok(session) => session,
        Err(why) => return Ok(failure(why)),
    };
    let tools = broker.tools();
    let Some(entry) = tools.by_identifier(&request.name) else {
        return Ok(failure(format!("{} is not offered any more", request.name)));
    };
    let cell = Arc::new(Cell::new(can_ask(client)));
    let input = Value::from(request.arguments.clone().unwrap_or_default());
    let input = Json::from_value(&input)
        .map_err(|error| ErrorData::invalid_params(error.to_string(), None))?;
    let context = Arc::new(CellCall {
        session: name_in_records(&session.handle),
        known: session.known.clone(),
        broker: broker.clone(),
        cell: cell.clone(),
        call: Maker::Direct,
        keeper: None,
    });
    let span = client.trace_context();
    let call = broker.call_directly(entry, &input, span.as_ref(), context);
    match asking_meanwhile(client, &cell, call).await {
        Some(answer) => Ok(response(answer)),
        None => Err(ErrorData::internal_error("cancelled", None)),
    }
}

/// Reads a resource or gets a prompt for a client, and asks its person where the policy wants an
/// approval. Without a cell a client of the stateless era cannot answer.
pub(crate) async fn read<T, F>(
    client: &Client<'_>,
    read: impl FnOnce(Arc<dyn CallContext>) -> F,
) -> Result<T, ErrorData>
where
    F: Future<Output = Result<T, ErrorData>>,
{
    let cell = Arc::new(Cell::new(can_ask(client)));
    let context = Arc::new(CellCall {
        session: String::new(),
        known: client.reads(),
        broker: client.server.broker.clone(),
        cell: cell.clone(),
        call: Maker::Read,
        keeper: None,
    });
    let reading = asking_meanwhile(client, &cell, read(context)).await;
    reading.unwrap_or_else(|| Err(ErrorData::internal_error("cancelled", None)))
}

fn can_ask(client: &Client<'_>) -> CanAsk {
    match client.stateless {
        true => CanAsk::default(),
        false => client.can_ask,
    }
}

fn response(answer: Result<Json, ToolError>) -> rmcp::model::CallToolResponse {
    let json = match answer {
        Ok(json) => json,
        Err(error) => return failure(error.message),
    };
    match json.to::<CallToolResult>() {
        Ok(result) => result.into(),
        // A block that the protocol does not know.
        Err(_) => CallToolResult::success(vec![ContentBlock::text(json.as_str())]).into(),
    }
}
