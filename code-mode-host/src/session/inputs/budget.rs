//! A budget for work with one schema.
//!
//! A server writes the schema and a cell writes the input, so nobody can say beforehand how
//! long a check takes: `oneOf` over two branches that refer to the whole costs 2^depth. The
//! library has no limit, so [`instrument`] adds a keyword to each subschema, and the keyword
//! counts. When the budget is spent it unwinds to [`within`], which returns [`Spent`].

use std::any::Any;
use std::cell::Cell;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use jsonschema::paths::Location;
use jsonschema::{Keyword, ValidationError};
use serde_json::{Map, Value};

/// The keyword that counts. No schema of a server has it by accident.
pub(super) const KEYWORD: &str = "x-code-mode-step";

/// The stack that one check may use. Runtime threads have 2 MiB.
const STACK: usize = 768 << 10;

/// How many bytes of a text or a schema's constant count as one step.
const BYTES_A_STEP: usize = 64;

/// The work did not fit the budget, or the library panicked over it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Spent;

#[derive(Clone, Copy)]
struct Left {
    steps: u64,
    /// Where the stack was at the beginning.
    stack: usize,
}

thread_local! {
    static LEFT: Cell<Option<Left>> = const { Cell::new(None) };
}

/// Runs `work` with a budget of so many steps; a step takes less than a microsecond.
pub(super) fn within<T>(steps: u64, work: impl FnOnce() -> T) -> Result<T, Spent> {
    let stack = stack_here();
    LEFT.set(Some(Left { steps, stack }));
    let done = catch_unwind(AssertUnwindSafe(work));
    LEFT.set(None);
    done.map_err(|_: Box<dyn Any + Send>| Spent)
}

/// Takes steps from the budget. Unwinds, without a panic's message, where none are left.
fn charge(steps: usize) {
    let Some(mut left) = LEFT.get() else { return };
    match left.steps.checked_sub(steps as u64) {
        Some(rest) if left.stack.abs_diff(stack_here()) < STACK => left.steps = rest,
        _ => resume_unwind(Box::new(Spent)),
    }
    LEFT.set(Some(left));
}

fn stack_here() -> usize {
    let here = 0_u8;
    std::ptr::from_ref(&here).addr()
}

/// Counts the visits to one subschema.
struct Step {
    /// The price of the subschema's own constants.
    price: usize,
    /// The subschema reads the whole instance at each visit, for `uniqueItems`.
    reads_all: bool,
}

impl Step {
    fn charge(&self, instance: &Value) {
        let read = match (self.reads_all, instance) {
            (true, _) => size(instance),
            (false, Value::String(text)) => text.len(),
            (false, Value::Array(items)) => items.len(),
            (false, Value::Object(members)) => members.len(),
            (false, _) => 0,
        };
        charge(self.price + read / BYTES_A_STEP);
    }
}

impl<'i> Keyword<'i> for Step {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        self.charge(instance);
        Ok(())
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        self.charge(instance);
        true
    }
}

/// Makes the counting keyword of a subschema, which costs a step too: the library may compile
/// one subschema many times.
pub(super) fn step<'a>(
    parent: &'a Map<String, Value>,
    _: &'a Value,
    _: Location,
) -> Result<Box<dyn for<'i> Keyword<'i>>, ValidationError<'a>> {
    let constants = ["enum", "const", "required", "pattern", "dependentRequired"];
    let constants = constants.iter().filter_map(|name| parent.get(*name));
    let price = 1 + constants.map(size).sum::<usize>() / BYTES_A_STEP;
    charge(price);
    Ok(Box::new(Step {
        price,
        reads_all: parent.contains_key("uniqueItems"),
    }))
}

/// About how many bytes a value has as JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => 8 + text.len(),
        Value::Array(items) => 8 + items.iter().map(size).sum::<usize>(),
        Value::Object(members) => {
            8 + (members.iter().map(|(name, value)| name.len() + size(value))).sum::<usize>()
        }
    }
}

/// Keywords whose value is a schema, or an array of schemas.
const SCHEMAS: [&str; 16] = [
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "oneOf",
    "prefixItems",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Keywords whose value is an object with schemas as its values.
const MAPS: [&str; 6] = [
    "$defs",
    "definitions",
    "dependencies",
    "dependentSchemas",
    "patternProperties",
    "properties",
];

const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];

/// Adds the counting keyword to every subschema: those in the places that the standard names,
/// and those that a reference names by a JSON pointer, wherever they are. False where a subschema
/// has an address: pointers of references could begin there, and would not be found.
#[must_use]
pub(super) fn instrument(schema: &mut Value) -> bool {
    let mut found = HashSet::new();
    let mut pending = vec![String::new()];
    while let Some(pointer) = pending.pop() {
        let Some(Value::Object(subschema)) = schema.pointer(&pointer) else {
            continue;
        };
        let has_address = ["$id", "id"]
            .iter()
            .any(|name| subschema.contains_key(*name));
        if has_address && !pointer.is_empty() {
            return false;
        }
        if !found.insert(pointer.clone()) {
            continue;
        }
        for (name, value) in subschema {
            match value {
                Value::Object(_) if SCHEMAS.contains(&name.as_str()) => {
                    pending.push(format!("{pointer}/{name}"));
                }
                Value::Array(items) if SCHEMAS.contains(&name.as_str()) => {
                    pending.extend((0..items.len()).map(|at| format!("{pointer}/{name}/{at}")));
                }
                Value::Object(members) if MAPS.contains(&name.as_str()) => {
                    pending.extend(members.keys().map(|member| {
                        let member = member.replace('~', "~0").replace('/', "~1");
                        format!("{pointer}/{name}/{member}")
                    }));
                }
                Value::String(target) if REFERENCES.contains(&name.as_str()) => {
                    let fragment = target.rsplit_once('#').map(|(_, fragment)| fragment);
                    pending.extend(fragment.and_then(decoded));
                }
                _ => {}
            }
        }
    }
    for pointer in found {
        if let Some(Value::Object(subschema)) = schema.pointer_mut(&pointer) {
            // First, so that a subschema counts before it refers to others.
            subschema.shift_insert(0, KEYWORD.to_owned(), Value::Bool(true));
        }
    }
    true
}

/// A fragment of an address without its percent signs.
fn decoded(fragment: &str) -> Option<String> {
    let bytes = percent_encoding::percent_decode_str(fragment);
    Some(bytes.decode_utf8().ok()?.into_owned())
}
