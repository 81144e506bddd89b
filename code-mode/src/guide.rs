//! An uncaught error as a model can act on it: the message, the line it points at, and
//! a line of help where there is a common cause.
//!
//! Help is read from V8's message and the author's source. It names a mend; where
//! nothing common fits, there is none.

use std::sync::LazyLock;

use code_mode_protocol::SourcePosition;
use regex::Regex;

use crate::cell::ScriptError;
use crate::shapes::{Shape, Shapes};
use crate::tool_search::near;
use crate::tools::ToolTable;

/// How much of a long line is shown.
const LINE: usize = 160;

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
        let message = text
            .split("\n    at ")
            .next()
            .unwrap_or_default()
            .to_owned();
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
            "ReferenceError" => self.of_reference(what),
            "TypeError" => self.of_type(what, before),
            "SyntaxError" => of_syntax(what, line).map(str::to_owned),
            "RangeError" => of_range(what).map(str::to_owned),
            _ => of_helper(message).map(str::to_owned),
        }
    }

    /// `x is not defined`, and its like.
    fn of_reference(&self, what: &str) -> Option<String> {
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
                    Some("what is taken apart is undefined or null there: look at it first with text(...)".to_owned())
                });
        }
        if what == "Assignment to constant variable." {
            return Some("declare it with `let` instead of `const`".to_owned());
        }
        if let Some(made) = what.strip_suffix(" is not a constructor") {
            return Some(match made.starts_with("tools.") {
                true => format!("call it without `new`: await {made}(...)"),
                false => format!("`{made}` is no class: call it without `new`"),
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
        if let Some((receiver, method)) = called.rsplit_once('.') {
            let root = root_of(receiver);
            if let Some(name) = receiver.strip_prefix("tools.")
                && !name.contains('(')
            {
                return Some(match self.tools.index_of(method).is_some() {
                    true => format!("a tool stands on `tools` itself: await tools.{method}(...)"),
                    false => format!("a tool is called itself: await tools.{name}(...)"),
                });
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
                    "`{receiver}` is no array: look at it with text({}); Object.entries makes an array of an object, and a promise needs `await`",
                    shown(receiver)
                ));
            }
            if matches!(
                method,
                "trim" | "split" | "includes" | "replace" | "startsWith" | "match" | "toLowerCase"
            ) {
                return Some(format!(
                    "`{receiver}` is no string: look at it with text({}), or write String({}).{method}(...)",
                    shown(receiver),
                    shown(receiver)
                ));
            }
            if method == "then" || method == "catch" {
                return Some(format!(
                    "`{receiver}` is no promise: use its value as it is"
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
            Some("it is no array: look at it with text(...); Object.entries(...) makes an array of an object, and a promise needs `await`".to_owned())
        })
    }

    /// What a variable is, where it was given a tool's result, or a promise. `property` is
    /// what was read of it: where the result has that, the cause is another.
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

static DESTRUCTURED: LazyLock<Regex> = LazyLock::new(|| {
    compiled(r"^Cannot destructure (?:property '[^']*' of )?'(?:\(intermediate value\))?([^']*)'")
});
static CALL: LazyLock<Regex> = LazyLock::new(|| compiled(r"\btools\.([\w$]+)(?:\.raw)?\("));
static PYTHON: LazyLock<Regex> = LazyLock::new(|| {
    compiled(
        r#"^\s*(?:def \w+\(.*\):|elif\b.*:|for \w+(?:, *\w+)* in .*:|(?:if|while|with|class|except)\b.*:\s*$|else:|try:|import \w+\s*$|from \w+ import|print\(|# )|\bf["']|"""|\b(?:not|and|or|lambda) "#,
    )
});
static FRAME: LazyLock<Regex> = LazyLock::new(|| compiled(r"exec_main\.mjs:(\d+):(\d+)"));
static ROOT: LazyLock<Regex> = LazyLock::new(|| {
    compiled(r"([A-Za-z_$][\w$]*)(?:\??\.[\w$]*|\[[^\[\]]*\]|\([^()]*\)|\?\.)*\s*$")
});

/// A pattern of ours.
fn compiled(pattern: &str) -> Regex {
    // One that does not compile would show in every test of this module; `$^` matches
    // nothing.
    Regex::new(pattern)
        .or_else(|_| Regex::new("$^"))
        .unwrap_or_else(|_| unreachable!("a pattern without content compiles"))
}

/// The variable that an expression begins with, for example `r` of `r.items[0]`.
fn root_of(expression: &str) -> &str {
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let end = expression.find(|c| !is_name(c)).unwrap_or(expression.len());
    &expression[..end]
}

/// The variable of the expression that ends a text.
fn root_before(before: &str) -> Option<&str> {
    Some(ROOT.captures(before)?.get(1)?.as_str())
}

/// The property that is read of a variable in an expression: `data` of `r.data[0]`.
fn property_after<'a>(expression: &'a str, root: &str) -> &'a str {
    let Some(at) = expression.rfind(&format!("{root}.")) else {
        return "";
    };
    root_of(&expression[at + root.len() + 1..])
}

