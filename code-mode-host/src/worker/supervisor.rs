//! The supervisor of one worker, from its session to its end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use code_mode_protocol::wire::frame::FrameError;
use code_mode_protocol::wire::native::FromWorker;
use code_mode_protocol::wire::reader::MessageReader;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::Span;

use super::connection::Receive;
use super::{Counted, Worker};
use crate::process::Child;
use crate::remote::said_by;
use crate::session::{Received, Shared};

/// How long a worker may take to shut down before it is killed.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// How long a process whose connection closed may take to end by itself: how it ends
/// tells more than that it was killed here.
const LAST_BREATH: Duration = Duration::from_millis(500);

/// How many messages are taken before other tasks have their turn.
const AT_ONCE: u32 = 32;

/// Why a worker is not supervised any more.
enum Ended {
    /// It said so, after a shutdown.
    ShutDown,
    /// The connection closed: its process is dead or dying. What it says of that, where
    /// it is more than that it closed.
    Disconnected(Option<String>),
    /// It was killed, or took too long to shut down.
    Killed,
    /// It said something that does not fit.
    Violation(String),
}

/// Carries what a worker says to its session, until the worker ends; then answers
/// for it.
pub(crate) async fn supervise(session: Arc<Shared>, number: u64, worker: Worker, span: Span) {
    let Worker {
        handle,
        mut inbound,
        mut writing,
        child,
        counted,
    } = worker;
    let mut lost = Lost {
        session: session.clone(),
        number,
        why: Some("the program that served it failed".to_owned()),
        counted,
        span,
    };
    let ended = {
        let mut killed = pin!(handle.killed());
        let mut retired = pin!(handle.retired());
        let mut deadline = None;
        let mut taken = 0;
        loop {
            // A worker that sends without end must not keep the rest waiting: an order
            // to end comes first, and other tasks have their turn.
            taken += 1;
            if taken % AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
            tokio::select! {
                biased;
                () = &mut killed => break Ended::Killed,
                () = at(deadline) => break Ended::Killed,
                () = &mut retired, if deadline.is_none() => {
                    handle.shut_down();
                    deadline = Some(Instant::now() + SHUTDOWN_GRACE);
                }
                _ = &mut writing => break Ended::Disconnected(match child {
                    Some(_) => None,
                    None => last_words(&mut inbound).await,
                }),
                message = inbound.next() => match message {
                    Ok(Some(message)) => match session.received(number, message) {
                        Ok(Received::Message) => {}
                        // Without a request to end, it counts as one that died.
                        Ok(Received::ShutDown) if deadline.is_none() => break Ended::Disconnected(None),
                        Ok(Received::ShutDown) => break Ended::ShutDown,
                        Err(violation) => break Ended::Violation(violation.to_string()),
                    },
                    Err(FrameError::Io(error)) => break Ended::Disconnected(said_by(&error)),
                    Ok(None) => break Ended::Disconnected(None),
                    Err(error) => break Ended::Violation(error.to_string()),
                },
            }
        }
    };
    drop((inbound, writing));
    handle.outbound.close();
    lost.why = match ended {
        Ended::ShutDown => None,
        Ended::Disconnected(Some(why)) if child.is_none() => Some(why),
        Ended::Disconnected(_) => Some(format!("its process {}", end_of(child, LAST_BREATH).await)),
        Ended::Killed => {
            end_of(child, Duration::ZERO).await;
            Some("its process did not stop in time and was killed".to_owned())
        }
        Ended::Violation(what) => {
            end_of(child, Duration::ZERO).await;
            Some(format!("its process broke the protocol: {what}"))
        }
    };
}

/// What a worker elsewhere was lost of, where its bytes can no longer be sent: that comes
/// the other way.
async fn last_words(inbound: &mut MessageReader<Receive, FromWorker>) -> Option<String> {
    let error = async {
        loop {
            match inbound.next().await {
                // What it said before is for nobody: its cells are lost.
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(FrameError::Io(error)) => return said_by(&error),
                Err(_) => return None,
            }
        }
    };
    timeout(LAST_BREATH, error).await.ok().flatten()
}

/// Tells the session that its worker is gone, whatever ends the supervisor.
struct Lost {
    session: Arc<Shared>,
    number: u64,
    why: Option<String>,
    counted: Counted,
    /// The worker's.
    span: Span,
}

impl Drop for Lost {
    fn drop(&mut self) {
        let outcome = match self.why {
            Some(_) => "lost",
            None => "shut_down",
        };
        self.span.record("outcome", outcome);
        if self.why.is_some() {
            self.counted.lost();
        }
        self.session.worker_lost(self.number, self.why.take());
    }
}

/// Waits until a process has ended, killing it after a while, and says how it ended.
async fn end_of(child: Option<Child>, patience: Duration) -> String {
    let Some(mut child) = child else {
        return "closed its connection".to_owned();
    };
    if patience.is_zero() {
        child.kill();
    }
    match timeout(patience, child.wait()).await {
        Ok(reason) => reason.to_string(),
        Err(_) => {
            child.kill();
            child.wait().await.to_string()
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
