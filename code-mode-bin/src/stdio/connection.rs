//! A connection: handshake, requests, answers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use code_mode_host::{
    CellId, CodeModeSessionProvider, ExecuteRequest, Limits, Provider, SessionError, SessionOptions,
};
use code_mode_protocol::wire::frame;
use code_mode_protocol::wire::stdio::{
    CellExecutionLimits, ClientMessage, MAX_FRAME_BYTES, MessageError, Operation, OutputTruncation,
    Value,
};
use futures::StreamExt;
use tokio_util::codec::FramedRead;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use super::delegate::{Callbacks, Operations, SessionDelegate};
use super::handshake;
use super::outbound::ToClient;
use super::session::{Request, StdioSession};
use crate::bounded::Bounding;
use crate::session_limits::session_limits;
use crate::standard_streams::standard_streams;
use crate::telemetry::{metered, traceparent};

/// How long a client that has closed its side may take to read the rest.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Callbacks without an answer, with and without `delegate-capacity-4096`.
const LARGE_CAPACITY: usize = 4096;
const CAPACITY: usize = 128;

/// Why a connection ended badly.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("cannot read from the client: {0}")]
    Frame(#[from] std::io::Error),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("a second connection/hello")]
    SecondHello,
    #[error("request id {0} was used before")]
    RepeatedId(u64),
    #[error("the tool definitions are not valid: {0}")]
    Tools(serde_json::Error),
}

/// Serves the client on standard input and output until it goes away, then ends every
/// process.
pub(crate) async fn serve(
    provider: Arc<Provider>,
    limits: Limits,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let served = converse(provider.clone(), limits).await;
    provider.shutdown().await;
    served
}

