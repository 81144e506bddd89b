//! A schema as a tree of bounded size, and what a check with it may cost.
//!
//! A server writes the schema and a cell writes the input, and the library that checks has no
//! limit: `oneOf` over two branches that refer to the whole costs 2^depth. Without references
//! each subschema meets each value of the input once at most, so the cost is known beforehand.
//! Hence references are replaced by what they refer to, and the rest of a tree that grows too
//! large accepts everything. A schema that was cut refuses less than the original, never more.

use std::collections::HashMap;

use code_mode_protocol::describe;
use serde_json::{Map, Value};

/// The largest schema, in bytes of JSON.
const MAX_BYTES: usize = 256 << 10;
/// The most subschemas, choices of an `enum` and constants of one tree.
const MAX_NODES: usize = 2_000;
/// How many bytes of names and constants count as a node.
const BYTES_A_NODE: usize = 64;
/// How deep subschemas are within each other.
const MAX_DEPTH: usize = 48;
/// How often a reference is followed while it is on the path.
const MAX_REPEATS: usize = 2;
/// The most regular expressions, and their bytes: a class of Unicode is a thousand times as large
/// as its name.
const MAX_PATTERNS: usize = 64;
const MAX_PATTERN_BYTES: usize = 4_000;

/// The most pairs of a subschema and a value in one check: some 50 ms.
const MAX_PAIRS: usize = 500_000;
/// The most bytes of texts and names that regular expressions and copies may read.
const MAX_READ: usize = 1 << 20;
/// The most bytes of names that errors may copy, and of texts that are only counted.
const MAX_NAMES: usize = 64 << 20;
/// An error may have a copy of the input for each subschema; beyond so many bytes it says less.
const MAX_COPIED: usize = 16 << 20;
/// Fewer pairs and bytes are checked by the calling task.
const SHORT: usize = 5_000;

/// Keywords whose value is an object with a subschema for each name of a property.
const MAPS: [&str; 4] = [
    "dependencies",
    "dependentSchemas",
    "patternProperties",
    "properties",
];
/// Keywords whose value is data and has no subschema.
const CONSTANTS: [&str; 4] = ["const", "dependentRequired", "enum", "required"];

/// A schema without references.
#[derive(Debug)]
pub(super) struct Bounded {
    pub(super) schema: Value,
    nodes: usize,
    patterns: usize,
    /// Subschemas that count the characters of texts.
    counters: usize,
}

/// What a check costs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cost {
    Short,
    Long,
    TooMuch,
}

impl Bounded {
    /// The tree of a schema; `None` for one that is too large, or is not a schema.
    pub(super) fn new(text: &str) -> Option<Self> {
        if text.len() > MAX_BYTES {
            return None;
        }
        let root: Value = serde_json::from_str(text).ok()?;
        let mut tree = Tree {
            root: &root,
            replaces_siblings: has_old_references(&root),
            nodes: 0,
            patterns: 0,
            pattern_bytes: 0,
            counters: 0,
            is_cut: false,
            path: HashMap::new(),
        };
        let mut schema = tree.subschema(&root, 0);
        let (nodes, patterns, counters) = (tree.nodes, tree.patterns, tree.counters);
        if patterns > MAX_PATTERNS || tree.pattern_bytes > MAX_PATTERN_BYTES {
            return None;
        }
        if tree.is_cut {
            loosen(&mut schema);
        }
        if let (Some(kind), Value::Object(members)) = (root.get("$schema"), &mut schema) {
            members.insert("$schema".to_owned(), kind.clone());
        }
        Some(Self {
            schema,
            nodes,
            patterns,
            counters,
        })
    }

    /// Whether an error about this input may have its parts.
    pub(super) fn may_be_told_apart(&self, input: &Value) -> bool {
        let mut size = Size::default();
        size.add(input);
        size.bytes.saturating_mul(self.nodes) <= MAX_COPIED
    }

    /// What the check of an input costs at most.
    pub(super) fn cost(&self, input: &Value) -> Cost {
        let mut size = Size::default();
        size.add(input);
        let pairs = size.values.saturating_mul(self.nodes);
        let read = size.bytes.saturating_mul(self.patterns);
        let names = size.names.saturating_mul(self.nodes);
        let counted = size.bytes.saturating_mul(self.counters);
        if pairs > MAX_PAIRS || read > MAX_READ || names.max(counted) > MAX_NAMES {
            Cost::TooMuch
        } else if pairs + read + counted / 100 <= SHORT {
            Cost::Short
        } else {
            Cost::Long
        }
    }
}

