//! Threads with a ready isolate each.
//!
//! Making an isolate with its context takes most of a millisecond, so it is done
//! ahead of time: threads park with one that nobody has used, and a cell starts
//! by waking one of them. After its cell the isolate is disposed of and its
//! thread makes the next. An isolate is never used twice.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use code_mode_protocol::Limits;
use code_mode_protocol::wire::native::CellEnd;

use crate::cell::Job;
use crate::engine::ReadyIsolate;
use crate::runtime;

/// Ready isolates kept while cells come often.
const MAX_READY: usize = 8;
/// Ready isolates kept while cells come: one for the next cell, and one more
/// so that no isolate need be made while the first is in use.
const MIN_READY: usize = 2;
/// Cells come while each does so within this time of the one before. A session that is
/// quiet for longer keeps no isolate ready: each is a megabyte, and the next cell waits a
/// millisecond for one.
const OFTEN: Duration = Duration::from_secs(1);
/// Isolates made at the same time. More would only wait for each other in the kernel.
const MAX_WARMING: usize = 2;
/// How long a ready isolate beyond the first waits for work before it goes: a
/// burst is over by then, and each is most of a megabyte.
const SURPLUS_IDLE: Duration = Duration::from_millis(300);
/// How long a thread without an isolate waits for work before it goes.
const IDLE: Duration = Duration::from_secs(10);
/// How long an isolate that was made before any cell came waits: its session may begin
/// at any time.
const FIRST_IDLE: Duration = Duration::from_secs(300);
/// JavaScript may use just under 1 MB of it; native code beneath needs room too.
const STACK_BYTES: usize = 2 << 20;

/// The pool. Dropping it lets parked threads go when they next wake.
#[derive(Debug)]
pub(crate) struct Pool {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Where to send a job so that a ready isolate runs it; last in, first out,
    /// so that surplus ones grow idle.
    ready: Vec<Parked<Box<Job>>>,
    /// Threads with no isolate. A message makes one of them make an isolate.
    idle: Vec<Parked<()>>,
    /// Isolates being made.
    warming: usize,
    /// Jobs for which no isolate was ready.
    backlog: VecDeque<Job>,
    /// How many ready isolates to keep, by recent use.
    target: usize,
    /// When the last cell came.
    last_job: Option<Instant>,
    /// No cell has come to wait or end yet. The first cell usually comes while its
    /// isolate is being made, and another made beside it would only hold it up.
    starting: bool,
    /// The heap limit of the last job, and so of the isolates made ahead.
    heap_bytes: usize,
    next_id: u64,
}

struct Parked<T> {
    id: u64,
    wake: Sender<T>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("ready", &self.ready.len())
            .field("warming", &self.warming)
            .field("backlog", &self.backlog.len())
            .finish_non_exhaustive()
    }
}

impl State {
    /// How many more isolates to make.
    fn wanted(&self) -> usize {
        let ahead = if self.starting { 0 } else { self.target };
        (ahead + self.backlog.len()).saturating_sub(self.ready.len() + self.warming)
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                starting: true,
                heap_bytes: Limits::default().heap_bytes(),
                ..State::default()
            })),
        }
    }

    /// Makes an isolate for the first cell, if that has not been done.
    pub(crate) fn prewarm(&self) {
        let mut state = lock(&self.state);
        if state.ready.len() + state.warming == 0 {
            make(&self.state, &mut state);
        }
    }

    /// Runs a job on a ready isolate, or on the next one that is made.
    pub(crate) fn run(&self, job: Job) {
        let mut state = lock(&self.state);
        state.heap_bytes = job.shared.limits.heap_bytes();
        let now = Instant::now();
        let before = state.last_job.replace(now);
        let often = before.is_some_and(|before| now - before < OFTEN);
        state.target = if often {
            state.target.max(MIN_READY)
        } else {
            0
        };
        let mut job = Box::new(job);
        while let Some(ready) = state.ready.pop() {
            match ready.wake.send(job) {
                // The next is made once this cell waits or ends: until then nothing
                // competes with it.
                Ok(()) => return,
                // Its thread has just given up waiting.
                Err(unsent) => job = unsent.0,
            }
        }
        // Cells come faster than isolates: the pool keeps one more next time. Only one
        // for a burst, however long: a single burst says little about the next, and an
        // isolate made in vain leaves its memory with the allocators.
        if often && state.backlog.is_empty() {
            state.target = (state.target + 1).min(MAX_READY);
        }
        state.backlog.push_back(*job);
        refill(&self.state, state);
    }
}