/// A tool whose call on this line nobody awaits, while something is read of it there.
fn tool_not_awaited(line: &str) -> Option<&str> {
    let call = CALL.captures_iter(line).find(|call| {
        let start = call.get(0).map_or(0, |whole| whole.start());
        let before = line[..start].trim_end();
        // What an arrow returns is awaited elsewhere.
        !before.ends_with("await") && !before.contains("=>")
    })?;
    // What is put together and waited for as one is awaited elsewhere.
    if line.contains("Promise.all") {
        return None;
    }
    let after = &line[call.get(0)?.end()..];
    let tool = call.get(1)?.as_str();
    let reads = after.find(')').is_some_and(|at| {
        let rest = after[at + 1..].trim_start();
        rest.starts_with(['.', '[', ')'])
            && !rest.starts_with(".then")
            && !rest.starts_with(".catch")
    });
    (reads || line.contains("of tools.") || line.contains("...tools.")).then_some(tool)
}

/// Whether a name is only assigned to, never declared.
fn is_assigned(source: &str, name: &str) -> bool {
    let name = regex::escape(name);
    let assigned = Regex::new(&format!(
        r"(?m)(?:^|[;{{}}(]\s*|^\s*){name}\s*(?:[-+*/|&]?=[^=]|\+\+|--)"
    ));
    assigned.is_ok_and(|assigned| assigned.is_match(source))
}

/// Where a module is imported that there is not.
fn place_of_import(source: &str, text: &str) -> Option<SourcePosition> {
    let wanted = text
        .strip_prefix("Unsupported import in exec: ")?
        .lines()
        .next()?;
    let (number, line) = source.lines().enumerate().find(|(_, line)| {
        line.contains(wanted) && (line.contains("import") || line.contains("from"))
    })?;
    Some(SourcePosition {
        line: u32::try_from(number + 1).ok()?,
        column: u32::try_from(line.find(wanted)? + 1).ok()?,
    })
}

/// A source that is not JavaScript at all.
fn of_another_language(source: &str, line: &str) -> Option<&'static str> {
    let start = source.trim_start();
    if start.starts_with("{\"") || start.starts_with("[{\"") {
        return Some("give the program itself, with no JSON around it");
    }
    if start.starts_with('<') && start.ends_with('>') {
        return Some("give the program itself, with no markup around it");
    }
    if source.contains("```") {
        return Some(
            "leave the code fence, and the prose around it, out: the source is plain JavaScript",
        );
    }
    if line.contains(['\u{201c}', '\u{201d}', '\u{2018}', '\u{2019}']) {
        return Some("write straight quotes: \" or '");
    }
    PYTHON
        .is_match(line)
        .then_some("this is Python: write JavaScript")
}

/// An expression as it can be written, without V8's stand-ins.
fn shown(receiver: &str) -> &str {
    match receiver.contains('(') {
        true => "...",
        false => receiver,
    }
}

/// The first frame of the cell in a stack.
fn first_frame(text: &str) -> Option<SourcePosition> {
    let frame = FRAME.captures(text)?;
    Some(SourcePosition {
        line: frame.get(1)?.as_str().parse().ok()?,
        column: frame.get(2)?.as_str().parse().ok()?,
    })
}

fn line_of(source: &str, at: SourcePosition) -> Option<&str> {
    source.lines().nth(at.line.saturating_sub(1) as usize)
}

/// A line up to a column, which counts UTF-16 units.
fn up_to(line: &str, column: u32) -> &str {
    let mut units = 0;
    for (at, c) in line.char_indices() {
        if units + 1 >= column {
            return &line[..at];
        }
        units += c.len_utf16() as u32;
    }
    line
}

