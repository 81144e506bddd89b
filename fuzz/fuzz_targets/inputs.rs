//! The check of a tool's input refuses nothing that the whole schema accepts.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use code_mode_protocol::Json;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

/// How deep schemas and inputs are: without bounds the whole check has no end.
const DEEPEST: usize = 3;

#[derive(Debug)]
struct Case {
    schema: Value,
    input: Value,
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let mut schema = match schema(bytes, 0)? {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        schema.insert(
            "$defs".to_owned(),
            json!({"a": self::schema(bytes, 1)?, "b": self::schema(bytes, 1)?}),
        );
        if bytes.ratio(1, 4)? {
            schema.insert(
                "$schema".to_owned(),
                json!("http://json-schema.org/draft-07/schema#"),
            );
        }
        Ok(Self {
            schema: Value::Object(schema),
            input: input(bytes, 0)?,
        })
    }
}

fn schema(bytes: &mut Unstructured, depth: usize) -> Result<Value> {
    if depth >= DEEPEST || bytes.ratio(1, 8)? {
        let leaves = [
            json!(true),
            json!(false),
            json!({}),
            json!({"type": "object"}),
        ];
        return Ok(bytes.choose(&leaves)?.clone());
    }
    let mut members = Map::new();
    for _ in 0..bytes.int_in_range(1..=3)? {
        let mut next = || schema(bytes, depth + 1);
        let one = next()?;
        let other = next()?;
        let (key, value) = match bytes.int_in_range(0..=25)? {
            0 => (
                "type",
                json!(bytes.choose(&["object", "array", "string", "integer", "null"])?),
            ),
            1 => ("properties", json!({"p": one, "q": other})),
            2 => ("required", json!(["p"])),
            3 => ("additionalProperties", one),
            4 => ("items", one),
            5 => ("anyOf", json!([one, other])),
            6 => ("oneOf", json!([one, other])),
            7 => ("allOf", json!([one, other])),
            8 => ("not", one),
            9 => ("if", one),
            10 => ("then", one),
            11 => ("else", one),
            12..=15 => (
                "$ref",
                json!(bytes.choose(&["#", "#/$defs/a", "#/$defs/b", "#/nowhere"])?),
            ),
            16 => ("enum", json!([1, "x", null])),
            17 => ("const", json!({"p": 1})),
            18 => ("minLength", json!(2)),
            19 => ("unevaluatedProperties", one),
            20 => ("contains", one),
            21 => ("prefixItems", json!([one, other])),
            22 => ("patternProperties", json!({"^p": one})),
            23 => ("dependentSchemas", json!({"p": one})),
            24 => ("propertyNames", one),
            _ => ("unevaluatedItems", one),
        };
        members.insert(key.to_owned(), value);
    }
    Ok(Value::Object(members))
}

fn input(bytes: &mut Unstructured, depth: usize) -> Result<Value> {
    let leaf = depth >= DEEPEST;
    Ok(match bytes.int_in_range(0..=if leaf { 3 } else { 6 })? {
        0 => json!(1),
        1 => json!("xy"),
        2 => json!(null),
        3 => json!("p"),
        4 => json!([input(bytes, depth + 1)?, input(bytes, depth + 1)?]),
        5 => json!({"p": input(bytes, depth + 1)?}),
        _ => json!({"p": input(bytes, depth + 1)?, "q": input(bytes, depth + 1)?, "r": 1}),
    })
}

fuzz_target!(|case: Case| {
    let Case { schema, input } = case;
    let Ok(whole) = jsonschema::options().build(&schema) else {
        return;
    };
    let json = Json::from_value(&schema).expect("JSON");
    if code_mode_host::input_fits(&json, &input) == Some(false) {
        assert!(!whole.is_valid(&input), "refused: {input} by {schema}");
    }
});
