//! JSON Schema as a TypeScript type.
//!
//! No schema may cost a tool: what cannot be understood becomes `unknown`, a
//! recursive reference is followed a second time and then ends in `unknown`, and
//! so does everything past a fixed number of nodes, levels or bytes.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::{Map, Value};

use super::required::required;

/// A reference is expanded while it is on the path fewer times than this.
const REF_REPEATS: usize = 2;
/// Levels of nesting before `unknown`.
const MAX_DEPTH: usize = 40;
/// Nodes of one type before `unknown`; references can multiply without end.
const MAX_NODES: usize = 4_000;
/// Bytes of names, values and comments of one type before `unknown`: one node may have
/// megabytes of them.
const MAX_BYTES: usize = 256 << 10;
/// A longer reference leads nowhere.
const MAX_REFERENCE: usize = 1_000;

/// The TypeScript type of a JSON Schema.
///
/// Properties are sorted by name; an object has a line for each where one of
/// them has a description, which stands above it as a comment. Anything that is
/// no schema is `unknown`.
///
/// ```
/// # use code_mode_protocol::describe::type_of;
/// let schema = serde_json::json!({
///     "type": "object",
///     "properties": { "n": { "type": ["integer", "null"] }, "tag": { "const": "a" } },
///     "required": ["tag"],
/// });
/// assert_eq!(type_of(&schema), r#"{ n?: number | null; tag: "a"; }"#);
/// ```
pub fn type_of(schema: &Value) -> String {
    render(schema, Style::Recorded)
}

/// The type of a schema in a style.
pub(super) fn render(schema: &Value, style: Style) -> String {
    let mut renderer = Renderer {
        root: schema,
        style,
        path: Vec::new(),
        depth: 0,
        nodes: 0,
        bytes: 0,
    };
    renderer.schema(schema).0
}

/// How a type is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// As the Codex host writes it: properties by name, comments above them.
    Recorded,
    /// For guided sessions, with comments above the properties.
    Guided,
    /// The same on one line, with each comment between `/*` and `*/` behind its property.
    GuidedOnOneLine,
    /// The same without comments.
    GuidedWithoutComments,
    /// The same without the optional properties of the outermost object, but with their number.
    GuidedRequired,
}

impl Style {
    /// Required properties come first, and either kind in the schema's own order. A property
    /// with a default is optional.
    pub(super) fn is_guided(self) -> bool {
        self != Self::Recorded
    }

    fn has_comments(self) -> bool {
        !matches!(self, Self::GuidedWithoutComments | Self::GuidedRequired)
    }
}

/// How tightly a type's text binds, lowest first; what binds less than its
/// surroundings need gets parentheses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binding {
    Union,
    Intersection,
    Single,
}

struct Renderer<'a> {
    root: &'a Value,
    style: Style,
    /// The references that led here.
    path: Vec<&'a str>,
    depth: usize,
    nodes: usize,
    bytes: usize,
}

type Rendered = (String, Binding);

fn single(text: impl Into<String>) -> Rendered {
    (text.into(), Binding::Single)
}

fn unknown() -> Rendered {
    single("unknown")
}

/// Joins distinct alternatives or parts.
fn join(mut parts: Vec<Rendered>, binding: Binding, separator: &str) -> Rendered {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let mut known = HashSet::new();
    let mut texts: Vec<String> = Vec::new();
    for (text, inner) in parts {
        let text = if inner < binding {
            format!("({text})")
        } else {
            text
        };
        if known.insert(text.clone()) {
            texts.push(text);
        }
    }
    match texts.len() {
        0 => unknown(),
        1 => single(texts.remove(0)),
        _ => (texts.join(separator), binding),
    }
}

fn union(parts: Vec<Rendered>) -> Rendered {
    if parts.iter().any(|(text, _)| text == "unknown") {
        return unknown();
    }
    join(parts, Binding::Union, " | ")
}

impl<'a> Renderer<'a> {
    /// Whether so many more bytes fit.
    fn takes(&mut self, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        self.bytes <= MAX_BYTES
    }

    /// A value of the schema as the type of itself.
    fn literal(&mut self, value: &Value) -> Option<Rendered> {
        // A text is no longer than its JSON, and this is known without writing that.
        let text = value.as_str().map_or(0, str::len);
        if !self.takes(text) {
            return None;
        }
        let literal = value.to_string();
        self.takes(literal.len() - text.min(literal.len()))
            .then(|| single(literal))
    }

