//! A connection: handshake, requests, answers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use code_mode_host::Provider;
use code_mode_protocol::stdio::{
    CellExecutionLimits, ClientMessage, MAX_FRAME_BYTES, MessageError, Operation, OutputTruncation,
    Value,
};
use code_mode_protocol::{CellId, Limits, SessionError, frame};
use futures::StreamExt;
use tokio_util::codec::FramedRead;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bounded::Bounding;
use super::delegate::{Callbacks, Operations, SessionDelegate};
use super::handshake::{self, Capabilities};
use super::input::standard_streams;
use super::outbound::Outbound;
use super::session::{Handle, StdioSession};

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

/// Serves the client on standard input and output until it goes away.
pub(super) async fn serve(
    provider: &Provider,
    limits: Limits,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (reader, writer) = standard_streams();
    let mut frames = FramedRead::new(reader, frame::codec(MAX_FRAME_BYTES));
    let (outbound, out) = Outbound::new();
    let mut written = tokio::spawn(out.run(writer));
    let capabilities = match frames.next().await {
        None => return Ok(()),
        Some(first) => {
            let first = first.map_err(Broken::Frame)?;
            let (message, capabilities) = handshake::answer(&first).map_err(Broken::Message)?;
            outbound.send(message);
            capabilities
        }
    };
    let Some(capabilities) = capabilities else {
        drop(outbound);
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
        capabilities,
        callbacks: Arc::new(Callbacks::new(outbound.clone(), capacity)),
        outbound,
        sessions: HashMap::new(),
        request_ids: RequestIds::default(),
        observations: Observations::default(),
        tasks: TaskTracker::new(),
    };
    let ended = loop {
        match frames.next().await {
            None => break Ok(()),
            Some(Err(error)) => break Err(Broken::Frame(error)),
            Some(Ok(content)) => {
                if let Err(broken) = connection.receive(&content).await {
                    break Err(broken);
                }
            }
        }
    };
    // The end of the input ends every session. What was said before is still
    // written, as far as the client takes it; what the sessions say of their end
    // is for nobody.
    connection.outbound.close();
    let _ = tokio::time::timeout(LAST_WORDS, &mut written).await;
    provider.shutdown().await;
    Ok(ended?)
}

/// How running observations can be ended, by request.
#[derive(Clone, Default)]
struct Observations(Arc<Mutex<HashMap<u64, (CancellationToken, CancellationToken)>>>);

impl Observations {
    fn insert(&self, handle: &Handle) {
        let tokens = (handle.yield_now.clone(), handle.cancelled.clone());
        self.lock().insert(handle.id, tokens);
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

struct Connection<'a> {
    provider: &'a Provider,
    limits: Limits,
    capabilities: Capabilities,
    outbound: Outbound,
    callbacks: Arc<Callbacks>,
    sessions: HashMap<String, StdioSession>,
    request_ids: RequestIds,
    observations: Observations,
    tasks: TaskTracker,
}

impl Connection<'_> {
    async fn receive(&mut self, content: &[u8]) -> Result<(), Broken> {
        match ClientMessage::parse(content)? {
            ClientMessage::Hello(_) => Err(Broken::SecondHello),
            ClientMessage::Request { id, operation } => {
                if !self.request_ids.is_new(id) {
                    return Err(Broken::RepeatedId(id));
                }
                self.request(id, operation).await
            }
            ClientMessage::Yield { id } => {
                if let Some((yield_now, _)) = self.observations.get(id) {
                    yield_now.cancel();
                }
                Ok(())
            }
            ClientMessage::Cancel { id } => {
                if let Some((_, cancelled)) = self.observations.get(id) {
                    cancelled.cancel();
                }
                Ok(())
            }
            ClientMessage::DelegateResponse { id, answer } => {
                self.callbacks.answered(id, answer);
                Ok(())
            }
        }
    }