/// The line with a mark under the place; of a place after the end, the last line.
fn excerpt(source: &str, mut at: SourcePosition) -> Option<String> {
    let last = source.trim_end().lines().count();
    if at.line as usize > last {
        at.line = u32::try_from(last).ok()?;
        at.column = u32::MAX;
    }
    let line = line_of(source, at)?;
    let before = up_to(line, at.column);
    let mut from = 0;
    if before.len() > LINE / 2 {
        from = before.floor_char_boundary(before.len() - LINE / 2);
    }
    let to = line.floor_char_boundary((from + LINE).min(line.len()));
    let plain = |text: &str| text.replace('\t', " ").trim_end_matches('\r').to_owned();
    let shown = plain(&line[from..to]);
    let indent = before[from.min(before.len())..].chars().count();
    let number = at.line.to_string();
    let lead = if from > 0 { "…" } else { "" };
    let tail = if to < line.len() { "…" } else { "" };
    let indent = indent + lead.chars().count();
    Some(format!(
        "{number} | {lead}{shown}{tail}\n{:width$} | {:indent$}^",
        "",
        "",
        width = number.len()
    ))
}

/// Help for what native helpers refuse.
fn of_helper(message: &str) -> Option<&'static str> {
    if message.starts_with("Unsupported import") || message.starts_with("unsupported import") {
        return Some(
            "there are no modules: everything outside the program is reached through `tools`; search_tools(\"words\") finds one",
        );
    }
    if message.starts_with("Unable to store") {
        return Some("give the key first: store(key, value), with a value that JSON can express");
    }
    if message.contains("cannot be serialized as JSON") {
        return Some("pass plain data: objects, arrays, strings, numbers, booleans, null");
    }
    None
}

fn of_range(what: &str) -> Option<&'static str> {
    if what.starts_with("Maximum call stack") {
        return Some(
            "a function calls itself without end: give the recursion an end, or write a loop",
        );
    }
    if what.starts_with("Invalid time value") {
        return Some("the date could not be parsed: check it with Number.isNaN(date.getTime())");
    }
    if what.starts_with("Invalid array length") || what.starts_with("Invalid string length") {
        return Some("the length is negative, no number, or too large");
    }
    None
}

fn of_type_text(what: &str) -> Option<&'static str> {
    let helps = [
        (
            "Converting circular structure",
            "put out the parts you need: the object refers to itself",
        ),
        (
            "Do not know how to serialize a BigInt",
            "write String(value) or Number(value) for a bigint before it becomes JSON",
        ),
        (
            "Cannot mix BigInt",
            "convert one side: Number(value) or BigInt(value)",
        ),
        ("Cannot convert a BigInt", "write Number(value)"),
        ("Class constructor", "classes are made with `new`"),
        (
            "Invalid URL",
            "give an absolute URL with its scheme, or a base: new URL(path, base)",
        ),
        (
            "Reduce of empty array",
            "give reduce a first value: reduce(f, start)",
        ),
        (
            "Cannot convert undefined or null to object",
            "the value is undefined or null: look at it with text(...) first",
        ),
        (
            "Cannot assign to read only property",
            "make a copy and change that: { ...object, key: value }",
        ),
        (
            "Cannot add property",
            "the object is frozen: make a copy and change that",
        ),
        ("Method Promise.prototype", "call it on a promise"),
    ];
    let found = helps.iter().find(|(begin, _)| what.starts_with(begin));
    found.map(|(_, help)| *help)
}

