//! One cell in its isolate, on its thread: from source to end.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use code_mode_protocol::wire::native::{CellEnd, FromWorker, least_rest};
use code_mode_protocol::{Turn, TurnCause};

use crate::bootstrap;
use crate::cell::{Command, Job, ScriptError, Stop, answer_bytes};
use crate::determinism::Source;
use crate::engine::ReadyIsolate;
use crate::forgotten::{self, rejected, say_what_was_forgotten, say_what_was_rejected};
use crate::guide::Guide;
use crate::heap_guard::HeapGuard;
use crate::module::{evaluate, import_dynamically};
use crate::natives::{self, CellState};
use crate::stopped_at::InterruptedIn;

/// Runs a cell to its end and reports it. The isolate is used up. `waits` is called
/// when the cell first waits for something, if it does.
pub(crate) fn run(ready: ReadyIsolate, job: Job, waits: &dyn Fn()) {
    let ReadyIsolate {
        context,
        internals,
        mut isolate,
        heap_bytes: _,
    } = ready;
    let shared = job.shared.clone();
    let _span = job.span.clone().entered();
    let heap = HeapGuard::install(&mut isolate, &shared);
    shared.begin(isolate.thread_safe_handle());
    let state = Rc::new(CellState::new(
        shared.clone(),
        job.tools,
        internals,
        job.stored,
        job.guided,
        job.determinism
            .map(|determinism| Source::new(determinism, job.resumes)),
    ));
    isolate.set_slot(state.clone());
    isolate.set_host_import_module_dynamically_callback(import_dynamically);
    if state.guided.is_some() {
        isolate.set_promise_reject_callback(rejected);
        isolate.set_slot(InterruptedIn(context.clone()));
    }
    let outcome = {
        v8::scope!(let scope, &mut isolate);
        let context = v8::Local::new(scope, &context);
        let scope = &mut v8::ContextScope::new(scope, context);
        if state.guided.is_some() {
            install_guided(scope, context);
        }
        if state.source.is_some() {
            natives::call_internal(scope, "determine");
        }
        install_constants(scope, context, &job.constants);
        Run {
            state: &state,
            commands: &job.commands,
            freezing: job.to_pending,
            thaws: job.thaws,
            idle_after: job.idle_after,
            held: VecDeque::new(),
            waits: Some(waits),
            lingers_until: None,
        }
        .run_to_end(scope, &job.source)
        .inspect(|()| match shared.stopped() {
            None if state.guided.is_some() && state.diverged.borrow().is_none() => {
                say_what_was_forgotten(scope, &state, &job.source);
            }
            // Calls and timers were left on purpose.
            Some(Stop::Exit(_)) if state.guided.is_some() => {
                scope.cancel_terminate_execution();
                say_what_was_rejected(scope, &state, &job.source);
            }
            _ => {}
        })
    };
    let outcome = outcome.map_err(|error| explained(&state, &job.source, error));
    let end = match (shared.stopped(), outcome) {
        (Some(Stop::Terminated), _) => CellEnd::Terminated,
        (Some(Stop::Limit(limit)), _) => CellEnd::Limit {
            limit,
            position: shared.stopped_at(),
        },
        (stopped, outcome) => match (difference(&state), stopped, outcome) {
            (Some(text), ..) => CellEnd::Diverged { text },
            (None, Some(Stop::Exit(status)), _) => CellEnd::Exited { status },
            (None, _, Ok(())) => CellEnd::Completed,
            (None, _, Err(error)) => error.into(),
        },
    };
    let statistics = isolate.get_heap_statistics();
    shared.heap_used(statistics.used_heap_size() + statistics.external_memory());
    job.end.report(end, state.take_writes());
    // The kernel may have put the thread that waits for the answer behind this one,
    // which would run on for most of a millisecond.
    std::thread::yield_now();
    // Handles into the heap go before the heap.
    isolate.remove_slot::<Rc<CellState>>();
    isolate.remove_slot::<InterruptedIn>();
    drop(state);
    drop(context);
    drop(isolate);
    // V8 may collect garbage on the way out, and then looks at this.
    drop(heap);
    // The session may count the cell out now: nothing of it is left.
    drop(job.end);
}

