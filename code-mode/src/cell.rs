//! What an isolate's thread and a cell's actor share, and what they say to each
//! other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use code_mode_protocol::{
    ContentItem, Limit, LimitExceeded, Limits, RuntimeToolCallId, SourcePosition,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::cpu::{self, ThreadClock};
use crate::driven::Driven;
use crate::{Callbacks, StoredValues, ToolTable};

/// What an item of output counts beyond its bytes, so that empty items have an
/// end too.
const ITEM_OVERHEAD: usize = 64;

/// Why a cell's JavaScript was made to stop. The first reason stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// `exit()`.
    Exit,
    /// Asked for from outside.
    Terminated,
    /// A limit.
    Limit(LimitExceeded),
}

/// State of one cell that both its isolate's thread and its actor touch.
pub(crate) struct CellShared {
    pub(crate) limits: Arc<Limits>,
    stop: OnceLock<Stop>,
    /// Set when the cell gets its isolate.
    isolate: OnceLock<Placed>,
    output: Mutex<Output>,
    /// Notifications that have no answer yet.
    pub(crate) pending_notifications: AtomicUsize,
    /// Bytes of tool inputs and notifications that are on their way; they are
    /// the cell's memory too.
    pub(crate) bytes_in_flight: AtomicUsize,
    /// A yield is on its way to the actor, so that another without output in
    /// between says nothing new.
    pub(crate) yield_in_flight: AtomicBool,
}

/// Where a cell runs.
struct Placed {
    isolate: v8::IsolateHandle,
    clock: Option<ThreadClock>,
    /// What the thread had used before the cell.
    cpu_at_start: Duration,
}

#[derive(Default)]
struct Output {
    items: Vec<ContentItem>,
    bytes: usize,
    /// Items taken so far; an item's number is `taken` plus its place.
    taken: u64,
}

impl CellShared {
    pub(crate) fn new(limits: Arc<Limits>) -> Self {
        Self {
            limits,
            stop: OnceLock::new(),
            isolate: OnceLock::new(),
            output: Mutex::default(),
            pending_notifications: AtomicUsize::new(0),
            bytes_in_flight: AtomicUsize::new(0),
            yield_in_flight: AtomicBool::new(false),
        }
    }

    /// Makes the cell stop, if nothing has yet; from any thread.
    pub(crate) fn stop(&self, reason: Stop) {
        if self.stop.set(reason).is_ok()
            && let Some(isolate) = self.isolate()
        {
            isolate.terminate_execution();
        }
    }

    /// Why the cell was made to stop.
    pub(crate) fn stopped(&self) -> Option<Stop> {
        self.stop.get().copied()
    }

    /// Tells where the cell runs. A stop that came before is noticed by
    /// [`stopped`](Self::stopped), which is to be asked after this.
    pub(crate) fn set_isolate(&self, isolate: v8::IsolateHandle) {
        let _ = self.isolate.set(Placed {
            isolate,
            clock: ThreadClock::of_this_thread(),
            cpu_at_start: cpu::thread_time(),
        });
    }

    /// The isolate, once the cell has one.
    pub(crate) fn isolate(&self) -> Option<&v8::IsolateHandle> {
        self.isolate.get().map(|placed| &placed.isolate)
    }

