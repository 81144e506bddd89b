//! TypeScript as JavaScript: types become spaces, so that every place stays where the
//! author wrote it.

use std::thread;

use code_mode_protocol::SourcePosition;
use swc_common::errors::{HANDLER, Handler};
use swc_common::sync::Lrc;
use swc_common::{GLOBALS, Globals, SourceMap};
use swc_ts_fast_strip::{ErrorCode, Mode, Options};

/// A larger source is not looked at: cells are short, and the parser below recurses.
const MAX_BYTES: usize = 256 << 10;
/// Of the thread that parses. The parser takes a stack of its own for each level of
/// nesting, some kilobytes; only what is used of this is ever memory.
const STACK_BYTES: usize = 64 << 20;
/// Brackets and operators in a row that a program may have inside one another.
const MAX_NESTING: usize = 500;

/// What came of a source that is no JavaScript.
pub(crate) enum Stripped {
    /// JavaScript, with spaces where types were.
    JavaScript(String),
    /// It is TypeScript, and more of it than types: what, and where.
    Unsupported(String, Option<SourcePosition>),
    /// It is no TypeScript either.
    Neither,
}

/// Strips the types of a source.
pub(crate) fn strip(source: &str) -> Stripped {
    if source.len() > MAX_BYTES || nests_deeper(source, MAX_NESTING) {
        return Stripped::Neither;
    }
    let source = source.to_owned();
    let stripper = thread::Builder::new()
        .name("code-mode-types".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || strip_here(source));
    // A parser that panics has not understood the source.
    stripper
        .ok()
        .and_then(|stripper| stripper.join().ok())
        .unwrap_or(Stripped::Neither)
}

fn strip_here(source: String) -> Stripped {
    let map: Lrc<SourceMap> = Lrc::default();
    let said = Said::default();
    let emitter = Box::new(Emitter(said.clone(), map.clone()));
    let handler = Handler::with_emitter(true, false, emitter);
    let options = Options {
        module: Some(true),
        mode: Mode::StripOnly,
        ..Options::default()
    };
    let stripped = GLOBALS.set(&Globals::new(), || {
        HANDLER.set(&handler, || {
            swc_ts_fast_strip::operate(&map, &handler, source, options)
        })
    });
    match stripped {
        Ok(output) => Stripped::JavaScript(output.code),
        Err(error) if matches!(error.code, ErrorCode::UnsupportedSyntax) => {
            let said = said.lock().unwrap_or_else(|e| e.into_inner());
            let (message, position) = said.first().cloned().unwrap_or((error.message, None));
            Stripped::Unsupported(message, position)
        }
        Err(_) => Stripped::Neither,
    }
}

/// What the parser complained of, and where.
type Said = std::sync::Arc<std::sync::Mutex<Vec<(String, Option<SourcePosition>)>>>;

struct Emitter(Said, Lrc<SourceMap>);

impl swc_common::errors::Emitter for Emitter {
    fn emit(&mut self, diagnostic: &mut swc_common::errors::DiagnosticBuilder<'_>) {
        let position = diagnostic.span.primary_span().map(|span| {
            let at = self.1.lookup_char_pos(span.lo);
            SourcePosition {
                line: u32::try_from(at.line).unwrap_or(1),
                column: u32::try_from(at.col.0 + 1).unwrap_or(1),
            }
        });
        let mut said = self.0.lock().unwrap_or_else(|e| e.into_inner());
        said.push((diagnostic.message(), position));
    }

    fn take_diagnostics(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// Whether more brackets are open at once, or more characters that nest without one
/// stand in a row, than a program has. Strings and comments count too: this looks
/// only for what was made to be deep.
fn nests_deeper(source: &str, max: usize) -> bool {
    let (mut open, mut prefixes) = (0_usize, 0_usize);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' | b'<' => open += 1,
            b')' | b']' | b'}' | b'>' => open = open.saturating_sub(1),
            _ => {}
        }
        // Unary operators, arrows, conditions and branches nest to the end of a
        // statement.
        match byte {
            b'!' | b'~' | b'+' | b'-' | b'=' | b'?' | b':' | b'*' | b'`' | b'\n' => prefixes += 1,
            b';' | b'}' => prefixes = 0,
            _ => {}
        }
        if open > max || prefixes > max * 8 {
            return true;
        }
    }
    false
}

/// What to write instead of what cannot be stripped.
pub(crate) fn instead_of(message: &str) -> &'static str {
    let message = message.to_ascii_lowercase();
    if message.contains("enum") {
        "write a constant instead: const Color = { Red: 0, Green: 1 }"
    } else if message.contains("namespace") || message.contains("module") {
        "write an object instead: const Name = { ... }"
    } else if message.contains("parameter propert") {
        "declare the field and assign it in the constructor: constructor(x) { this.x = x }"
    } else if message.contains("decorator") {
        "call the function instead: decorators do not run here"
    } else if message.contains("import") || message.contains("export") {
        "there are no modules to import here; use tools and the globals"
    } else if message.contains("assertion") || message.contains("angle") {
        "write the type after the value: value as Type"
    } else {
        "write this part as JavaScript: only types are taken away"
    }
}