/// Whether a `$ref` replaces its siblings, as up to draft 7.
fn has_old_references(root: &Value) -> bool {
    let kind = root.get("$schema").and_then(Value::as_str);
    kind.is_some_and(|kind| {
        ["draft-03", "draft-04", "draft-06", "draft-07"]
            .iter()
            .any(|old| kind.contains(old))
    })
}

/// How large an input is.
#[derive(Default)]
struct Size {
    values: usize,
    bytes: usize,
    names: usize,
}

impl Size {
    fn add(&mut self, value: &Value) {
        self.values += 1;
        match value {
            Value::String(text) => self.bytes += text.len(),
            Value::Array(items) => items.iter().for_each(|item| self.add(item)),
            Value::Object(members) => {
                for (name, value) in members {
                    self.bytes += name.len();
                    self.names += name.len();
                    self.add(value);
                }
            }
            _ => {}
        }
    }
}

/// The making of a tree.
struct Tree<'a> {
    root: &'a Value,
    replaces_siblings: bool,
    nodes: usize,
    patterns: usize,
    pattern_bytes: usize,
    counters: usize,
    /// Something of the schema is not in the tree.
    is_cut: bool,
    /// How often each reference is on the present path.
    path: HashMap<&'a str, usize>,
}

impl<'a> Tree<'a> {
    fn subschema(&mut self, schema: &'a Value, depth: usize) -> Value {
        self.nodes += 1;
        let Value::Object(members) = schema else {
            return schema.clone();
        };
        if self.nodes > MAX_NODES || depth > MAX_DEPTH {
            return self.cut();
        }
        // Pointers within a subschema with an address begin there.
        if depth > 0 && ["$id", "id"].iter().any(|name| members.contains_key(*name)) {
            return self.cut();
        }
        let reference = members.get("$ref");
        if let Some(reference) = reference
            && self.replaces_siblings
        {
            return self.target(reference, depth);
        }
        let mut tree = Map::new();
        for (name, value) in members {
            if let Some(value) = self.keyword(name, value, depth) {
                tree.insert(name.clone(), value);
            }
        }
        if let Some(required) = tree.get_mut("required") {
            self.is_cut |= leave_out_optional(required, members);
        }
        if let Some(reference) = reference {
            let target = self.target(reference, depth);
            if tree.is_empty() {
                return target;
            }
            match tree.get_mut("allOf") {
                Some(Value::Array(all)) => all.push(target),
                _ => {
                    tree.insert("allOf".to_owned(), Value::Array(vec![target]));
                }
            }
        }
        Value::Object(tree)
    }

    /// A keyword of the tree; `None` for one that is not in it.
    fn keyword(&mut self, name: &str, value: &'a Value, depth: usize) -> Option<Value> {
        let depth = depth + 1;
        match (name, value) {
            (
                "$ref" | "$schema" | "$defs" | "definitions" | "$comment" | "description" | "title"
                | "examples" | "default" | "$id" | "id" | "$anchor",
                _,
            ) => None,
            (
                // Up to draft 7 the library checks formats and contents; later it does not.
                "format" | "contentMediaType" | "contentEncoding",
                _,
            ) => {
                self.is_cut |= self.replaces_siblings;
                None
            }
            // A later version of JSON Schema has dropped it.
            ("dependencies", _) if !self.replaces_siblings => {
                self.is_cut = true;
                None
            }
            // The library looks at everything below it twice, which nested ones multiply.
            ("unevaluatedItems" | "unevaluatedProperties", _) if depth > 1 => {
                self.is_cut = true;
                None
            }
            (
                "$dynamicRef" | "$recursiveRef" | "$dynamicAnchor" | "$recursiveAnchor"
                | "contentSchema",
                _,
            ) => {
                self.is_cut = true;
                None
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems" | "items", Value::Array(schemas)) => Some(
                schemas
                    .iter()
                    .map(|schema| self.subschema(schema, depth))
                    .collect(),
            ),
            (name, Value::Object(schemas)) if MAPS.contains(&name) => {
                if name == "patternProperties" {
                    self.patterns += schemas.len();
                    self.pattern_bytes += schemas.keys().map(String::len).sum::<usize>();
                }
                self.nodes += schemas
                    .keys()
                    .map(|name| name.len() / BYTES_A_NODE)
                    .sum::<usize>();
                let schemas = schemas
                    .iter()
                    .map(|(name, schema)| (name.clone(), self.subschema(schema, depth)));
                Some(Value::Object(schemas.collect()))
            }
            (
                "additionalItems"
                | "additionalProperties"
                | "contains"
                | "else"
                | "if"
                | "items"
                | "not"
                | "propertyNames"
                | "then"
                | "unevaluatedItems"
                | "unevaluatedProperties",
                Value::Object(_),
            ) => Some(self.subschema(value, depth)),
            ("pattern", Value::String(pattern)) => {
                self.patterns += 1;
                self.pattern_bytes += pattern.len();
                self.nodes += pattern.len() / BYTES_A_NODE;
                Some(value.clone())
            }
            (name, _) if CONSTANTS.contains(&name) => {
                let mut size = Size::default();
                size.add(value);
                self.nodes += size.values + size.bytes / BYTES_A_NODE;
                Some(value.clone())
            }
            ("minLength" | "maxLength", Value::Number(_)) => {
                self.counters += 1;
                Some(value.clone())
            }
            ("type", _) | (_, Value::Bool(_) | Value::Number(_)) => Some(value.clone()),
            (_, Value::String(text)) if text.len() <= BYTES_A_NODE => Some(value.clone()),
            // An annotation of the server.
            _ => None,
        }
    }