    /// The processor time of the cell so far, if it can be read from here.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        let placed = self.isolate.get()?;
        Some(placed.clock?.time().saturating_sub(placed.cpu_at_start))
    }

    /// The processor time of the cell so far, read on its own thread.
    pub(crate) fn own_cpu_time(&self) -> Duration {
        let started = self.isolate.get().map(|placed| placed.cpu_at_start);
        cpu::thread_time().saturating_sub(started.unwrap_or(Duration::MAX))
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds items, all or none.
    pub(crate) fn put_out(&self, items: Vec<ContentItem>) -> Result<(), LimitExceeded> {
        let mut output = self.output();
        let more: usize = items.iter().map(|i| i.bytes() + ITEM_OVERHEAD).sum();
        self.check_output(output.bytes, more)?;
        output.bytes += more;
        output.items.extend(items);
        Ok(())
    }

    /// Whether `bytes` more could be put out; asked before they are copied.
    pub(crate) fn may_put_out(&self, bytes: usize) -> Result<(), LimitExceeded> {
        self.check_output(self.output().bytes, bytes)
    }

    fn check_output(&self, held: usize, more: usize) -> Result<(), LimitExceeded> {
        let max = self.limits.max_output_bytes;
        if held.saturating_add(more) > max.saturating_add(ITEM_OVERHEAD) {
            return Err(Limit::Output.exceeded(max as u64));
        }
        Ok(())
    }

    /// The number of the next item.
    pub(crate) fn output_mark(&self) -> u64 {
        let output = self.output();
        output.taken + output.items.len() as u64
    }

    /// Takes the items numbered below `mark`, or all.
    pub(crate) fn take_output(&self, mark: Option<u64>) -> Vec<ContentItem> {
        let mut output = self.output();
        let count = match mark {
            Some(mark) => usize::try_from(mark.saturating_sub(output.taken))
                .map_or(output.items.len(), |n| n.min(output.items.len())),
            None => output.items.len(),
        };
        let rest = output.items.split_off(count);
        let taken = std::mem::replace(&mut output.items, rest);
        output.taken += count as u64;
        output.bytes -= taken
            .iter()
            .map(|i| i.bytes() + ITEM_OVERHEAD)
            .sum::<usize>();
        taken
    }

    /// Counts bytes that leave the cell for its delegate.
    pub(crate) fn send_bytes(&self, bytes: usize) -> Result<(), LimitExceeded> {
        let held = self.bytes_in_flight.fetch_add(bytes, Ordering::Relaxed);
        let max = self.limits.heap_bytes();
        if held.saturating_add(bytes) > max {
            return Err(Limit::Heap.exceeded(max as u64));
        }
        Ok(())
    }

    /// Counts them back once their call has its answer.
    pub(crate) fn bytes_arrived(&self, bytes: usize) {
        self.bytes_in_flight.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// From the isolate's thread to the actor.
#[derive(Debug)]
pub(crate) enum Event {
    /// The cell's JavaScript is about to run.
    Started,
    /// Its first turn is over: it waits for something.
    Waiting,
    /// `tools.x(input)`.
    ToolCall {
        id: RuntimeToolCallId,
        tool: u32,
        input: Option<String>,
    },
    /// `notify(text)`.
    Notify(String),
    /// `yield_control()`, with the number of the next item of output.
    Yield(u64),
    /// In pending mode: no immediately runnable work is left.
    Frozen(Vec<RuntimeToolCallId>),
    /// The JavaScript has ended and will not run again.
    Ended(End),
}

/// How a cell's JavaScript ended.
#[derive(Debug)]
pub(crate) struct End {
    /// Its uncaught error.
    pub(crate) error: Option<ScriptError>,
    /// What it stored: key and JSON text.
    pub(crate) writes: Vec<(String, Arc<str>)>,
}

/// An uncaught error.
#[derive(Debug)]
pub(crate) struct ScriptError {
    pub(crate) text: String,
    pub(crate) position: Option<SourcePosition>,
}

/// From the actor to the isolate's thread.
#[derive(Debug)]
pub(crate) enum Command {
    /// A tool answered: JSON text, or the error.
    ToolAnswer {
        id: RuntimeToolCallId,
        result: Result<String, String>,
    },
    /// Let in what came, and freeze again when there is no more work.
    Resume,
    /// Never freeze (again).
    RunFreely,
    /// The cell was [stopped](CellShared::stop); look.
    Stop,
}

/// One cell to run.
pub(crate) struct Job {
    pub(crate) source: String,
    pub(crate) tools: Arc<ToolTable>,
    pub(crate) stored: StoredValues,
    pub(crate) shared: Arc<CellShared>,
    pub(crate) events: UnboundedSender<Event>,
    /// Who takes the events.
    pub(crate) actor: Arc<Driven>,
    pub(crate) callbacks: Arc<dyn Callbacks>,
    pub(crate) commands: mpsc::Receiver<Command>,
    /// Whether to freeze when there is no work.
    pub(crate) to_pending: bool,
    /// The cell's span, entered while its JavaScript runs.
    pub(crate) span: tracing::Span,
}
