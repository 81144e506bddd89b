//! Messages that have the same hint wherever they come from.

/// Help for what native helpers refuse.
pub(super) fn of_helper(message: &str) -> Option<&'static str> {
    if message.starts_with("Unsupported import") || message.starts_with("unsupported import") {
        return Some(
            "a cell has no modules: everything outside the program is reached through `tools`; search_tools(\"words\") finds one",
        );
    }
    if message.ends_with("Only plain serializable objects can be stored.") {
        return Some("give the key first: store(key, value), with a value that JSON can express");
    }
    if message.contains("invalid image output") || message.contains("invalid audio output") {
        return Some(
            "give a data: URL (data:image/png;base64,...), a block of a tool's result, or the whole result; a file name is only a text: a tool must return what the file has",
        );
    }
    if message.contains("cannot be serialized as JSON") {
        return Some("pass plain data: objects, arrays, strings, numbers, booleans, null");
    }
    None
}

pub(super) fn of_range(what: &str) -> Option<&'static str> {
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

pub(super) fn of_type_text(what: &str) -> Option<&'static str> {
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

pub(super) fn of_syntax(what: &str, line: &str) -> Option<&'static str> {
    if what.contains("is not valid JSON")
        || what.contains(" JSON at position")
        || what.contains("JSON input")
    {
        return Some(match () {
            () if what.contains("[object Promise]") => "write `await` before the tool call",
            () if what.contains("[object") || what.contains("\"undefined\"") => {
                "it is not a text: a tool's result is a value already and needs no JSON.parse"
            }
            () if what.contains("after JSON") => {
                "there is more than one value: split the text into lines and parse each, or use it as text"
            }
            () => "the text is not JSON: look at it with text(...) before JSON.parse",
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
            "a cell has no modules: everything outside the program is reached through `tools`",
        );
    }
    let helps = [
        (
            "Illegal return statement",
            "return works only in a function: put the value out with text(...), and end with exit()",
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
            "correct the pattern, or escape its literal characters",
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
            "return works only in a function: put the value out with text(...), and end with exit()",
        ),
        ("`await`", "make the function around it `async`"),
        ("await isn't allowed", "make the function around it `async`"),
        (
            "Unterminated",
            "close the open part: a quote, a template or a comment",
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
