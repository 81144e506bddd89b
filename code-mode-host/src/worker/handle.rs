//! One worker as a value.

use code_mode_protocol::Limits;
use code_mode_protocol::wire::native::{FromWorker, MAX_WORKER_FRAME, ToWorker};
use code_mode_protocol::wire::outbound::{Outbound, OutboundTask};
use code_mode_protocol::wire::reader::{MaxMessage, MessageReader};
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use super::connection::Receive;
use super::{Connection, Counted};
use crate::process::Child;

/// Bytes waiting for a worker, past which answers of tools wait too.
const HIGH_WATER: usize = 64 << 20;

/// The way to one worker. Messages, kills and retirements through it can reach no
/// other worker, whenever that happens.
#[derive(Clone, Debug)]
pub(crate) struct WorkerHandle {
    pub(crate) outbound: Outbound,
    killed: CancellationToken,
    retired: CancellationToken,
}

impl WorkerHandle {
    fn new(outbound: Outbound) -> Self {
        Self {
            outbound,
            killed: CancellationToken::new(),
            retired: CancellationToken::new(),
        }
    }

    /// Completes when the worker has read most of what it was sent, or is gone. Answers
    /// of tools wait for it, each in its call's task, so that a worker which cannot keep
    /// up is waited for.
    pub(crate) async fn takes_more(&self) {
        self.outbound.until_queued_below(HIGH_WATER).await;
    }

    /// Ends the worker at once.
    pub(crate) fn kill(&self) {
        self.killed.cancel();
    }

    /// Shuts the worker down in order.
    pub(crate) fn retire(&self) {
        self.retired.cancel();
    }

    /// Tells the worker to shut down.
    pub(super) fn shut_down(&self) {
        if let Ok(frame) = ToWorker::Shutdown.encode() {
            self.outbound.send(frame);
        }
    }

    /// Completes when the worker must end at once.
    pub(super) async fn killed(&self) {
        self.killed.cancelled().await;
    }

    /// Completes when the worker must be shut down.
    pub(super) async fn retired(&self) {
        self.retired.cancelled().await;
    }
}

/// A worker that is ready for a session, and everything its supervisor needs.
pub(crate) struct Worker {
    pub(crate) handle: WorkerHandle,
    pub(super) inbound: MessageReader<Receive, FromWorker>,
    pub(super) writing: OutboundTask,
    /// `None` where the worker is not a process of this program.
    pub(crate) child: Option<Child>,
    pub(crate) counted: Counted,
}

impl Worker {
    pub(crate) fn new(connection: Connection, child: Option<Child>, counted: Counted) -> Self {
        Self {
            handle: WorkerHandle::new(connection.outbound),
            inbound: connection.inbound,
            writing: connection.writing,
            child,
            counted,
        }
    }

    /// Whether it is gone; asked without waiting. Before its session a worker has nothing to
    /// say, so whatever comes is its end.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(Child::has_ended)
            || self.inbound.next().now_or_never().is_some()
            || (&mut self.writing).now_or_never().is_some()
    }

    /// Takes messages from here on as large as these limits make them.
    pub(crate) fn expect_messages_within(&mut self, limits: &Limits) {
        let text = limits.max_frame_bytes.max(limits.max_output_bytes);
        self.inbound.set_max(MaxMessage {
            frame: MAX_WORKER_FRAME,
            // The rest of a message whose text has the largest size.
            texts: text.saturating_add(MAX_WORKER_FRAME),
        });
    }
}