fn of_syntax(what: &str, line: &str) -> Option<&'static str> {
    if what.contains("is not valid JSON")
        || what.contains(" JSON at position")
        || what.contains("JSON input")
    {
        return Some(match () {
            () if what.contains("[object Promise]") => "write `await` before the tool call",
            () if what.contains("[object") || what.contains("\"undefined\"") => {
                "it is no text: a tool's result is a value already and needs no JSON.parse"
            }
            () if what.contains("after JSON") => {
                "there is more than one value: split the text into lines and parse each, or use it as text"
            }
            () => "the text is no JSON: look at it with text(...) before JSON.parse",
        });
    }
    if line.trim_start().starts_with('@') {
        return Some("decorators do not run here: call the function instead");
    }
    if line.trim_start().starts_with("```") {
        return Some("leave the code fence out: the source is plain JavaScript");
    }
    if line.trim_start().starts_with("import ") {
        return Some(
            "there are no modules: everything outside the program is reached through `tools`",
        );
    }
    let helps = [
        (
            "Illegal return statement",
            "there is no function to return from: put the value out with text(...), and end with exit()",
        ),
        ("await is only valid", "make the function around it `async`"),
        (
            "Unexpected reserved word",
            "make the function around `await` async",
        ),
        (
            "Missing catch or finally",
            "add catch (error) { ... } after the try block",
        ),
        (
            "missing )",
            "a bracket, comma or quote is missing before this place",
        ),
        (
            "Unexpected end of input",
            "a bracket or brace is not closed",
        ),
        (
            "Unterminated template",
            "a template's backtick is not closed; inside a template write \\` for one",
        ),
        (
            "Unterminated string",
            "close the quote on the same line, or use a template: `...`",
        ),
        (
            "Invalid or unexpected token",
            "a quote is not closed on its line (use a template, `...`, for several lines), or a character does not belong here",
        ),
        (
            "Unterminated regular expression",
            "close the regular expression with `/`, and write \\/ for a slash in it",
        ),
        (
            "Invalid regular expression",
            "mend the pattern, or escape what is meant literally",
        ),
        ("Octal", "write octal numbers as 0o17"),
        (
            "Delete of an unqualified identifier",
            "assign undefined instead: this is strict mode",
        ),
        (
            "Unexpected strict mode reserved word",
            "choose another name: this is strict mode",
        ),
        (
            "Unexpected eval or arguments",
            "choose another name: this is strict mode",
        ),
        (
            "Missing initializer",
            "give the constant a value, or use `let`",
        ),
        (
            "Invalid left-hand side",
            "compare with ===; only a variable or property can be assigned to",
        ),
        (
            "Unexpected token 'export'",
            "nothing is exported from a cell: put results out with text(...)",
        ),
        (
            "Invalid shorthand property",
            "write `key: value` in an object",
        ),
        (
            "Unexpected token",
            "a bracket, comma or operator is missing or too many before this place",
        ),
        (
            "Unexpected identifier",
            "a comma, operator, quote or bracket is missing before this place",
        ),
        (
            "Unexpected string",
            "a comma or operator is missing before this place",
        ),
        (
            "Unexpected number",
            "a comma or operator is missing before this place",
        ),
        (
            "Return statement is not allowed",
            "there is no function to return from: put the value out with text(...), and end with exit()",
        ),
        ("`await`", "make the function around it `async`"),
        ("await isn't allowed", "make the function around it `async`"),
        (
            "Unterminated",
            "close what is open: a quote, a template or a comment",
        ),
        ("Unexpected eof", "a bracket, brace or quote is not closed"),
        (
            "Expected",
            "a bracket, comma or operator is missing at this place",
        ),
        (
            "Malformed arrow function",
            "write the parameters as (a, b) => ...",
        ),
        (
            "Lexical declaration cannot",
            "put the declaration in braces: { ... }",
        ),
        ("Rest element must be last", "put the rest element last"),
    ];
    if what.contains("has already been declared") {
        return Some("choose another name for the second one, or assign without const or let");
    }
    let found = helps.iter().find(|(begin, _)| what.starts_with(begin));
    found.map(|(_, help)| *help)
}

/// Methods of other languages, and what JavaScript has.
const METHODS_ELSEWHERE: &[(&str, &str)] = &[
    ("append", "array.push(value)"),
    ("extend", "array.push(...values)"),
    ("strip", "text.trim()"),
    ("lstrip", "text.trimStart()"),
    ("rstrip", "text.trimEnd()"),
    ("upper", "text.toUpperCase()"),
    ("lower", "text.toLowerCase()"),
    ("startswith", "text.startsWith(start)"),
    ("endswith", "text.endsWith(end)"),
    ("items", "Object.entries(object)"),
    ("contains", "includes(value)"),
    ("isEmpty", "length === 0"),
    ("remove", "array.splice(index, 1)"),
    ("size", "length"),
    ("format", "`${value}` in a template"),
];

