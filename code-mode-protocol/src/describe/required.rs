//! Which arguments a call must have.

use serde_json::{Map, Value};

/// The names of the properties without which no object fits a JSON Schema, in the schema's order.
///
/// A property that has a default is not among them, also where the schema lists it in `required`:
/// servers take calls without it.
///
/// ```
/// let schema = serde_json::json!({
///     "properties": { "to": {}, "scale": { "default": 1 } },
///     "required": ["to", "scale"],
/// });
/// let required = code_mode_protocol::describe::required(schema.as_object().unwrap());
/// assert_eq!(required.collect::<Vec<_>>(), ["to"]);
/// ```
pub fn required(schema: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let properties = schema.get("properties");
    let listed = schema.get("required").and_then(Value::as_array);
    let names = listed.into_iter().flatten().filter_map(Value::as_str);
    names.filter(move |name| {
        let property = properties.and_then(|properties| properties.get(name));
        property.is_none_or(|property| property.get("default").is_none())
    })
}
