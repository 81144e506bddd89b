//! `exec`, `wait` and tools offered directly: requests of a client to its cells.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use code_mode_host::{
    CellId, CellOutcome, CellResponse, ContentItem, ExecuteRequest, Json, SessionError,
    WaitRequest, pragma,
};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ElicitRequest,
    ElicitRequestParams, ElicitResult, InputRequest, InputRequiredResult, LoggingLevel,
    LoggingMessageNotification, LoggingMessageNotificationParam, ProgressNotificationParam,
    ServerNotification,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::cell::{CellRecord, Said};
use super::front::failure;
use super::gateway::Gateway;
use super::seal::{Asked, request_digest};
use super::session::FrontSession;
use super::upstream::nobody;

/// The budget of an answer, where the model names none: clients cut at about as much.
const OUTPUT_TOKENS: u64 = 10_000;
const YIELD: Duration = Duration::from_secs(10);
/// Programs of one session that run at the same time.
const MAX_CELLS: usize = 64;
/// A client that shows progress hears something at least so often.
const KEEP_ALIVE: Duration = Duration::from_secs(25);
/// A person who is asked has so long, for one request.
const ANSWER: Duration = Duration::from_secs(15 * 60);

type Response = Result<CallToolResponse, ErrorData>;

/// A request, and what its client can do.
pub(super) struct Caller<'a> {
    pub(super) gateway: &'a Arc<Gateway>,
    pub(super) context: &'a RequestContext<RoleServer>,
    /// It stands alone: no state but what handles name.
    pub(super) stateless: bool,
    /// What the client can ask the person: forms, and to open pages.
    pub(super) can_ask: (bool, bool),
    /// The client wants to hear what cells say.
    pub(super) hears: bool,
}

/// Reads the arguments of a request; what is wrong is said with its name.
struct Arguments<'a>(&'a Map<String, Value>);

impl Arguments<'_> {
    fn known(&self, names: &[&str]) -> Result<(), String> {
        match self.0.keys().find(|key| !names.contains(&key.as_str())) {
            Some(unknown) => Err(format!(
                "there is no argument {unknown:?}; there are {}",
                names.join(", ")
            )),
            None => Ok(()),
        }
    }

    fn text(&self, name: &str) -> Result<Option<&str>, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("{name} must be a string")),
        }
    }

    fn number(&self, name: &str) -> Result<Option<u64>, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_u64()
                .or_else(|| value.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64))
                .map(Some)
                .ok_or_else(|| format!("{name} must be a number from 0")),
        }
    }

    fn flag(&self, name: &str) -> Result<bool, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(format!("{name} must be true or false")),
        }
    }
}

/// The arguments of `exec`.
struct Exec {
    code: String,
    yield_time: Duration,
    max_output_tokens: u64,
    session: Option<String>,
}

impl Exec {
    fn read(arguments: &Map<String, Value>) -> Result<Self, String> {
        let arguments = Arguments(arguments);
        arguments.known(&["code", "yield_time_ms", "max_output_tokens", "session_id"])?;
        let code = arguments
            .text("code")?
            .ok_or("code is missing: the program, as a string")?;
        let asked = pragma::parse(code).map_err(|error| error.to_string())?;
        let yield_time = arguments
            .number("yield_time_ms")?
            .map(Duration::from_millis);
        Ok(Self {
            code: code.to_owned(),
            yield_time: asked.yield_time.or(yield_time).unwrap_or(YIELD),
            max_output_tokens: asked
                .max_output_tokens
                .or(arguments.number("max_output_tokens")?)
                .unwrap_or(OUTPUT_TOKENS),
            session: arguments.text("session_id")?.map(str::to_owned),
        })
    }
}