    /// The tree of a reference's target. Only a JSON pointer within the schema is followed.
    fn target(&mut self, reference: &'a Value, depth: usize) -> Value {
        let Some(reference) = reference.as_str() else {
            return self.cut();
        };
        let pointer = reference
            .strip_prefix('#')
            .filter(|pointer| pointer.is_empty() || pointer.starts_with('/'));
        let pointer = pointer.and_then(|pointer| {
            percent_encoding::percent_decode_str(pointer)
                .decode_utf8()
                .ok()
        });
        let Some(target) = pointer.and_then(|pointer| self.at(&pointer)) else {
            return self.cut();
        };
        let repeats = self.path.entry(reference).or_default();
        if *repeats >= MAX_REPEATS {
            return self.cut();
        }
        *repeats += 1;
        let tree = self.subschema(target, depth + 1);
        if let Some(repeats) = self.path.get_mut(reference) {
            *repeats -= 1;
        }
        tree
    }

    /// The value that a pointer names. Below a subschema with an address, references begin at that
    /// address, so such a value is not known here.
    fn at(&self, pointer: &str) -> Option<&'a Value> {
        let steps = pointer.match_indices('/').map(|(at, _)| at).skip(1);
        let mut above = steps.filter_map(|at| self.root.pointer(&pointer[..at]));
        let has_address = |value: &Value| {
            let is_text = |name| value.get(name).is_some_and(Value::is_string);
            is_text("$id") || is_text("id")
        };
        match above.any(has_address) {
            true => None,
            false => self.root.pointer(pointer),
        }
    }

    /// What stands for a part that is not in the tree: everything is accepted.
    fn cut(&mut self) -> Value {
        self.is_cut = true;
        Value::Bool(true)
    }
}

/// Takes the names without which an object fits out of what a schema lists as required. Whether
/// there are such.
fn leave_out_optional(listed: &mut Value, schema: &Map<String, Value>) -> bool {
    let Value::Array(listed) = listed else {
        return false;
    };
    let all = listed.len();
    *listed = describe::required(schema).map(Value::from).collect();
    listed.len() < all
}

/// Takes what refuses more where a part accepts more out of a tree that was cut: with `oneOf`, a
/// part that accepts everything beside one that fits is one too many.
fn loosen(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            for name in [
                "not",
                "if",
                "then",
                "else",
                "maxContains",
                "unevaluatedItems",
                "unevaluatedProperties",
            ] {
                members.remove(name);
            }
            if let Some(one) = members.remove("oneOf") {
                let any = any_of(one);
                match members.get_mut("allOf") {
                    Some(Value::Array(all)) => all.push(any),
                    _ => {
                        members.insert("allOf".to_owned(), Value::Array(vec![any]));
                    }
                }
            }
            for (name, value) in members {
                match (name.as_str(), value) {
                    (name, _) if CONSTANTS.contains(&name) => {}
                    (name, Value::Object(schemas)) if MAPS.contains(&name) => {
                        schemas.values_mut().for_each(loosen);
                    }
                    (_, value) => loosen(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(loosen),
        _ => {}
    }
}

fn any_of(schemas: Value) -> Value {
    Value::Object(Map::from_iter([("anyOf".to_owned(), schemas)]))
}
