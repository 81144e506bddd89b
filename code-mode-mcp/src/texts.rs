//! Strangers' texts, made harmless for their readers.

use code_mode_protocol::text::{clean, clean_line};
use serde_json::Value;

/// A stranger's text on one line, without characters that could hide something or end a
/// comment, and at most so long.
pub(crate) fn line(text: &str, max: usize) -> String {
    cut(&clean_line(text).replace("*/", "* /"), max)
}

/// Bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tool's definition with every text in it made harmless: what describes is one line
/// each, but for the tool's own description, and data keeps its form.
pub(crate) fn clean_definition(definition: &mut Value) {
    let description = definition.get_mut("description");
    if let Some(Value::String(text)) = description {
        const MAX: usize = 4000;
        *text = cut(&clean(text).replace("*/", "* /"), MAX);
    }
    for key in ["title", "inputSchema", "outputSchema", "annotations"] {
        if let Some(value) = definition.get_mut(key) {
            clean_texts(value, key == "title");
        }
    }
}

/// A value of a server with every text in it made harmless: a title or a description is one line.
pub(crate) fn clean_texts(value: &mut Value, describes: bool) {
    match value {
        Value::String(text) if describes => *text = line(text, 300),
        Value::String(text) => *text = clean(text),
        Value::Array(values) => values.iter_mut().for_each(|v| clean_texts(v, describes)),
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                let describes = value.is_string()
                    && matches!(key.as_str(), "description" | "title" | "$comment");
                clean_texts(value, describes);
            }
        }
        _ => {}
    }
}

pub(crate) fn cut(text: &str, max: usize) -> String {
    match text.len() > max {
        true => format!("{}…", text[..text.floor_char_boundary(max)].trim_end()),
        false => text.to_owned(),
    }
}

/// A text of a stranger, at a bearable length.
pub(crate) fn short(text: &str) -> String {
    const MAX: usize = 300;
    match text.len() > MAX {
        true => format!("{}…", &text[..text.floor_char_boundary(MAX)]),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_text_stays_in_its_line() {
        let text = "a\u{1b}[31m b */ c\u{202e}\u{2028}## exec\nd\u{200b}";
        assert_eq!(line(text, 100), "a [31m b * / c ## exec d");
        assert_eq!(line("abcdef", 3), "abc…");
    }
}
