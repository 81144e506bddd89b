//! One cell, as its thread and the worker's I/O share it.
//!
//! The thread that runs a cell's JavaScript is the cell's actor: it takes commands
//! from its mailbox between two turns, and says itself what the cell does. Only what
//! must work while JavaScript is busy is done from outside, by way of the lock and
//! the flags here: collecting output, and stopping the cell.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use code_mode_protocol::wire::frame::Frame;
use code_mode_protocol::wire::native::{
    CallIds, CellEnd, FromWorker, MAX_PARTS, Parts, Resumed, ToolFailure, Used,
};
use code_mode_protocol::wire::outbound::Outbound;
use code_mode_protocol::{
    ContentItem, Determinism, Limit, LimitExceeded, Limits, RuntimeToolCallId, SourcePosition,
};

use crate::cpu::{self, ThreadClock};
use crate::shapes::Shapes;
use crate::stopped_at::note_and_terminate;
use crate::worker::{Clock, Due, Session};
use crate::{StoredValues, tools::ToolTable};

/// What an item of output counts beyond its bytes, so that empty items have an end
/// too.
const ITEM_OVERHEAD: usize = 64;

/// How much of small output goes into one message.
const MESSAGE_BYTES: usize = 1 << 20;

/// How long after a cell was stopped by a limit its thread may still run before the
/// worker reports it as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// How long after it had to stop a cell may run in a worker whose host is not trusted with the
/// machine: such a host may leave a cell running that V8 cannot interrupt.
const GONE_AFTER: Duration = Duration::from_secs(5);

/// How much longer an observation lasts that would end within the first turn of its
/// cell: what a program puts out at once is seen at once, however busy the machine.
const FIRST_TURN_GRACE: Duration = Duration::from_millis(50);

/// How long a limit waits for the line that it stops.
const NOTED_WITHIN: Duration = Duration::from_millis(50);

/// Why a cell's JavaScript was made to stop. The first reason stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// `exit()`, with its status: 0 but in guided sessions.
    Exit(u8),
    /// The host asked for it.
    Terminated,
    /// A limit.
    Limit(LimitExceeded),
}

/// State of one cell that both its thread and the worker's I/O touch.
pub(crate) struct CellShared {
    me: Weak<Self>,
    /// Its number in the session.
    pub(crate) number: u64,
    pub(crate) limits: Arc<Limits>,
    outbound: Outbound,
    clock: Arc<Clock>,
    /// The mailbox of the cell's thread.
    commands: mpsc::Sender<Command>,
    stop: OnceLock<Stop>,
    /// In a guided session the line at which a limit stopped the cell is noted.
    is_guided: bool,
    stopped_at: OnceLock<SourcePosition>,
    /// Set when the cell gets its isolate.
    placed: OnceLock<Placed>,
    output: Mutex<Output>,
    paused: Mutex<Paused>,
    /// Notifications that were not delivered yet.
    pending_notifications: AtomicUsize,
    /// Bytes of tool inputs and notifications that are on their way; they are the
    /// cell's memory too.
    bytes_in_flight: AtomicUsize,
    /// Bytes of tools' answers that the cell has not let in; they are its memory too.
    answers_waiting: AtomicUsize,
    created: Instant,
    peak_heap: AtomicUsize,
    /// Lengths of the notifications that were not delivered yet, oldest first.
    notified: Mutex<std::collections::VecDeque<usize>>,
    /// Notifications that a cell which runs again makes again, and that the host has.
    notified_before: AtomicU64,
    /// How much of the wall time was over when the cell was resumed.
    wall_before: Duration,
}

/// Where and since when a cell runs.
struct Placed {
    isolate: v8::IsolateHandle,
    clock: Option<ThreadClock>,
    /// What the thread had used before the cell.
    cpu_at_start: Duration,
    started: Instant,
}

/// For how long a cell's wall time stood still.
#[derive(Default)]
struct Paused {
    since: Option<Instant>,
    /// Before that.
    before: Duration,
}

struct Output {
    items: Vec<ContentItem>,
    bytes: usize,
    /// Anything was ever put out.
    has_any: bool,
    /// Items that a cell which runs again puts out again, and that the host has.
    put_out_before: u64,
    /// The observation that the next yield ends.
    observation: Option<u64>,
    /// An observation to end once the cell has run for so long; it was requested
    /// before the cell had an isolate.
    collect_after: Option<Duration>,
    in_first_turn: bool,
    /// The observation is over at the end of the first turn.
    overdue: bool,
    ended: bool,
}

