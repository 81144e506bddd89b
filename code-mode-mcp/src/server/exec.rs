//! `exec`: a program becomes a cell.

use std::sync::Arc;
use std::time::Instant;

use code_mode_host::{ExecuteRequest, Json};
use rmcp::model::CallToolRequestParams;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::answer::not_begun;
use super::arguments::{Exec, How};
use super::cell::Cell;
use super::client::Client;
use super::observe::{Observed, repeated};
use super::session::Session;
use super::{Response, cancelled, failure};

/// Programs of one session that run at the same time.
const MAX_CELLS: usize = 64;

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
    if session.open_cells() >= MAX_CELLS {
        return Ok(failure(format!(
            "{MAX_CELLS} programs of this session are running: wait for one, or terminate it"
        )));
    }
    let Some(room) = client.server.room_for(exec.code.len()) else {
        return Ok(failure(
            "programs that have not begun are 256 MiB already: wait for one, or terminate it",
        ));
    };
    let cell = Arc::new(Cell::of_program(client.can_ask, exec.code, room));
    session.known.add(&cell);
    let begun = begin(client, request, &session, &cell, &exec.how, true).await;
    if client.context.ct.is_cancelled() && cell.take_program().is_some() {
        cell.end();
    }
    begun
}

/// Begins a program once the servers that it names have started. Where that takes longer than the
/// request may, the answer says that the program has not begun, and the next request waits again.
pub(super) async fn begin(
    client: &Client<'_>,
    request: &CallToolRequestParams,
    session: &Arc<Session>,
    cell: &Arc<Cell>,
    how: &How,
    ends_with_request: bool,
) -> Response {
    let broker = &client.server.broker;
    let began = Instant::now();
    if let Some(program) = cell.program() {
        // The program needs some of the time as well.
        let limit = client.patience(began, how.yield_time) * 3 / 4;
        let missing = tokio::select! {
            () = client.context.ct.cancelled() => return cancelled(),
            missing = broker.ready_for(&program, limit) => missing,
            () = client.stay_alive(cell) => Vec::new(),
        };
        if !missing.is_empty() {
            return Ok(not_begun(client, session, cell, &missing));
        }
    }
    let Some(program) = cell.take_program() else {
        // Another request has begun it in the meantime, or has dropped it.
        return Ok(not_begun(client, session, cell, &[]));
    };
    let yield_now = CancellationToken::new();
    let execute = ExecuteRequest::new(cell.key.as_str(), &*program)
        .tools(broker.tools().definitions.clone())
        .constants(constants(client, session, &program))
        .yield_time(client.patience(began, how.yield_time))
        .trace_context(client.trace_context())
        .yield_now(yield_now.clone());
    let running = match session.cells.execute(execute).await {
        Ok(running) => running,
        Err(error) => {
            cell.end_with(format!("status: failed\n{error}"));
            return Ok(failure(error.to_string()));
        }
    };
    let cell_id = running.id().clone();
    let observed = Observed {
        client,
        request,
        session,
        cell,
        cell_id: &cell_id,
        yield_now,
        ends_with_request,
        max_output_tokens: how.max_output_tokens,
        until: client.until(how.yield_time),
    };
    observed.run(running.into_future()).await
}

/// The globals of a program: with the outputs of the session's earlier cells where it asks for one.
fn constants(client: &Client<'_>, session: &Session, program: &str) -> Vec<(String, Json)> {
    let mut constants = client.server.broker.constants();
    if names_output(program) {
        let outputs: Map<String, Value> = session
            .known
            .outputs(|cell| client.name_of(cell))
            .into_iter()
            .map(|(name, text)| (name, Value::from(text)))
            .collect();
        let outputs = Json::from_value(&Value::from(outputs));
        constants.push((
            "ALL_OUTPUTS".to_owned(),
            outputs.unwrap_or_else(|_| Json::null()),
        ));
    }
    constants
}

/// Whether a program has the word `output`, by which it asks for earlier outputs.
fn names_output(program: &str) -> bool {
    let is_of_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    program.match_indices("output").any(|(at, word)| {
        !program[..at].ends_with(is_of_word) && !program[at + word.len()..].starts_with(is_of_word)
    })
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
    if let Some(session) = sessions.by_handle(handle).await {
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
