//! Strangers' texts, made harmless for their readers.

use code_mode_protocol::text::{clean, cut, line};
use serde_json::Value;

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

/// A text of a stranger, at a bearable length.
pub(crate) fn short(text: &str) -> String {
    const MAX: usize = 300;
    match text.len() > MAX {
        true => format!("{}…", &text[..text.floor_char_boundary(MAX)]),
        false => text.to_owned(),
    }
}