/// Makes isolates where more are wanted.
fn refill(shared: &Arc<Mutex<State>>, mut state: MutexGuard<'_, State>) {
    while state.warming < MAX_WARMING && state.wanted() > 0 {
        if !make(shared, &mut state) {
            return;
        }
    }
}

/// Lets a thread that has no isolate, or a new one, make an isolate.
fn make(shared: &Arc<Mutex<State>>, state: &mut State) -> bool {
    state.warming += 1;
    while let Some(idle) = state.idle.pop() {
        if idle.wake.send(()).is_ok() {
            return true;
        }
    }
    let shared_ = shared.clone();
    let spawned = std::thread::Builder::new()
        .name("code-mode-cell".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || thread(&shared_));
    let Err(error) = spawned else {
        return true;
    };
    state.warming -= 1;
    tracing::error!(%error, "no thread for a cell");
    // With threads running, one of them takes the job when its cell ends; with
    // none, nobody would.
    if state.warming == 0 && state.ready.is_empty() {
        for job in state.backlog.drain(..) {
            refuse(&job, &error);
        }
    }
    false
}

fn refuse(job: &Job, error: &std::io::Error) {
    let text = format!("no thread for the cell: {error}");
    let position = None;
    job.end
        .report(CellEnd::Failed { text, position }, Vec::new());
}

/// The life of one thread: make an isolate, wait for a job, run it, again.
fn thread(shared: &Arc<Mutex<State>>) {
    loop {
        let heap_bytes = lock(shared).heap_bytes;
        let mut isolate = ReadyIsolate::new(heap_bytes);
        let Some(job) = next_job(shared) else {
            drop(isolate);
            if next_isolate(shared) {
                continue;
            }
            return;
        };
        let heap_bytes = job.shared.limits.heap_bytes();
        if isolate.heap_bytes != heap_bytes {
            // Made for a session with another limit.
            drop(isolate);
            isolate = ReadyIsolate::new(heap_bytes);
        }
        runtime::run(isolate, job, &|| {
            let mut state = lock(shared);
            state.starting = false;
            refill(shared, state);
        });
        if !next_isolate(shared) {
            return;
        }
    }
}

/// A job for the isolate the calling thread just made; `None` once it has
/// waited too long.
fn next_job(shared: &Arc<Mutex<State>>) -> Option<Job> {
    let (id, woken, mut idle) = {
        let mut state = lock(shared);
        state.warming -= 1;
        if let Some(job) = state.backlog.pop_front() {
            refill(shared, state);
            return Some(job);
        }
        let (wake, woken) = channel();
        let id = state.id();
        state.ready.push(Parked { id, wake });
        let idle = match state.last_job {
            None => FIRST_IDLE,
            Some(_) => SURPLUS_IDLE,
        };
        refill(shared, state);
        (id, woken, idle)
    };
    loop {
        match woken.recv_timeout(idle) {
            Ok(job) => return Some(*job),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let mut state = lock(shared);
        idle = match state.last_job {
            Some(last) if state.ready.len() <= MIN_READY => OFTEN.saturating_sub(last.elapsed()),
            _ => Duration::ZERO,
        };
        if idle.is_zero() {
            return retire(&mut state, id, &woken);
        }
    }
}

/// Takes the calling thread's isolate off the list; a job may have come just
/// before.
fn retire(state: &mut State, id: u64, woken: &Receiver<Box<Job>>) -> Option<Job> {
    state.ready.retain(|parked| parked.id != id);
    state.target = state.ready.len();
    woken.try_recv().ok().map(|job| *job)
}

/// Whether the calling thread, which has no isolate, must make one; waits a
/// while for that to be wanted.
fn next_isolate(shared: &Arc<Mutex<State>>) -> bool {
    let (id, woken) = {
        let mut state = lock(shared);
        state.starting = false;
        if state.warming < MAX_WARMING && state.wanted() > 0 {
            state.warming += 1;
            return true;
        }
        let (wake, woken) = channel();
        let id = state.id();
        state.idle.push(Parked { id, wake });
        (id, woken)
    };
    if woken.recv_timeout(IDLE).is_ok() {
        return true;
    }
    let mut state = lock(shared);
    state.idle.retain(|parked| parked.id != id);
    woken.try_recv().is_ok()
}
