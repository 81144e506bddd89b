//! A connection: handshake, requests, answers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use code_mode_host::describe::{ToolGroup, ToolsFrom, guided_exec_tool};
use code_mode_host::{
    CellId, ExecuteRequest, Journal, Limits, Provider, Question, Session, SessionError,
    SessionOptions,
};
use code_mode_protocol::wire::frame;
use code_mode_protocol::wire::stdio::{
    CellExecutionLimits, ClientMessage, DelegateAnswer, GuidedOpen, MAX_FRAME_BYTES, MessageError,
    Operation, OutputTruncation, Value,
};
use futures::StreamExt;
use serde::Deserialize;
use tokio_util::codec::FramedRead;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use super::delegate::{Callbacks, Guided, SessionDelegate};
use super::durable::{AskError, Durable};
use super::handshake;
use super::outbound::ToClient;
use super::session::{Request, StdioSession};
use crate::core::{Budget, Cells, Observations, Tokens, TruncatedBy, session_limits};
use code_mode_system::standard_streams;

use crate::Telemetry;

/// How long a client that has closed its side may take to read the rest.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Callbacks without an answer, with and without `delegate-capacity-4096`.
const LARGE_CAPACITY: usize = 4096;
const CAPACITY: usize = 128;

/// Why a connection of the stdio wire ended before its client left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A frame cannot be read, or is too large.
    #[error("cannot read from the client: {0}")]
    Frame(#[source] std::io::Error),
    /// A frame is not a message of the wire.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The client sent `connection/hello` twice.
    #[error("a second connection/hello")]
    SecondHello,
    /// The client used a request id twice.
    #[error("request id {0} was used before")]
    RepeatedId(u64),
    /// The definitions in an execute are not tool definitions.
    #[error("the tool definitions are not valid: {0}")]
    Tools(#[source] serde_json::Error),
}

/// Serves the client on standard input and output until it goes away, then ends every
/// process. `limits` bounds what the client may ask for. Must be called within a tokio
/// runtime with I/O and time.
///
/// # Errors
/// [`ServeError`] where the client breaks the rules of the wire.
pub async fn serve(
    provider: Arc<Provider>,
    limits: Limits,
    telemetry: Arc<dyn Telemetry>,
    journal: Option<Journal>,
) -> Result<(), ServeError> {
    let served = converse(provider.clone(), limits, telemetry, journal).await;
    provider.shutdown().await;
    served
}

async fn converse(
    provider: Arc<Provider>,
    limits: Limits,
    telemetry: Arc<dyn Telemetry>,
    journal: Option<Journal>,
) -> Result<(), ServeError> {
    let (reader, writer) = standard_streams();
    let mut frames = FramedRead::new(reader, frame::codec(MAX_FRAME_BYTES));
    let (client, writing) = ToClient::new(writer);
    let mut written = tokio::spawn(writing);
    let capabilities = match frames.next().await {
        None => return Ok(()),
        Some(first) => {
            let first = first.map_err(ServeError::Frame)?;
            let (message, capabilities) = handshake::answer(&first).map_err(ServeError::Message)?;
            client.send(message);
            capabilities
        }
    };
    let Some(capabilities) = capabilities else {
        drop(client);
        let _ = written.await;
        return Ok(());
    };
    let capacity = if capabilities.large_delegate {
        LARGE_CAPACITY
    } else {
        CAPACITY
    };
    let mut connection = Connection {
        has_guided: capabilities.guided,
        provider,
        limits,
        telemetry,
        journal,
        callbacks: Arc::new(Callbacks::new(client.clone(), capacity)),
        client,
        sessions: HashMap::new(),
        closing: Closing::default(),
        request_ids: RequestIds::default(),
        observations: Arc::default(),
        tasks: TaskTracker::new(),
    };
    let ended = loop {
        match frames.next().await {
            None => break Ok(()),
            Some(Err(error)) => break Err(ServeError::Frame(error)),
            Some(Ok(content)) => {
                if let Err(broken) = connection.receive(&content) {
                    break Err(broken);
                }
            }
        }
    };
    // The end of the input ends every session. Earlier messages are still
    // written, as far as the client takes it; what the sessions say of their end
    // is for nobody.
    connection.client.close();
    let _ = tokio::time::timeout(LAST_WORDS, &mut written).await;
    ended
}

/// Sessions whose shutdown is under way.
#[derive(Clone, Default)]
struct Closing(Arc<Mutex<HashSet<String>>>);

impl Closing {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The request ids that were used: all from 1 up to one, which is all of them
/// for a client that counts, and single ones beside those.
struct RequestIds {
    next: u64,
    others: HashSet<u64>,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self {
            next: 1,
            others: HashSet::new(),
        }
    }
}

impl RequestIds {
    fn is_new(&mut self, id: u64) -> bool {
        if (1..self.next).contains(&id) || !self.others.insert(id) {
            return false;
        }
        while self.others.remove(&self.next) {
            self.next += 1;
        }
        true
    }
}

struct Connection {
    /// Whether the connection has the capability `guided-sessions-v1`.
    has_guided: bool,
    provider: Arc<Provider>,
    telemetry: Arc<dyn Telemetry>,
    limits: Limits,
    /// Where sessions are kept that a client wants to keep.
    journal: Option<Journal>,
    client: ToClient,
    callbacks: Arc<Callbacks>,
    sessions: HashMap<String, StdioSession>,
    closing: Closing,
    request_ids: RequestIds,
    /// Observations that can be ended, by the ids of their requests.
    observations: Arc<Mutex<Observations<u64>>>,
    tasks: TaskTracker,
}

impl Connection {
    fn observations(&self) -> MutexGuard<'_, Observations<u64>> {
        self.observations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in one frame. It never waits: what takes time runs in a task.
    fn receive(&mut self, content: &[u8]) -> Result<(), ServeError> {
        let message = match ClientMessage::parse(content) {
            Ok(message) => message,
            Err(error) => return self.unreadable(content, error),
        };
        match message {
            ClientMessage::Hello(_) => return Err(ServeError::SecondHello),
            ClientMessage::Request { id, operation } => {
                if !self.request_ids.is_new(id) {
                    return Err(ServeError::RepeatedId(id));
                }
                self.check(operation.needs_guided())?;
                match self.request(id, operation) {
                    Err(ServeError::Message(error)) if self.has_guided => self.refuse(id, &error),
                    done => done?,
                }
            }
            ClientMessage::Yield { id } => {
                if let Some(tokens) = self.observations().begun(&id) {
                    tokens.yield_now.cancel();
                }
            }
            ClientMessage::Cancel { id } => {
                if let Some(tokens) = self.observations().begun(&id) {
                    tokens.cancel.cancel();
                }
            }
            ClientMessage::DelegateResponse { id, answer } => {
                self.check(answer.needs_guided())?;
                self.callbacks.answered(id, answer);
            }
        }
        Ok(())
    }

    /// A message that cannot be read ends the connection. Not so where the client is an SDK: its
    /// user, or a model, has written what the message carries, and it costs its request or its call
    /// alone.
    fn unreadable(&mut self, content: &[u8], error: MessageError) -> Result<(), ServeError> {
        match Named::of(content).filter(|_| self.has_guided) {
            Some(Named::Request(id)) if self.request_ids.is_new(id) => {
                self.refuse(id, &error);
                Ok(())
            }
            Some(Named::Answer(id)) => {
                let error = format!("the client's answer cannot be read: {error}");
                self.callbacks
                    .answered(id, DelegateAnswer::Error(error.into()));
                Ok(())
            }
            _ => Err(error.into()),
        }
    }

    fn refuse(&self, id: u64, error: &MessageError) {
        let request = Request::new(id, self.client.clone(), Budget::default());
        request.respond(Err(error));
    }

    /// What only guided sessions have is not understood without them.
    fn check(&self, needs_guided: Option<MessageError>) -> Result<(), ServeError> {
        match needs_guided {
            Some(error) if !self.has_guided => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn request(&mut self, id: u64, operation: Operation<'_>) -> Result<(), ServeError> {
        let client = self.client.clone();
        let new = |budget| Request::new(id, client, budget);
        let observations = &self.observations;
        let span = |kind, session: &str, call: Option<&str>| {
            tracing::info_span!(
                parent: None,
                "code_mode_host.request",
                "request.kind" = kind,
                "request.id" = id,
                "session.id" = session,
                call_id = call,
            )
        };
        match operation {
            Operation::Open {
                session_id,
                limits,
                output_truncation,
                guided,
            } => {
                let truncated_by = match output_truncation {
                    Some(OutputTruncation::Server) => TruncatedBy::Server,
                    Some(OutputTruncation::Client) | None => TruncatedBy::Client,
                };
                let span = span("session/open", &session_id, None);
                self.open(
                    new(Budget::default()),
                    session_id,
                    Asked {
                        limits,
                        truncated_by,
                        guided,
                    },
                    span,
                );
            }
            Operation::Execute {
                session_id,
                tool_call_id,
                enabled_tools,
                source,
                yield_time,
                max_output_tokens,
                guided,
            } => match self.sessions.get_mut(&session_id) {
                Some(session) => {
                    let request =
                        new(session.budget(max_output_tokens)).observing(begun(observations, id));
                    let tools = match session.tools(enabled_tools) {
                        Ok(tools) => tools,
                        // An SDK's user has written them.
                        Err(error) if session.is_guided() => {
                            request.respond(Err(ServeError::Tools(error)));
                            return Ok(());
                        }
                        Err(error) => return Err(ServeError::Tools(error)),
                    };
                    let span = span("session/execute", &session_id, Some(&tool_call_id));
                    let mut execute = ExecuteRequest::new(tool_call_id, source).tools(tools);
                    execute.max_output_tokens = session.own_budget(max_output_tokens);
                    let mut parent = None;
                    if let Some(guided) = guided {
                        parent = guided.trace_context();
                        execute.constants = guided.constants.into_iter().collect();
                    }
                    // Before the span's context is read: reading it begins the span.
                    if let Some(parent) = &parent {
                        self.telemetry.set_parent(&span, parent);
                    }
                    execute.trace_context = self.telemetry.context(&span).or(parent);
                    let run = session.execute(request, execute, yield_time);
                    self.observe(id, run.instrument(span));
                }
                None => new(Budget::default()).respond(Err(unknown(&session_id))),
            },
            Operation::Wait {
                session_id,
                cell_id,
                yield_time,
                max_output_tokens,
            } => match self.sessions.get(&session_id) {
                Some(session) => {
                    let request =
                        new(session.budget(max_output_tokens)).observing(begun(observations, id));
                    let span = span("session/wait", &session_id, None);
                    let cell_id = named(cell_id)?;
                    let tokens = session.own_budget(max_output_tokens);
                    let run = session.wait(request, cell_id, (yield_time, tokens));
                    self.observe(id, run.instrument(span));
                }
                None => new(Budget::default()).respond(Err(unknown(&session_id))),
            },
            Operation::Terminate {
                session_id,
                cell_id,
                max_output_tokens,
            } => match self.sessions.get(&session_id) {
                Some(session) => {
                    let request =
                        new(session.budget(max_output_tokens)).observing(begun(observations, id));
                    let span = span("session/terminate", &session_id, None);
                    let cell_id = named(cell_id)?;
                    let run = session.terminate(request, cell_id);
                    self.observe(id, run.instrument(span));
                }
                None => new(Budget::default()).respond(Err(unknown(&session_id))),
            },
            Operation::Shutdown { session_id } => {
                let request = new(Budget::default());
                let Some(session) = self.sessions.remove(&session_id) else {
                    request.respond(Err(unknown(&session_id)));
                    return Ok(());
                };
                self.closing.lock().insert(session_id.clone());
                let closing = self.closing.clone();
                let span = span("session/shutdown", &session_id, None);
                self.tasks.spawn(async move {
                    session.gone.cancel();
                    if let Ok(session) = session.opening.await {
                        session.shutdown().instrument(span).await;
                    }
                    // Locked until the answer is queued: an open after it makes another session.
                    let mut closing = closing.lock();
                    closing.remove(&session_id);
                    request.respond(Ok::<_, SessionError>(Value::SessionClosed { session_id }));
                });
            }
            Operation::Stored { session_id } => {
                let request = new(Budget::default());
                self.ask(request, &session_id, |session| {
                    let values = session.stored_values().into_iter().collect();
                    Ok(Value::SessionValues { values })
                });
            }
            Operation::Cells { session_id } => {
                let request = new(Budget::default());
                self.ask(request, &session_id, |session| {
                    let cells = session.cells_to_observe().into_iter();
                    let cells = cells.map(|cell| cell.as_str().to_owned()).collect();
                    Ok(Value::SessionRunning { cells })
                });
            }
            Operation::Ask {
                session_id,
                cell_id,
                call,
                subject,
                text,
            } => {
                let question = Question::new(subject, text);
                let asker = (named(cell_id)?, call);
                let durable = self.durable(&session_id);
                self.decided(new(Budget::default()), async move {
                    durable?.ask(asker, question).await
                });
            }
            Operation::Decide {
                session_id,
                cell_id,
                call,
                allowed,
            } => {
                let asker = (named(cell_id)?, call);
                let durable = self.durable(&session_id);
                self.decided(new(Budget::default()), async move {
                    durable?.decide(asker, allowed).await.map(Some)
                });
            }
            Operation::Pause {
                session_id,
                cell_id,
                begins,
            } => {
                let cell = cell_id.map(named).transpose()?;
                let request = new(Budget::default());
                self.ask(request, &session_id, move |session| {
                    let held = match begins {
                        true => session.pause(cell.as_ref()),
                        false => session.resume(cell.as_ref()),
                    };
                    held.map(|held| Value::SessionPaused { held })
                });
            }
            Operation::Describe {
                session_id,
                enabled_tools,
                budget_tokens,
            } => {
                let request = new(Budget::default());
                match self.sessions.get_mut(&session_id) {
                    Some(session) => {
                        let tools = session.tools(enabled_tools).map_err(ServeError::Tools);
                        request.respond(tools.map(|tools| {
                            let groups = ToolGroup::by_namespace(&tools);
                            let budget = budget_tokens.unwrap_or(DESCRIPTION_TOKENS);
                            let text = guided_exec_tool(ToolsFrom::Agent, &groups, budget);
                            Value::SessionDescription { text }
                        }));
                    }
                    None => request.respond(Err(unknown(&session_id))),
                }
            }
        }
        Ok(())
    }

    /// The journal's part of a session.
    fn durable(&self, session_id: &str) -> Result<Arc<Durable>, AskError> {
        let session = self.sessions.get(session_id);
        let durable = session.and_then(StdioSession::durable);
        durable.ok_or(AskError::NotDurable)
    }

    /// Answers a request about a question, once that is on disk.
    fn decided(
        &self,
        request: Request,
        decided: impl Future<Output = Result<Option<bool>, AskError>> + Send + 'static,
    ) {
        self.tasks.spawn(async move {
            let decided = decided.await;
            request.respond(decided.map(|allowed| Value::SessionDecision { allowed }));
        });
    }

    /// Answers a request from what its session knows.
    fn ask(
        &self,
        request: Request,
        session_id: &str,
        look: impl FnOnce(&Session) -> Result<Value, SessionError> + Send + 'static,
    ) {
        match self.sessions.get(session_id) {
            Some(session) => {
                let opening = session.opening.clone();
                self.tasks.spawn(async move {
                    request.respond(opening.await.and_then(|session| look(&session)));
                });
            }
            None => request.respond(Err(unknown(session_id))),
        }
    }

    /// Runs a request that can be yielded or cancelled.
    fn observe(&self, id: u64, run: impl Future<Output = ()> + Send + 'static) {
        let observations = self.observations.clone();
        self.tasks.spawn(async move {
            run.await;
            let mut observations = observations.lock().unwrap_or_else(PoisonError::into_inner);
            observations.forget(&id);
        });
    }

    fn open(&mut self, request: Request, session_id: String, asked: Asked, span: Span) {
        let known = self.sessions.get(&session_id);
        let is_closing = self.closing.lock().contains(&session_id);
        if is_closing || known.is_some_and(|known| !matches!(known.opening.peek(), Some(Err(_)))) {
            let error = format!("code-mode session ID `{session_id}` is already open");
            return request.respond(Err(error));
        }
        let limits = session_limits(
            &self.limits,
            asked.limits.max_heap_size_bytes,
            asked.limits.max_yield_time_ms,
        );
        let (cells, gone) = (Cells::default(), CancellationToken::new());
        let guided = asked.guided.as_ref();
        let guided = guided.map(|guided| Arc::new(Guided::new(guided.events)));
        let name = asked.guided.as_ref().and_then(|it| it.durable.clone());
        let durable = match (name, &self.journal) {
            (None, _) => None,
            (Some(name), Some(journal)) => Some(Durable::new(journal.clone(), name)),
            (Some(_), None) => {
                let error =
                    "a durable session needs a journal: start the program with --journal FILE";
                return request.respond(Err(error));
            }
        };
        let delegate = Arc::new(SessionDelegate {
            session_id: session_id.clone(),
            callbacks: self.callbacks.clone(),
            cells: cells.clone(),
            gone: gone.clone(),
            guided: guided.clone(),
            durable: durable.clone(),
        });
        let provider = self.provider.clone();
        let options = match asked.guided {
            None => SessionOptions::default().limits(limits),
            Some(asked) => SessionOptions::default()
                .guided(true)
                .check_inputs(asked.check_inputs.unwrap_or(true))
                .require_readable_schemas(asked.require_readable_schemas)
                .limits(asked.limits.within(&limits))
                .stored(asked.stored.into_iter().collect()),
        };
        let in_journal = durable.clone();
        let opening = async move {
            match in_journal {
                Some(durable) => durable.open(&provider, delegate, options).await,
                None => provider.open_session(delegate, options).await,
            }
        };
        let opening = opening.instrument(span);
        let session = StdioSession::new(opening, cells, gone, asked.truncated_by, guided);
        let session = session.durable_as(durable);
        let opened = session.opening.clone();
        self.sessions.insert(session_id.clone(), session);
        self.tasks.spawn(async move {
            request.respond(opened.await.map(|_| Value::SessionReady { session_id }));
        });
    }
}

/// What a message that cannot be read is about.
enum Named {
    Request(u64),
    Answer(u64),
}

impl Named {
    fn of(content: &[u8]) -> Option<Self> {
        /// The members that name a message; the others are not looked at.
        #[derive(Deserialize)]
        struct Name<'a> {
            #[serde(rename = "type")]
            kind: &'a str,
            id: u64,
        }

        let name: Name<'_> = serde_json::from_slice(content).ok()?;
        match name.kind {
            "operation/request" => Some(Self::Request(name.id)),
            "delegate/response" => Some(Self::Answer(name.id)),
            _ => None,
        }
    }
}

/// What a client asks for with a session.
struct Asked {
    limits: CellExecutionLimits,
    truncated_by: TruncatedBy,
    guided: Option<Box<GuidedOpen>>,
}

/// How long the tools' part of a description is, where the client does not say.
const DESCRIPTION_TOKENS: usize = 4000;

/// The tokens of an observation that begins. An id is used once, so they are new.
fn begun(observations: &Mutex<Observations<u64>>, id: u64) -> Tokens {
    let mut observations = observations.lock().unwrap_or_else(PoisonError::into_inner);
    observations.begin(&id).unwrap_or_default()
}

fn named(cell_id: String) -> Result<CellId, MessageError> {
    CellId::try_from(cell_id).map_err(|_| MessageError::EmptyId("cell_id"))
}

fn unknown(session_id: &str) -> String {
    format!("unknown code-mode session {session_id}")
}