/// Runs a program.
pub(super) async fn exec<F>(
    caller: &Caller<'_>,
    request: &CallToolRequestParams,
    own: impl Fn() -> F,
) -> Response
where
    F: Future<Output = Result<Arc<FrontSession>, String>>,
{
    let none = Map::new();
    let arguments = request.arguments.as_ref().unwrap_or(&none);
    if let Some(state) = &request.request_state {
        return repeated(caller, request, state).await;
    }
    let exec = match Exec::read(arguments) {
        Ok(exec) => exec,
        Err(wrong) => return Ok(failure(format!("exec: {wrong}"))),
    };
    let session = match (&exec.session, caller.stateless) {
        (Some(handle), _) => match caller.gateway.session(handle) {
            Some(session) => session,
            None if !caller.stateless => match own().await {
                Ok(session) if session.handle == *handle => session,
                _ => return Ok(failure(unknown_session(handle))),
            },
            None => return Ok(failure(unknown_session(handle))),
        },
        (None, true) => match caller.gateway.open_with_handle().await {
            Ok(session) => session,
            Err(why) => return Ok(failure(why)),
        },
        (None, false) => match own().await {
            Ok(session) => session,
            Err(why) => return Ok(failure(why)),
        },
    };
    session.touch();
    if session.session.live_cells().len() >= MAX_CELLS {
        return Ok(failure(format!(
            "{MAX_CELLS} programs of this session are running: wait for one, or terminate it"
        )));
    }
    caller.gateway.servers_started().await;
    let catalogue = caller.gateway.catalogue();
    let record = Arc::new(CellRecord::new(&session.handle, caller.can_ask));
    let _ = record.session_ref.set(Arc::downgrade(&session.session));
    session.know(record.key.clone(), &record);
    let yield_now = CancellationToken::new();
    let request_to_cell = ExecuteRequest::new(record.key.clone(), exec.code)
        .tools(catalogue.tools.clone())
        .constants(vec![("ALL_SERVERS".to_owned(), catalogue.servers.clone())])
        .yield_time(exec.yield_time)
        .max_output_tokens(exec.max_output_tokens)
        .yield_now(yield_now.clone());
    let started = match session.session.execute(request_to_cell).await {
        Ok(started) => started,
        Err(error) => {
            record.end();
            return Ok(failure(error.to_string()));
        }
    };
    let _ = record.id.set(started.cell_id.clone());
    session.know(started.cell_id.to_string(), &record);
    caller.gateway.know(&record);
    let observed = Observed {
        caller,
        request,
        session: &session,
        record: &record,
        cell_id: &started.cell_id,
        yield_now,
        ends_with_request: true,
    };
    observed.run(started.initial_response).await
}

fn unknown_session(handle: &str) -> String {
    format!("there is no session {handle:?} (any more); leave session_id out to begin a new one")
}

/// Goes on with a program.
pub(super) async fn wait<F>(
    caller: &Caller<'_>,
    request: &CallToolRequestParams,
    own: impl Fn() -> F,
) -> Response
where
    F: Future<Output = Result<Arc<FrontSession>, String>>,
{
    if let Some(state) = &request.request_state {
        return repeated(caller, request, state).await;
    }
    let none = Map::new();
    let arguments = Arguments(request.arguments.as_ref().unwrap_or(&none));
    let read = || -> Result<_, String> {
        arguments.known(&[
            "cell_id",
            "yield_time_ms",
            "max_output_tokens",
            "terminate",
            "decision",
        ])?;
        let cell = arguments
            .text("cell_id")?
            .ok_or("cell_id is missing: the one that exec gave")?;
        let decision = match arguments.text("decision")? {
            None => None,
            Some("allow" | "once") => Some(Said::Once),
            Some("session") => Some(Said::ForSession),
            Some("deny" | "no") => Some(Said::No),
            Some(_) => return Err("decision is allow, session or deny".to_owned()),
        };
        let how = How {
            yield_time: arguments
                .number("yield_time_ms")?
                .map_or(YIELD, Duration::from_millis),
            max_output_tokens: arguments
                .number("max_output_tokens")?
                .unwrap_or(OUTPUT_TOKENS),
            terminate: arguments.flag("terminate")?,
        };
        Ok((cell, decision, how))
    };
    let (name, decision, how) = match read() {
        Ok(read) => read,
        Err(wrong) => return Ok(failure(format!("wait: {wrong}"))),
    };
    let found = match caller.gateway.cell(name) {
        Some(found) => Some(found),
        None if !caller.stateless => match own().await {
            Ok(session) => session.cell(name).map(|record| (session, record)),
            Err(why) => return Ok(failure(why)),
        },
        None => None,
    };
    let Some((session, record)) = found else {
        return Ok(failure(format!("there is no cell {name:?} (any more)")));
    };
    if let Some(said) = decision {
        if !caller.gateway.settings.policy.model_may_answer {
            return Ok(failure(
                "wait: decision is not taken here: the policy does not say \"model_may_answer\": true, because a model that approves its own calls is no approval",
            ));
        }
        if record.answer_calls(said) == 0 {
            return Ok(failure(format!(
                "wait: no call of the cell {name} waits for a decision"
            )));
        }
    }
    observe(caller, request, &session, &record, how).await
}

struct How {
    yield_time: Duration,
    max_output_tokens: u64,
    terminate: bool,
}

