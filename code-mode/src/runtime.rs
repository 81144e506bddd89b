//! One cell in its isolate, on its thread: from source to end.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use code_mode_protocol::wire::native::{CellEnd, FromWorker};
use code_mode_protocol::{ContentItem, Limit, SourcePosition, Turn, TurnCause};

use crate::bootstrap;
use crate::cell::{Command, Job, ScriptError, Stop, answer_bytes};
use crate::determinism::Source;
use crate::engine::ReadyIsolate;
use crate::guide::Guide;
use crate::heap_guard::HeapGuard;
use crate::natives::{self, CellState};
use crate::typescript::{self, Stripped};

/// The name of a cell's module, as stack frames show it.
pub(crate) const MODULE_NAME: &str = "exec_main.mjs";

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
        job.determinism.map(Source::new),
    ));
    isolate.set_slot(state.clone());
    isolate.set_host_import_module_dynamically_callback(import_dynamically);
    if state.guided.is_some() {
        isolate.set_promise_reject_callback(rejected);
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
            held: VecDeque::new(),
            waits: Some(waits),
        }
        .run_to_end(scope, &job.source)
        .inspect(|()| {
            if state.guided.is_some() && shared.stopped().is_none() {
                say_what_was_forgotten(scope, &state, &job.source);
            }
        })
    };
    let outcome = outcome.map_err(|error| explained(&state, &job.source, error));
    let end = match (shared.stopped(), outcome) {
        (None, Ok(())) => CellEnd::Completed,
        (None, Err(error)) => error.into(),
        (Some(Stop::Exit), _) => CellEnd::Exited,
        (Some(Stop::Terminated), _) => CellEnd::Terminated,
        (Some(Stop::Limit(limit)), _) => CellEnd::Limit(limit),
    };
    let statistics = isolate.get_heap_statistics();
    shared.heap_used(statistics.used_heap_size() + statistics.external_memory());
    job.end.report(end, state.take_writes());
    // The kernel may have put the thread that waits for the answer behind this one,
    // which would run on for most of a millisecond.
    std::thread::yield_now();
    // Handles into the heap go before the heap.
    isolate.remove_slot::<Rc<CellState>>();
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

/// A promise was rejected and nobody looks. Whoever looks later is seen at the end.
extern "C" fn rejected(message: v8::PromiseRejectMessage) {
    const KEPT: usize = 64;
    if message.get_event() != v8::PromiseRejectEvent::PromiseRejectWithNoHandler {
        return;
    }
    // SAFETY: V8 calls this on the isolate's thread while it runs the cell's code, and
    // the message is alive until this returns.
    v8::callback_scope!(unsafe scope, &message);
    let Some(state) = scope.get_slot::<Rc<CellState>>().cloned() else {
        return;
    };
    let mut rejected = state.rejected.borrow_mut();
    if rejected.len() < KEPT
        && let Some(reason) = message.get_value()
    {
        let promise = v8::Global::new(scope, message.get_promise());
        rejected.push((promise, v8::Global::new(scope, reason)));
    }
}

/// Says at the end of a cell that completed what it seems to have done and has not.
fn say_what_was_forgotten(scope: &mut v8::PinScope, state: &CellState, source: &str) {
    say_what_was_rejected(scope, state, source);
    say_what_was_not_awaited(state, source);
}

fn say_what_was_rejected(scope: &mut v8::PinScope, state: &CellState, source: &str) {
    const SHOWN: usize = 3;
    let rejected = std::mem::take(&mut *state.rejected.borrow_mut());
    let mut shown = 0;
    for (promise, reason) in rejected {
        if shown == SHOWN || v8::Local::new(scope, promise).has_handler() {
            continue;
        }
        shown += 1;
        let reason = v8::Local::new(scope, reason);
        let error = natives::error_text(scope, reason);
        let error = explained(state, source, error);
        say(
            state,
            format!(
                "[warning] a promise was rejected, and nobody waited for it: {}",
                error.text
            ),
        );
    }
}