    fn schema(&mut self, schema: &'a Value) -> Rendered {
        self.nodes += 1;
        if self.depth >= MAX_DEPTH || self.nodes > MAX_NODES {
            return unknown();
        }
        self.depth += 1;
        let rendered = match schema {
            Value::Object(map) => self.map(map),
            Value::Bool(false) => single("never"),
            _ => unknown(),
        };
        self.depth -= 1;
        rendered
    }

    fn map(&mut self, map: &'a Map<String, Value>) -> Rendered {
        if let Some(Value::String(reference)) = map.get("$ref") {
            return self.reference(reference);
        }
        if let Some(value) = map.get("const") {
            return self.literal(value).unwrap_or_else(unknown);
        }
        if let Some(Value::Array(values)) = map.get("enum") {
            let literals: Option<Vec<_>> = values.iter().map(|v| self.literal(v)).collect();
            return literals.map_or_else(unknown, union);
        }
        let mut parts = Vec::new();
        for key in ["anyOf", "oneOf"] {
            if let Some(Value::Array(alternatives)) = map.get(key) {
                parts.push(union(alternatives.iter().map(|s| self.schema(s)).collect()));
            }
        }
        if let Some(Value::Array(all)) = map.get("allOf") {
            parts.extend(all.iter().map(|s| self.schema(s)));
        }
        parts.retain(|(text, _)| text != "unknown");
        let shaped = ["properties", "additionalProperties", "items", "prefixItems"]
            .iter()
            .any(|key| map.contains_key(*key));
        if shaped || parts.is_empty() {
            parts.insert(0, self.typed(map));
            if parts.len() > 1 {
                parts.retain(|(text, _)| text != "unknown");
            }
        }
        join(parts, Binding::Intersection, " & ")
    }

    fn typed(&mut self, map: &'a Map<String, Value>) -> Rendered {
        match map.get("type") {
            Some(Value::String(name)) => self.named(name, map),
            Some(Value::Array(names)) => union(
                names
                    .iter()
                    .map(|name| match name {
                        Value::String(name) => self.named(name, map),
                        _ => unknown(),
                    })
                    .collect(),
            ),
            _ if map.contains_key("properties") || map.contains_key("additionalProperties") => {
                self.object(map)
            }
            _ if map.contains_key("items") || map.contains_key("prefixItems") => self.array(map),
            _ => unknown(),
        }
    }

    fn named(&mut self, name: &str, map: &'a Map<String, Value>) -> Rendered {
        match name {
            "string" | "boolean" | "null" | "number" => single(name),
            "integer" => single("number"),
            "array" => self.array(map),
            "object" => self.object(map),
            _ => unknown(),
        }
    }

    fn array(&mut self, map: &'a Map<String, Value>) -> Rendered {
        let (tuple, rest) = match (map.get("prefixItems"), map.get("items")) {
            (Some(Value::Array(tuple)), rest) => (Some(tuple), rest),
            (_, Some(Value::Array(tuple))) => (Some(tuple), map.get("additionalItems")),
            (_, items) => (None, items),
        };
        let Some(tuple) = tuple else {
            let (item, _) = rest.map_or_else(unknown, |items| self.schema(items));
            return single(format!("Array<{item}>"));
        };
        let mut members: Vec<String> = tuple.iter().map(|item| self.schema(item).0).collect();
        match rest {
            // A tuple is closed unless its schema says what follows.
            None | Some(Value::Bool(_)) => {}
            Some(rest) => members.push(format!("...Array<{}>", self.schema(rest).0)),
        }
        single(format!("[{}]", members.join(", ")))
    }

