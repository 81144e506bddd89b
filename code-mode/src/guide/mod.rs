//! An uncaught error as a model can act on it: the message, the line it points at, and
//! a line of help where there is a common cause.
//!
//! Help is read from V8's message and the author's source. It gives a hint; where
//! nothing common fits, it is empty.

mod messages;
mod names;
mod source;

use code_mode_protocol::SourcePosition;
use code_mode_protocol::describe::Shape;
use regex::Regex;

use crate::cell::ScriptError;
use crate::shapes::Shapes;
use crate::tool_search::near;
use crate::tools::ToolTable;

use self::messages::{of_helper, of_range, of_syntax, of_type_text};
use self::names::{ABSENT, GLOBAL_NAMES, METHODS_ELSEWHERE};
use self::source::{
    DESTRUCTURED, excerpt, first_frame, is_assigned, line_of, of_another_language, place_of_import,
    property_after, root_before, root_of, shown, tool_not_awaited, tool_with_named_argument, up_to,
};

/// What help may draw on.
pub(crate) struct Guide<'a> {
    pub(crate) source: &'a str,
    pub(crate) tools: &'a ToolTable,
    pub(crate) shapes: &'a Shapes,
}

impl Guide<'_> {
    /// The error with its line, and with help.
    pub(crate) fn explain(&self, error: ScriptError) -> ScriptError {
        let ScriptError { mut text, position } = error;
        let position = position
            .or_else(|| first_frame(&text))
            .or_else(|| place_of_import(self.source, &text));
        if let Some(position) = position
            && !text.contains("exec_main.mjs:")
        {
            text.push_str(&format!(
                "\n    at exec_main.mjs:{}:{}",
                position.line, position.column
            ));
        }
        /// Longer messages are not V8's own, and help has nothing to say of them.
        const LONGEST: usize = 10_000;
        let message = text.split("\n    at ").next().unwrap_or_default();
        let message = match message.len() > LONGEST {
            true => String::new(),
            false => message.to_owned(),
        };
        if let Some(excerpt) = position.and_then(|position| excerpt(self.source, position)) {
            text.push('\n');
            text.push_str(&excerpt);
        }
        if let Some(help) = self.help(&message, position) {
            text.push_str("\nhelp: ");
            text.push_str(&help);
        }
        ScriptError { text, position }
    }

    fn help(&self, message: &str, position: Option<SourcePosition>) -> Option<String> {
        let line = position
            .and_then(|at| line_of(self.source, at))
            .unwrap_or_default();
        let before = match position {
            Some(at) => up_to(line, at.column),
            None => line,
        };
        let (kind, what) = message.split_once(": ").unwrap_or(("", message));
        if kind == "SyntaxError"
            && let Some(help) = of_another_language(self.source, line)
        {
            return Some(help.to_owned());
        }
        let line_of_use = position.map_or("", |_| line);
        if kind == "TypeError"
            && !what.starts_with("Assignment")
            && let Some(tool) = tool_not_awaited(line_of_use)
        {
            return Some(format!(
                "a tool call is a promise: write (await tools.{tool}(...)) where its value is used"
            ));
        }
        match kind {
            "ReferenceError" => self.of_reference(what, line),
            "TypeError" => self.of_type(what, before),
            "SyntaxError" => of_syntax(what, line).map(str::to_owned),
            "RangeError" => of_range(what).map(str::to_owned),
            _ => of_helper(message).map(str::to_owned),
        }
    }

    /// `x is not defined`, and its like.
    fn of_reference(&self, what: &str, line: &str) -> Option<String> {
        if let Some(name) = what.strip_suffix(" before initialization") {
            let name = name.strip_prefix("Cannot access ")?;
            return Some(format!("declare {name} above the line that first uses it"));
        }
        let name = what.strip_suffix(" is not defined")?;
        if self.tools.index_of(name).is_some() {
            return Some(format!(
                "tools are properties of `tools`: await tools.{name}(...)"
            ));
        }
        if let Some((_, help)) = ABSENT.iter().find(|(absent, _)| *absent == name) {
            return Some((*help).to_owned());
        }
        if let Some(tool) = tool_with_named_argument(line, name) {
            return Some(format!(
                "the arguments of a tool are one object: await tools.{tool}({{ {name}: ... }})"
            ));
        }
        if is_assigned(self.source, name) {
            return Some(format!("declare it: `let {name} = ...`"));
        }
        let near_by = |known: &&&str| {
            strsim::damerau_levenshtein(&known.to_lowercase(), &name.to_lowercase())
                <= 1 + name.len() / 8
        };
        if name.len() > 2
            && let Some(nearest) = GLOBAL_NAMES.iter().find(near_by)
        {
            return Some(format!("did you mean `{nearest}`?"));
        }
        if let [nearest, ..] = near(name, self.tools.names())[..] {
            return Some(format!("did you mean await tools.{nearest}(...)?"));
        }
        Some(format!(
            "declare `{name}` first; each cell starts anew, and store(key, value) and load(key) keep values from one to the next"
        ))
    }

    fn of_type(&self, what: &str, before: &str) -> Option<String> {
        if let Some(called) = what.strip_suffix(" is not a function") {
            return self.of_call(called);
        }
        if let Some(iterated) = what
            .strip_suffix(" is not iterable")
            .map(|iterated| iterated.trim_end_matches(" is not a function or its return value"))
        {
            return self.of_iteration(iterated, before);
        }
        if what.contains("is not iterable") || what.starts_with("Spread syntax requires") {
            return self.of_iteration(root_before(before).unwrap_or_default(), before);
        }
        if what.starts_with("Cannot read properties of")
            || what.starts_with("Cannot set properties of")
        {
            let root = root_before(before);
            let property = root.map_or("", |root| property_after(before, root));
            return match root.and_then(|root| self.of_result(root, property)) {
                Some(help) => Some(help),
                None => {
                    let is_null = what.contains("of null");
                    let value = if is_null { "null" } else { "undefined" };
                    Some(format!(
                        "the value before the dot is {value}: look at what there is with text(...), or write `?.`"
                    ))
                }
            };
        }
        if let Some(from) = DESTRUCTURED.captures(what) {
            let root = from.get(1).map_or("", |name| name.as_str());
            if root.starts_with("load(") || before.contains("load(") {
                return Some("nothing is stored under that key: load gave undefined".to_owned());
            }
            return self
                .of_result(root_of(root), "")
                .or_else(|| {
                    Some("the value taken apart is undefined or null there: look at it first with text(...)".to_owned())
                });
        }
        if what == "Assignment to constant variable." {
            return Some("declare it with `let` instead of `const`".to_owned());
        }
        if let Some(made) = what.strip_suffix(" is not a constructor") {
            return Some(match made.starts_with("tools.") {
                true => format!("call it without `new`: await {made}(...)"),
                false => format!("`{made}` is not a class: call it without `new`"),
            });
        }
        of_type_text(what).map(str::to_owned)
    }

    /// `called is not a function`
    fn of_call(&self, called: &str) -> Option<String> {
        if called == "tools" {
            return Some("`tools` is an object: await tools.NAME(input)".to_owned());
        }
        if called.starts_with("\"\"") || called.starts_with('`') {
            return Some("leave the code fence out: the source is plain JavaScript".to_owned());
        }
        if let Some(server) = called.strip_prefix("tools.")
            && let Some((_, tool)) = self.tools.of_server(server).next()
        {
            return Some(format!(
                "`{called}` has the tools of a server: await tools.{tool}(...) for one"
            ));
        }
        if let Some((receiver, method)) = called.rsplit_once('.') {
            let root = root_of(receiver);
            if let Some(name) = receiver.strip_prefix("tools.")
                && !name.contains('(')
            {
                if self.tools.index_of(method).is_some() {
                    return Some(format!(
                        "a tool is on `tools` itself: await tools.{method}(...)"
                    ));
                }
                if self.tools.index_of(name).is_some() {
                    return Some(format!("a tool is called itself: await tools.{name}(...)"));
                }
                return None;
            }
            if receiver.starts_with("tools.") && receiver.ends_with("(...)") {
                return Some(format!(
                    "a tool call is a promise: (await {receiver}).{method}(...)"
                ));
            }
            if let Some(help) = self.of_result(root, property_after(called, root)) {
                return Some(help);
            }
            if let Some((_, own)) = METHODS_ELSEWHERE.iter().find(|(other, _)| *other == method) {
                return Some(format!("JavaScript writes {own}"));
            }
            if matches!(
                method,
                "map"
                    | "filter"
                    | "forEach"
                    | "reduce"
                    | "find"
                    | "some"
                    | "every"
                    | "join"
                    | "slice"
                    | "flatMap"
                    | "sort"
            ) {
                return Some(format!(
                    "`{receiver}` is not an array: look at it with text({}); Object.entries makes an array of an object, and a promise needs `await`",
                    shown(receiver)
                ));
            }
            if matches!(
                method,
                "trim" | "split" | "includes" | "replace" | "startsWith" | "match" | "toLowerCase"
            ) {
                return Some(format!(
                    "`{receiver}` is not a string: look at it with text({}), or write String({}).{method}(...)",
                    shown(receiver),
                    shown(receiver)
                ));
            }
            if method == "then" || method == "catch" {
                return Some(format!(
                    "`{receiver}` is not a promise: use its value as it is"
                ));
            }
            return Some(format!("`{receiver}` has no method `{method}`"));
        }
        Some(format!(
            "`{called}` is a value here and no function: is the name used twice?"
        ))
    }

    fn of_iteration(&self, iterated: &str, before: &str) -> Option<String> {
        if iterated.starts_with("tools.")
            || before.contains("of tools.")
            || before.contains("...tools.")
        {
            return Some("a tool call is a promise: write `await` before it".to_owned());
        }
        if iterated == "tools" || before.contains("of tools)") || before.ends_with("of tools") {
            return Some("`tools` is an object: ALL_TOOLS is the array of what it has".to_owned());
        }
        let root = root_of(iterated);
        self.of_result(root, "").or_else(|| {
            Some("it is not an array: look at it with text(...); Object.entries(...) makes an array of an object, and a promise needs `await`".to_owned())
        })
    }

    /// What a variable is, where it was given a tool's result, or a promise. `property` is
    /// the property that was read: where the result has that, the cause is another.
    fn of_result(&self, variable: &str, property: &str) -> Option<String> {
        let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        if variable.is_empty() || !variable.chars().all(is_name) {
            return None;
        }
        let name = regex::escape(variable);
        let given = format!(
            r#"(?:^|[^\w$.]){name}\s*(?::[^=;]*)?(=|\bof\b)\s*(\(?\s*await\s+)?tools(?:\.([\w$]+)|\[["']([^"']+)["']\])"#
        );
        let Some(given) = Regex::new(&given).ok()?.captures_iter(self.source).last() else {
            return self
                .of_parts(&name)
                .or_else(|| self.of_own_promise(variable, &name));
        };
        let tool = given.get(3).or_else(|| given.get(4))?.as_str();
        if given.get(2).is_none() {
            let sign = given.get(1).map_or("=", |sign| sign.as_str());
            return Some(format!(
                "`{variable}` is a promise: write {variable} {sign} await tools.{tool}(...)"
            ));
        }
        let is_element = given.get(1).is_some_and(|sign| sign.as_str() == "of");
        let shape = self.shapes.of(tool)?;
        if shape.keys().is_some_and(|keys| keys.contains(&property)) {
            return None;
        }
        Some(format!("tools.{tool} gave {}", gave(shape, is_element)))
    }

    /// A variable that was taken out of a tool's result: `const { a, b } = ...`.
    fn of_parts(&self, name: &str) -> Option<String> {
        let taken = format!(
            r#"\{{[^{{}}]*\b{name}\b[^{{}}]*\}}\s*=\s*(await\s+)?tools(?:\.([\w$]+)|\[["']([^"']+)["']\])"#
        );
        let taken = Regex::new(&taken).ok()?.captures_iter(self.source).last()?;
        let tool = taken.get(2).or_else(|| taken.get(3))?.as_str();
        if taken.get(1).is_none() {
            return Some(format!(
                "a tool call is a promise: write const {{ ... }} = await tools.{tool}(...)"
            ));
        }
        let shape = self.shapes.of(tool)?;
        Some(format!("tools.{tool} gave {}", gave(shape, false)))
    }

    /// A variable that was given what an async function of the cell returns.
    fn of_own_promise(&self, variable: &str, name: &str) -> Option<String> {
        let given = Regex::new(&format!(r"(?:^|[^\w$.]){name}\s*=\s*([\w$]+)\(")).ok()?;
        let function = given.captures_iter(self.source).last()?;
        let function = function.get(1)?.as_str();
        let escaped = regex::escape(function);
        let is_async = format!(r"async\s+function\s+{escaped}\b|\b{escaped}\s*=\s*async\b");
        Regex::new(&is_async)
            .ok()?
            .is_match(self.source)
            .then(|| format!("`{variable}` is a promise: write {variable} = await {function}(...)"))
    }
}

