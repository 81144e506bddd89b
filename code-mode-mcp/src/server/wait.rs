//! `wait`: a client continues to observe a cell.

use std::sync::Arc;
use std::time::{Duration, Instant};

use code_mode_host::CellId;
use futures::future::select_all;
use rmcp::model::CallToolRequestParams;
use serde_json::Map;

use super::answer::output_from;
use super::arguments::Wait;
use super::cell::{Cell, CellKey};
use super::client::Client;
use super::observe::{observe, repeated};
use super::session::Session;
use super::{Response, cancelled, failure};

/// Observes a cell that `exec` left running.
pub(crate) async fn wait(client: &Client<'_>, request: &CallToolRequestParams) -> Response {
    if let Some(state) = &request.request_state {
        return repeated(client, request, state).await;
    }
    let wait = match Wait::read(request.arguments.as_ref().unwrap_or(&Map::new())) {
        Ok(wait) => wait,
        Err(wrong) => return Ok(failure(format!("wait: {wrong}"))),
    };
    let began = Instant::now();
    let found = match &wait.cell {
        Some(name) => find(client, name).await,
        None => {
            let limit = client.patience(began, wait.how.yield_time);
            tokio::select! {
                () = client.context.ct.cancelled() => return cancelled(),
                found = with_news(client, limit) => found,
            }
        }
    };
    let (session, cell) = match found {
        Ok(found) => found,
        Err(why) => return Ok(failure(why)),
    };
    if let Some(from) = wait.from {
        session.touch();
        return Ok(output_from(client, &cell, from, wait.how.max_output_tokens));
    }
    let name = client.name_of(&cell);
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
    let mut how = wait.how;
    if wait.cell.is_none() {
        how.yield_time = Some(client.patience(began, how.yield_time));
    }
    observe(client, request, &session, &cell, how).await
}

/// A cell, and its session.
type Found = (Arc<Session>, Arc<Cell>);

/// The cell that a client names: by its key, or by its id in the connection's own session.
async fn find(client: &Client<'_>, name: &str) -> Result<Found, String> {
    let none = || format!("no cell {name:?} exists (any more)");
    let key = CellKey::from(name);
    if let Some(found) = client.server.sessions.cell(&key).await {
        return Ok(found);
    }
    if !client.has_own_session() {
        return Err(none());
    }
    let session = client.own_session().await?;
    let by_id = name
        .parse::<CellId>()
        .ok()
        .and_then(|id| session.known.by_id(&id));
    let cell = by_id.or_else(|| session.known.by_key(&key));
    Ok((session, cell.ok_or_else(none)?))
}

/// The first cell of the connection's session that ends or asks; the oldest where none does within
/// `limit`, and the only one at once.
async fn with_news(client: &Client<'_>, limit: Duration) -> Result<Found, String> {
    if !client.has_own_session() {
        return Err("wait: cell_id is missing: the one that exec gave".to_owned());
    }
    let session = client.own_session().await?;
    let cells = session.known.unanswered();
    let Some(oldest) = cells.first() else {
        return Err("wait: no program of this session is running".to_owned());
    };
    let news = cells.iter().map(|cell| Box::pin(cell.has_news()));
    let first = match cells.len() {
        1 => Some(0),
        _ => {
            let first = async { Some(select_all(news).await.1) };
            tokio::select! {
                first = first => first,
                () = tokio::time::sleep(limit) => None,
                () = client.stay_alive(oldest) => None,
            }
        }
    };
    let cell = first.and_then(|at| cells.get(at)).unwrap_or(oldest);
    Ok((session, cell.clone()))
}