    fn object(&mut self, map: &'a Map<String, Value>) -> Rendered {
        let properties = match map.get("properties") {
            Some(Value::Object(properties)) => Some(properties),
            _ => None,
        };
        let required: HashSet<&str> = match (self.style.is_guided(), map.get("required")) {
            (true, _) => required(map).collect(),
            (false, Some(Value::Array(names))) => names.iter().filter_map(Value::as_str).collect(),
            (false, _) => HashSet::new(),
        };
        let mut sorted: Vec<(&String, &'a Value, bool)> = properties
            .into_iter()
            .flatten()
            .map(|(name, property)| (name, property, required.contains(name.as_str())))
            .collect();
        match self.style.is_guided() {
            true => sorted.sort_by_key(|(_, _, is_required)| !is_required),
            false => sorted.sort_by_key(|(name, ..)| *name),
        }
        let mut left_out = 0;
        if self.style == Style::GuidedRequired && self.depth == 1 {
            let all = sorted.len();
            sorted.retain(|(_, _, is_required)| *is_required);
            left_out = all - sorted.len();
        }
        let mut members = Vec::new();
        let mut commented = false;
        for (name, property, is_required) in sorted {
            let comment = self.comment(property);
            let bytes = comment.iter().map(|line| line.len()).sum::<usize>() + name.len();
            if !self.takes(bytes) {
                break;
            }
            commented |= !comment.is_empty();
            let optional = match is_required {
                true => "",
                false => "?",
            };
            let (text, _) = self.schema(property);
            members.push((
                comment,
                format!("{}{optional}: {text};", property_name(name)),
            ));
        }
        if left_out > 0 {
            members.push((vec![], format!("/* {left_out} optional */")));
        }
        match map.get("additionalProperties") {
            None if members.is_empty() => members.push((vec![], index_of("unknown"))),
            None | Some(Value::Bool(false)) => {}
            Some(additional) => {
                let (text, _) = self.schema(additional);
                members.push((vec![], index_of(&text)));
            }
        }
        if members.is_empty() {
            return single("{}");
        }
        if !commented || self.style == Style::GuidedOnOneLine {
            let members: Vec<String> = members
                .into_iter()
                .map(|(comment, member)| match comment.is_empty() {
                    true => member,
                    false => format!("{member} /* {} */", comment.join(" ").replace("*/", "* /")),
                })
                .collect();
            return single(format!("{{ {} }}", members.join(" ")));
        }
        let mut text = String::from("{\n");
        for (comment, member) in members {
            for line in comment {
                text.push_str(&format!("  // {line}\n"));
            }
            text.push_str(&format!("  {member}\n"));
        }
        text.push('}');
        single(text)
    }

    /// The comment of a property, in lines.
    fn comment(&self, property: &'a Value) -> Vec<Cow<'a, str>> {
        if !self.style.has_comments() {
            return Vec::new();
        }
        let mut lines: Vec<_> = comment_lines(property).into_iter().map(Cow::from).collect();
        let default = property.get("default").filter(|_| self.style.is_guided());
        if let Some(default) = default
            && let Some(default) = shown_default(default)
        {
            lines.push(format!("Default {default}.").into());
        }
        lines
    }

    fn reference(&mut self, reference: &'a str) -> Rendered {
        let target = match reference.strip_prefix('#') {
            Some(pointer) if pointer.len() <= MAX_REFERENCE => self.root.pointer(pointer),
            _ => None,
        };
        let repeats = self.path.iter().filter(|r| **r == reference).count();
        match target {
            Some(target) if repeats < REF_REPEATS => {
                self.path.push(reference);
                let rendered = self.schema(target);
                self.path.pop();
                rendered
            }
            _ => unknown(),
        }
    }
}

/// A default as JSON; `None` for one that is long, or says that there is nothing.
fn shown_default(default: &Value) -> Option<String> {
    const LONGEST: usize = 60;
    let is_long = default.as_str().is_some_and(|text| text.len() > LONGEST)
        || default.as_array().is_some_and(|all| all.len() > LONGEST)
        || default.as_object().is_some_and(|all| all.len() > LONGEST);
    if is_long || default.is_null() {
        return None;
    }
    Some(default.to_string()).filter(|text| text.len() <= LONGEST)
}

fn index_of(text: &str) -> String {
    format!("[key: string]: {text};")
}

fn property_name(name: &str) -> String {
    let mut chars = name.chars();
    let identifier = chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_' || c == '$')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$');
    if identifier {
        name.to_owned()
    } else {
        Value::from(name).to_string()
    }
}

/// The lines of a schema's description. Every character that ends a line in
/// TypeScript does so here, so that no description leaves its comment.
fn comment_lines(schema: &Value) -> Vec<&str> {
    match schema.get("description").and_then(Value::as_str) {
        Some(text) if !text.trim().is_empty() => text
            .trim()
            .split(['\n', '\r', '\u{2028}', '\u{2029}'])
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unions_intersections_and_tuples_keep_their_meaning() {
        for (schema, expected) in [
            (json!({"type": ["string", "null"]}), "string | null"),
            (
                json!({"anyOf": [{"type": "string"}, {"type": "number"}]}),
                "string | number",
            ),
            (
                json!({"oneOf": [{"type": "string"}, {"type": "string"}]}),
                "string",
            ),
            (
                json!({"allOf": [{"anyOf": [{"type": "string"}, {"type": "number"}]}, {"properties": {"a": {}}}]}),
                "(string | number) & { a?: unknown; }",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "anyOf": [{"required": ["a"]}]}),
                "{ a?: string; }",
            ),
            (
                json!({"type": "array", "prefixItems": [{"type": "string"}, {"type": "number"}]}),
                "[string, number]",
            ),
            (
                json!({"type": "array", "items": [{"type": "string"}, {}]}),
                "[string, unknown]",
            ),
            (
                json!({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "null"}}),
                "[string, ...Array<null>]",
            ),
            (
                json!({"type": "array", "items": {"type": ["string", "null"]}}),
                "Array<string | null>",
            ),
            (json!({"type": "array"}), "Array<unknown>"),
            (
                json!({"type": "object", "additionalProperties": false}),
                "{}",
            ),
            (json!(true), "unknown"),
            (json!(false), "never"),
        ] {
            assert_eq!(type_of(&schema), expected, "{schema}");
        }
    }

    #[test]
    fn what_is_no_schema_is_unknown_and_costs_nothing_else() {
        for schema in [
            json!(null),
            json!(7),
            json!("string"),
            json!({"type": 5}),
            json!({"type": "quux"}),
            json!({"$ref": "#/nowhere"}),
            json!({"$ref": "https://example.com/schema"}),
            json!({"$ref": "#"}),
            json!({"enum": "no"}),
        ] {
            assert_eq!(type_of(&schema), "unknown", "{schema}");
        }
        let broken = json!({"type": "object", "properties": {"a": 5, "b": {"type": "array", "items": 7}}, "required": 3});
        assert_eq!(type_of(&broken), "{ a?: unknown; b?: Array<unknown>; }");
    }

    #[test]
    fn references_that_multiply_give_finite_output() {
        let mut defs = Map::new();
        for i in 0..60 {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            defs.insert(
                format!("d{i}"),
                json!({"type": "object", "properties": {"a": next, "b": next, "c": next}}),
            );
        }
        let schema = json!({"$defs": defs, "$ref": "#/$defs/d0"});
        assert!(type_of(&schema).len() < 100_000);
    }

    #[test]
    fn megabytes_in_a_few_nodes_give_little_output() {
        let many: Vec<_> = (0..200_000).map(|n| json!(format!("value {n}"))).collect();
        assert_eq!(type_of(&json!({"enum": many})), "unknown");
        assert_eq!(type_of(&json!({"const": "x".repeat(1 << 20)})), "unknown");
        let long = "x".repeat(100 << 10);
        let described = json!({"properties": {
            "a": {"description": long}, "b": {"description": long}, "c": {"description": long}}});
        assert!(type_of(&described).len() <= MAX_BYTES);
        // One definition that is long, and is referred to many times.
        let wide: Map<_, _> = (0..2000)
            .map(|n| (format!("p{n}"), json!({"$ref": "#/$defs/d"})))
            .collect();
        let schema = json!({"$defs": {"d": {"const": long}}, "properties": wide});
        assert!(type_of(&schema).len() <= 2 * MAX_BYTES);
    }

    #[test]
    fn on_one_line_no_comment_swallows_what_follows() {
        let schema = json!({"type": "object", "required": ["a"], "properties": {
            "a": {"type": "string", "description": "one\n// two */ three"}, "b": {}}});
        assert_eq!(
            render(&schema, Style::GuidedOnOneLine),
            "{ a: string; /* one // two * / three */ b?: unknown; }"
        );
    }

    #[test]
    fn guided_types_have_what_is_required_first_and_defaults() {
        let schema = json!({"type": "object", "required": ["to", "scale", "from"], "properties": {
            "note": {"type": "string", "description": "For the record."},
            "to": {"type": "string"},
            "scale": {"enum": ["css", "device"], "default": "css"},
            "from": {"type": "object", "properties": {"z": {}, "a": {}}}}});
        assert_eq!(
            render(&schema, Style::GuidedOnOneLine),
            "{ to: string; from: { z?: unknown; a?: unknown; }; note?: string; /* For the record. */ \
             scale?: \"css\" | \"device\"; /* Default \"css\". */ }"
        );
        assert_eq!(
            render(&schema, Style::GuidedWithoutComments),
            "{ to: string; from: { z?: unknown; a?: unknown; }; note?: string; scale?: \"css\" | \"device\"; }"
        );
        assert_eq!(
            render(&schema, Style::GuidedRequired),
            "{ to: string; from: { z?: unknown; a?: unknown; }; /* 2 optional */ }"
        );
    }

    #[test]
    fn a_description_cannot_leave_its_comment() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "string", "description": "one\rtwo\u{2028}three\n\n*/ four"}}});
        assert_eq!(
            type_of(&schema),
            "{\n  // one\n  // two\n  // three\n  // */ four\n  a?: string;\n}"
        );
    }
}