async fn observe(
    caller: &Caller<'_>,
    request: &CallToolRequestParams,
    session: &Arc<FrontSession>,
    record: &Arc<CellRecord>,
    how: How,
) -> Response {
    session.touch();
    record.set_can_ask(caller.can_ask);
    let Some(cell_id) = record.id.get() else {
        return Ok(failure("the cell was never admitted"));
    };
    let yield_now = CancellationToken::new();
    let observed = Observed {
        caller,
        request,
        session,
        record,
        cell_id,
        yield_now: yield_now.clone(),
        ends_with_request: false,
    };
    let inner = session.session.clone();
    let id = cell_id.clone();
    let response: BoxFuture<'static, Result<CellResponse, SessionError>> = match how.terminate {
        true => Box::pin(async move { Ok(inner.terminate(id).await?.into_response()) }),
        false => Box::pin(async move {
            let wait = WaitRequest::new(id)
                .yield_time(how.yield_time)
                .max_output_tokens(how.max_output_tokens)
                .yield_now(yield_now);
            Ok(inner.wait(wait).await?.into_response())
        }),
    };
    observed.run(response).await
}

/// A request that comes again with answers to questions: its cell goes on, and its
/// program is not run again.
async fn repeated(caller: &Caller<'_>, request: &CallToolRequestParams, state: &str) -> Response {
    let digest = request_digest(&request.name, &request.arguments);
    let Some(asked) = caller.gateway.seal.open(state, &digest) else {
        return Err(ErrorData::invalid_params(
            "requestState is not of this request, or too old",
            None,
        ));
    };
    let Some((session, record)) = caller.gateway.cell(&asked.cell) else {
        return Ok(failure("there is no such cell (any more)"));
    };
    let answers = request.input_responses.clone().unwrap_or_default();
    for key in &asked.questions {
        let answer = answers.get(key).cloned();
        if let Some(answer) = answer.and_then(|a| serde_json::from_value::<ElicitResult>(a).ok()) {
            record.answer(key, answer);
        }
    }
    let none = Map::new();
    let arguments = Arguments(request.arguments.as_ref().unwrap_or(&none));
    let how = How {
        yield_time: arguments
            .number("yield_time_ms")
            .ok()
            .flatten()
            .map_or(YIELD, Duration::from_millis),
        max_output_tokens: arguments
            .number("max_output_tokens")
            .ok()
            .flatten()
            .unwrap_or(OUTPUT_TOKENS),
        terminate: false,
    };
    record.ask_again();
    observe(caller, request, &session, &record, how).await
}

/// A request that observes a cell.
struct Observed<'a> {
    caller: &'a Caller<'a>,
    request: &'a CallToolRequestParams,
    session: &'a Arc<FrontSession>,
    record: &'a Arc<CellRecord>,
    cell_id: &'a CellId,
    yield_now: CancellationToken,
    /// A cancelled request ends the cell, not only the observation.
    ends_with_request: bool,
}

/// A question on its way to the person and back.
type Asking<'a> = BoxFuture<'a, (String, ElicitResult)>;

