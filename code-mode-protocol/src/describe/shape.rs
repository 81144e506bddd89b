//! Shapes of tools' results as they were seen: keys and types, never values.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ToolAnswer;

/// The shape of the values that were seen at one place: types and keys. It is bounded, whatever the
/// values are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shape {
    /// Types other than arrays and objects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scalars: Vec<Cow<'static, str>>,
    /// Keys of objects in the order in which they were first seen, with whether every
    /// object had the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<Vec<(String, bool, Shape)>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    element: Option<Box<Shape>>,
    /// There was more than is kept.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cut: bool,
}

/// Keys kept of one object, elements looked at of one array, levels, and places in all.
const MAX_KEYS: usize = 40;
const MAX_ELEMENTS: usize = 20;
const MAX_DEPTH: usize = 6;
const MAX_PLACES: usize = 1000;
/// Results larger than this are not looked at: parsing them once more would show.
const MAX_BYTES: usize = 64 << 10;
/// The longest key that a shape on disk has.
const MAX_KEPT_KEY: usize = 64;

impl Shape {
    /// Adds the shape of a tool's result, as JSON text: of an MCP result, the shape of what a cell
    /// gets of it. A result larger than 64 KiB adds nothing. Returns whether it added something.
    pub fn see_result(&mut self, answer: ToolAnswer, json: &str) -> bool {
        if json.len() > MAX_BYTES {
            return false;
        }
        let Ok(value) = serde_json::from_str::<Value>(json) else {
            return false;
        };
        let value = match answer {
            ToolAnswer::Value => Some(value),
            ToolAnswer::McpResult => mcp_value(value),
        };
        let Some(value) = value else {
            return false;
        };
        let before = self.clone();
        self.see(&value);
        *self != before
    }

    fn see(&mut self, value: &Value) {
        let mut room = MAX_PLACES.saturating_sub(self.places());
        self.see_at(value, 0, &mut room);
    }

    /// How many places it has.
    fn places(&self) -> usize {
        let object = self.object.iter().flatten();
        let below: usize = object.map(|(_, _, shape)| shape.places()).sum();
        let element = self.element.as_ref().map_or(0, |shape| shape.places());
        1 + below + element
    }

    /// The shape without keys that look like data, such as addresses, long numbers and hashes: for
    /// a disk.
    #[must_use]
    pub fn without_data(&self) -> Self {
        let mut kept = Self {
            scalars: self.scalars.clone(),
            cut: self.cut,
            ..Self::default()
        };
        if let Some(object) = &self.object {
            let mut fields = Vec::new();
            for (key, always, shape) in object {
                match is_name(key) {
                    true => fields.push((key.clone(), *always, shape.without_data())),
                    false => kept.cut = true,
                }
            }
            kept.object = Some(fields);
        }
        kept.element = self
            .element
            .as_ref()
            .map(|shape| Box::new(shape.without_data()));
        kept
    }

    /// Whether it is within the bounds of a shape that was made here: what a disk gave may not be.
    pub fn is_bounded(&self) -> bool {
        self.places() <= MAX_PLACES && self.is_shallow(MAX_DEPTH + 1)
    }

    fn is_shallow(&self, levels: usize) -> bool {
        let Some(below) = levels.checked_sub(1) else {
            return false;
        };
        let object = self.object.as_deref().unwrap_or_default();
        let known = ["null", "boolean", "number", "string"];
        object.len() <= MAX_KEYS
            && object
                .iter()
                .all(|(key, _, shape)| is_name(key) && shape.is_shallow(below))
            && self
                .element
                .as_ref()
                .is_none_or(|shape| shape.is_shallow(below))
            && self
                .scalars
                .iter()
                .all(|scalar| known.contains(&scalar.as_ref()))
    }

    fn see_at(&mut self, value: &Value, depth: usize, room: &mut usize) {
        if depth >= MAX_DEPTH {
            self.cut = true;
            return;
        }
        match value {
            Value::Null => self.scalar("null"),
            Value::Bool(_) => self.scalar("boolean"),
            Value::Number(_) => self.scalar("number"),
            Value::String(_) => self.scalar("string"),
            Value::Array(elements) => {
                if self.element.is_none() {
                    *room = room.saturating_sub(1);
                }
                let element = self.element.get_or_insert_default();
                for value in elements.iter().take(MAX_ELEMENTS) {
                    element.see_at(value, depth + 1, room);
                }
            }
            Value::Object(object) => self.see_object(object, depth, room),
        }
    }

    fn see_object(
        &mut self,
        object: &serde_json::Map<String, Value>,
        depth: usize,
        room: &mut usize,
    ) {
        let is_first = self.object.is_none();
        let known = self.object.get_or_insert_default();
        for (key, always, _) in known.iter_mut() {
            *always &= object.contains_key(key);
        }
        for (key, value) in object {
            match known.iter().position(|(name, ..)| name == key) {
                Some(at) => known[at].2.see_at(value, depth + 1, room),
                None if known.len() < MAX_KEYS && *room > 0 => {
                    *room -= 1;
                    let mut shape = Self::default();
                    shape.see_at(value, depth + 1, room);
                    known.push((key.clone(), is_first, shape));
                }
                None => self.cut = true,
            }
        }
    }

    fn scalar(&mut self, name: &'static str) {
        if !self.scalars.iter().any(|known| known == name) {
            self.scalars.push(Cow::Borrowed(name));
            self.scalars.sort_unstable();
        }
    }

