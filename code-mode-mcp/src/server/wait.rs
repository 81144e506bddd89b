//! `wait`: a client continues to observe a cell.

use std::sync::Arc;

use code_mode_host::CellId;
use rmcp::model::CallToolRequestParams;
use serde_json::Map;

use super::arguments::Wait;
use super::cell::{Cell, CellKey};
use super::client::Client;
use super::observe::{observe, repeated};
use super::session::Session;
use super::{Response, failure};

/// Observes a cell that `exec` left running.
pub(crate) async fn wait(client: &Client<'_>, request: &CallToolRequestParams) -> Response {
    if let Some(state) = &request.request_state {
        return repeated(client, request, state).await;
    }
    let wait = match Wait::read(request.arguments.as_ref().unwrap_or(&Map::new())) {
        Ok(wait) => wait,
        Err(wrong) => return Ok(failure(format!("wait: {wrong}"))),
    };
    let name = wait.cell.as_str();
    let (session, cell) = match find(client, name).await {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(failure(format!("no cell {name:?} exists (any more)"))),
        Err(why) => return Ok(failure(why)),
    };
    if let Some(decision) = wait.decision {
        if !client.server.broker.policy.model_may_answer {
            return Ok(failure(
                "wait: decision is not taken here: the policy does not say \"model_may_answer\": true, because a model that approves its own calls proves nothing",
            ));
        }
        if cell.answer_calls(decision) == 0 {
            return Ok(failure(format!(
                "wait: no call of the cell {name} waits for a decision"
            )));
        }
    }
    observe(client, request, &session, &cell, wait.how).await
}

/// The cell that a client names: by its key, or by its id in the connection's own session.
async fn find(
    client: &Client<'_>,
    name: &str,
) -> Result<Option<(Arc<Session>, Arc<Cell>)>, String> {
    let key = CellKey::from(name);
    if let Some(found) = client.server.sessions.cell(&key) {
        return Ok(Some(found));
    }
    if !client.has_own_session() {
        return Ok(None);
    }
    let session = client.own_session().await?;
    let by_id = name
        .parse::<CellId>()
        .ok()
        .and_then(|id| session.known.by_id(&id));
    let cell = by_id.or_else(|| session.known.by_key(&key));
    Ok(cell.map(|cell| (session, cell)))
}