fn gave(shape: &Shape, element: bool) -> String {
    let list = |keys: Vec<&str>| {
        let keys: Vec<_> = keys.into_iter().take(20).collect();
        keys.join(", ")
    };
    match (shape.keys(), shape.element_keys()) {
        (_, Some(keys)) if element => format!("an array of objects with the keys {}", list(keys)),
        (Some(keys), _) => format!("an object with the keys {}", list(keys)),
        (None, Some(keys)) => format!("an array of objects with the keys {}", list(keys)),
        (None, None) => format!("a value of the type {}", shape.typescript()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(source: &str, text: &str, at: (u32, u32)) -> String {
        let guide = Guide {
            source,
            tools: &ToolTable::default(),
            shapes: &{
                let mut shapes = Shapes::default();
                let list = code_mode_protocol::ToolDefinition::function("list", "");
                let list = code_mode_protocol::wire::native::WireTool::new(&list, true);
                shapes.see(&list, r#"{"items": [], "next": null}"#);
                shapes
            },
        };
        let position = Some(SourcePosition {
            line: at.0,
            column: at.1,
        });
        let error = ScriptError {
            text: text.to_owned(),
            position,
        };
        guide.explain(error).text
    }

    #[test]
    fn an_error_shows_its_line_and_a_hint() {
        assert_eq!(
            explained(
                "const r = tools.list();\nr.map(x => x)",
                "TypeError: r.map is not a function\n    at exec_main.mjs:2:3",
                (2, 3)
            ),
            "TypeError: r.map is not a function\n    at exec_main.mjs:2:3\n\
             2 | r.map(x => x)\n  |   ^\n\
             help: `r` is a promise: write r = await tools.list(...)"
        );
        let keys = explained(
            "const r = await tools.list();\ntext(r.data.length)",
            "TypeError: Cannot read properties of undefined (reading 'length')\n    at exec_main.mjs:2:13",
            (2, 13),
        );
        assert!(
            keys.ends_with("help: tools.list gave an object with the keys items, next"),
            "{keys}"
        );
    }

    #[test]
    fn a_long_line_is_shown_around_its_place() {
        let source = format!("{}boom{}", "é ".repeat(400), " x".repeat(400));
        let shown = explained(&source, "Error: x", (1, 801));
        let lines: Vec<_> = shown.lines().collect();
        let mark = lines[3].chars().position(|c| c == '^').expect("a mark");
        assert_eq!(
            lines[2].chars().skip(mark).take(4).collect::<String>(),
            "boom"
        );
        assert!(lines[2].len() < 300);
    }

    #[test]
    fn odd_places_and_sources_do_no_harm() {
        for (source, at) in [
            ("", (1, 1)),
            ("a", (9, 9)),
            ("é", (1, 2)),
            ("😀x", (1, 99)),
            ("x", (0, 0)),
        ] {
            explained(source, "TypeError: x is not iterable", at);
            explained(
                source,
                "TypeError: Cannot destructure property 'a' of 'b' as it is undefined.",
                at,
            );
            explained(source, "nothing: of the kind", at);
        }
    }
}
