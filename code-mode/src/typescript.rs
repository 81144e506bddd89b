//! TypeScript as JavaScript: types become spaces, so that every place stays where the
//! author wrote it.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use code_mode_protocol::SourcePosition;
use swc_common::errors::{HANDLER, Handler};
use swc_common::sync::Lrc;
use swc_common::{GLOBALS, Globals, SourceMap};
use swc_ts_fast_strip::{ErrorCode, Mode, Options};

/// A larger source is not looked at: cells are short, and the parser below recurses.
const MAX_BYTES: usize = 32 << 10;
/// Of the parser's stack for each byte of the source, of which no two levels of nesting
/// share one. Only its used part becomes memory.
const STACK_PER_BYTE: usize = if cfg!(debug_assertions) {
    24 << 10
} else {
    8 << 10
};
const STACK_AT_LEAST: usize = 1 << 20;
/// How long reading may take. Some sources that nest take twice as long for each level.
pub(crate) const TIME: Duration = Duration::from_secs(2);

/// The result for a source that JavaScript cannot parse.
#[derive(Debug)]
pub(crate) enum Stripped {
    /// JavaScript, with spaces where types were.
    JavaScript(String),
    /// It is TypeScript, and more of it than types: what, and where.
    Unsupported(String, Option<SourcePosition>),
    /// TypeScript cannot parse it either; the error and its place.
    Neither(Option<(String, SourcePosition)>),
}

/// Reads a source on a separate thread, which has the stack for it. The parser cannot
/// be interrupted: after [`TIME`] the waiter gives up, and the thread stays stuck.
pub(crate) fn strip(source: &str) -> mpsc::Receiver<Stripped> {
    let (done, stripped) = mpsc::channel();
    if source.len() > MAX_BYTES {
        let _ = done.send(Stripped::Neither(None));
        return stripped;
    }
    let source = source.to_owned();
    let stack = STACK_AT_LEAST + source.len() * STACK_PER_BYTE;
    let thread = thread::Builder::new()
        .name("code-mode-types".to_owned())
        .stack_size(stack);
    // A thread that does not start, or that panics, drops its end: nothing was read.
    let _ = thread.spawn(move || done.send(strip_here(source)));
    stripped
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
        Err(_) => {
            let said = said.lock().unwrap_or_else(|e| e.into_inner());
            let first = said.first().cloned();
            Stripped::Neither(first.and_then(|(what, at)| Some((what, at?))))
        }
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
        "a cell has no modules to import; use tools and the globals"
    } else if message.contains("assertion") || message.contains("angle") {
        "write the type after the value: value as Type"
    } else {
        "write this part as JavaScript: only types are taken away"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(source: &str) -> Stripped {
        strip(source).recv().expect("an answer")
    }

    #[test]
    fn types_become_spaces() {
        let Stripped::JavaScript(text) = stripped("const a: number = 1 as any;\nb<string>(a!)")
        else {
            panic!("not stripped");
        };
        assert_eq!(text, "const a         = 1       ;\nb        (a )");
    }

    #[test]
    fn what_is_more_than_types_is_named_with_its_place() {
        let Stripped::Unsupported(what, Some(at)) = stripped("let a: number;\n  enum B { C }")
        else {
            panic!("not refused");
        };
        assert!(what.contains("enum"), "{what}");
        assert_eq!((at.line, at.column), (2, 3));
        assert!(matches!(
            stripped("let a: number = ;"),
            Stripped::Neither(Some(_))
        ));
    }

    /// The deepest sources of each kind that fit: none may overflow the stack.
    #[test]
    fn no_nesting_overflows_the_stack() {
        let units = [
            "(",
            "[",
            "{",
            "!",
            "-",
            "if(a)",
            "a=>",
            "new ",
            "do ",
            "a?",
            "a:/*;*/",
            "{a:/*}*/",
            "f(",
            "`${",
            "x<",
            "keyof ",
            "for(;;)",
            "while(a)",
            "class A{[",
            "a.b",
            "(a=>/*;*/",
            "async()=>",
            "function f(){/*}*/",
            "try{/*}*/",
            "switch(a){case 1:/*;}*/",
            "typeof ",
            "...",
            "let x:{a:",
        ];
        for unit in units {
            let mut source = "let t:number=1;\n".to_owned();
            source.push_str(&unit.repeat((MAX_BYTES - source.len()) / unit.len()));
            // Some of these take exponential time; that they do not crash is all there is
            // to see.
            let _ = strip(&source).recv_timeout(Duration::from_millis(300));
        }
    }
}
