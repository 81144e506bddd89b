//! The worker's side of the native wire.

use std::sync::Arc;

use code_mode_protocol::Limits;
use code_mode_protocol::SandboxLayer;
use code_mode_protocol::wire::frame::{FrameError, MAX_FRAME_BYTES};
use code_mode_protocol::wire::native::{self, FromWorker, ToWorker, WorkerInfo};
use code_mode_protocol::wire::outbound::Outbound;
use code_mode_protocol::wire::reader::{MaxMessage, MessageReader};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Session;
use super::session::Program;
use crate::Engine;
use crate::cell::{Command, Stop};
use crate::tools::ToolTable;

/// What the process around a worker does for it. The defaults are those of a worker
/// inside an agent's own process: no sandbox, no limit, no probes.
pub trait WorkerEnvironment: Send {
    /// The layers of the sandbox that this worker is in.
    fn sandbox(&self) -> Vec<SandboxLayer> {
        Vec::new()
    }

    /// The most that the session's limits may be, where the host is not trusted with this
    /// machine: the worker then keeps the limits that a host keeps otherwise, too.
    fn most(&self) -> Option<&Limits> {
        None
    }

    /// A session is open, with these limits.
    fn opened(&mut self, limits: &Limits) {
        let _ = limits;
    }

    /// Tries something that the sandbox forbids and says what came of it; `None`
    /// for an unknown probe.
    fn probe(&mut self, name: &str) -> Option<String> {
        let _ = name;
        None
    }
}

/// A worker inside the agent's own process.
impl WorkerEnvironment for () {}

/// Why a worker stopped serving.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The connection failed, or carried a malformed message.
    #[error("the connection to the host failed: {0}")]
    Connection(#[from] FrameError),
    /// The host's greeting does not fit this worker.
    #[error("the host was refused: {0}")]
    Refused(String),
    /// The host sent a message that has no place where it came.
    #[error("the host broke the protocol: {0}")]
    Protocol(&'static str),
    /// A cell did not stop though it had to, and the host is not trusted with this machine: the
    /// process must end.
    #[error("a cell did not stop")]
    DoesNotStop,
}

/// A host is trusted with memory: stored values and tool definitions of any size are
/// its own.
const FROM_HOST: MaxMessage = MaxMessage {
    frame: MAX_FRAME_BYTES,
    texts: MAX_FRAME_BYTES,
};

/// Serves the host at the other end of `stream` until it goes away or shuts the
/// session down. Cells run on threads of their own; when this returns after a
/// shutdown, none of them runs JavaScript any more.
///
/// Must be called within a tokio runtime with time.
///
/// # Errors
/// [`ServeError`], where the host or the connection failed.
pub async fn serve<S>(
    stream: S,
    engine: Engine,
    environment: impl WorkerEnvironment,
) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (receive, send) = tokio::io::split(stream);
    let most = environment.most();
    let (outbound, writing) = Outbound::new(send, most.map_or(usize::MAX, max_queued));
    let writing = tokio::spawn(writing);
    let from_host = most.map_or(FROM_HOST, from_stranger);
    let mut inbound = MessageReader::<_, ToWorker>::new(receive, from_host);
    let greeting = match inbound.next().await {
        Ok(None) => return Ok(()),
        Ok(Some(first)) => greet(&first, &environment),
        Err(FrameError::Io(error)) => return Err(FrameError::Io(error).into()),
        Err(error) => Err(error.to_string()),
    };
    match greeting {
        Ok(info) => send_message(&outbound, FromWorker::Ready(info)),
        Err(reason) => {
            send_message(
                &outbound,
                FromWorker::Rejected {
                    reason: reason.clone(),
                },
            );
            drop(outbound);
            let _ = writing.await;
            return Err(ServeError::Refused(reason));
        }
    }
    let mut server = Server {
        engine,
        environment,
        outbound,
        session: None,
        tools: (0, Arc::default()),
    };
    let served = server.run(&mut inbound).await;
    if let Some(session) = server.session.take()
        && !matches!(served, Err(ServeError::DoesNotStop))
    {
        // Cells of a host that is gone run for nobody.
        session.stop().await;
    }
    if let Ok(Done::ShutDown) = &served {
        send_message(&server.outbound, FromWorker::ShutDown);
        server.outbound.close();
        drop(server);
        tokio::select! {
            _ = writing => {}
            () = async { while let Ok(Some(_)) = inbound.next().await {} } => {}
        }
    }
    served.map(drop)
}

