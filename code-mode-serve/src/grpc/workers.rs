//! Workers for providers on other machines.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use code_mode_host::{ExitReason, LentWorker};
use futures::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::service::Service;
use super::workers_wire::Chunk;
use super::workers_wire::workers_server::Workers;

/// The most of one chunk, either way.
pub(super) const MAX_CHUNK: usize = 1 << 20;

/// The most bytes read from a worker at once.
const READ: usize = 64 << 10;

/// Chunks that wait for a client that is slow to read; the worker waits behind them.
const WAITING: usize = 4;

type Chunks = mpsc::Sender<Result<Chunk, Status>>;

#[tonic::async_trait]
impl Workers for Service {
    type ServeStream = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;

    async fn serve(
        &self,
        request: Request<Streaming<Chunk>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        let place = self.place()?;
        let (chunks, mut receiver) = mpsc::channel(WAITING);
        let (tell, lent) = oneshot::channel();
        let (service, over, draining) = (self.clone(), self.stopping(), self.draining());
        // A client that goes away while its worker starts gives its place back when the
        // start has ended, not before.
        self.spawn_lent(async move {
            let _place = place;
            let worker = match service.lend().await {
                Ok(worker) => worker,
                Err(status) => {
                    let _ = tell.send(Err(status));
                    return;
                }
            };
            if tell.send(Ok(())).is_err() {
                return;
            }
            let client = chunks.clone();
            let is_in_session = AtomicBool::new(false);
            let stopping = tokio::select! {
                () = carry(worker, request.into_inner(), (chunks, &is_in_session)) => None,
                () = client.closed() => None,
                () = over.cancelled() => Some("code-mode host is stopping"),
                () = spare_while(&draining, &is_in_session) => Some("code-mode host is draining"),
            };
            if let Some(why) = stopping {
                // A client that does not read its chunks is not waited for.
                let _ = client.try_send(Err(Status::unavailable(why)));
            }
        });
        lent.await
            .map_err(|_| Status::unavailable("code-mode host is stopping"))??;
        let chunks = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        Ok(Response::new(Box::pin(chunks)))
    }
}

/// Carries bytes both ways until one side has ended, and reports to the client how the worker
/// did. Dropped, it ends the worker.
async fn carry(
    worker: LentWorker,
    mut inbound: Streaming<Chunk>,
    (chunks, is_in_session): (Chunks, &AtomicBool),
) {
    let mut said = Said::default();
    let (mut reader, mut writer) = tokio::io::split(worker);
    let to_worker = async {
        loop {
            let chunk = match inbound.message().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return,
                Err(status) => {
                    let _ = chunks.send(Err(status)).await;
                    return;
                }
            };
            said.take(&chunk.data);
            is_in_session.store(said.is_in_session(), Ordering::Relaxed);
            if writer.write_all(&chunk.data).await.is_err() {
                // It has ended, or will: its own end says how.
                std::future::pending::<()>().await;
            }
        }
    };
    let from_worker = async {
        loop {
            let mut bytes = BytesMut::with_capacity(READ);
            match reader.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let data = bytes.freeze();
                    if chunks.send(Ok(Chunk { data })).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = to_worker => return,
        () = from_worker => {}
    }
    let end = reader.unsplit(writer).ended().await;
    if end != ExitReason::Exited(0) {
        let _ = chunks.send(Err(Status::aborted(end.to_string()))).await;
    }
}

/// What a provider has sent: it greets, and then, when a session needs the worker, it opens
/// that. Until then the worker is a spare, which nobody misses.
#[derive(Default)]
struct Said {
    /// The length of the greeting, in four bytes, as far as it has come.
    length: Vec<u8>,
    /// How many bytes came after it.
    rest: usize,
}

impl Said {
    fn take(&mut self, bytes: &[u8]) {
        let missing = (4 - self.length.len()).min(bytes.len());
        self.length.extend_from_slice(&bytes[..missing]);
        self.rest += bytes.len() - missing;
    }

    /// Whether more came than the greeting.
    fn is_in_session(&self) -> bool {
        let length = self.length.first_chunk().copied().map(u32::from_le_bytes);
        length.is_some_and(|length| self.rest as u64 > u64::from(length))
    }
}

/// Completes when the host drains and no session has the worker.
async fn spare_while(draining: &CancellationToken, is_in_session: &AtomicBool) {
    draining.cancelled().await;
    if is_in_session.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}