/// What programs elsewhere have, and what there is instead.
const ABSENT: &[(&str, &str)] = &[
    (
        "require",
        "there are no modules: everything outside the program is reached through `tools`; search_tools(\"words\") finds one",
    ),
    (
        "module",
        "nothing is exported from a cell: put results out with text(...)",
    ),
    (
        "exports",
        "nothing is exported from a cell: put results out with text(...)",
    ),
    (
        "fetch",
        "there is no network: look for a tool with search_tools(\"http fetch\")",
    ),
    (
        "axios",
        "there is no network: look for a tool with search_tools(\"http fetch\")",
    ),
    (
        "XMLHttpRequest",
        "there is no network: look for a tool with search_tools(\"http fetch\")",
    ),
    (
        "WebSocket",
        "there is no network: look for a tool that does it with search_tools(\"words\")",
    ),
    (
        "Headers",
        "there is no network: look for a tool with search_tools(\"http fetch\")",
    ),
    (
        "Request",
        "there is no network: look for a tool with search_tools(\"http fetch\")",
    ),
    (
        "Response",
        "there is no network: look for a tool with search_tools(\"http fetch\")",
    ),
    ("FormData", "there is no network: pass a tool plain data"),
    ("Blob", "use a Uint8Array, or a base64 text made with btoa"),
    (
        "File",
        "there is no file system: look for a tool with search_tools(\"read file\")",
    ),
    (
        "FileReader",
        "there is no file system: look for a tool with search_tools(\"read file\")",
    ),
    (
        "fs",
        "there is no file system: look for a tool with search_tools(\"read file\")",
    ),
    ("path", "join paths as texts: `${dir}/${name}`"),
    (
        "os",
        "there is no operating system to ask: look for a tool with search_tools(\"words\")",
    ),
    (
        "child_process",
        "there are no processes: look for a tool with search_tools(\"run command\")",
    ),
    (
        "process",
        "there is no process and no environment: exit() ends the cell, text(...) puts out, values come from tools or load(key)",
    ),
    (
        "Deno",
        "this is not Deno: everything outside the program is reached through `tools`",
    ),
    (
        "Bun",
        "this is not Bun: everything outside the program is reached through `tools`",
    ),
    ("global", "write globalThis"),
    (
        "window",
        "there is no page: write globalThis for the global object",
    ),
    ("self", "write globalThis for the global object"),
    (
        "document",
        "there is no page: parse texts with regular expressions, or look for a tool with search_tools(\"html\")",
    ),
    (
        "DOMParser",
        "there is no page: parse texts with regular expressions, or look for a tool with search_tools(\"html\")",
    ),
    (
        "navigator",
        "there is no browser: everything outside the program is reached through `tools`",
    ),
    (
        "location",
        "there is no page: everything outside the program is reached through `tools`",
    ),
    ("alert", "put out with text(...)"),
    (
        "prompt",
        "nobody can be asked here: end with text(...) and your question",
    ),
    (
        "confirm",
        "nobody can be asked here: end with text(...) and your question",
    ),
    (
        "localStorage",
        "keep values with store(key, value) and load(key)",
    ),
    (
        "sessionStorage",
        "keep values with store(key, value) and load(key)",
    ),
    (
        "Buffer",
        "use Uint8Array, TextEncoder, TextDecoder, atob and btoa",
    ),
    (
        "__dirname",
        "there is no file system: look for a tool with search_tools(\"read file\")",
    ),
    (
        "__filename",
        "there is no file system: look for a tool with search_tools(\"read file\")",
    ),
    ("setImmediate", "write setTimeout(callback, 0)"),
    ("requestAnimationFrame", "write setTimeout(callback, 16)"),
    (
        "sleep",
        "write await new Promise((resolve) => setTimeout(resolve, ms))",
    ),
    (
        "delay",
        "write await new Promise((resolve) => setTimeout(resolve, ms))",
    ),
    (
        "wait",
        "write await new Promise((resolve) => setTimeout(resolve, ms)); a running cell is waited for with the wait tool",
    ),
    ("print", "put out with text(...)"),
    ("println", "put out with text(...)"),
    ("printf", "put out with text(...)"),
    ("echo", "put out with text(...)"),
    ("output", "put out with text(...)"),
    ("display", "put out with text(...) or image(...)"),
    ("log", "write console.log(...) or text(...)"),
    ("None", "write null or undefined"),
    ("nil", "write null or undefined"),
    ("True", "write true"),
    ("False", "write false"),
    ("len", "write value.length"),
    ("str", "write String(value)"),
    ("int", "write Number.parseInt(value, 10)"),
    ("float", "write Number.parseFloat(value)"),
    ("dict", "write an object: { key: value }"),
    ("list", "write an array: [a, b]"),
    ("range", "write Array.from({ length: n }, (_, i) => i)"),
    (
        "util",
        "use console.log, JSON.stringify and the language's own",
    ),
    (
        "http",
        "there is no network: look for a tool with search_tools(\"http fetch\")",
    ),
    (
        "https",
        "there is no network: look for a tool with search_tools(\"http fetch\")",
    ),
    (
        "exec",
        "there are no processes: look for a tool with search_tools(\"run command\")",
    ),
    (
        "execSync",
        "there are no processes: look for a tool with search_tools(\"run command\")",
    ),
    (
        "spawn",
        "there are no processes: look for a tool with search_tools(\"run command\")",
    ),
    (
        "bash",
        "there are no processes: look for a tool with search_tools(\"run command\")",
    ),
    (
        "glob",
        "there is no file system: look for a tool with search_tools(\"list files\")",
    ),
    (
        "readFile",
        "there is no file system: look for a tool with search_tools(\"read file\")",
    ),
    (
        "readFileSync",
        "there is no file system: look for a tool with search_tools(\"read file\")",
    ),
    (
        "writeFile",
        "there is no file system: look for a tool with search_tools(\"write file\")",
    ),
    (
        "readline",
        "nobody can be asked here: end with text(...) and your question",
    ),
    ("EventEmitter", "write new EventTarget()"),
    ("chalk", "put out plain text with text(...)"),
    ("Atomics", "a cell is one thread: there is no shared memory"),
    (
        "SharedArrayBuffer",
        "a cell is one thread: there is no shared memory",
    ),
    (
        "Worker",
        "a cell is one thread: start calls together with Promise.all",
    ),
    ("WebAssembly", "there is no WebAssembly: write JavaScript"),
    (
        "_",
        "there is no lodash: arrays and objects have methods of their own",
    ),
    ("lodash", "arrays and objects have methods of their own"),
    (
        "$",
        "there is no jQuery: everything outside the program is reached through `tools`",
    ),
    ("moment", "write new Date(...) and Intl.DateTimeFormat"),
    ("dayjs", "write new Date(...) and Intl.DateTimeFormat"),
    ("z", "there is no zod: check values by hand"),
    ("React", "there is no React: put out with text(...)"),
    ("expect", "throw an Error where something is wrong"),
    ("assert", "write console.assert(...), or throw an Error"),
    (
        "describe",
        "describe_tool(name) gives a tool's declaration; there are no test suites",
    ),
    ("mcp", "tools are called as await tools.NAME(input)"),
    ("tool", "the object is `tools`: await tools.NAME(input)"),
    ("call_tool", "tools are called as await tools.NAME(input)"),
    ("callTool", "tools are called as await tools.NAME(input)"),
    ("functions", "tools are called as await tools.NAME(input)"),
    (
        "api",
        "everything outside the program is reached through `tools`",
    ),
    (
        "client",
        "everything outside the program is reached through `tools`",
    ),
    (
        "args",
        "a cell has no arguments: write the values into the source, or load(key)",
    ),
    (
        "argv",
        "a cell has no arguments: write the values into the source, or load(key)",
    ),
    (
        "input",
        "a cell has no input: write the values into the source, or load(key)",
    ),
    (
        "env",
        "there is no environment: values come from tools or load(key)",
    ),
];

