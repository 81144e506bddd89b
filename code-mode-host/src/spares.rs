//! Workers kept ready.
//!
//! A worker takes milliseconds to start, so some are started ahead of the cells that
//! need them. How many follows the demand: one more for each time that none was
//! ready, one less for each while in which none was needed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::error::ProviderError;
use crate::source::Source;
use crate::worker::Worker;

/// How long the start of a spare waits after a session took the one before, so that
/// the session's first cells have the processors for themselves. A spare that is
/// wanted earlier is started at once.
const REFILL_DELAY: Duration = Duration::from_millis(250);

/// The most spares, however great the demand.
const MAX_SPARES: usize = 4;

/// After this while without demand, there is one spare less.
const DECAY: Duration = Duration::from_secs(30);

/// Where sessions get their workers.
pub(crate) struct Workers {
    source: Source,
    /// The fewest spares.
    min: usize,
    state: Mutex<State>,
    token: CancellationToken,
    /// The last start of a worker succeeded.
    is_proven: AtomicBool,
    /// Held by who finds that out.
    proving: tokio::sync::Mutex<()>,
}

struct State {
    spares: VecDeque<Spare>,
    target: usize,
    /// Counts the workers taken, to see whether there was demand.
    taken: u64,
    /// Somebody will look whether the demand has gone.
    decays: bool,
}

/// A worker that was started ahead, or soon will be.
struct Spare {
    worker: oneshot::Receiver<Result<Worker, ProviderError>>,
    /// A session waits for it: start now.
    wanted: Arc<Notify>,
}

impl Workers {
    /// Starts the first spares at once. Their tasks end with `token`.
    pub(crate) fn new(source: Source, min: usize, token: CancellationToken) -> Arc<Self> {
        let workers = Arc::new(Self {
            source,
            min,
            state: Mutex::new(State {
                spares: VecDeque::new(),
                target: min,
                taken: 0,
                decays: false,
            }),
            token,
            is_proven: AtomicBool::new(false),
            proving: tokio::sync::Mutex::default(),
        });
        workers.refill(Duration::ZERO);
        workers
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether workers can be had. The first time, and after a failure, that
    /// takes a worker, which the caller gets.
    ///
    /// One caller starts it, and the others use its result: a thousand callers at once
    /// start one worker, also where they do not wait for the answer.
    pub(crate) async fn prove(self: &Arc<Self>) -> Result<Option<Worker>, ProviderError> {
        if self.is_proven() {
            return Ok(None);
        }
        let workers = self.clone();
        let (tell, told) = oneshot::channel();
        let proof = async move {
            let _one = workers.proving.lock().await;
            // Whoever went away meanwhile needs no worker.
            if !tell.is_closed() {
                let proof = match workers.is_proven() {
                    true => Ok(None),
                    false => workers.take().await.map(Some),
                };
                let _ = tell.send(proof);
            }
        };
        tokio::spawn(self.token.clone().run_until_cancelled_owned(proof));
        told.await.unwrap_or(Err(ProviderError::ShuttingDown))
    }

    fn is_proven(&self) -> bool {
        self.is_proven.load(Ordering::Relaxed)
    }

    /// A worker for a session; one that was started ahead, if there is one.
    pub(crate) async fn take(self: &Arc<Self>) -> Result<Worker, ProviderError> {
        let taken = self.take_one().await;
        self.is_proven.store(taken.is_ok(), Ordering::Relaxed);
        taken
    }

    async fn take_one(self: &Arc<Self>) -> Result<Worker, ProviderError> {
        let spare = {
            let mut state = self.state();
            state.taken += 1;
            let spare = state.spares.pop_front();
            if spare.is_none() && self.min > 0 {
                state.target = (state.target + 1).min(MAX_SPARES.max(self.min));
            }
            spare
        };
        self.refill(REFILL_DELAY);
        if let Some(spare) = spare {
            spare.wanted.notify_one();
            match spare.worker.await {
                Ok(Ok(mut worker)) => {
                    if !worker.has_ended() {
                        return Ok(worker);
                    }
                    tracing::debug!("a spare worker ended while it waited for a session");
                }
                // The obstacle may be gone by now.
                Ok(Err(error)) => tracing::debug!("a spare worker could not be started: {error}"),
                Err(_) => return Err(ProviderError::ShuttingDown),
            }
        }
        self.source.start().await
    }

    /// Starts as many spares as are wanted, after a while.
    fn refill(self: &Arc<Self>, delay: Duration) {
        if self.token.is_cancelled() {
            return;
        }
        let mut state = self.state();
        while state.spares.len() < state.target {
            let (ready, worker) = oneshot::channel();
            let wanted = Arc::new(Notify::new());
            state.spares.push_back(Spare {
                worker,
                wanted: wanted.clone(),
            });
            let start = start_spare(Arc::downgrade(self), wanted, delay, ready);
            tokio::spawn(self.token.clone().run_until_cancelled_owned(start));
        }
        if state.target > self.min && !std::mem::replace(&mut state.decays, true) {
            let decay = decay(Arc::downgrade(self), state.taken);
            tokio::spawn(self.token.clone().run_until_cancelled_owned(decay));
        }
    }

    /// Ends all spares.
    pub(crate) fn clear(&self) {
        self.state().spares.clear();
    }

    /// Where the workers come from.
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }
}

async fn start_spare(
    workers: Weak<Workers>,
    wanted: Arc<Notify>,
    delay: Duration,
    ready: oneshot::Sender<Result<Worker, ProviderError>>,
) {
    // A timer of no time at all still takes a millisecond.
    if !delay.is_zero() {
        tokio::select! {
            () = wanted.notified() => {}
            () = tokio::time::sleep(delay) => {}
        }
    }
    if let Some(workers) = workers.upgrade() {
        let started = workers.source.start().await;
        // Where nobody takes it any more, the worker is dropped and so killed.
        drop(ready.send(started));
    }
}

/// Lowers the number of spares while nobody takes workers.
async fn decay(workers: Weak<Workers>, mut taken: u64) {
    loop {
        tokio::time::sleep(DECAY).await;
        let Some(workers) = workers.upgrade() else {
            return;
        };
        let mut state = workers.state();
        if std::mem::replace(&mut taken, state.taken) == state.taken {
            state.target = state.target.saturating_sub(1).max(workers.min);
            let target = state.target;
            // Their workers are dropped, and so end.
            state.spares.truncate(target);
        }
        if state.target == workers.min {
            state.decays = false;
            return;
        }
    }
}