/// Gives a context the globals of guided sessions, which are made when first read.
fn install_guided(scope: &mut v8::PinScope, context: v8::Local<v8::Context>) {
    let global = context.global(scope);
    for name in bootstrap::GUIDED_GLOBALS {
        if let Some(name) = v8::String::new(scope, name) {
            global.set_lazy_data_property(scope, name.into(), natives::lazy_global);
        }
    }
    natives::call_internal(scope, "guide");
}

/// What a cell that runs again did differently from its recorded turns, if anything.
fn difference(state: &CellState) -> Option<String> {
    let source = state.source.as_ref()?;
    if let Some(text) = state.diverged.take() {
        return Some(text);
    }
    source.is_resuming().then(|| match source.next_turn() {
        Some(Turn { cause, .. }) => {
            format!("it continued by {}, and now it has ended", words(cause))
        }
        None => "it has ended before it was live".to_owned(),
    })
}

/// The cause of a turn, for a person.
fn words(cause: TurnCause) -> String {
    match cause {
        TurnCause::Answer(call) => format!("the answer to {call}"),
        TurnCause::Timer(id) => format!("timer {id}"),
    }
}

/// An error with its line, and with help.
pub(crate) fn explained(state: &CellState, source: &str, error: ScriptError) -> ScriptError {
    let Some(shapes) = &state.guided else {
        return error;
    };
    let shapes = shapes.lock().unwrap_or_else(PoisonError::into_inner);
    let guide = Guide {
        source,
        tools: &state.tools,
        shapes: &shapes,
    };
    guide.explain(error)
}

/// Gives a context the values that its caller wants there. One that V8 cannot parse is
/// left out; the host has checked them all.
fn install_constants(
    scope: &mut v8::PinScope,
    context: v8::Local<v8::Context>,
    constants: &[(String, String)],
) {
    let global = context.global(scope);
    for (name, json) in constants {
        if let Some(name) = v8::String::new(scope, name)
            && let Some(json) = v8::String::new(scope, json)
            && let Some(value) = v8::json::parse(scope, json)
        {
            global.create_data_property(scope, name.into(), value);
        }
    }
}

/// A cell while it runs.
struct Run<'a> {
    state: &'a CellState,
    commands: &'a Receiver<Command>,
    /// Whether to freeze when no work is left.
    freezing: bool,
    /// It was frozen when it ran before, and does not stay so.
    thaws: bool,
    /// It says that it is idle after so long without work.
    idle_after: Option<Duration>,
    /// What came while frozen.
    held: VecDeque<Command>,
    /// To be called at the first wait.
    waits: Option<&'a dyn Fn()>,
    /// The module has ended, and calls that it did not wait for have until then.
    lingers_until: Option<Instant>,
}

/// How long calls that a program forgot to wait for may take after its end: as long as the
/// first observation of a cell takes by default.
const LINGER: Duration = Duration::from_secs(10);

/// What to do after waiting.
enum Next {
    /// Let JavaScript run.
    Work,
    /// The cell was stopped, or all senders are gone.
    Over,
}