    async fn request(&mut self, id: u64, operation: Operation<'_>) -> Result<(), Broken> {
        let mut handle = Handle {
            id,
            outbound: self.outbound.clone(),
            yield_now: CancellationToken::new(),
            cancelled: CancellationToken::new(),
            received: Instant::now(),
            budget: (Bounding::Client, None),
        };
        match operation {
            Operation::Open {
                session_id,
                limits,
                output_truncation,
            } => {
                // A client that negotiated bounded output and does not say who is to
                // bound it means this program.
                let bounding = match output_truncation {
                    Some(OutputTruncation::Server) => Bounding::Presented,
                    Some(OutputTruncation::Client) => Bounding::Client,
                    None if self.capabilities.bounded_output => Bounding::Items,
                    None => Bounding::Client,
                };
                self.open(&handle, session_id, limits, bounding).await;
            }
            Operation::Execute {
                session_id,
                tool_call_id,
                enabled_tools,
                source,
                yield_time,
                max_output_tokens,
            } => {
                let Some(session) = self.sessions.get_mut(&session_id) else {
                    handle.respond(Err(unknown(&session_id)));
                    return Ok(());
                };
                handle.budget = (session.bounding, max_output_tokens);
                let tools = session.tools(enabled_tools).map_err(Broken::Tools)?;
                let run = session.execute(handle.clone(), tool_call_id, tools, source, yield_time);
                self.observe(&handle, run);
            }
            Operation::Wait {
                session_id,
                cell_id,
                yield_time,
                max_output_tokens,
            } => match self.sessions.get(&session_id) {
                Some(session) => {
                    handle.budget = (session.bounding, max_output_tokens);
                    let run = session.wait(handle.clone(), CellId::from(cell_id), yield_time);
                    self.observe(&handle, run);
                }
                None => handle.respond(Err(unknown(&session_id))),
            },
            Operation::Terminate {
                session_id,
                cell_id,
                max_output_tokens,
            } => match self.sessions.get(&session_id) {
                Some(session) => {
                    handle.budget = (session.bounding, max_output_tokens);
                    let run = session.terminate(handle.clone(), CellId::from(cell_id));
                    self.observe(&handle, run);
                }
                None => handle.respond(Err(unknown(&session_id))),
            },
            Operation::Shutdown { session_id } => match self.sessions.remove(&session_id) {
                Some(session) => {
                    self.tasks.spawn(async move {
                        use code_mode_protocol::CodeModeSession;
                        session.host.shutdown().await;
                        handle.respond(Ok::<_, SessionError>(Value::SessionClosed { session_id }));
                    });
                }
                None => handle.respond(Err(unknown(&session_id))),
            },
        }
        Ok(())
    }

    /// Runs a request that can be yielded or cancelled.
    fn observe(&self, handle: &Handle, run: impl Future<Output = ()> + Send + 'static) {
        self.observations.insert(handle);
        let (observations, id) = (self.observations.clone(), handle.id);
        self.tasks.spawn(async move {
            run.await;
            observations.lock().remove(&id);
        });
    }

    async fn open(
        &mut self,
        handle: &Handle,
        session_id: String,
        asked: CellExecutionLimits,
        bounding: Bounding,
    ) {
        if self.sessions.contains_key(&session_id) {
            let error = format!("code-mode session ID `{session_id}` is already open");
            return handle.respond(Err(error));
        }
        let mut limits = self.limits.clone();
        if let Some(heap) = asked.max_heap_size_bytes {
            limits.max_heap_bytes = usize::try_from(heap).unwrap_or(usize::MAX);
        }
        if let Some(ms) = asked.max_yield_time_ms {
            let asked = Duration::from_millis(ms);
            limits.max_yield_time = Some(
                limits
                    .max_yield_time
                    .map_or(asked, |known| known.min(asked)),
            );
        }
        let operations = Operations::default();
        let delegate = Arc::new(SessionDelegate {
            session_id: session_id.clone(),
            callbacks: self.callbacks.clone(),
            operations: operations.clone(),
        });
        let opened = self
            .provider
            .open_session(delegate, limits, Vec::new())
            .await;
        handle.respond(match opened {
            Ok(host) => {
                let session = StdioSession::new(host, operations, bounding);
                self.sessions.insert(session_id.clone(), session);
                Ok(Value::SessionReady { session_id })
            }
            Err(error) => Err(error),
        });
    }
}

fn unknown(session_id: &str) -> String {
    format!("unknown code-mode session {session_id}")
}
