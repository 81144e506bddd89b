//! Texts of strangers, made harmless for a terminal or a line.
//!
//! A terminal obeys control characters: they move its cursor, change its title, and on some
//! terminals write to the clipboard. Other characters hide text, or turn its direction, so
//! that a reader takes it for another.

use std::borrow::Cow;

/// Whether a character does something else than be seen: a control character, or one
/// that turns the direction of what follows. Line feeds and tabs are not meant.
fn is_obeyed(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        other => other.is_control(),
    }
}

/// Whether a character is invisible, or turns the direction of what follows.
fn is_hidden(character: char) -> bool {
    matches!(character,
        '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}'
        | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

/// The text as a terminal may have it: characters that it would obey are shown as escapes.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            obeyed if is_obeyed(obeyed) => shown.extend(obeyed.escape_unicode()),
            other => shown.push(other),
        }
    }
    Cow::Owned(shown)
}

/// The text between quotation marks, character by character: quotation marks, line ends and
/// whatever a reader would not see are escapes, so that no two texts look alike for these alone.
pub fn quoted(text: &str) -> String {
    let mut shown = String::with_capacity(text.len() + 2);
    shown.push('"');
    for character in text.chars() {
        match character {
            '"' => shown.push_str("\\\""),
            '\\' => shown.push_str("\\\\"),
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push_str("\\t"),
            '\u{2028}' | '\u{2029}' => shown.extend(character.escape_unicode()),
            other if is_obeyed(other) || is_hidden(other) => shown.extend(other.escape_unicode()),
            other => shown.push(other),
        }
    }
    shown.push('"');
    shown
}

/// The text without invisible characters; control characters become spaces, and every kind
/// of line end a line feed.
pub fn clean(text: &str) -> String {
    text.chars()
        .filter(|character| !is_hidden(*character))
        .map(|character| match character {
            '\n' | '\t' => character,
            '\u{2028}' | '\u{2029}' | '\r' => '\n',
            other if other.is_control() => ' ',
            other => other,
        })
        .collect()
}

/// The text [clean](clean()) and on one line.
pub fn clean_line(text: &str) -> String {
    clean(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The text on one line, without characters that hide something or end a comment, and with
/// `max` bytes at most, beside a mark where it was cut.
pub fn line(text: &str, max: usize) -> String {
    cut(&clean_line(text).replace("*/", "* /"), max)
}

/// The first `max` bytes of a text at most, with a mark where it was cut.
pub fn cut(text: &str, max: usize) -> String {
    match text.len() > max {
        true => format!("{}…", text[..text.floor_char_boundary(max)].trim_end()),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(visible("a\tb\nc é"), "a\tb\nc é");
        assert_eq!(visible("\u{1b}[2J"), "\\u{1b}[2J");
        assert_eq!(visible("\u{9b}31m"), "\\u{9b}31m");
        assert_eq!(visible("x\ry"), "x\\u{d}y");
        assert_eq!(visible("\u{202e}evil"), "\\u{202e}evil");
        assert_eq!(visible("\u{1b}]52;c;eA==\u{7}"), "\\u{1b}]52;c;eA==\\u{7}");
    }

    #[test]
    fn what_a_reader_would_not_see_is_quoted_as_an_escape() {
        assert_eq!(
            quoted("a\" \\ \n\u{200b}\u{0}é"),
            r#""a\" \\ \n\u{200b}\u{0}é""#
        );
    }

    #[test]
    fn a_strangers_text_stays_in_its_line() {
        let text = "a\u{1b}[31m b */ c\u{202e}\u{2028}## exec\nd\u{200b}";
        assert_eq!(line(text, 100), "a [31m b * / c ## exec d");
        assert_eq!(line("abcdef", 3), "abc…");
    }

    #[test]
    fn what_hides_or_turns_a_text_is_removed() {
        assert_eq!(clean("a\u{1b}[31m\u{202e}b\u{200b}\r\nc"), "a [31mb\n\nc");
        assert_eq!(clean_line("a\u{2028}## b\n\tc"), "a ## b c");
    }
}
