//! `exec`: a program becomes a cell.

use std::sync::Arc;
use std::time::{Duration, Instant};

use code_mode_host::ExecuteRequest;
use rmcp::model::CallToolRequestParams;
use serde_json::Map;
use tokio_util::sync::CancellationToken;

use super::arguments::Exec;
use super::cell::Cell;
use super::client::Client;
use super::observe::{Observed, repeated};
use super::session::Session;
use super::{Response, failure};

/// Programs of one session that run at the same time.
const MAX_CELLS: usize = 64;
/// How long a program waits for servers that start and that it names.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Runs a program.
pub(crate) async fn exec(client: &Client<'_>, request: &CallToolRequestParams) -> Response {
    if let Some(state) = &request.request_state {
        return repeated(client, request, state).await;
    }
    let exec = match Exec::read(request.arguments.as_ref().unwrap_or(&Map::new())) {
        Ok(exec) => exec,
        Err(wrong) => return Ok(failure(format!("exec: {wrong}"))),
    };
    let session = match session(client, exec.session.as_deref()).await {
        Ok(session) => session,
        Err(why) => return Ok(failure(why)),
    };
    session.touch();
    if session.cells.live_cells().len() >= MAX_CELLS {
        return Ok(failure(format!(
            "{MAX_CELLS} programs of this session are running: wait for one, or terminate it"
        )));
    }
    let broker = &client.server.broker;
    let began = Instant::now();
    // The program needs some of the time as well.
    let limit = client.patience(began, LONGEST_WAIT) * 3 / 4;
    broker.ready_for(&exec.code, limit).await;
    let tools = broker.tools();
    let cell = Arc::new(Cell::new(client.can_ask));
    session.known.add(&cell);
    let yield_now = CancellationToken::new();
    let execute = ExecuteRequest::new(cell.key.as_str(), exec.code)
        .tools(tools.definitions.clone())
        .constants(broker.constants())
        .yield_time(client.patience(began, exec.yield_time))
        .max_output_tokens(exec.max_output_tokens)
        .yield_now(yield_now.clone());
    let running = match session.cells.execute(execute).await {
        Ok(running) => running,
        Err(error) => {
            cell.end();
            return Ok(failure(error.to_string()));
        }
    };
    let cell_id = running.id().clone();
    let observed = Observed {
        client,
        request,
        session: &session,
        cell: &cell,
        cell_id: &cell_id,
        yield_now,
        ends_with_request: true,
    };
    observed.run(running.into_future()).await
}

/// The session that a program runs in: the one it names, the connection's own, or a new one.
async fn session(client: &Client<'_>, handle: Option<&str>) -> Result<Arc<Session>, String> {
    let sessions = &client.server.sessions;
    let Some(handle) = handle else {
        return match client.has_own_session() {
            true => client.own_session().await,
            false => {
                let opened = sessions.open_stateless().await;
                opened.map_err(|error| error.to_string())
            }
        };
    };
    if let Some(session) = sessions.by_handle(handle) {
        return Ok(session);
    }
    if client.has_own_session()
        && let Ok(own) = client.own_session().await
        && own.handle == handle
    {
        return Ok(own);
    }
    Err(format!(
        "no session {handle:?} exists (any more); leave session_id out to begin a new one"
    ))
}