/// An error with its line, and with help.
fn explained(state: &CellState, source: &str, error: ScriptError) -> ScriptError {
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

/// Adds a line to the output. Where it has no room left, the cell has more to say.
fn say(state: &CellState, text: String) {
    let _ = state.shared.put_out(vec![ContentItem::Text { text }]);
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

/// Puts out that calls were cancelled because nobody waited for them: most such calls
/// miss an `await`, and their cell seems to have done what it has not.
fn say_what_was_not_awaited(state: &CellState, source: &str) {
    const SHOWN: usize = 5;
    let calls = state.calls.borrow();
    let line_of = |line: u32| source.lines().nth(line.saturating_sub(1) as usize);
    // Whoever races calls means to leave some behind.
    let is_raced = |line: &str| line.contains("Promise.race") || line.contains("Promise.any");
    let mut calls: Vec<_> = calls
        .iter()
        .filter(|(_, call)| {
            let line = call.site.and_then(|at| line_of(at.line));
            !line.is_some_and(is_raced)
        })
        .collect();
    if calls.is_empty() {
        return;
    }
    calls.sort_by_key(|(id, _)| **id);
    let has_await = calls.iter().any(|(_, call)| {
        let line = call.site.and_then(|at| line_of(at.line));
        line.is_some_and(|line| line.contains("await "))
    });
    let names = calls.iter().take(SHOWN).map(|(_, call)| {
        let tool = state.tools.get(call.tool);
        let name = tool.map_or("", |tool| tool.name.as_str());
        match call.site {
            Some(at) => format!("tools.{name} (line {})", at.line),
            None => format!("tools.{name}"),
        }
    });
    let names = names.collect::<Vec<_>>().join(", ");
    let more = match calls.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let hint = match has_await {
        true => {
            "the function around them was not awaited: write `await main()`, and `for (const x of xs)` or `await Promise.all(xs.map(...))` instead of forEach"
        }
        false => "write `await` before a call whose work must be done",
    };
    say(
        state,
        format!(
            "[warning] the cell ended while these calls had no answer, so they were cancelled: {names}{more}; {hint}"
        ),
    );
}

/// A cell while it runs.
struct Run<'a> {
    state: &'a CellState,
    commands: &'a Receiver<Command>,
    /// Whether to freeze when no work is left.
    freezing: bool,
    /// What came while frozen.
    held: VecDeque<Command>,
    /// To be called at the first wait.
    waits: Option<&'a dyn Fn()>,
}

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
            match promise.state() {
                v8::PromiseState::Fulfilled => return Ok(()),
                v8::PromiseState::Rejected => {
                    let reason = promise.result(scope);
                    return Err(natives::error_text(scope, reason));
                }
                v8::PromiseState::Pending => {}
            }
            match self.wait(scope)? {
                Next::Work => {}
                Next::Over => return Ok(()),
            }
        }
    }

    /// Waits for something to happen, and lets it in.
    fn wait(&mut self, scope: &mut v8::PinScope) -> Result<Next, ScriptError> {
        if let Some(waits) = self.waits.take() {
            waits();
            self.state.shared.first_turn_ended();
        }
        if self.freezing {
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
                    let callback = self.state.timers.borrow_mut().take(id);
                    if let Some(callback) = callback {
                        self.run_timer(scope, callback)?;
                        return Ok(Next::Work);
                    }
                    continue;
                }
                Some(TurnCause::Answer(call)) if !self.state.calls.borrow().contains_key(&call) => {
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
                    natives::answer(scope, self.state, call, result);
                    return Ok(Next::Work);
                }
                Some(Command::RunFreely | Command::Resume) => {}
                Some(Command::Stop) => return Ok(Next::Over),
                None => return Ok(Next::Over),
            }
        }
    }

    /// The next command, or a timeout when a timer is due.
    fn next_command(&mut self, scope: &mut v8::PinScope) -> Result<Command, RecvTimeoutError> {
        if let Some(command) = self.held.pop_front() {
            return Ok(command);
        }
        let now = Instant::now();
        let timer = self.state.timers.borrow_mut().next_deadline();
        let shrink_at = now + SHRINK_AFTER;
        if timer.is_none_or(|deadline| deadline > shrink_at) {
            match self.commands.recv_timeout(SHRINK_AFTER) {
                Err(RecvTimeoutError::Timeout) => shrink(scope),
                received => return received,
            }
        }
        match timer {
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                self.commands.recv_timeout(left)
            }
            None => self
                .commands
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// Keeps messages for later, until the cell is resumed.
    fn stay_frozen(&mut self) -> Next {
        loop {
            match self.commands.recv() {
                Ok(Command::Resume) => return Next::Work,
                Ok(Command::RunFreely) => {
                    self.freezing = false;
                    return Next::Work;
                }
                Ok(Command::Stop) | Err(_) => return Next::Over,
                Ok(answer) => self.held.push_back(answer),
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

/// Compiles and evaluates the module; `None` where it was stopped.
fn evaluate(
    scope: &mut v8::PinScope,
    state: &CellState,
    source: &str,
) -> Result<Option<v8::Global<v8::Promise>>, ScriptError> {
    let mut refused = None;
    v8::tc_scope!(let scope, scope);
    let evaluated = (|| {
        // V8 takes a hash-bang only as the very first character.
        let source = source.strip_prefix('\u{feff}').unwrap_or(source);
        let unfenced = state.guided.as_ref().and_then(|_| unfenced(source));
        let source = unfenced.as_deref().unwrap_or(source);
        let module = match compile(scope, source) {
            Some(module) => module,
            None if state.guided.is_some() && state.shared.stopped().is_none() => {
                let error = failed_to_start(scope);
                if !error.text.starts_with("SyntaxError: ") {
                    return None;
                }
                let javascript = match strip_types(state, source)? {
                    Stripped::JavaScript(javascript) => javascript,
                    Stripped::Unsupported(what, position) => {
                        refused = Some(cannot_be_stripped(&what, position));
                        return None;
                    }
                    Stripped::Neither(Some((what, at)))
                        if is_later(at, error.position) && !is_of_characters(&error.text) =>
                    {
                        // V8 has stumbled over a type; the mistake is further on.
                        refused = Some(ScriptError {
                            text: format!("SyntaxError: {what}"),
                            position: Some(at),
                        });
                        return None;
                    }
                    Stripped::Neither(_) => return None,
                };
                // Where that does not compile either, its error is about the rest.
                scope.reset();
                compile(scope, &javascript)?
            }
            None => return None,
        };
        module.instantiate_module(scope, refuse_import)?;
        let promise = module.evaluate(scope)?;
        v8::Local::<v8::Promise>::try_from(promise).ok()
    })();
    match evaluated {
        Some(promise) => {
            promise.mark_as_handled();
            Ok(Some(v8::Global::new(scope, promise)))
        }
        None if state.shared.stopped().is_some() || scope.has_terminated() => Ok(None),
        None => Err(refused.unwrap_or_else(|| failed_to_start(scope))),
    }
}

fn compile<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    source: &str,
) -> Option<v8::Local<'s, v8::Module>> {
    let source = v8::String::new(scope, source)?;
    let origin = bootstrap::origin(scope, MODULE_NAME, true)?;
    let mut source = v8::script_compiler::Source::new(source, Some(&origin));
    v8::script_compiler::compile_module(scope, &mut source)
}

/// The program in a code fence around all of it. The fence's lines stay, empty, so that
/// every place stays where its author wrote it.
fn unfenced(source: &str) -> Option<String> {
    let inside = source.trim().strip_prefix("```")?.strip_suffix("```")?;
    let (language, program) = inside.split_once('\n')?;
    let lines_before = source.len() - source.trim_start().len();
    let is_word = language.trim().chars().all(|c| c.is_ascii_alphanumeric());
    is_word.then(|| {
        let before = source[..lines_before].matches('\n').count() + 1;
        format!("{}{program}", "\n".repeat(before))
    })
}

/// Whether one place is after another.
fn is_later(at: SourcePosition, than: Option<SourcePosition>) -> bool {
    than.is_some_and(|than| (at.line, at.column) > (than.line, than.column))
}

/// Whether V8's complaint is of characters, which are the same with types.
fn is_of_characters(error: &str) -> bool {
    let error = error.trim_start_matches("SyntaxError: ");
    ["Invalid", "Unterminated", "missing )"]
        .iter()
        .any(|start| error.starts_with(start))
}

/// Takes the types out of a source. Where that takes too long the cell hits its limit of
/// processor time, and its thread is as stuck as one that V8 cannot interrupt.
fn strip_types(state: &CellState, source: &str) -> Option<Stripped> {
    let stripped = typescript::strip(source);
    let limit = state.shared.limits.max_cpu_time;
    let time = limit.unwrap_or(typescript::TIME).min(typescript::TIME);
    match stripped.recv_timeout(time) {
        Ok(stripped) => Some(stripped),
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => {
            let exceeded = Limit::CpuTime.exceeded(time.as_millis() as u64);
            state.shared.stop(Stop::Limit(exceeded));
            let _ = stripped.recv();
            None
        }
    }
}

/// TypeScript that is more than types.
fn cannot_be_stripped(what: &str, position: Option<SourcePosition>) -> ScriptError {
    ScriptError {
        text: format!("SyntaxError: {what}; {}", typescript::instead_of(what)),
        position,
    }
}

/// Why a module could not be compiled or instantiated: a `SyntaxError` without
/// its frames, which would only name V8's own.
fn failed_to_start(
    scope: &mut v8::PinnedRef<'_, v8::TryCatch<'_, '_, v8::HandleScope<'_>>>,
) -> ScriptError {
    let position = match scope.message() {
        Some(message) => natives::message_position(scope, message),
        None => None,
    };
    let Some(error) = scope.exception() else {
        return ScriptError {
            text: "the source is too large for V8".to_owned(),
            position: None,
        };
    };
    let text = match natives::error_text(scope, error).text {
        text if text.starts_with("SyntaxError: ") => {
            text.lines().next().unwrap_or(&text).to_owned()
        }
        text => text,
    };
    ScriptError { text, position }
}

fn throw(scope: &mut v8::PinScope, message: &str) {
    let Some(state) = scope.get_slot::<Rc<CellState>>().cloned() else {
        return;
    };
    if let Some(error) = natives::helper_error(scope, &state, message) {
        scope.throw_exception(error);
    }
}

fn refuse_import<'s>(
    context: v8::Local<'s, v8::Context>,
    specifier: v8::Local<'s, v8::String>,
    _attributes: v8::Local<'s, v8::FixedArray>,
    _referrer: v8::Local<'s, v8::Module>,
) -> Option<v8::Local<'s, v8::Module>> {
    // SAFETY: V8 calls this on the isolate's thread with the context that is
    // being instantiated, which is what a callback scope is made from.
    v8::callback_scope!(unsafe scope, context);
    let specifier = specifier.to_rust_string_lossy(scope);
    throw(scope, &format!("Unsupported import in exec: {specifier}"));
    None
}

fn import_dynamically<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    _host_defined_options: v8::Local<'s, v8::Data>,
    _resource_name: v8::Local<'s, v8::Value>,
    _specifier: v8::Local<'s, v8::String>,
    _attributes: v8::Local<'s, v8::FixedArray>,
) -> Option<v8::Local<'s, v8::Promise>> {
    let state = scope.get_slot::<Rc<CellState>>().cloned()?;
    let resolver = v8::PromiseResolver::new(scope)?;
    let error = natives::helper_error(scope, &state, "unsupported import in exec")?;
    resolver.reject(scope, error);
    Some(resolver.get_promise(scope))
}
