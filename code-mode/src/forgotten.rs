//! What a program in a guided session seems to have done and has not: promises that were
//! rejected, and calls without an answer, that nobody waited for.

use std::rc::Rc;

use code_mode_protocol::{ContentItem, Note, SourcePosition};

use crate::cell::ScriptError;
use crate::natives::{self, CellState};
use crate::runtime::explained;

/// A promise was rejected and nobody looks. Whoever looks later is seen at the end.
pub(crate) extern "C" fn rejected(message: v8::PromiseRejectMessage) {
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
pub(crate) fn say_what_was_forgotten(scope: &mut v8::PinScope, state: &CellState, source: &str) {
    say_what_was_rejected(scope, state, source);
    say_what_was_not_awaited(state, source);
    say_what_was_not_reached(state, source);
    say_what_was_not_called(state, source);
}

/// A program that did nothing, and that nothing calls a function of, was meant to run that.
fn say_what_was_not_called(state: &CellState, source: &str) {
    if state.last_call.get() != 0 || state.shared.has_output() {
        return;
    }
    let Some(name) = uncalled_function(source) else {
        return;
    };
    let text = match name {
        "" => "[warning] nothing calls the function that is exported: call it, for example (async () => { ... })()".to_owned(),
        name => format!("[warning] nothing calls the function `{name}`: write `await {name}()` at the end"),
    };
    say(state, Note::Warning, text);
}

/// A function that the source defines at the start of a line and names nowhere else; an empty name
/// for one that is exported without any.
fn uncalled_function(source: &str) -> Option<&str> {
    for line in source.lines() {
        let exported = line.strip_prefix("export ");
        let line = exported.unwrap_or(line);
        let default = line.strip_prefix("default ");
        let line = default.unwrap_or(line);
        let line = line.strip_prefix("async ").unwrap_or(line);
        let name = match line.strip_prefix("function") {
            Some(rest) => rest.trim_start_matches(['*', ' ']),
            None => match line.strip_prefix("const ") {
                Some(rest) if rest.contains("=> {") || rest.contains("= async") => rest,
                _ if default.is_some() && line.starts_with('(') => return Some(""),
                _ => continue,
            },
        };
        let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let name = &name[..name.find(|c| !is_name(c)).unwrap_or(name.len())];
        if name.is_empty() && default.is_some() {
            return Some("");
        }
        if !name.is_empty() && source.matches(name).count() == 1 {
            return Some(name);
        }
    }
    None
}

/// Says which promises were rejected while nobody looked.
pub(crate) fn say_what_was_rejected(scope: &mut v8::PinScope, state: &CellState, source: &str) {
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
            Note::Unfinished,
            format!(
                "[warning] a promise was rejected, and nobody waited for it: {}",
                error.text
            ),
        );
    }
}

/// Adds a line to the output. Where it has no room left, the cell has more to say.
fn say(state: &CellState, note: Note, text: String) {
    let _ = state.shared.put_out(vec![ContentItem::note(note, text)]);
}

/// Puts out that timers were set and never reached. A timer that limits how long something may
/// take is meant to stay behind.
fn say_what_was_not_reached(state: &CellState, source: &str) {
    const LIMITS: [&str; 5] = ["race", "any(", "abort", "Abort", "reject"];
    let left = state.timers.borrow().len();
    if left == 0 || LIMITS.iter().any(|word| source.contains(word)) {
        return;
    }
    let timers = match left {
        1 => "a timer".to_owned(),
        left => format!("{left} timers"),
    };
    let text = format!(
        "[warning] the program ended before {timers} of it: to wait, write `await new Promise((done) => setTimeout(done, MS))`"
    );
    say(state, Note::Unfinished, text);
}

/// The error of a program that waits for what nothing can bring.
pub(crate) fn never_continues(source: &str) -> ScriptError {
    let mut made = (1..).zip(source.lines()).filter_map(|(line, text)| {
        let column = text.find("new Promise(")?;
        Some(SourcePosition {
            line,
            column: u32::try_from(column + 1).unwrap_or(1),
        })
    });
    // With several such promises nobody can say which one is meant.
    let position = made.next().filter(|_| made.next().is_none());
    ScriptError {
        text: "Error: the program waits for a promise that nothing can settle: no tool call and no timer is left".to_owned(),
        position,
    }
}

/// Whether a program that has ended has calls in flight that it meant to wait for. Whoever races
/// calls means to leave some behind.
pub(crate) fn waits_for_forgotten(state: &CellState, source: &str) -> bool {
    !state.calls.borrow().is_empty() && !is_race(source)
}

fn is_race(text: &str) -> bool {
    text.contains("Promise.race") || text.contains("Promise.any")
}

/// Puts out that calls were given up because nobody waited for them: most such calls
/// miss an `await`, and their cell seems to have done what it may not have.
fn say_what_was_not_awaited(state: &CellState, source: &str) {
    const SHOWN: usize = 5;
    let calls = state.calls.borrow();
    let line_of = |line: u32| source.lines().nth(line.saturating_sub(1) as usize);
    let mut calls: Vec<_> = calls
        .iter()
        .filter(|(_, call)| {
            let line = call.site.and_then(|at| line_of(at.line));
            !line.is_some_and(is_race)
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
        Note::Unfinished,
        format!(
            "[warning] the program ended and these calls still have no answer; they may have run: {names}{more}; {hint}"
        ),
    );
}