impl Run<'_> {
    /// Runs the module until its promise settles or the cell is stopped.
    fn run_to_end(&mut self, scope: &mut v8::PinScope, source: &str) -> Result<(), ScriptError> {
        if self.state.shared.stopped().is_some() {
            return Ok(());
        }
        self.may_go_live();
        let promise = evaluate(scope, self.state, source)?;
        let Some(promise) = promise else {
            return Ok(());
        };
        let promise = v8::Local::new(scope, promise);
        loop {
            settle(scope);
            if self.state.shared.stopped().is_some() {
                return Ok(());
            }
            if let Some(error) = self.state.failed.take() {
                let error = v8::Local::new(scope, error);
                return Err(natives::error_text(scope, error));
            }
            match promise.state() {
                v8::PromiseState::Fulfilled if self.lingers(source) => {}
                v8::PromiseState::Fulfilled => return Ok(()),
                v8::PromiseState::Rejected => {
                    let reason = promise.result(scope);
                    return Err(natives::error_text(scope, reason));
                }
                v8::PromiseState::Pending => {}
            }
            if self.can_never_continue() {
                return Err(forgotten::never_continues(source));
            }
            match self.wait(scope)? {
                Next::Work => {}
                Next::Over => return Ok(()),
            }
        }
    }

    /// Ends the replay of a cell that continues, where its last recorded turn begins. Says so before
    /// the turn can do anything.
    fn may_go_live(&self) {
        let Some(source) = &self.state.source else {
            return;
        };
        if source.goes_live() {
            let mut timers = self.state.timers.borrow_mut();
            timers.set_clock(|due_ms| source.instant_of(due_ms));
            let cell = self.state.shared.number;
            self.state.shared.send(FromWorker::Live { cell });
        }
    }

    /// Whether nothing is left that could settle what the module waits for: no call and no timer.
    /// Only in guided sessions; on the wires of the Codex host such a cell waits to be terminated.
    fn can_never_continue(&self) -> bool {
        self.state.guided.is_some()
            && !self.freezing
            && self.held.is_empty()
            && self.state.calls.borrow().is_empty()
            && self.state.timers.borrow_mut().next_deadline().is_none()
    }

    /// Whether a module that has ended continues for the calls that it forgot to wait for: a
    /// payment that was sent is not taken back by the end of the program. Only in guided sessions;
    /// the wires of the Codex host end a cell with its module.
    fn lingers(&mut self, source: &str) -> bool {
        if self.state.guided.is_none() || self.freezing {
            return false;
        }
        if !forgotten::waits_for_forgotten(self.state, source) {
            return false;
        }
        if let Some(recorded) = self.state.source.as_ref().filter(|one| one.is_replayed()) {
            return recorded.next_turn().is_some();
        }
        let now = Instant::now();
        now < *self.lingers_until.get_or_insert(now + LINGER)
    }

    /// Waits for something to happen, and lets it in.
    fn wait(&mut self, scope: &mut v8::PinScope) -> Result<Next, ScriptError> {
        if let Some(waits) = self.waits.take() {
            waits();
            self.state.shared.first_turn_ended();
        }
        // The recorded turns are those that a frozen cell was let have.
        let is_resuming = self.state.source.as_ref().is_some_and(Source::is_resuming);
        if self.freezing && !is_resuming && !std::mem::take(&mut self.thaws) {
            let mut ids: Vec<_> = self.state.calls.borrow().keys().copied().collect();
            ids.sort();
            self.state.shared.frozen(ids);
            if let Next::Over = self.stay_frozen() {
                return Ok(Next::Over);
            }
        }
        if let Some(source) = &self.state.source
            && source.is_replayed()
        {
            return self.wait_as_it_was(scope, source);
        }
        let mut command = self.next_command(scope);
        let mut answered = false;
        loop {
            match command {
                Ok(Command::ToolAnswer { call, result }) => {
                    self.state.shared.answer_let_in(answer_bytes(&result));
                    self.tell_turn(TurnCause::Answer(call));
                    natives::answer(scope, self.state, call, result);
                    answered = true;
                    if self.state.source.is_some() {
                        // Each turn has one cause, so that it can be had again.
                        return Ok(Next::Work);
                    }
                }
                Ok(Command::RunFreely) => self.freezing = false,
                Ok(Command::Resume) => self.freezing = true,
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(Next::Over),
                Err(RecvTimeoutError::Timeout) => {
                    self.run_due_timers(scope)?;
                    return Ok(Next::Work);
                }
            }
            // Messages that are there already go in together, before the next turn.
            command = match self.held.pop_front() {
                Some(command) => Ok(command),
                None => match self.commands.try_recv() {
                    Ok(command) => Ok(command),
                    Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
                    Err(TryRecvError::Empty) if answered => return Ok(Next::Work),
                    Err(TryRecvError::Empty) => self.next_command(scope),
                },
            };
        }
    }

    /// Reports the turn, where the cell reports turns.
    fn tell_turn(&self, cause: TurnCause) {
        let Some(source) = &self.state.source else {
            return;
        };
        if source.is_replayed() {
            return;
        }
        let at_ms = source.begin_turn();
        self.state.shared.send(FromWorker::Turn {
            cell: self.state.shared.number,
            turn: Turn { at_ms, cause },
        });
    }

    /// Waits for the cause of the recorded turn. Where the replay differs, it
    /// continues without it.
    fn wait_as_it_was(
        &mut self,
        scope: &mut v8::PinScope,
        source: &Source,
    ) -> Result<Next, ScriptError> {
        loop {
            match source.next_turn().map(|turn| turn.cause) {
                Some(TurnCause::Timer(id)) => {
                    source.take_turn();
                    let callback = self.state.timers.borrow_mut().take(id, source.time());
                    if callback.is_none() && source.is_resuming() {
                        return Ok(self.diverged(TurnCause::Timer(id)));
                    }
                    self.may_go_live();
                    if let Some(callback) = callback {
                        self.run_timer(scope, callback)?;
                        return Ok(Next::Work);
                    }
                    continue;
                }
                Some(TurnCause::Answer(call)) if !self.state.calls.borrow().contains_key(&call) => {
                    if source.is_resuming() {
                        return Ok(self.diverged(TurnCause::Answer(call)));
                    }
                    source.skip_turn();
                    continue;
                }
                _ => {}
            }
            let wanted = source.next_turn();
            let is_wanted = |command: &Command| match (command, wanted.map(|turn| turn.cause)) {
                (Command::ToolAnswer { call, .. }, Some(TurnCause::Answer(wanted))) => {
                    *call == wanted
                }
                (_, None) => true,
                (other, _) => !matches!(other, Command::ToolAnswer { .. }),
            };
            let command = match self.held.iter().position(is_wanted) {
                Some(at) => self.held.remove(at),
                None if wanted.is_none() => match self.next_command(scope) {
                    Ok(command) => Some(command),
                    Err(RecvTimeoutError::Disconnected) => None,
                    Err(RecvTimeoutError::Timeout) => {
                        self.run_due_timers(scope)?;
                        return Ok(Next::Work);
                    }
                },
                None => self.commands.recv().ok(),
            };
            match command {
                Some(command) if !is_wanted(&command) => self.held.push_back(command),
                Some(Command::ToolAnswer { call, result }) => {
                    self.state.shared.answer_let_in(answer_bytes(&result));
                    source.take_turn();
                    self.may_go_live();
                    natives::answer(scope, self.state, call, result);
                    return Ok(Next::Work);
                }
                Some(Command::RunFreely) => self.freezing = false,
                Some(Command::Resume) => self.freezing = true,
                Some(Command::Stop) => return Ok(Next::Over),
                None => return Ok(Next::Over),
            }
        }
    }

    /// A recorded turn cannot begin.
    fn diverged(&self, cause: TurnCause) -> Next {
        let text = format!(
            "it continued by {}, and now it does not wait for that",
            words(cause)
        );
        self.state.diverged.replace(Some(text));
        Next::Over
    }

    /// The next command, or a timeout when a timer is due.
    fn next_command(&mut self, scope: &mut v8::PinScope) -> Result<Command, RecvTimeoutError> {
        if let Some(command) = self.held.pop_front() {
            return Ok(command);
        }
        let now = Instant::now();
        let timer = self.state.timers.borrow_mut().next_deadline();
        let timer = match self.lingers_until {
            Some(until) => Some(timer.map_or(until, |timer| timer.min(until))),
            None => timer,
        };
        let mut shrink_at = Some(now + SHRINK_AFTER);
        let mut idle_at = match self.lingers_until {
            Some(_) => None,
            None => self.is_idle_at(now),
        };
        loop {
            let next = [timer, shrink_at, idle_at].into_iter().flatten().min();
            match receive(self.commands, next) {
                Err(RecvTimeoutError::Timeout) => {}
                received => return received,
            }
            let now = Instant::now();
            let is_past = |at: &mut Instant| *at <= now;
            if timer.is_some_and(|at| at <= now) {
                return Err(RecvTimeoutError::Timeout);
            }
            if shrink_at.take_if(is_past).is_some() {
                shrink(scope);
            }
            if idle_at.take_if(is_past).is_some() {
                idle_at = self.is_idle_at(now);
                self.say_idle(timer.map(|at| at.saturating_duration_since(now)));
            }
        }
    }

    /// When a cell that waits from now on is idle, where somebody wants to know.
    fn is_idle_at(&self, now: Instant) -> Option<Instant> {
        now.checked_add(self.idle_after?)
    }

    /// Says that the cell has nothing to do before a timer that is due in so long.
    fn say_idle(&self, wakes_in: Option<Duration>) {
        let Some(idle_after) = self.idle_after else {
            return;
        };
        if wakes_in.is_none_or(|wakes_in| wakes_in >= least_rest(idle_after)) {
            let cell = self.state.shared.number;
            self.state.shared.send(FromWorker::Idle { cell, wakes_in });
        }
    }

    /// Keeps messages for later, until the cell is resumed.
    fn stay_frozen(&mut self) -> Next {
        let mut idle_at = self.is_idle_at(Instant::now());
        loop {
            match receive(self.commands, idle_at) {
                Ok(Command::Resume) => return Next::Work,
                Ok(Command::RunFreely) => {
                    self.freezing = false;
                    return Next::Work;
                }
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return Next::Over,
                Ok(answer) => self.held.push_back(answer),
                Err(RecvTimeoutError::Timeout) => {
                    idle_at = self.is_idle_at(Instant::now());
                    // Its timers stand still.
                    self.say_idle(None);
                }
            }
        }
    }

    /// Runs every timer that is due, each with the turn it starts.
    fn run_due_timers(&mut self, scope: &mut v8::PinScope) -> Result<(), ScriptError> {
        let now = Instant::now();
        loop {
            let due = self.state.timers.borrow_mut().take_due(now);
            let Some((id, callback)) = due else {
                return Ok(());
            };
            self.tell_turn(TurnCause::Timer(id));
            self.run_timer(scope, callback)?;
            if self.state.shared.stopped().is_some() {
                return Ok(());
            }
            settle(scope);
        }
    }
}

