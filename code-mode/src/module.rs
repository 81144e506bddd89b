//! The source of a cell as a module: parsed, freed of types, and evaluated.

use std::rc::Rc;
use std::sync::mpsc::RecvTimeoutError;

use code_mode_protocol::{Limit, SourcePosition};

use crate::bootstrap;
use crate::cell::{ScriptError, Stop};
use crate::natives::{self, CellState};
use crate::typescript::{self, Stripped};

/// The name of a cell's module, as stack frames show it.
pub(crate) const MODULE_NAME: &str = "exec_main.mjs";

/// Compiles and evaluates the module; `None` where it was stopped.
pub(crate) fn evaluate(
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

pub(crate) fn import_dynamically<'s>(
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