/// What a host that is not trusted may leave unread: some cells' outputs and calls.
fn max_queued(most: &Limits) -> usize {
    let texts = most.max_output_bytes.saturating_add(most.max_frame_bytes);
    texts.saturating_mul(2).max(64 << 20)
}

/// What one message of such a host may have: a text, or values that are stored together.
fn from_stranger(most: &Limits) -> MaxMessage {
    const DEFINITIONS: usize = 16 << 20;
    let texts = most.max_frame_bytes.max(most.max_stored_bytes);
    let size = texts.saturating_add(DEFINITIONS).min(MAX_FRAME_BYTES);
    MaxMessage {
        frame: size,
        texts: size,
    }
}

/// Answers the host's greeting with the reason why this process cannot serve.
///
/// # Errors
/// [`ServeError::Connection`], where the reason cannot be sent.
pub async fn refuse<S>(stream: S, why: &str) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (receive, send) = tokio::io::split(stream);
    let mut inbound = MessageReader::<_, ToWorker>::new(receive, FROM_HOST);
    if inbound.next().await?.is_none() {
        return Ok(());
    }
    let (outbound, writing) = Outbound::new(send, usize::MAX);
    let reason = why.to_owned();
    send_message(&outbound, FromWorker::Rejected { reason });
    drop(outbound);
    Ok(writing.await.map_err(FrameError::Io)?)
}

fn send_message(outbound: &Outbound, message: FromWorker) {
    // None of the messages sent by way of this has a text of 4 GiB.
    if let Ok(frame) = message.encode() {
        outbound.send(frame);
    }
}

/// Checks a greeting against what this worker is.
fn greet(message: &ToWorker, environment: &impl WorkerEnvironment) -> Result<WorkerInfo, String> {
    let ToWorker::Hello {
        versions,
        required_capabilities,
    } = message
    else {
        return Err("the first message must be a greeting".to_owned());
    };
    if !versions.contains(&native::VERSION) {
        return Err(format!(
            "no version in common: this worker speaks {}",
            native::VERSION
        ));
    }
    if let Some(unknown) = required_capabilities
        .iter()
        .find(|wanted| !native::CAPABILITIES.contains(&wanted.as_str()))
    {
        return Err(format!("unknown capability {unknown}"));
    }
    Ok(WorkerInfo {
        version: native::VERSION,
        capabilities: native::CAPABILITIES
            .iter()
            .map(ToString::to_string)
            .collect(),
        v8_version: Engine::v8_version().to_owned(),
        v8_heap_sandbox: Engine::HAS_HEAP_SANDBOX,
        sandbox: environment.sandbox(),
    })
}

/// Why the server stops without an error.
enum Done {
    /// The host said so.
    ShutDown,
    /// The host is gone.
    Disconnected,
}

struct Server<A> {
    engine: Engine,
    environment: A,
    outbound: Outbound,
    session: Option<Arc<Session>>,
    tools: (u64, Arc<ToolTable>),
}