async fn converse(
    provider: Arc<Provider>,
    limits: Limits,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (reader, writer) = standard_streams();
    let mut frames = FramedRead::new(reader, frame::codec(MAX_FRAME_BYTES));
    let (client, writing) = ToClient::new(writer);
    let mut written = tokio::spawn(writing);
    let capabilities = match frames.next().await {
        None => return Ok(()),
        Some(first) => {
            let first = first.map_err(Broken::Frame)?;
            let (message, capabilities) = handshake::answer(&first).map_err(Broken::Message)?;
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
        provider,
        limits,
        callbacks: Arc::new(Callbacks::new(client.clone(), capacity)),
        client,
        sessions: HashMap::new(),
        closing: Closing::default(),
        request_ids: RequestIds::default(),
        observations: Observations::default(),
        tasks: TaskTracker::new(),
    };
    let ended = loop {
        match frames.next().await {
            None => break Ok(()),
            Some(Err(error)) => break Err(Broken::Frame(error)),
            Some(Ok(content)) => {
                if let Err(broken) = connection.receive(&content) {
                    break Err(broken);
                }
            }
        }
    };
    // The end of the input ends every session. What was said before is still
    // written, as far as the client takes it; what the sessions say of their end
    // is for nobody.
    connection.client.close();
    let _ = tokio::time::timeout(LAST_WORDS, &mut written).await;
    Ok(ended?)
}

/// How running observations can be ended, by request.
#[derive(Clone, Default)]
struct Observations(Arc<Mutex<HashMap<u64, (CancellationToken, CancellationToken)>>>);

impl Observations {
    fn insert(&self, request: &Request) {
        let tokens = (request.yield_now.clone(), request.cancelled.clone());
        self.lock().insert(request.id, tokens);
    }

    fn get(&self, id: u64) -> Option<(CancellationToken, CancellationToken)> {
        self.lock().get(&id).cloned()
    }

    fn lock(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<u64, (CancellationToken, CancellationToken)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sessions whose shutdown was asked for and is not over.
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
    provider: Arc<Provider>,
    limits: Limits,
    client: ToClient,
    callbacks: Arc<Callbacks>,
    sessions: HashMap<String, StdioSession>,
    closing: Closing,
    request_ids: RequestIds,
    observations: Observations,
    tasks: TaskTracker,
}

impl Connection {
    /// Takes in one frame. It never waits: what takes time runs in a task.
    fn receive(&mut self, content: &[u8]) -> Result<(), Broken> {
        match ClientMessage::parse(content)? {
            ClientMessage::Hello(_) => return Err(Broken::SecondHello),
            ClientMessage::Request { id, operation } => {
                if !self.request_ids.is_new(id) {
                    return Err(Broken::RepeatedId(id));
                }
                self.request(id, operation)?;
            }
            ClientMessage::Yield { id } => {
                if let Some((yield_now, _)) = self.observations.get(id) {
                    yield_now.cancel();
                }
            }
            ClientMessage::Cancel { id } => {
                if let Some((_, cancelled)) = self.observations.get(id) {
                    cancelled.cancel();
                }
            }
            ClientMessage::DelegateResponse { id, answer } => {
                self.callbacks.answered(id, answer);
            }
        }
        Ok(())
    }

    fn request(&mut self, id: u64, operation: Operation<'_>) -> Result<(), Broken> {
        let client = self.client.clone();
        let new = |budget| Request::new(id, client, budget);
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
            } => {
                let bounding = match output_truncation {
                    Some(OutputTruncation::Server) => Bounding::Server,
                    Some(OutputTruncation::Client) | None => Bounding::Client,
                };
                let span = span("session/open", &session_id, None);
                self.open(new((bounding, None)), session_id, limits, bounding, span);
            }
            Operation::Execute {
                session_id,
                tool_call_id,
                enabled_tools,
                source,
                yield_time,
                max_output_tokens,
            } => match self.sessions.get_mut(&session_id) {
                Some(session) => {
                    let request = new((session.bounding, max_output_tokens));
                    let tools = session.tools(enabled_tools).map_err(Broken::Tools)?;
                    let span = span("session/execute", &session_id, Some(&tool_call_id));
                    let mut execute = ExecuteRequest::new(tool_call_id, source).tools(tools);
                    execute.traceparent = span.in_scope(traceparent);
                    let run = session.execute(request.clone(), execute, yield_time);
                    self.observe(&request, run.instrument(span));
                }
                None => new(NO_BUDGET).respond(Err(unknown(&session_id))),
            },
            Operation::Wait {
                session_id,
                cell_id,
                yield_time,
                max_output_tokens,
            } => match self.sessions.get(&session_id) {
                Some(session) => {
                    let request = new((session.bounding, max_output_tokens));
                    let span = span("session/wait", &session_id, None);
                    let run = session.wait(request.clone(), named(cell_id)?, yield_time);
                    self.observe(&request, run.instrument(span));
                }
                None => new(NO_BUDGET).respond(Err(unknown(&session_id))),
            },
            Operation::Terminate {
                session_id,
                cell_id,
                max_output_tokens,
            } => match self.sessions.get(&session_id) {
                Some(session) => {
                    let request = new((session.bounding, max_output_tokens));
                    let span = span("session/terminate", &session_id, None);
                    let run = session.terminate(request.clone(), named(cell_id)?);
                    self.observe(&request, run.instrument(span));
                }
                None => new(NO_BUDGET).respond(Err(unknown(&session_id))),
            },
            Operation::Shutdown { session_id } => {
                let request = new(NO_BUDGET);
                let Some(session) = self.sessions.remove(&session_id) else {
                    request.respond(Err(unknown(&session_id)));
                    return Ok(());
                };
                self.closing.lock().insert(session_id.clone());
                let closing = self.closing.clone();
                let span = span("session/shutdown", &session_id, None);
                self.tasks.spawn(async move {
                    if let Ok(host) = session.host.await {
                        host.shutdown().instrument(span).await;
                    }
                    // Locked until it is said: what is opened now is another session.
                    let mut closing = closing.lock();
                    closing.remove(&session_id);
                    request.respond(Ok::<_, SessionError>(Value::SessionClosed { session_id }));
                });
            }
        }
        Ok(())
    }

    /// Runs a request that can be yielded or cancelled.
    fn observe(&self, request: &Request, run: impl Future<Output = ()> + Send + 'static) {
        self.observations.insert(request);
        let (observations, id) = (self.observations.clone(), request.id);
        self.tasks.spawn(async move {
            run.await;
            observations.lock().remove(&id);
        });
    }

    fn open(
        &mut self,
        request: Request,
        session_id: String,
        asked: CellExecutionLimits,
        bounding: Bounding,
        span: Span,
    ) {
        let known = self.sessions.get(&session_id);
        let is_closing = self.closing.lock().contains(&session_id);
        if is_closing || known.is_some_and(|known| !matches!(known.host.peek(), Some(Err(_)))) {
            let error = format!("code-mode session ID `{session_id}` is already open");
            return request.respond(Err(error));
        }
        let limits = session_limits(
            &self.limits,
            asked.max_heap_size_bytes,
            asked.max_yield_time_ms,
        );
        let operations = Operations::default();
        let delegate = Arc::new(SessionDelegate {
            session_id: session_id.clone(),
            callbacks: self.callbacks.clone(),
            operations: operations.clone(),
        });
        let provider = self.provider.clone();
        let options = SessionOptions::default().limits(limits);
        let delegate = metered(delegate);
        let opening = async move { provider.open_session(delegate, options).await };
        let opening = opening.instrument(span);
        let session = StdioSession::new(opening, operations, bounding);
        let opened = session.host.clone();
        self.sessions.insert(session_id.clone(), session);
        self.tasks.spawn(async move {
            request.respond(opened.await.map(|_| Value::SessionReady { session_id }));
        });
    }
}

/// Of requests whose answer has no output.
const NO_BUDGET: (Bounding, Option<u64>) = (Bounding::Client, None);

fn named(cell_id: String) -> Result<CellId, MessageError> {
    CellId::try_from(cell_id).map_err(|_| MessageError::EmptyId("cell_id"))
}

fn unknown(session_id: &str) -> String {
    format!("unknown code-mode session {session_id}")
}
