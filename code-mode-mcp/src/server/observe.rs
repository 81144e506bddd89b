//! A request that observes a cell: progress, questions and news on the way, an answer at the
//! end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use code_mode_host::{CellId, CellResponse, SessionError, WaitRequest};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use rmcp::model::{
    CallToolRequestParams, ElicitRequest, ElicitRequestParams, ElicitResult, InputRequest,
    InputRequiredResult, LoggingLevel, LoggingMessageNotification, LoggingMessageNotificationParam,
    ServerNotification,
};
use rmcp::{ErrorData, ServiceError};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::answer::TERMINATED;
use super::answer::{dropped, not_begun};
use super::arguments::How;
use super::cell::{Cell, CellKey};
use super::client::Client;
use super::exec::begin;
use super::progress::KEEP_ALIVE;
use super::seal::{Asked, request_digest};
use super::session::Session;
use super::{Response, cancelled, failure};
use crate::elicitation::nobody;
use crate::kept_question::{is_kept, waits_on};

/// How long a cell of an earlier process has to come to its questions again.
const ASKS_AGAIN: Duration = Duration::from_secs(3);
/// Questions that come within this time are put together.
const TOGETHER: Duration = Duration::from_millis(20);

/// Observes a cell, or stops it.
pub(crate) async fn observe(
    client: &Client<'_>,
    request: &CallToolRequestParams,
    session: &Arc<Session>,
    cell: &Arc<Cell>,
    how: How,
) -> Response {
    session.touch();
    cell.set_can_ask(client.can_ask);
    if cell.id().is_none() {
        if how.terminate && cell.take_program().is_some() {
            return Ok(dropped(client, session, cell));
        }
        if cell.program().is_some() {
            return begin(client, request, session, cell, &how, false).await;
        }
        // Another request begins it at this moment.
        tokio::select! {
            () = cell.has_begun() => {}
            () = client.context.ct.cancelled() => return cancelled(),
        }
    }
    let Some(cell_id) = cell.id() else {
        return Ok(not_begun(client, session, cell, &[]));
    };
    let yield_now = CancellationToken::new();
    let observed = Observed {
        client,
        request,
        session,
        cell,
        cell_id,
        yield_now: yield_now.clone(),
        ends_with_request: false,
        max_output_tokens: how.max_output_tokens,
        until: client.until(how.yield_time),
    };
    let yield_time = client.patience(Instant::now(), how.yield_time);
    let cells = session.cells.clone();
    let id = cell_id.clone();
    let response: BoxFuture<'static, Result<CellResponse, SessionError>> = match how.terminate {
        true => Box::pin(async move { cells.terminate(id).await }),
        false => Box::pin(async move {
            let wait = WaitRequest::new(id)
                .yield_time(yield_time)
                .yield_now(yield_now);
            cells.wait(wait).await
        }),
    };
    observed.run(response).await
}

/// A repeated request with answers to questions: its cell continues, and its
/// program is not run again.
pub(crate) async fn repeated(
    client: &Client<'_>,
    request: &CallToolRequestParams,
    state: &str,
) -> Response {
    let digest = request_digest(&request.name, &request.arguments);
    let Some(asked) = client.server.seal.open(state, &digest) else {
        return Err(ErrorData::invalid_params(
            "requestState is not of this request, or too old",
            None,
        ));
    };
    let key = CellKey::from(asked.cell.as_str());
    let found = client.server.sessions.cell(&key).await;
    let found = match found {
        None => client.own_cell(&key).await,
        found => found,
    };
    let Some((session, cell)) = found else {
        return Ok(failure("this cell does not exist (any more)"));
    };
    let answers = request.input_responses.clone().unwrap_or_default();
    // In a new process of a durable gateway the cell comes to its questions again.
    let kept = asked.questions.iter().map(String::as_str);
    let kept: Vec<&str> = kept.filter(|key| is_kept(key)).collect();
    let _ = tokio::time::timeout(ASKS_AGAIN, cell.asks_again(&kept)).await;
    for key in &asked.questions {
        let answer = answers.get(key).cloned();
        if let Some(answer) = answer.and_then(|a| serde_json::from_value::<ElicitResult>(a).ok()) {
            cell.answer(key, &answer);
        }
    }
    let how = How::of_repeated(request.arguments.as_ref().unwrap_or(&Map::new()));
    cell.ask_again();
    observe(client, request, &session, &cell, how).await
}

/// A request that observes a cell.
pub(crate) struct Observed<'a> {
    pub(crate) client: &'a Client<'a>,
    pub(crate) request: &'a CallToolRequestParams,
    pub(crate) session: &'a Arc<Session>,
    pub(crate) cell: &'a Arc<Cell>,
    pub(crate) cell_id: &'a CellId,
    pub(crate) yield_now: CancellationToken,
    /// A cancelled request ends the cell, not only the observation.
    pub(crate) ends_with_request: bool,
    /// The budget of the answer.
    pub(crate) max_output_tokens: u64,
    /// The latest time of the client's answer, where this request carries no question to a person.
    pub(crate) until: Option<Instant>,
}

/// A question on its way to the person and back.
type Asking<'a> = BoxFuture<'a, (String, Option<ElicitResult>)>;