/// What a wrong name may have meant.
const GLOBAL_NAMES: &[&str] = &[
    "text",
    "image",
    "audio",
    "content",
    "generatedImage",
    "store",
    "load",
    "notify",
    "yield_control",
    "exit",
    "setTimeout",
    "clearTimeout",
    "setInterval",
    "clearInterval",
    "as_settled",
    "stream_settled",
    "tools",
    "ALL_TOOLS",
    "search_tools",
    "describe_tool",
    "console",
    "structuredClone",
    "queueMicrotask",
    "URLSearchParams",
    "TextEncoder",
    "TextDecoder",
    "AbortController",
    "AbortSignal",
    "performance",
    "crypto",
    "Promise",
    "JSON",
    "Object",
    "Array",
    "String",
    "Number",
    "Boolean",
    "Math",
    "Date",
    "RegExp",
    "Map",
    "Set",
    "WeakMap",
    "Symbol",
    "Error",
    "TypeError",
    "BigInt",
    "Intl",
    "Reflect",
    "Proxy",
    "globalThis",
    "parseInt",
    "parseFloat",
    "undefined",
    "encodeURIComponent",
    "decodeURIComponent",
    "Uint8Array",
    "ArrayBuffer",
];

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
    fn an_error_shows_its_line_and_a_mend() {
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
