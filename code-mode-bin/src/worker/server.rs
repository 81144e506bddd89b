//! The worker's side of the native wire.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use code_mode::{CellSpec, Engine, Observe, Reply, Session, ToolTable};
use code_mode_protocol::Limits;
use code_mode_protocol::frame;
use code_mode_protocol::message::MessageReader;
use code_mode_protocol::native::{self, FromWorker, Sample, SandboxLayer, ToWorker, WorkerInfo};
use interprocess::local_socket::tokio::Stream;
use tokio_util::sync::CancellationToken;

use super::callbacks::WireCallbacks;
use super::outbound::Outbound;
use super::transport;
use crate::sandbox;

/// How the observation of a request can be ended from outside.
#[derive(Clone, Default)]
struct Handles {
    yield_now: CancellationToken,
    dropped: CancellationToken,
}

type Requests = Arc<Mutex<HashMap<u64, Handles>>>;

/// Serves the provider at the other end until it goes away or the session is
/// shut down.
pub(super) async fn serve(
    stream: Stream,
    engine: Engine,
    layers: Vec<SandboxLayer>,
    require_sandbox: bool,
    probe: bool,
) {
    let (receive, send) = tokio::io::split(stream);
    let (outbound, writer) = Outbound::new(transport::write_now);
    let writer = tokio::spawn(writer.run(send));
    let mut inbound = MessageReader::<_, ToWorker>::new(receive, frame::MAX_FRAME_BYTES);
    let info = WorkerInfo {
        version: native::VERSION,
        capabilities: native::CAPABILITIES
            .iter()
            .map(ToString::to_string)
            .collect(),
        v8_version: Engine::v8_version().to_owned(),
        sandbox: layers,
        sample: sample(),
    };
    let greeting = match inbound.next().await {
        Ok(Some(message)) => greet(&message, info, require_sandbox),
        Err(error) => Err(error.to_string()),
        Ok(None) => return,
    };
    match greeting {
        Ok(info) => outbound.send(FromWorker::Ready(info)),
        Err(reason) => {
            tracing::error!(reason, "the provider was refused");
            outbound.send(FromWorker::Rejected { reason });
            drop(outbound);
            let _ = writer.await;
            return;
        }
    }
    let mut server = Server {
        callbacks: Arc::new(WireCallbacks::new(outbound.clone())),
        outbound,
        engine,
        session: None,
        tools: (0, Arc::default()),
        requests: Requests::default(),
        probe,
    };
    loop {
        match inbound.next().await {
            Ok(Some(ToWorker::Shutdown)) => {
                if let Some(session) = &server.session {
                    session.stop().await;
                }
                server.outbound.send(FromWorker::ShutDown);
                drop(server);
                // The session's own handles to the queue go with its last task.
                tokio::select! {
                    _ = writer => {}
                    () = async { while let Ok(Some(_)) = inbound.next().await {} } => {}
                }
                return;
            }
            Ok(Some(message)) => {
                if let Err(error) = server.receive(message) {
                    tracing::error!(error, "the provider broke the protocol");
                    return;
                }
            }
            Err(error) => {
                tracing::error!(%error, "the connection to the provider failed");
                return;
            }
            Ok(None) => return,
        }
    }
}

/// Answers the first message with a refusal.
#[cfg(unix)]
pub(super) async fn refuse(stream: Stream, why: &str) {
    let (receive, send) = tokio::io::split(stream);
    let mut inbound = MessageReader::<_, ToWorker>::new(receive, 1 << 16);
    if let Ok(None) = inbound.next().await {
        return;
    }
    let (outbound, writer) = Outbound::new(transport::write_now);
    outbound.send(FromWorker::Rejected {
        reason: why.to_owned(),
    });
    drop(outbound);
    // A provider that is gone needs no reason.
    let _ = writer.run(send).await;
}

/// Checks a greeting against what this worker is.
fn greet(
    message: &ToWorker,
    info: WorkerInfo,
    require_sandbox: bool,
) -> Result<WorkerInfo, String> {
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
    let missing = info.missing_layers();
    if require_sandbox && !missing.is_empty() {
        return Err(missing.join("; "));
    }
    Ok(info)
}

/// Bytes for the provider to find in this process's memory.
fn sample() -> Sample {
    static CONTENT: OnceLock<[u8; 16]> = OnceLock::new();
    let content = CONTENT.get_or_init(|| {
        let random = [0, 1].map(|half| RandomState::new().hash_one(half).to_ne_bytes());
        std::array::from_fn(|place| random[place / 8][place % 8])
    });
    Sample {
        address: content.as_ptr().expose_provenance() as u64,
        content: *content,
    }
}