impl Observed<'_> {
    /// Waits for the response; tells of progress, and asks questions, meanwhile.
    async fn run(
        &self,
        mut response: BoxFuture<'static, Result<CellResponse, SessionError>>,
    ) -> Response {
        let mut changes = self.record.changes();
        changes.mark_changed();
        let mut asking: FuturesUnordered<Asking> = FuturesUnordered::new();
        let mut progress = Progress::default();
        if !self.caller.stateless {
            // Whoever was asked before this request is not there any more.
            self.record.ask_again();
        }
        loop {
            tokio::select! {
                // What a cell said before it ended is told before its end.
                biased;
                () = self.caller.context.ct.cancelled() => return self.cancelled().await,
                _ = changes.changed() => {
                    self.tell_news(&mut progress).await;
                    progress.tell(self, None, false).await;
                    if let Some(answer) = self.ask(&mut asking).await {
                        return answer;
                    }
                }
                response = &mut response => {
                    self.tell_news(&mut progress).await;
                    drop(asking);
                    return Ok(self.answer(response));
                }
                Some((key, answer)) = asking.next() => {
                    self.record.answer(&key, answer);
                }
                () = tokio::time::sleep(KEEP_ALIVE) => progress.tell(self, None, true).await,
            }
        }
    }

    /// The client does not wait any more.
    async fn cancelled(&self) -> Response {
        if self.ends_with_request {
            let _ = self.session.session.terminate(self.cell_id.clone()).await;
        }
        Err(ErrorData::internal_error("cancelled", None))
    }

    /// Puts new questions to the person: on this request in the era of sessions, by an
    /// answer that asks for input in the stateless one. Where there is no way, the cell
    /// yields.
    async fn ask<'s>(&'s self, asking: &mut FuturesUnordered<Asking<'s>>) -> Option<Response> {
        if !self.caller.can_ask.0 {
            if self.record.is_waiting() {
                self.yield_now.cancel();
            }
            return None;
        }
        if !self.caller.stateless {
            for (key, params) in self.record.take_unasked() {
                asking.push(Box::pin(elicit(self.caller, key, params)));
            }
            return None;
        }
        if self.record.take_unasked().is_empty() {
            return None;
        }
        // Questions that come together are asked together.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let questions = self.record.open_questions();
        let _ = self.record.take_unasked();
        self.input_required(questions)
    }

    fn input_required(&self, questions: Vec<(String, ElicitRequestParams)>) -> Option<Response> {
        let asked = Asked {
            cell: self.record.key.clone(),
            questions: questions.iter().map(|(key, _)| key.clone()).collect(),
        };
        let digest = request_digest(&self.request.name, &self.request.arguments);
        let state = self.caller.gateway.seal.seal(&asked, &digest)?;
        let requests: BTreeMap<String, InputRequest> = questions
            .into_iter()
            .map(|(key, params)| (key, InputRequest::Elicitation(ElicitRequest::new(params))))
            .collect();
        Some(Ok(
            InputRequiredResult::new(Some(requests), Some(state)).into()
        ))
    }

    /// Passes on what the cell said.
    async fn tell_news(&self, progress: &mut Progress) {
        for text in self.record.take_news() {
            let peer = &self.caller.context.peer;
            if self.caller.hears {
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
            if !self.caller.hears || !self.caller.stateless {
                progress.tell(self, Some(text), true).await;
            }
        }
    }

    /// The answer to the client.
    fn answer(&self, response: Result<CellResponse, SessionError>) -> CallToolResponse {
        if let Some(store) = &self.caller.gateway.settings.store {
            self.session.save(store);
        }
        let response = match response {
            Ok(response) => response,
            Err(error) => return failure(error.to_string()),
        };
        if response.outcome() == Some(CellOutcome::Missing)
            && let Some(words) = self.record.last_words()
        {
            let text = format!("{words}\n(all of its output was given before)");
            return CallToolResult::success(vec![ContentBlock::text(text)]).into();
        }
        let mut blocks: Vec<ContentBlock> = response.content_items().iter().map(block).collect();
        let mut failed = false;
        let mut last = match &response {
            CellResponse::Yielded { .. } => {
                let name = match self.caller.stateless {
                    true => self.record.key.clone(),
                    false => self.cell_id.to_string(),
                };
                let mut text = format!("status: running\ncell_id: {name} (wait goes on with it)");
                for waiting in self.record.waits_for() {
                    text.push_str(&format!(
                        "\nwaits for {waiting}; {}",
                        match self.caller.gateway.settings.policy.model_may_answer {
                            true => "ask the user, then call wait with their decision",
                            false => "the user can allow it in the policy file",
                        }
                    ));
                }
                text
            }
            CellResponse::Terminated { .. } => "status: terminated".to_owned(),
            CellResponse::Result {
                error_text: None, ..
            } => "status: completed".to_owned(),
            CellResponse::Result {
                error_text: Some(error),
                ..
            } => {
                failed = true;
                format!(
                    "status: failed\n{}",
                    self.caller.gateway.secrets.hide(error)
                )
            }
        };
        if self.caller.stateless {
            last.push_str(&format!("\nsession: {}", self.session.handle));
        }
        if let Some(told) = self.record.ledger() {
            last.push('\n');
            last.push_str(&told);
        }
        if response.is_final() {
            self.record.set_last_words(last.clone());
        }
        blocks.push(ContentBlock::text(last));
        match failed {
            true => CallToolResult::error(blocks).into(),
            false => CallToolResult::success(blocks).into(),
        }
    }
}

/// Progress grows with every message.
#[derive(Default)]
struct Progress {
    last: f64,
    words: String,
}

impl Progress {
    async fn tell(&mut self, observed: &Observed<'_>, text: Option<String>, always: bool) {
        let Some(token) = observed.caller.context.meta.get_progress_token() else {
            return;
        };
        let (progress, words) = observed.record.progress();
        if words == self.words && !always {
            return;
        }
        let progress = progress as f64;
        // Without calls a little more each time is all there is to say.
        self.last = if progress > self.last {
            progress
        } else {
            self.last + 0.001
        };
        self.words.clone_from(&words);
        let mut params = ProgressNotificationParam::new(token, self.last);
        params.message = Some(text.unwrap_or(words));
        let _ = observed.caller.context.peer.notify_progress(params).await;
    }
}