    /// The keys at the top, where objects were seen.
    pub fn keys(&self) -> Option<Vec<&str>> {
        let object = self.object.as_ref()?;
        Some(object.iter().map(|(key, ..)| key.as_str()).collect())
    }

    /// The keys of the elements, where arrays of objects were seen.
    pub fn element_keys(&self) -> Option<Vec<&str>> {
        self.element.as_ref()?.keys()
    }

    /// The shape as a TypeScript type.
    pub fn typescript(&self) -> String {
        let mut alternatives: Vec<String> = Vec::new();
        if let Some(object) = &self.object {
            let mut fields: Vec<String> = object
                .iter()
                .map(|(key, always, shape)| {
                    let optional = if *always { "" } else { "?" };
                    format!("{}{optional}: {};", property(key), shape.typescript())
                })
                .collect();
            if self.cut {
                fields.push("[key: string]: unknown;".to_owned());
            }
            alternatives.push(match fields.is_empty() {
                true => "{}".to_owned(),
                false => format!("{{ {} }}", fields.join(" ")),
            });
        }
        if let Some(element) = &self.element {
            alternatives.push(format!("Array<{}>", element.typescript()));
        }
        alternatives.extend(self.scalars.iter().map(ToString::to_string));
        match alternatives.is_empty() {
            true => "unknown".to_owned(),
            false => alternatives.join(" | "),
        }
    }
}

/// A key as a TypeScript property.
fn property(key: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
    let plain = !key.is_empty()
        && key.chars().all(is_word)
        && !key.starts_with(|c: char| c.is_ascii_digit());
    match plain {
        true => key.to_owned(),
        // A JSON string is a string of JavaScript; comments cannot end in one.
        false => Value::from(key).to_string(),
    }
}

/// Whether a key of an object is a name that a programmer gave, as far as one can see: not data.
fn is_name(key: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '-' | '.');
    let longest_number = key.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    let is_hash = key.len() >= 16 && key.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '$')
        && key.len() <= MAX_KEPT_KEY
        && key.chars().all(is_word)
        && longest_number.unwrap_or_default() < 5
        && !is_hash
}

/// What a cell gets of an MCP result, as `web/mcp.js` of the engine has it; `None` where it gets an
/// error or blocks, whose shape is known.
fn mcp_value(mut result: Value) -> Option<Value> {
    if result
        .get("isError")
        .is_some_and(|is_error| is_error == true)
    {
        return None;
    }
    if let Some(structured) = result.get_mut("structuredContent") {
        return Some(structured.take());
    }
    match result.get("content")?.as_array()?.as_slice() {
        [block] if block.get("type")? == "text" => {
            let text = block.get("text")?.as_str()?;
            let is_json = text.trim_start().starts_with(['{', '[']);
            let parsed = is_json.then(|| serde_json::from_str(text).ok()).flatten();
            Some(parsed.unwrap_or_else(|| Value::from(text)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape_of(results: &[&str]) -> Shape {
        let mut shape = Shape::default();
        for json in results {
            shape.see_result(ToolAnswer::Value, json);
        }
        shape
    }

    #[test]
    fn shapes_of_several_results_are_one_type_without_values() {
        let shape = shape_of(&[
            r#"{"id": 1, "tags": ["secret"], "by": null}"#,
            r#"{"id": "x", "tags": [], "a-b": true}"#,
        ]);
        assert_eq!(
            shape.typescript(),
            r#"{ id: number | string; tags: Array<string>; by?: null; "a-b"?: boolean; }"#
        );
        assert_eq!(
            shape.keys().expect("an object"),
            ["id", "tags", "by", "a-b"]
        );
    }

    #[test]
    fn shapes_are_bounded() {
        let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
        assert_eq!(
            shape_of(&[&deep]).typescript(),
            format!("{}unknown{}", "Array<".repeat(6), ">".repeat(6))
        );
        let wide: Vec<_> = (0..1000).map(|i| format!("\"k{i}\": {i}")).collect();
        assert!(
            shape_of(&[&format!("{{{}}}", wide.join(","))])
                .typescript()
                .len()
                < 1000
        );
        let mut shape = Shape::default();
        for a in 0..50 {
            for b in 0..50 {
                shape.see_result(
                    ToolAnswer::Value,
                    &format!(r#"{{"a{a}": {{"b{b}": [{{"c{b}": {{}}}}]}}}}"#),
                );
            }
        }
        assert!(shape.is_bounded(), "{} places", shape.places());
    }

    #[test]
    fn a_shape_on_a_disk_has_no_keys_that_are_data() {
        let shape = shape_of(&[
            r#"{"name": 1, "ann@example.org": 2, "2024-11-05": 3, "deadbeefdeadbeef": 4, "id12345": 5, "rows": [{"x-y": 1, "Ann Example": 2}]}"#,
        ]);
        assert_eq!(
            shape.without_data().typescript(),
            r#"{ name: number; rows: Array<{ "x-y": number; [key: string]: unknown; }>; [key: string]: unknown; }"#
        );
        let text = serde_json::to_string(&shape.without_data()).expect("JSON");
        assert!(
            !text.contains("Example") && !text.contains("example"),
            "{text}"
        );
        let read: Shape = serde_json::from_str(&text).expect("a shape");
        assert!(read.is_bounded() && read == shape.without_data());
        let lie = r#"{"scalars": ["*/ evil"]}"#;
        assert!(
            !serde_json::from_str::<Shape>(lie)
                .expect("a shape")
                .is_bounded()
        );
    }
}