/// What a worker may have in all: V8's own needs, and room for several cells at
/// their limit. V8 counts an array buffer only once it is there, so this is what
/// one that is far too large runs into.
fn memory(limits: &Limits) -> u64 {
    const BASE: u64 = 6 << 30;
    const CELLS_AT_THEIR_LIMIT: u64 = 8;
    let cells = (limits.heap_bytes() as u64).saturating_mul(CELLS_AT_THEIR_LIMIT);
    BASE.saturating_add(cells)
}

struct Server {
    callbacks: Arc<WireCallbacks>,
    outbound: Outbound,
    engine: Engine,
    session: Option<Session>,
    tools: (u64, Arc<ToolTable>),
    requests: Requests,
    probe: bool,
}

impl Server {
    fn session(&self) -> Result<&Session, &'static str> {
        self.session.as_ref().ok_or("no session is open")
    }

    fn receive(&mut self, message: ToWorker) -> Result<(), &'static str> {
        match message {
            ToWorker::Hello { .. } => return Err("a second greeting"),
            ToWorker::Open { limits, stored } => {
                if self.session.is_some() {
                    return Err("a second session");
                }
                sandbox::limit_memory(memory(&limits));
                self.session = Some(Session::with_callbacks(
                    self.engine.clone(),
                    self.callbacks.clone(),
                    limits,
                    stored.into_iter().collect(),
                ));
            }
            ToWorker::Tools { id, tools } => self.tools = (id, Arc::new(ToolTable::new(tools))),
            ToWorker::Execute {
                request,
                cell_id,
                tools,
                source,
                yield_time,
                to_pending,
            } => {
                if tools != self.tools.0 {
                    return Err("an execute with tools that were not defined");
                }
                let session = self.session()?;
                let handles = self.handles(request);
                let spec = CellSpec {
                    cell_id: Some(cell_id),
                    source,
                    tools: self.tools.1.clone(),
                    first: Observe {
                        yield_time,
                        to_pending,
                        yield_now: handles.yield_now,
                        dropped: handles.dropped,
                        reply: self.reply(request),
                    },
                };
                if let Err(error) = session.start(spec) {
                    self.reply(request)(Err(error));
                }
            }
            ToWorker::Wait {
                request,
                cell_id,
                yield_time,
                to_pending,
            } => {
                let handles = self.handles(request);
                let observe = Observe {
                    yield_time,
                    to_pending,
                    yield_now: handles.yield_now,
                    dropped: handles.dropped,
                    reply: self.reply(request),
                };
                self.session()?.observe(&cell_id, observe);
            }
            ToWorker::Terminate { request, cell_id } => {
                self.session()?
                    .terminate_with(&cell_id, self.reply(request));
            }
            ToWorker::YieldNow { request } => {
                if let Some(handles) = self.known(request) {
                    handles.yield_now.cancel();
                }
            }
            ToWorker::Cancel { request } => {
                if let Some(handles) = self.forget(request) {
                    handles.dropped.cancel();
                }
            }
            ToWorker::ToolResult { call, result } => self.callbacks.answered(call, result),
            ToWorker::Notified { call } => self.callbacks.answered(call, Ok(String::new())),
            ToWorker::Lend => self.outbound.lend(),
            ToWorker::Returned { loan } => self.outbound.returned(loan),
            ToWorker::Probe { name } if self.probe => {
                let outcome = sandbox::probe(&name);
                self.outbound.send(FromWorker::Probed { name, outcome });
            }
            ToWorker::Probe { .. } => {
                return Err("a probe of a worker that was not started for it");
            }
            // Taken by `serve` itself.
            ToWorker::Shutdown => {}
        }
        Ok(())
    }

    fn handles(&self, request: u64) -> Handles {
        let handles = Handles::default();
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(request, handles.clone());
        handles
    }

    fn known(&self, request: u64) -> Option<Handles> {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&request)
            .cloned()
    }

    fn forget(&self, request: u64) -> Option<Handles> {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&request)
    }

    /// Sends the outcome of a request.
    fn reply(&self, request: u64) -> Reply {
        let (outbound, requests) = (self.outbound.clone(), self.requests.clone());
        Box::new(move |outcome| {
            requests
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&request);
            outbound.send(FromWorker::Answer { request, outcome });
        })
    }
}