impl CellShared {
    /// A cell with its first observation.
    pub(crate) fn new(
        number: u64,
        limits: Arc<Limits>,
        outbound: Outbound,
        clock: Arc<Clock>,
        commands: mpsc::Sender<Command>,
        is_guided: bool,
        resumed: Option<Resumed>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            number,
            limits,
            outbound,
            clock,
            commands,
            stop: OnceLock::new(),
            is_guided,
            stopped_at: OnceLock::new(),
            placed: OnceLock::new(),
            output: Mutex::new(Output {
                items: Vec::new(),
                bytes: 0,
                has_any: false,
                put_out_before: resumed.map_or(0, |resumed| resumed.items),
                observation: Some(1),
                collect_after: None,
                in_first_turn: true,
                overdue: false,
                ended: false,
            }),
            paused: Mutex::default(),
            pending_notifications: AtomicUsize::new(0),
            bytes_in_flight: AtomicUsize::new(0),
            answers_waiting: AtomicUsize::new(0),
            created: Instant::now(),
            peak_heap: AtomicUsize::new(0),
            notified: Mutex::default(),
            notified_before: AtomicU64::new(resumed.map_or(0, |resumed| resumed.notifications)),
            wall_before: resumed.map_or(Duration::ZERO, |resumed| resumed.wall),
        })
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message of the cell.
    pub(crate) fn send(&self, message: FromWorker) {
        // Every text was measured against the frame limit before.
        if let Ok(frame) = message.encode() {
            self.outbound.send(frame);
        }
    }

    fn due_at(&self, at: Instant, due: Due) {
        self.clock.at(at, self.me.clone(), due);
    }

    // Stopping.

    /// Makes the cell stop, if nothing has yet; from any thread.
    pub(crate) fn stop(&self, reason: Stop) {
        if self.stop.set(reason).is_err() {
            return;
        }
        let now = Instant::now();
        match (self.isolate(), reason) {
            (Some(isolate), Stop::Limit(_)) if self.is_guided => {
                note_and_terminate(isolate, self);
                self.due_at(now + NOTED_WITHIN, Due::Terminate);
            }
            (Some(isolate), _) => {
                isolate.terminate_execution();
            }
            (None, _) => {}
        }
        // A cell that waits looks when a command comes.
        self.command(Command::Stop);
        if let Stop::Limit(limit) = reason {
            self.due_at(now + STUCK_AFTER, Due::Stuck(limit));
        }
        self.due_at(now + GONE_AFTER, Due::Gone);
    }

    /// Notes the line at which a limit stopped the cell; the first one stands.
    pub(crate) fn set_stopped_at(&self, at: SourcePosition) {
        let _ = self.stopped_at.set(at);
    }

    /// The line at which a limit stopped the cell, where it is known.
    pub(crate) fn stopped_at(&self) -> Option<SourcePosition> {
        self.stopped_at.get().copied()
    }

    /// Gives the cell's thread a command. Where the thread is done the command is for
    /// nobody: it crossed the cell's end on its way.
    pub(crate) fn command(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Why the cell was made to stop.
    pub(crate) fn stopped(&self) -> Option<Stop> {
        self.stop.get().copied()
    }

    /// The cell has an isolate and begins. A stop that came before this is noticed
    /// by [`stopped`](Self::stopped), which must be called after this.
    pub(crate) fn begin(&self, isolate: v8::IsolateHandle) {
        let started = Instant::now();
        let _ = self.placed.set(Placed {
            isolate,
            clock: ThreadClock::of_this_thread(),
            cpu_at_start: cpu::thread_time(),
            started,
        });
        if let Some(limit) = self.limits.max_cpu_time
            && let Some(at) = started.checked_add(limit)
        {
            self.due_at(at, Due::CpuTime);
        }
        if let Some(limit) = self.limits.max_wall_time
            && let Some(at) = started.checked_add(limit)
        {
            self.due_at(at, Due::WallTime);
        }
        let output = self.output();
        if let (Some(observation), Some(after)) = (output.observation, output.collect_after)
            && let Some(at) = started.checked_add(after)
        {
            self.due_at(at, Due::Collect(observation));
        }
    }

    /// Stops the clock of the wall time, or restarts it.
    pub(crate) fn pause(&self, paused: bool) {
        let mut state = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        match (paused, state.since) {
            (true, None) => state.since = Some(Instant::now()),
            (false, Some(since)) => {
                state.since = None;
                state.before += since.elapsed();
                drop(state);
                // Deadlines that passed meanwhile move.
                if let Some(at) = self.wall_time_ends() {
                    self.due_at(at, Due::WallTime);
                }
            }
            _ => {}
        }
    }

    /// When the wall time is over; `None` while it stands still or has no end.
    fn wall_time_ends(&self) -> Option<Instant> {
        let limit = self.limits.max_wall_time?;
        let started = self.placed.get()?.started;
        let paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        match paused.since {
            Some(_) => None,
            None => started
                .checked_add(limit.saturating_sub(self.wall_before))?
                .checked_add(paused.before),
        }
    }

    /// Whether the wall time is over. Where a pause has put the end off, it is due again.
    pub(crate) fn wall_time_is_over(&self) -> bool {
        match self.wall_time_ends() {
            None => false,
            Some(at) if at <= Instant::now() => true,
            Some(at) => {
                self.due_at(at, Due::WallTime);
                false
            }
        }
    }

    /// The isolate, once the cell has one.
    pub(crate) fn isolate(&self) -> Option<&v8::IsolateHandle> {
        self.placed.get().map(|placed| &placed.isolate)
    }

    /// The processor time of the cell so far, if it can be read from here.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        let placed = self.placed.get()?;
        Some(placed.clock?.time().saturating_sub(placed.cpu_at_start))
    }

    /// The processor time of the cell so far, read on its own thread.
    pub(crate) fn own_cpu_time(&self) -> Duration {
        let started = self.placed.get().map(|placed| placed.cpu_at_start);
        cpu::thread_time().saturating_sub(started.unwrap_or(Duration::MAX))
    }

    /// Whether the cell has reported its end.
    pub(crate) fn has_ended(&self) -> bool {
        self.output().ended
    }

    /// Reports the cell as stuck, if it still runs.
    pub(crate) fn report_stuck(&self, limit: LimitExceeded) {
        // Locked until it is sent: a cell's end must be its last message.
        let output = self.output();
        if !output.ended {
            let cell = self.number;
            self.send(FromWorker::Stuck { cell, limit });
        }
    }

    // Output and observations.

    /// Adds items, all or none.
    pub(crate) fn put_out(&self, mut items: Vec<ContentItem>) -> Result<(), LimitExceeded> {
        let mut output = self.output();
        output.has_any |= !items.is_empty();
        if output.put_out_before > 0 {
            let known = items
                .len()
                .min(usize::try_from(output.put_out_before).unwrap_or(usize::MAX));
            output.put_out_before -= known as u64;
            items.drain(..known);
        }
        let more: usize = items.iter().map(|i| i.bytes() + ITEM_OVERHEAD).sum();
        self.check_output(output.bytes, more)?;
        output.bytes += more;
        output.items.extend(items);
        Ok(())
    }

    /// Whether anything was put out so far, observed or not.
    pub(crate) fn has_output(&self) -> bool {
        self.output().has_any
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

    /// The host observes the cell.
    pub(crate) fn observe(&self, observation: u64) {
        let mut output = self.output();
        if output.ended {
            // The message crossed the cell's end, which answers the observer.
            return;
        }
        output.observation = Some(observation);
        output.overdue = false;
        output.collect_after = None;
    }

    /// The host wants what there is, once the cell has run for `after`.
    pub(crate) fn collect(&self, observation: u64, after: Duration) {
        let mut output = self.output();
        if output.ended || output.observation != Some(observation) {
            // It ended by itself meanwhile.
            return;
        }
        match self.placed.get() {
            None if after.is_zero() => self.end_observation(&mut output, None),
            None => output.collect_after = Some(after),
            Some(placed) => {
                let at = placed.started.checked_add(after);
                match at {
                    Some(at) if at > Instant::now() => {
                        self.due_at(at, Due::Collect(observation));
                    }
                    // A caller that asks for a yield now gets it now.
                    _ if after.is_zero() => self.end_observation(&mut output, None),
                    _ => self.collect_now(output, observation),
                }
            }
        }
    }

    /// The time of an observation is over.
    pub(crate) fn collect_due(&self, observation: u64) {
        let output = self.output();
        self.collect_now(output, observation);
    }

    fn collect_now(&self, mut output: MutexGuard<'_, Output>, observation: u64) {
        if output.observation != Some(observation) {
            return;
        }
        if output.in_first_turn && !output.overdue {
            output.overdue = true;
            let at = Instant::now() + FIRST_TURN_GRACE;
            self.due_at(at, Due::Collect(observation));
        } else {
            self.end_observation(&mut output, None);
        }
    }

    /// `yield_control()`
    pub(crate) fn yield_control(&self) {
        self.end_observation(&mut self.output(), None);
    }

    /// The cell waits for something, for the first time.
    pub(crate) fn first_turn_ended(&self) {
        let mut output = self.output();
        output.in_first_turn = false;
        if output.overdue {
            self.end_observation(&mut output, None);
        }
    }

    /// The cell has no immediately runnable work and lets nothing in.
    pub(crate) fn frozen(&self, mut calls: Vec<RuntimeToolCallId>) {
        calls.truncate(CallIds::MAX);
        self.end_observation(&mut self.output(), Some(calls));
    }

    /// Ends the observation, if there is one, with all output. The output stays
    /// locked meanwhile, so that messages go out in the order of what they tell.
    fn end_observation(&self, output: &mut Output, frozen: Option<Vec<RuntimeToolCallId>>) {
        let Some(observation) = output.observation.take() else {
            return;
        };
        if output.ended {
            return;
        }
        output.overdue = false;
        output.collect_after = None;
        let cell = self.number;
        let (mut frames, items) = self.parts(output);
        let observed = FromWorker::Observed {
            cell,
            observation,
            items,
            frozen: frozen.map(Into::into),
        };
        frames.extend(observed.encode().ok());
        self.outbound.send_all(frames);
    }

    /// All output: messages with most of it, and the rest.
    fn parts(&self, output: &mut Output) -> (Vec<Frame>, Parts<ContentItem>) {
        output.bytes = 0;
        let cell = self.number;
        let mut frames = Vec::new();
        let items = in_parts(
            std::mem::take(&mut output.items),
            |item| item.bytes() + ITEM_OVERHEAD,
            |items| frames.extend(FromWorker::Output { cell, items }.encode().ok()),
        );
        (frames, items)
    }

    /// So much of the heap is in use.
    pub(crate) fn heap_used(&self, bytes: usize) {
        self.peak_heap.fetch_max(bytes, Ordering::Relaxed);
    }

    /// The cell's use of resources; call it on the cell's thread.
    fn used(&self) -> Used {
        let Some(placed) = self.placed.get() else {
            return Used {
                queued: self.created.elapsed(),
                ..Used::default()
            };
        };
        Used {
            processor: self.own_cpu_time(),
            queued: placed.started.saturating_duration_since(self.created),
            peak_heap_bytes: self.peak_heap.load(Ordering::Relaxed) as u64,
        }
    }

    /// The cell's JavaScript has ended and will not run again. Sends its last output
    /// and how it ended, after the messages in `before`.
    pub(crate) fn end(&self, before: Vec<Frame>, end: CellEnd) {
        let cell = self.number;
        let mut output = self.output();
        if std::mem::replace(&mut output.ended, true) {
            return;
        }
        output.observation = None;
        let mut frames = before;
        let (more, items) = self.parts(&mut output);
        frames.extend(more);
        let used = self.used();
        let ended = FromWorker::Ended {
            cell,
            items,
            end,
            used,
        };
        frames.extend(ended.encode().ok());
        self.outbound.send_all(frames);
    }

    // Callbacks.

    /// A notification leaves the cell, of so many bytes.
    pub(crate) fn notification_sent(&self, bytes: usize) {
        self.pending_notifications.fetch_add(1, Ordering::Relaxed);
        self.notified
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(bytes);
    }

    /// The oldest notification was delivered.
    pub(crate) fn notification_delivered(&self) {
        let oldest = self
            .notified
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        if let Some(bytes) = oldest {
            self.pending_notifications.fetch_sub(1, Ordering::Relaxed);
            self.bytes_arrived(bytes);
        }
    }

    /// Whether the host has the next notification, of a cell that runs again.
    pub(crate) fn is_notified_already(&self) -> bool {
        let less = |left: u64| left.checked_sub(1);
        let ordering = Ordering::Relaxed;
        self.notified_before
            .fetch_update(ordering, ordering, less)
            .is_ok()
    }

    /// Notifications that were not delivered yet.
    pub(crate) fn pending_notifications(&self) -> usize {
        self.pending_notifications.load(Ordering::Relaxed)
    }

    /// A tool answered. The answer waits until the cell lets it in; a cell that lets
    /// nothing in may have as much waiting as its heap may have.
    pub(crate) fn answer(&self, call: RuntimeToolCallId, result: Result<String, ToolFailure>) {
        let bytes = answer_bytes(&result);
        let waiting = self.answers_waiting.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let max = self.limits.heap_bytes();
        if waiting > max {
            self.stop(Stop::Limit(Limit::Heap.exceeded(max as u64)));
        } else {
            self.command(Command::ToolAnswer { call, result });
        }
    }

    /// The cell lets an answer of so many bytes in.
    pub(crate) fn answer_let_in(&self, bytes: usize) {
        self.answers_waiting.fetch_sub(bytes, Ordering::Relaxed);
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

/// Cuts a list into messages of bounded size; `send` takes all but the last.
pub(crate) fn in_parts<T>(
    list: Vec<T>,
    bytes_of: impl Fn(&T) -> usize,
    mut send: impl FnMut(Parts<T>),
) -> Parts<T> {
    let mut part = Vec::new();
    let mut bytes = 0_usize;
    let fits =
        list.len() <= MAX_PARTS && list.iter().map(&bytes_of).sum::<usize>() <= MESSAGE_BYTES;
    if fits {
        return list.into();
    }
    for element in list {
        let more = bytes_of(&element);
        if !part.is_empty() && (part.len() == MAX_PARTS || bytes + more > MESSAGE_BYTES) {
            send(std::mem::take(&mut part).into());
            bytes = 0;
        }
        bytes += more;
        part.push(element);
    }
    part.into()
}

/// An uncaught error.
#[derive(Debug)]
pub(crate) struct ScriptError {
    pub(crate) text: String,
    pub(crate) position: Option<SourcePosition>,
}

/// The bytes of a tool's answer.
pub(crate) fn answer_bytes(answer: &Result<String, ToolFailure>) -> usize {
    match answer {
        Ok(json) => json.len(),
        Err(failure) => failure.bytes(),
    }
}

/// From the worker's I/O to the cell's thread.
#[derive(Debug)]
pub(crate) enum Command {
    /// A tool answered: JSON text, or the error.
    ToolAnswer {
        call: RuntimeToolCallId,
        result: Result<String, ToolFailure>,
    },
    /// Take the answers that came, and freeze again when the work is done.
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
    /// Globals besides the usual ones: name and JSON text.
    pub(crate) constants: Vec<(String, String)>,
    /// Where time and randomness come from, if not from the machine.
    pub(crate) determinism: Option<Determinism>,
    /// Whether it continues after the recorded turns.
    pub(crate) resumes: bool,
    /// As [`Resumed::thaws`].
    pub(crate) thaws: bool,
    /// It says that it is idle after so long without work.
    pub(crate) idle_after: Option<Duration>,
    /// In a guided session: what its tools' results looked like.
    pub(crate) guided: Option<Arc<Mutex<Shapes>>>,
    pub(crate) stored: StoredValues,
    pub(crate) shared: Arc<CellShared>,
    pub(crate) commands: mpsc::Receiver<Command>,
    /// Whether to freeze when the cell is idle.
    pub(crate) to_pending: bool,
    /// The cell's span, entered while its JavaScript runs.
    pub(crate) span: tracing::Span,
    pub(crate) end: EndOfJob,
}

/// Ends a cell in its session, also where its thread panics or is never made.
pub(crate) struct EndOfJob {
    session: Arc<Session>,
    shared: Arc<CellShared>,
}

impl EndOfJob {
    pub(crate) fn new(session: Arc<Session>, shared: Arc<CellShared>) -> Self {
        Self { session, shared }
    }

    /// The JavaScript has ended like this and stored these values.
    pub(crate) fn report(&self, end: CellEnd, writes: Vec<(Arc<str>, Arc<str>)>) {
        self.session.ended(&self.shared, end, writes);
    }
}

impl Drop for EndOfJob {
    fn drop(&mut self) {
        // Where the end was reported already, this says nothing more.
        self.shared.end(
            Vec::new(),
            CellEnd::Failed {
                text: "the cell's thread ended unexpectedly".to_owned(),
                position: None,
            },
        );
        self.session.gone(self.shared.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_into_parts_that_are_neither_too_long_nor_too_large() {
        let sizes = vec![1; 3 * MAX_PARTS + 1];
        let mut sent: Vec<usize> = Vec::new();
        let last = in_parts(sizes, |size| *size, |part| sent.push(part.as_slice().len()));
        assert_eq!((sent, last.as_slice().len()), (vec![MAX_PARTS; 3], 1));

        let sizes = vec![
            MESSAGE_BYTES / 2,
            MESSAGE_BYTES / 2,
            1,
            9 * MESSAGE_BYTES,
            1,
        ];
        let mut sent = Vec::new();
        let last = in_parts(sizes, |size| *size, |part| sent.push(part.into_vec()));
        assert_eq!(sent.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1]);
        assert_eq!(last.into_vec(), [1]);
    }
}