impl Observed<'_> {
    /// Waits for the response; meanwhile it reports progress and asks questions.
    pub(crate) async fn run(
        &self,
        mut response: BoxFuture<'static, Result<CellResponse, SessionError>>,
    ) -> Response {
        let _observing = self.session.observe();
        let mut changes = self.cell.changes();
        changes.mark_changed();
        let mut asking: FuturesUnordered<Asking> = FuturesUnordered::new();
        if !self.client.stateless {
            // A question of an earlier request has lost its answer.
            self.cell.ask_again();
        }
        let mut until = self.until;
        loop {
            tokio::select! {
                // Notifications of a cell are sent before its end.
                biased;
                () = self.client.context.ct.cancelled() => return self.cancelled().await,
                _ = changes.changed() => {
                    self.send_news().await;
                    self.client.show_progress(self.cell, None, false).await;
                    if let Some(answer) = self.ask(&mut asking).await {
                        return answer;
                    }
                }
                response = &mut response => {
                    self.send_news().await;
                    drop(asking);
                    return Ok(self.answer(response));
                }
                Some((key, answer)) = asking.next() => {
                    if let Some(answer) = answer {
                        self.cell.answer(&key, &answer);
                    }
                }
                // The clocks of a cell stand still during a question to a person, and the client's does not.
                () = at(until) => {
                    until = None;
                    if !self.asks_here() {
                        self.yield_now.cancel();
                    }
                }
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    self.client.show_progress(self.cell, None, true).await;
                }
            }
        }
    }

    /// The client does not wait any more.
    async fn cancelled(&self) -> Response {
        if self.ends_with_request && self.client.has_cancelled() {
            let _ = self.session.cells.terminate(self.cell_id.clone()).await;
            // Whoever cancelled it does not wait for news of it.
            self.cell.set_last_words(TERMINATED.to_owned());
        }
        cancelled()
    }

    /// Whether questions are put to a person on this request.
    fn asks_here(&self) -> bool {
        self.client.can_ask.forms && !self.cell.is_nobody_there()
    }

    /// Puts new questions to the person: on this request in the era of sessions, by an
    /// answer that asks for input in the stateless one. Where neither works, the cell
    /// yields.
    async fn ask<'s>(&'s self, asking: &mut FuturesUnordered<Asking<'s>>) -> Option<Response> {
        if !self.asks_here() {
            // Whoever answers elsewhere needs no model.
            if self.cell.is_waiting() && !self.client.server.broker.pending.is_open() {
                self.yield_now.cancel();
            }
            return None;
        }
        if !self.cell.has_unasked() {
            return None;
        }
        // Calls of a loop come one after another.
        tokio::time::sleep(TOGETHER).await;
        if !self.client.stateless {
            for (key, params) in self.cell.take_unasked() {
                asking.push(Box::pin(elicit(self.client, key, params)));
            }
            return None;
        }
        let questions = self.cell.open_questions();
        self.input_required(questions)
    }

    fn input_required(&self, questions: Vec<(String, ElicitRequestParams)>) -> Option<Response> {
        let asked = Asked {
            cell: self.cell.key.as_str().to_owned(),
            questions: questions.iter().map(|(key, _)| key.clone()).collect(),
        };
        let digest = request_digest(&self.request.name, &self.request.arguments);
        let server = self.client.server;
        let policy = &server.broker.policy;
        let life = match server.sessions.are_durable() {
            true => policy.kept_answer_time(),
            false => policy.answer_time(),
        };
        let state = server.seal.seal(&asked, &digest, life)?;
        let requests: BTreeMap<String, InputRequest> = questions
            .into_iter()
            .map(|(key, params)| (key, InputRequest::Elicitation(ElicitRequest::new(params))))
            .collect();
        Some(Ok(
            InputRequiredResult::new(Some(requests), Some(state)).into()
        ))
    }

    /// Passes on what the cell said.
    async fn send_news(&self) {
        for text in self.cell.take_news() {
            let peer = &self.client.context.peer;
            if self.client.wants_log {
                let mut params = LoggingMessageNotificationParam::new(
                    LoggingLevel::Info,
                    Value::from(text.clone()),
                );
                params.logger = Some(format!("cell {}", self.cell_id));
                let message = ServerNotification::LoggingMessageNotification(
                    LoggingMessageNotification::new(params),
                );
                let _ = peer.send_notification(message).await;
            }
            if !self.client.wants_log || !self.client.stateless {
                self.client.show_progress(self.cell, Some(text), true).await;
            }
        }
    }
}

/// Completes at a time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for a call, and puts its questions to the person. `None` where the request was
/// cancelled.
pub(crate) async fn asking_meanwhile<T>(
    client: &Client<'_>,
    cell: &Cell,
    call: impl Future<Output = T>,
) -> Option<T> {
    let mut changes = cell.changes();
    let mut asking: FuturesUnordered<Asking> = FuturesUnordered::new();
    tokio::pin!(call);
    loop {
        tokio::select! {
            () = client.context.ct.cancelled() => return None,
            answer = &mut call => return Some(answer),
            _ = changes.changed() => {
                for (key, params) in cell.take_unasked() {
                    asking.push(Box::pin(elicit(client, key, params)));
                }
            }
            Some((key, answer)) = asking.next() => {
                cell.answer(&key, &answer.unwrap_or_else(nobody));
            }
        }
    }
}

/// Asks the person on the client's request. A client that has left has not answered.
async fn elicit(
    client: &Client<'_>,
    key: String,
    params: ElicitRequestParams,
) -> (String, Option<ElicitResult>) {
    let peer = &client.context.peer;
    let limit = client.server.broker.policy.answer_time();
    let asked = tokio::time::timeout(limit, peer.create_elicitation(params)).await;
    let answer = match asked {
        Ok(Err(ServiceError::TransportClosed | ServiceError::TransportSend(_))) => None,
        // It waits on, and the next request asks it again.
        Err(_) if waits_on(&key) => None,
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(_)) | Err(_) => Some(nobody()),
    };
    (key, answer)
}