impl Run<'_> {
    /// Runs a timer's callback.
    fn run_timer(
        &self,
        scope: &mut v8::PinScope,
        callback: v8::Global<v8::Function>,
    ) -> Result<(), ScriptError> {
        v8::scope!(let scope, scope);
        v8::tc_scope!(let scope, scope);
        let callback = v8::Local::new(scope, callback);
        let receiver = v8::undefined(scope);
        if callback.call(scope, receiver.into(), &[]).is_none()
            && let Some(error) = scope.exception()
            && !scope.has_terminated()
        {
            return Err(natives::error_text(scope, error));
        }
        Ok(())
    }
}

/// The next command, or a timeout at a time.
fn receive(
    commands: &Receiver<Command>,
    until: Option<Instant>,
) -> Result<Command, RecvTimeoutError> {
    match until {
        Some(at) => commands.recv_timeout(at.saturating_duration_since(Instant::now())),
        None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
    }
}

/// A cell that has waited this long may wait for a person: its heap is shrunk.
const SHRINK_AFTER: Duration = Duration::from_millis(200);
/// A heap larger than this is left alone: collecting it takes longer than the
/// answer the cell waits for should.
const SHRINK_BELOW: usize = 8 << 20;

/// Gives back what a waiting cell does not need of its heap.
fn shrink(scope: &mut v8::PinScope) {
    if scope.get_heap_statistics().used_heap_size() < SHRINK_BELOW {
        scope.low_memory_notification();
    }
}

/// Runs immediate work: microtasks, and tasks that V8 posts to
/// itself (finalization callbacks for one).
fn settle(scope: &mut v8::PinScope) {
    scope.perform_microtask_checkpoint();
    let platform = v8::V8::get_current_platform();
    while v8::Platform::pump_message_loop(&platform, scope, false) {
        scope.perform_microtask_checkpoint();
    }
}
