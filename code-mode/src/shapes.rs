//! Shapes of tools' results as a session saw them: keys and types, never values.

use std::collections::BTreeMap;

use code_mode_protocol::ToolAnswer;
use code_mode_protocol::wire::native::WireTool;
use serde_json::Value;

/// The values seen at one place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Types other than arrays and objects.
    scalars: Vec<&'static str>,
    /// Keys of objects in the order in which they were first seen, with whether every
    /// object had the key.
    object: Option<Vec<(String, bool, Shape)>>,
    element: Option<Box<Shape>>,
    /// There was more than is kept.
    cut: bool,
}

/// Keys kept of one object, elements looked at of one array, levels.
const MAX_KEYS: usize = 40;
const MAX_ELEMENTS: usize = 20;
const MAX_DEPTH: usize = 6;

impl Shape {
    /// Adds a value's shape.
    pub(crate) fn see(&mut self, value: &Value) {
        self.see_at(value, 0);
    }

    fn see_at(&mut self, value: &Value, depth: usize) {
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
                let element = self.element.get_or_insert_default();
                for value in elements.iter().take(MAX_ELEMENTS) {
                    element.see_at(value, depth + 1);
                }
            }
            Value::Object(object) => self.see_object(object, depth),
        }
    }

    fn see_object(&mut self, object: &serde_json::Map<String, Value>, depth: usize) {
        let is_first = self.object.is_none();
        let known = self.object.get_or_insert_default();
        for (key, always, _) in known.iter_mut() {
            *always &= object.contains_key(key);
        }
        for (key, value) in object {
            match known.iter().position(|(name, ..)| name == key) {
                Some(at) => known[at].2.see_at(value, depth + 1),
                None if known.len() < MAX_KEYS => {
                    let mut shape = Self::default();
                    shape.see_at(value, depth + 1);
                    known.push((key.clone(), is_first, shape));
                }
                None => self.cut = true,
            }
        }
    }

    fn scalar(&mut self, name: &'static str) {
        if !self.scalars.contains(&name) {
            self.scalars.push(name);
            self.scalars.sort_unstable();
        }
    }

    /// The keys at the top, where objects were seen.
    pub(crate) fn keys(&self) -> Option<Vec<&str>> {
        let object = self.object.as_ref()?;
        Some(object.iter().map(|(key, ..)| key.as_str()).collect())
    }

    /// The keys of the elements, where arrays of objects were seen.
    pub(crate) fn element_keys(&self) -> Option<Vec<&str>> {
        self.element.as_ref()?.keys()
    }

    /// The shape as a TypeScript type.
    pub(crate) fn typescript(&self) -> String {
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

/// The shapes of a session's tools, by the tools' names.
#[derive(Debug, Default)]
pub(crate) struct Shapes(BTreeMap<String, Shape>);

/// Tools whose shapes are kept.
const MAX_TOOLS: usize = 1024;
/// Results larger than this are not looked at: parsing them once more would show.
const MAX_BYTES: usize = 64 << 10;

impl Shapes {
    /// A tool answered with this JSON. Of an MCP result, what a cell gets of it counts.
    pub(crate) fn see(&mut self, tool: &WireTool, json: &str) {
        let name = &tool.name;
        if json.len() > MAX_BYTES || (self.0.len() >= MAX_TOOLS && !self.0.contains_key(name)) {
            return;
        }
        let Ok(value) = serde_json::from_str::<Value>(json) else {
            return;
        };
        let value = match tool.answer {
            ToolAnswer::Value => Some(value),
            ToolAnswer::McpResult => mcp_value(value),
        };
        if let Some(value) = value {
            self.0.entry(name.clone()).or_default().see(&value);
        }
    }

    pub(crate) fn of(&self, tool: &str) -> Option<&Shape> {
        self.0.get(tool)
    }
}

/// What a cell gets of an MCP result, as `web/mcp.js` has it; `None` where it gets an
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
    use code_mode_protocol::ToolDefinition;

    #[test]
    fn shapes_of_several_results_are_one_type_without_values() {
        let mut shapes = Shapes::default();
        let tool = WireTool::new(&ToolDefinition::function("t", ""), true);
        shapes.see(&tool, r#"{"id": 1, "tags": ["secret"], "by": null}"#);
        shapes.see(&tool, r#"{"id": "x", "tags": [], "a-b": true}"#);
        let shape = shapes.of("t").expect("seen");
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
        let mut shapes = Shapes::default();
        let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
        let tool = |name| WireTool::new(&ToolDefinition::function(name, ""), true);
        shapes.see(&tool("deep"), &deep);
        assert_eq!(
            shapes.of("deep").expect("seen").typescript(),
            format!("{}unknown{}", "Array<".repeat(6), ">".repeat(6))
        );
        let wide: Vec<_> = (0..1000).map(|i| format!("\"k{i}\": {i}")).collect();
        shapes.see(&tool("wide"), &format!("{{{}}}", wide.join(",")));
        assert!(shapes.of("wide").expect("seen").typescript().len() < 1000);
    }
}