/// An item of output as a content block.
fn block(item: &ContentItem) -> ContentBlock {
    match item {
        ContentItem::Text { text } => ContentBlock::text(text),
        ContentItem::Image { image_url, .. } => match data_url(image_url) {
            Some((media_type, data)) => ContentBlock::image(data, media_type),
            None => ContentBlock::text(image_url),
        },
        ContentItem::Audio { audio_url } => match data_url(audio_url) {
            Some((media_type, data)) => ContentBlock::audio(data, media_type),
            None => ContentBlock::text(audio_url),
        },
    }
}

/// The media type and the base64 of a `data:` URL.
fn data_url(url: &str) -> Option<(&str, &str)> {
    let (header, data) = url.strip_prefix("data:")?.split_once(',')?;
    let media_type = header.strip_suffix(";base64")?;
    Some((media_type.split(';').next().unwrap_or_default(), data))
}

/// Calls a tool that is offered beside `exec`. Policy and ledger hold for it too; there is
/// no cell, and so a client of the stateless era cannot be asked about it.
pub(super) async fn direct<F>(
    caller: &Caller<'_>,
    request: &CallToolRequestParams,
    own: impl Fn() -> F,
) -> Response
where
    F: Future<Output = Result<Arc<FrontSession>, String>>,
{
    let session = match caller.stateless {
        true => caller
            .gateway
            .open()
            .await
            .map_err(|error| error.to_string()),
        false => own().await,
    };
    let session = match session {
        Ok(session) => session,
        Err(why) => return Ok(failure(why)),
    };
    let catalogue = caller.gateway.catalogue();
    let Some(tool) = catalogue.by_identifier(&request.name) else {
        return Ok(failure(format!("{} is not offered any more", request.name)));
    };
    let can_ask = match caller.stateless {
        true => (false, false),
        false => caller.can_ask,
    };
    let record = Arc::new(CellRecord::new(&session.handle, can_ask));
    let input = Value::from(request.arguments.clone().unwrap_or_default());
    let input = Json::from_value(&input)
        .map_err(|error| ErrorData::invalid_params(error.to_string(), None))?;
    let cell_id = CellId::nth(0);
    let delegate = session.delegate().clone();
    let call = delegate.run(&record, (&cell_id, "direct".to_owned()), tool, Some(&input));
    let answer = match asking_meanwhile(caller, &record, call).await {
        Some(answer) => answer,
        None => return Err(ErrorData::internal_error("cancelled", None)),
    };
    Ok(match answer {
        Err(why) => failure(why),
        Ok(json) => {
            let value: Value = json.to().unwrap_or_default();
            match value
                .get("error")
                .filter(|_| value.get("content").is_none())
            {
                Some(error) => failure(error["message"].as_str().unwrap_or("it failed")),
                None => match serde_json::from_value::<CallToolResult>(value) {
                    Ok(result) => result.into(),
                    // A block that the protocol does not know.
                    Err(_) => {
                        CallToolResult::success(vec![ContentBlock::text(json.as_str())]).into()
                    }
                },
            }
        }
    })
}

/// Waits for a call, and puts its questions to the person. `None` where the request was
/// cancelled.
async fn asking_meanwhile<T>(
    caller: &Caller<'_>,
    record: &CellRecord,
    call: impl Future<Output = T>,
) -> Option<T> {
    let mut changes = record.changes();
    let mut asking: FuturesUnordered<Asking> = FuturesUnordered::new();
    tokio::pin!(call);
    loop {
        tokio::select! {
            () = caller.context.ct.cancelled() => return None,
            answer = &mut call => return Some(answer),
            _ = changes.changed() => {
                for (key, params) in record.take_unasked() {
                    asking.push(Box::pin(elicit(caller, key, params)));
                }
            }
            Some((key, answer)) = asking.next() => {
                record.answer(&key, answer);
            }
        }
    }
}

/// Asks the person on the caller's request.
async fn elicit(
    caller: &Caller<'_>,
    key: String,
    params: ElicitRequestParams,
) -> (String, ElicitResult) {
    let peer = &caller.context.peer;
    let asked = tokio::time::timeout(ANSWER, peer.create_elicitation(params)).await;
    let answer = asked.ok().and_then(Result::ok).unwrap_or_else(nobody);
    (key, answer)
}