impl<A: WorkerEnvironment> Server<A> {
    async fn run<R: AsyncRead + Unpin>(
        &mut self,
        inbound: &mut MessageReader<R, ToWorker>,
    ) -> Result<Done, ServeError> {
        loop {
            let clock = async {
                match &self.session {
                    Some(session) => session.run_clock().await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                message = inbound.next() => message?,
                () = clock => match self.environment.most() {
                    Some(_) => return Err(ServeError::DoesNotStop),
                    // A trusted host decides.
                    None => continue,
                },
            };
            match message {
                None => return Ok(Done::Disconnected),
                Some(ToWorker::Shutdown) => return Ok(Done::ShutDown),
                Some(message) => self.receive(message)?,
            }
        }
    }

    fn session(&self) -> Result<&Arc<Session>, ServeError> {
        let none = ServeError::Protocol("no session is open");
        self.session.as_ref().ok_or(none)
    }

    fn receive(&mut self, message: ToWorker) -> Result<(), ServeError> {
        match message {
            ToWorker::Hello { .. } => return Err(ServeError::Protocol("a second greeting")),
            ToWorker::Open { limits, guided } => {
                if self.session.is_some() {
                    return Err(ServeError::Protocol("a second session"));
                }
                let limits = match self.environment.most() {
                    Some(most) => limits.at_most(most),
                    None => limits,
                };
                self.environment.opened(&limits);
                let session = Session::new(self.engine.clone(), limits, self.outbound.clone());
                let session = session.guided(guided);
                self.session = Some(Arc::new(session));
            }
            ToWorker::Store { values } => {
                let fits = self.session()?.store(values);
                if self.environment.most().is_some() && !fits {
                    return Err(ServeError::Protocol("more stored values than may be"));
                }
            }
            ToWorker::View { values } => self.session()?.view(values),
            ToWorker::Tools { id, tools } => self.tools = (id, Arc::new(ToolTable::new(tools))),
            ToWorker::Execute {
                cell,
                tools,
                source,
                to_pending,
                constants,
                determinism,
                resumed,
                idle_after,
                traceparent,
            } => {
                if tools != self.tools.0 {
                    let unknown = "an execute with tools that were not defined";
                    return Err(ServeError::Protocol(unknown));
                }
                let fits = self.session()?.may_execute(&source);
                if self.environment.most().is_some() && !fits {
                    let beyond = "a source, or a number of cells, beyond the limits";
                    return Err(ServeError::Protocol(beyond));
                }
                let program = Program {
                    source,
                    tools: self.tools.1.clone(),
                    constants,
                    determinism,
                    to_pending,
                    resumed,
                    idle_after,
                    traceparent,
                };
                self.session()?.execute(cell, program);
            }
            ToWorker::Observe {
                cell,
                observation,
                to_pending,
            } => {
                if let Some(cell) = self.session()?.cell(cell) {
                    cell.observe(observation);
                    cell.command(match to_pending {
                        true => Command::Resume,
                        false => Command::RunFreely,
                    });
                }
            }
            ToWorker::Collect {
                cell,
                observation,
                after,
            } => {
                if let Some(cell) = self.session()?.cell(cell) {
                    cell.collect(observation, after);
                }
            }
            // The owner's wall time continues during the provider's pauses.
            ToWorker::Pause { .. }
                if self
                    .environment
                    .most()
                    .is_some_and(|most| most.max_wall_time.is_some()) => {}
            ToWorker::Pause { cell, paused } => {
                if let Some(cell) = self.session()?.cell(cell) {
                    cell.pause(paused);
                }
            }
            ToWorker::Terminate { cell } => {
                if let Some(cell) = self.session()?.cell(cell) {
                    cell.stop(Stop::Terminated);
                }
            }
            ToWorker::ToolResult { cell, call, result } => {
                if let Some(cell) = self.session()?.cell(cell) {
                    cell.answer(call, result);
                }
            }
            ToWorker::Notified { cell } => {
                if let Some(cell) = self.session()?.cell(cell) {
                    cell.notification_delivered();
                }
            }
            ToWorker::Probe { name } => {
                let outcome = self.environment.probe(&name);
                send_message(&self.outbound, FromWorker::Probed { name, outcome });
            }
            // Taken by `run`.
            ToWorker::Shutdown => {}
        }
        Ok(())
    }
}

/// How much goes one way between an agent and a worker in its own process before the
/// sender has to wait.
const IN_PROCESS_BUFFER: usize = 1 << 20;

/// Serves one session from this process: the worker for a provider that has no other
/// process. Returns the provider's end of the stream; the other end is served by a
/// task of the current tokio runtime.
///
/// A cell that V8 cannot interrupt keeps its thread until it ends by itself, because
/// it has no process to end; its session answers for it all the same.
pub fn in_process() -> tokio::io::DuplexStream {
    let (ours, theirs) = tokio::io::duplex(IN_PROCESS_BUFFER);
    tokio::spawn(async move {
        if let Err(error) = serve(theirs, Engine::new(), ()).await {
            tracing::warn!(%error, "a worker in this process ended");
        }
    });
    ours
}
