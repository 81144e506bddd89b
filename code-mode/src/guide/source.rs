//! What the author's source says at the place of an error.

use std::sync::LazyLock;

use code_mode_protocol::SourcePosition;
use regex::Regex;

/// How much of a long line is shown.
const LINE: usize = 160;

pub(super) static DESTRUCTURED: LazyLock<Regex> = LazyLock::new(|| {
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
pub(super) fn root_of(expression: &str) -> &str {
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let end = expression.find(|c| !is_name(c)).unwrap_or(expression.len());
    &expression[..end]
}

/// The variable of the expression that ends a text.
pub(super) fn root_before(before: &str) -> Option<&str> {
    Some(ROOT.captures(before)?.get(1)?.as_str())
}

/// The property that is read of a variable in an expression: `data` of `r.data[0]`.
pub(super) fn property_after<'a>(expression: &'a str, root: &str) -> &'a str {
    let Some(at) = expression.rfind(&format!("{root}.")) else {
        return "";
    };
    root_of(&expression[at + root.len() + 1..])
}

/// A tool whose call on this line nobody awaits, while something is read of it there.
pub(super) fn tool_not_awaited(line: &str) -> Option<&str> {
    let call = CALL.captures_iter(line).find(|call| {
        let start = call.get(0).map_or(0, |whole| whole.start());
        let before = line[..start].trim_end();
        // What an arrow returns is awaited elsewhere.
        !before.ends_with("await") && !before.contains("=>")
    })?;
    // A call inside Promise.all and its like is awaited there.
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

/// The tool that is called on a line with arguments as Python writes them: `tools.pay(amount=50)`.
pub(super) fn tool_with_named_argument<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let call = CALL.captures(line)?;
    let arguments = &line[call.get(0)?.end()..];
    let named = Regex::new(&format!(r"(?:^|,)\s*{}\s*=[^=>]", regex::escape(name))).ok()?;
    let is_named = named.is_match(arguments);
    is_named.then(|| call.get(1).map(|tool| tool.as_str()))?
}

/// Whether a name is only assigned to, never declared.
pub(super) fn is_assigned(source: &str, name: &str) -> bool {
    let name = regex::escape(name);
    let assigned = Regex::new(&format!(
        r"(?m)(?:^|[;{{}}(]\s*|^\s*){name}\s*(?:[-+*/|&]?=[^=]|\+\+|--)"
    ));
    assigned.is_ok_and(|assigned| assigned.is_match(source))
}

/// Where a module is imported that there is not.
pub(super) fn place_of_import(source: &str, text: &str) -> Option<SourcePosition> {
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
pub(super) fn of_another_language(source: &str, line: &str) -> Option<&'static str> {
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
pub(super) fn shown(receiver: &str) -> &str {
    match receiver.contains('(') {
        true => "...",
        false => receiver,
    }
}

/// The first frame of the cell in a stack.
pub(super) fn first_frame(text: &str) -> Option<SourcePosition> {
    let frame = FRAME.captures(text)?;
    Some(SourcePosition {
        line: frame.get(1)?.as_str().parse().ok()?,
        column: frame.get(2)?.as_str().parse().ok()?,
    })
}

pub(super) fn line_of(source: &str, at: SourcePosition) -> Option<&str> {
    source.lines().nth(at.line.saturating_sub(1) as usize)
}

/// A line up to a column, which counts UTF-16 units.
pub(super) fn up_to(line: &str, column: u32) -> &str {
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
pub(super) fn excerpt(source: &str, mut at: SourcePosition) -> Option<String> {
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
