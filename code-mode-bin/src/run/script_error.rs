//! A script's error, with the line it points at.

use std::fmt::Write;

use code_mode_protocol::SourcePosition;

/// How V8 names a cell's module in stack frames.
const MODULE_NAME: &str = "exec_main.mjs";

/// The error as a person reads it: the message, the line of the source with a
/// mark under the place, then the frames, all under the script's own name.
pub(crate) fn render(
    script: &str,
    source: &str,
    text: &str,
    position: Option<SourcePosition>,
) -> String {
    let text = text.replace(MODULE_NAME, script);
    let (message, frames) = match text.find("\n    at ") {
        Some(at) => text.split_at(at),
        None => (text.as_str(), ""),
    };
    let mut rendered = format!("error: {message}\n");
    if let Some(position) = position
        && let Some(line) = source.lines().nth(position.line.saturating_sub(1) as usize)
    {
        let SourcePosition {
            line: number,
            column,
        } = position;
        let gutter = number.to_string().len();
        // Writing to a string cannot fail.
        let _ = writeln!(rendered, "{:gutter$}--> {script}:{number}:{column}", "");
        let _ = writeln!(rendered, "{:gutter$} |", "");
        let _ = writeln!(rendered, "{number} | {}", line.replace('\t', " "));
        let before: usize = column.saturating_sub(1) as usize;
        let _ = writeln!(rendered, "{:gutter$} | {:before$}^", "", "");
    }
    if !frames.is_empty() {
        rendered.push_str(frames.trim_start_matches('\n'));
        rendered.push('\n');
    }
    rendered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_points_at_its_line() {
        let position = SourcePosition { line: 2, column: 3 };
        let text = "Error: boom\n    at exec_main.mjs:2:3";
        assert_eq!(
            render("a.js", "text(1)\n  throw x\n", text, Some(position)),
            "error: Error: boom\n --> a.js:2:3\n  |\n2 |   throw x\n  |   ^\n    at a.js:2:3\n"
        );
    }

    #[test]
    fn an_error_without_a_place_is_its_message() {
        assert_eq!(render("a.js", "", "str", None), "error: str\n");
    }
}
