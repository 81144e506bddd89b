//! The supervisor of one worker: carries messages both ways until the worker
//! ends, and answers for it then.

use std::sync::Arc;

use code_mode_protocol::native::{FromWorker, ToWorker};
use code_mode_protocol::{CellId, PendingOutcome};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::connection::Connection;
use crate::process::Child;
use crate::session::Shared;
use crate::state::{Answer, Effect, is_final};

/// A worker that is ready for a session.
pub(crate) struct Worker {
    pub(crate) connection: Connection,
    /// `None` where it was connected to, not started.
    pub(crate) child: Option<Child>,
}

/// Why a worker is supervised no more.
enum Ended {
    /// It said so, after a shutdown.
    ShutDown,
    /// The connection closed: its process is dead or dying.
    Disconnected,
    /// It was killed for taking too long to stop.
    Stuck,
    /// It said something that does not fit.
    Violation(String),
}

/// Serves a session with a worker until the worker ends.
pub(crate) async fn supervise(session: Arc<Shared>, worker: Worker) {
    let Worker {
        connection,
        mut child,
    } = worker;
    let Connection {
        mut inbound,
        outbound,
        ..
    } = connection;
    let mut deadline = None;
    let ended = loop {
        tokio::select! {
            biased;
            message = inbound.next() => match message {
                Ok(Some(message)) => {
                    for loan in inbound.take_returned() {
                        outbound.send(ToWorker::Returned { loan });
                    }
                    match receive(&session, message) {
                        Ok(false) => {}
                        Ok(true) => break Ended::ShutDown,
                        Err(violation) => break Ended::Violation(violation),
                    }
                }
                Err(code_mode_protocol::frame::FrameError::Io(error))
                    if error.kind() != std::io::ErrorKind::InvalidData => break Ended::Disconnected,
                Err(error) => break Ended::Violation(error.to_string()),
                Ok(None) => break Ended::Disconnected,
            },
            () = session.token.cancelled(), if deadline.is_none() => {
                outbound.send(ToWorker::Shutdown);
                deadline = Some(Instant::now() + session.options.stop_grace);
            }
            () = session.kill_worker.notified() => break Ended::Stuck,
            () = at(deadline) => break Ended::Stuck,
        }
    };
    drop((inbound, outbound));
    let how = match &mut child {
        Some(child) => {
            if !matches!(ended, Ended::ShutDown) {
                // Its connection is gone or not to be trusted: whatever it still
                // does is for nobody.
                if !matches!(ended, Ended::Disconnected) {
                    child.kill();
                }
                // A process whose connection closed is about to end by itself,
                // and how it ends tells more than that it was killed here.
                let patience = std::time::Duration::from_millis(500);
                match tokio::time::timeout(patience, child.wait()).await {
                    Ok(reason) => reason.to_string(),
                    Err(_) => {
                        child.kill();
                        child.wait().await.to_string()
                    }
                }
            } else {
                child.kill();
                child.wait().await.to_string()
            }
        }
        None => "closed its connection".to_owned(),
    };
    let why = match ended {
        Ended::ShutDown => None,
        Ended::Disconnected => Some(format!("its process {how}")),
        Ended::Stuck => Some("its process did not stop in time and was killed".to_owned()),
        Ended::Violation(what) => Some(format!("its process broke the protocol: {what}")),
    };
    lose(&session, why).await;
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Takes in one message; `true` where the worker is done.
fn receive(session: &Arc<Shared>, message: FromWorker) -> Result<bool, String> {
    let effect = {
        let mut state = session.state();
        let effect = state.receive(message, &session.options.limits);
        effect.map_err(|violation| violation.to_string())?
    };
    match effect {
        None => {}
        Some(Effect::Reply(reply, answer)) => hand_over(session, reply, answer),
        Some(Effect::Invoke(call, invocation)) => {
            let mut state = session.state();
            let state = &mut *state;
            if let Some(cell) = state.cells.get_mut(&invocation.cell_id)
                && let Some(outbound) = &state.outbound
            {
                let done = {
                    let session = Arc::downgrade(session);
                    move || {
                        if let Some(session) = session.upgrade() {
                            session.state().call_answered(call);
                        }
                    }
                };
                let delegate = session.delegate.clone();
                let max_bytes = session.options.limits.max_frame_bytes;
                let outbound = outbound.clone();
                cell.calls
                    .invoke(call, invocation, delegate, outbound, max_bytes, done);
            }
        }
        Some(Effect::Notify(call, cell_id, text)) => {
            let mut state = session.state();
            let state = &mut *state;
            if let Some(cell) = state.cells.get_mut(&cell_id)
                && let Some(outbound) = &state.outbound
            {
                cell.calls.notify(call, text, &session.delegate, outbound);
            }
        }
        Some(Effect::Close(cell_id)) => close(session, cell_id),
        Some(Effect::ShutDown) => return Ok(true),
    }
    Ok(false)
}

/// Gives an answer to whoever asked. The last of a cell comes after its
/// callbacks have ended.
fn hand_over(session: &Arc<Shared>, reply: oneshot::Sender<Answer>, answer: Answer) {
    let waits = match &answer {
        Ok(outcome) if is_final(&answer) => {
            let mut state = session.state();
            state
                .cells
                .get_mut(crate::state::cell_of(outcome))
                .and_then(|cell| Some((cell.calls.end()?, cell.answers.clone())))
        }
        _ => None,
    };
    match waits {
        None => session.reply(reply, answer),
        Some((callbacks, answers)) => {
            let session_ = session.clone();
            answers.spawn(async move {
                callbacks.await;
                session_.reply(reply, answer);
            });
        }
    }
}

/// Closes a cell: once its callbacks have ended and its answers are handed over,
/// the agent core is told, once.
pub(crate) fn close(session: &Arc<Shared>, cell_id: CellId) {
    let (cell, owed) = session.state().remove_cell(&cell_id);
    for reply in owed {
        session.reply(reply, Ok(PendingOutcome::missing(&cell_id)));
    }
    let Some(mut cell) = cell else {
        return;
    };
    let session_ = session.clone();
    session.tasks.spawn(async move {
        if let Some(callbacks) = cell.calls.end() {
            callbacks.await;
        }
        cell.answers.close();
        cell.answers.wait().await;
        session_.state().closed(&cell_id);
        session_.delegate.cell_closed(cell_id).await;
    });
}

/// Answers for a worker that is no more. `why` is `None` after a shutdown.
async fn lose(session: &Arc<Shared>, why: Option<String>) {
    let error = {
        let mut state = session.state();
        match &why {
            None => String::new(),
            Some(why) => {
                let deaths = state.backoff.died();
                let pause = state.backoff.pause();
                let slowed = if pause.is_zero() {
                    String::new()
                } else {
                    format!(
                        " ({deaths} processes in a row died; the next starts in {} ms)",
                        pause.as_millis()
                    )
                };
                tracing::warn!(deaths, "worker lost: {why}");
                format!("{why}{slowed}")
            }
        }
    };
    let (replies, told, ends) = {
        let mut state = session.state();
        let (replies, told) = state.lose_worker(|cell_id| match &why {
            Some(_) => format!("exec cell {cell_id} was lost: {error}"),
            None => format!("exec cell {cell_id} was lost in a shutdown"),
        });
        let ends: Vec<_> = state
            .cells
            .values_mut()
            .filter_map(|cell| cell.calls.end())
            .collect();
        (replies, told, ends)
    };
    futures::future::join_all(ends).await;
    for (reply, answer) in replies {
        session.reply(reply, answer);
    }
    let closing = if session.token.is_cancelled() {
        session.state().cells.keys().cloned().collect()
    } else {
        told
    };
    for cell_id in closing {
        close(session, cell_id);
    }
}
