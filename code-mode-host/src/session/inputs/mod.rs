//! Tools' inputs checked against their schemas, before a delegate sees them.
//!
//! The cost of a check is bounded beforehand ([`bounded`]), because strangers write both sides of it.
//! The calling task does a short check itself. A longer one runs on a thread for such work, one
//! at a time for a session. An input that would cost more goes to its tool unchecked.

mod bounded;
mod fuzzed;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use code_mode_protocol::describe::required;
use code_mode_protocol::text::line;
use code_mode_protocol::{Json, NestedToolCall, SessionOptions, ToolSet, normalize_tool_name};
use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{PatternOptions, ValidationError, Validator};
use serde_json::Value;

use bounded::{Bounded, Cost};

use crate::error::ProviderError;

pub use fuzzed::input_fits;

/// How much of a rule's own text is shown.
const SHOWN: usize = 300;

/// The most bytes that a compiled regular expression may have.
const PATTERN_BYTES: usize = 64 << 10;

/// The schemas of one set of tools, each compiled when its tool is first called.
struct Compiled {
    tools: ToolSet,
    /// `None` inside for a schema that cannot be used.
    validators: Vec<OnceLock<Option<(Bounded, Validator)>>>,
}

/// Checks inputs of a session's calls.
#[derive(Default)]
pub(crate) struct Inputs {
    /// Of the set that was last asked for: sessions seldom change their tools.
    last: Mutex<Option<Arc<Compiled>>>,
    /// Held by the session's one piece of work on another thread.
    long: Arc<tokio::sync::Mutex<()>>,
    /// Whether tools whose schemas cannot be read are left out.
    must_be_readable: bool,
    /// The last set of tools, and its readable part.
    readable: tokio::sync::Mutex<Option<(ToolSet, ToolSet)>>,
}

impl Inputs {
    /// The checks that a session asks for.
    ///
    /// # Errors
    /// None in this build; see `inputs_off.rs`.
    pub(crate) fn of(options: &SessionOptions) -> Result<Option<Self>, ProviderError> {
        Ok(options.check_inputs.then(|| Self {
            must_be_readable: options.require_readable_schemas,
            ..Self::default()
        }))
    }

    /// The tools that a cell is offered: where the session asks for it, those without a readable
    /// schema are left out, and a warning names them.
    pub(super) async fn readable(&self, tools: &ToolSet) -> ToolSet {
        if !self.must_be_readable {
            return tools.clone();
        }
        let mut last = self.readable.lock().await;
        if let Some((known, readable)) = &*last
            && Arc::ptr_eq(known, tools)
        {
            return readable.clone();
        }
        let compiled = self.compiled(tools);
        let left = self.apart(move || Some(compiled.readable())).await;
        let left = left.unwrap_or_else(|| tools.clone());
        *last = Some((tools.clone(), left.clone()));
        left
    }

    /// Why the input of a call does not fit, in a sentence for a model.
    pub(super) async fn refusal(&self, tools: &ToolSet, call: &NestedToolCall) -> Option<String> {
        // As on `tools`, the last of one name wins.
        let index = tools
            .iter()
            .rposition(|tool| tool.tool_name == call.tool_name)?;
        tools.get(index)?.input_schema.as_ref()?;
        let compiled = self.compiled(tools);
        let input = match &call.input {
            Some(json) => match json.to() {
                Ok(input) => input,
                // Numbers that no number type holds, or arrays in arrays without end: whatever
                // reads it next may take it for something else.
                Err(error) => return Some(format!("the input cannot be checked: {error}")),
            },
            None => Value::Null,
        };
        if !compiled.is_compiled(index) {
            let compiling = compiled.clone();
            self.apart(move || compiling.schema(index).map(drop))
                .await?;
        }
        let (schema, _) = compiled.schema(index)?;
        match schema.cost(&input) {
            Cost::Short => compiled.refusal(index, &input),
            Cost::Long => self.apart(move || compiled.refusal(index, &input)).await,
            Cost::TooMuch => {
                tracing::warn!(
                    tool = call.tool_name.name,
                    "an input passes unchecked: it is too large for its schema"
                );
                None
            }
        }
    }

    /// Does long work on a thread for such work, one piece at a time.
    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Option<T> + Send + 'static,
    ) -> Option<T> {
        // The thread keeps its turn also where this call is cancelled meanwhile.
        let turn = self.long.clone().lock_owned().await;
        let work = move || {
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await.ok().flatten()
    }

    fn compiled(&self, tools: &ToolSet) -> Arc<Compiled> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(known) if Arc::ptr_eq(&known.tools, tools) => known.clone(),
            _ => {
                let compiled = Arc::new(Compiled {
                    tools: tools.clone(),
                    validators: tools.iter().map(|_| OnceLock::new()).collect(),
                });
                *last = Some(compiled.clone());
                compiled
            }
        }
    }
}

impl Compiled {
    /// The tools whose input schemas can be read, or that have none.
    fn readable(&self) -> ToolSet {
        let is_readable = |index: usize| {
            let has_schema = self
                .tools
                .get(index)
                .is_some_and(|it| it.input_schema.is_some());
            !has_schema || self.schema(index).is_some()
        };
        let (kept, left_out): (Vec<_>, Vec<_>) =
            (0..self.tools.len()).partition(|index| is_readable(*index));
        if left_out.is_empty() {
            return self.tools.clone();
        }
        let of = |indices: Vec<usize>| {
            indices
                .into_iter()
                .filter_map(|index| self.tools.get(index))
        };
        for tool in of(left_out) {
            let name = line(&tool.name, 100);
            tracing::warn!("the tool {name} is left out: its input schema cannot be read");
        }
        of(kept).cloned().collect()
    }

    fn is_compiled(&self, index: usize) -> bool {
        let slot = self.validators.get(index);
        slot.is_some_and(|slot| slot.get().is_some())
    }

    /// The schema of the tool at `index`, compiled; `None` for one that cannot be used.
    fn schema(&self, index: usize) -> Option<&(Bounded, Validator)> {
        let schema = self.tools.get(index)?.input_schema.as_ref()?;
        let slot = self.validators.get(index)?;
        slot.get_or_init(|| compile(schema)).as_ref()
    }

    /// Why an input does not fit the schema of the tool at `index`.
    fn refusal(&self, index: usize, input: &Value) -> Option<String> {
        let tool = self.tools.get(index)?;
        let (schema, validator) = self.schema(index)?;
        if validator.is_valid(input) {
            return None;
        }
        let name = normalize_tool_name(&tool.name);
        if !schema.may_be_told_apart(input) {
            return Some(format!("the input of tools.{name} does not fit its schema"));
        }
        let error = validator.validate(input).err()?;
        Some(sentence(&name, tool.input_schema.as_ref()?, input, &error))
    }
}

/// A schema that can be used; it is a stranger's, so a pattern takes linear time, and nothing
/// refers to anything.
fn compile(schema: &Json) -> Option<(Bounded, Validator)> {
    let bounded = Bounded::new(schema.as_str())?;
    let patterns = PatternOptions::regex()
        .size_limit(PATTERN_BYTES)
        .dfa_size_limit(4 * PATTERN_BYTES);
    let validator = jsonschema::options()
        .with_pattern_options(patterns)
        .build(&bounded.schema)
        .map_err(|error| tracing::debug!(rule = error.kind().keyword(), "a schema cannot be used"))
        .ok()?;
    Some((bounded, validator))
}

fn sentence(name: &str, schema: &Json, input: &Value, error: &ValidationError) -> String {
    let at = place(error.instance_path().as_str());
    let rule = error.kind().keyword();
    let got = type_of(error.instance());
    let what = match error.kind() {
        ValidationErrorKind::Required { property } => {
            let missing = property.as_str().unwrap_or_default();
            format!(
                "{at} lacks the property `{missing}`{}",
                has(error.instance())
            )
        }
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
            let unknown = names(unexpected.iter().map(String::as_str));
            format!("{at} has {unknown}, which the tool does not take")
        }
        ValidationErrorKind::Type { kind } => {
            format!("{at} must be {}, not {got}", expected(kind))
        }
        ValidationErrorKind::Enum { options } => {
            format!(
                "{at} must be one of {}, not {got}",
                cut(&options.to_string())
            )
        }
        ValidationErrorKind::Constant { expected_value } => {
            format!(
                "{at} must be {}, not {got}",
                cut(&expected_value.to_string())
            )
        }
        _ => format!("{at}, {got}: {}", cut(&error.to_string())),
    };
    let takes = match error.instance_path().as_str() {
        "" => takes(name, schema, input),
        _ => String::new(),
    };
    format!("the input of tools.{name} does not fit its schema: {what} (rule: {rule}){takes}")
}

/// A JSON pointer as JavaScript writes the place.
fn place(pointer: &str) -> String {
    let mut place = "input".to_owned();
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
        if part.chars().all(|c| c.is_ascii_digit()) {
            place.push_str(&format!("[{part}]"));
        } else if part.chars().all(is_word) {
            place.push_str(&format!(".{part}"));
        } else {
            place.push_str(&format!("[{part:?}]"));
        }
    }
    format!("`{}`", cut(&place))
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn expected(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(one) => one.to_string(),
        TypeKind::Multiple(many) => {
            let names: Vec<_> = many.into_iter().map(|one| one.to_string()).collect();
            names.join(" or ")
        }
    }
}

/// What the tool takes, where the input as a whole is not it.
fn takes(name: &str, schema: &Json, input: &Value) -> String {
    let Ok(schema) = schema.to::<Value>() else {
        return String::new();
    };
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return String::new();
    };
    let required: Vec<&str> = schema.as_object().into_iter().flat_map(required).collect();
    let shown = properties.keys().take(12).map(|key| {
        let is_required = required.contains(&key.as_str());
        let optional = if is_required { "" } else { "?" };
        format!("{key}{optional}")
    });
    let shown = shown.collect::<Vec<_>>().join(", ");
    match input {
        Value::Object(_) => format!("; it takes {{ {shown} }}"),
        _ => format!("; call tools.{name}({{ {shown} }})"),
    }
}

fn has(value: &Value) -> String {
    match value.as_object() {
        Some(object) if object.is_empty() => "; it is empty".to_owned(),
        Some(object) => format!("; it has {}", names(object.keys().map(String::as_str))),
        None => String::new(),
    }
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names
        .take(8)
        .map(|name| format!("`{}`", cut(name)))
        .collect();
    names.join(", ")
}

fn cut(text: &str) -> String {
    match text.len() > SHOWN {
        true => format!("{}…", &text[..text.floor_char_boundary(SHOWN)]),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use code_mode_protocol::{CellId, RuntimeToolCallId, ToolDefinition};
    use serde_json::json;

    fn refusal(schema: &str, input: Option<&str>) -> Option<String> {
        let json = |text: &str| Json::parse(text.to_owned()).expect("JSON");
        let mut tool = ToolDefinition::function("read", "");
        tool.input_schema = Some(json(schema));
        let call = NestedToolCall::new(
            CellId::nth(1),
            String::new(),
            RuntimeToolCallId(1),
            tool.tool_name.clone(),
        )
        .input(input.map(json));
        tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime")
            .block_on(Inputs::default().refusal(&ToolSet::from([tool]), &call))
    }

    const READ: &str = r#"{"type":"object","properties":{"path":{"type":"string"},
        "lines":{"type":"array","items":{"type":"integer"}}},"required":["path"],
        "additionalProperties":false}"#;

    #[test]
    fn an_input_that_does_not_fit_is_named_by_path_rule_and_type() {
        let said = |input| refusal(READ, input).expect("refused");
        assert_eq!(
            said(Some(r#"{"path": 5}"#)),
            "the input of tools.read does not fit its schema: `input.path` must be string, not a number (rule: type)"
        );
        assert!(said(Some(r#"{"path":"a","lines":[1,"x"]}"#)).contains("`input.lines[1]`"));
        let missing = said(Some(r#"{"file":"a"}"#));
        assert!(
            missing.contains("`path`") || missing.contains("`file`"),
            "{missing}"
        );
        assert!(
            missing.ends_with("it takes { lines?, path }")
                || missing.ends_with("it takes { path, lines? }"),
            "{missing}"
        );
        assert!(said(Some(r#""a.txt""#)).contains("call tools.read({ "));
        assert!(said(None).contains("not null"));
    }

    #[test]
    fn nested_unevaluated_properties_cost_no_more_than_one() {
        let mut schema = r#"{"type":"object","properties":{"a":{"type":"number"}}}"#.to_owned();
        for _ in 0..40 {
            schema = format!(r#"{{"anyOf":[{schema}],"unevaluatedProperties":false}}"#);
        }
        assert_eq!(refusal(&schema, Some(r#"{"a":1}"#)), None);
        assert!(refusal(&schema, Some(r#"{"a":"x"}"#)).is_some());
    }

    #[test]
    fn what_has_a_default_may_be_left_out_at_any_depth() {
        let schema = r#"{"type":"object","required":["to","scale","more"],"properties":{
            "to":{"type":"string"},"scale":{"enum":["css","device"],"default":"css"},
            "more":{"oneOf":[
                {"type":"object","required":["kind","a"],"properties":{"kind":{"const":"x","default":"x"},"a":{}}},
                {"type":"object","required":["kind","b"],"properties":{"kind":{"const":"y","default":"y"},"b":{}}}]}}}"#;
        let refused = |input| refusal(schema, Some(input));
        assert_eq!(refused(r#"{"to":"a","more":{"a":1}}"#), None);
        assert_eq!(
            refused(r#"{"to":"a","more":{"kind":"y","b":1},"scale":"device"}"#),
            None
        );
        assert!(refused(r#"{"to":"a","more":{"a":1},"scale":"none"}"#).is_some());
        let missing = refused(r#"{"more":{"a":1}}"#).expect("refused");
        assert!(
            missing.ends_with("it takes { to, scale?, more }"),
            "{missing}"
        );
    }

    /// A filter language: each operator has the whole language on both sides.
    const FILTER: &str = r##"{"$defs":{"f":{"oneOf":[
        {"type":"object","properties":{"op":{"const":"and"},"args":{"type":"array","items":{"$ref":"#/$defs/f"}}},"required":["op","args"]},
        {"type":"object","properties":{"op":{"const":"or"},"args":{"type":"array","items":{"$ref":"#/$defs/f"}}},"required":["op","args"]},
        {"type":"object","properties":{"op":{"const":"not"},"args":{"type":"array","items":{"$ref":"#/$defs/f"}}},"required":["op","args"]},
        {"type":"string"}]}},"$ref":"#/$defs/f"}"##;

    fn nested(depth: usize, leaf: &str) -> String {
        let (open, close) = (r#"{"op":"not","args":["#, "]}");
        open.repeat(depth) + leaf + &close.repeat(depth)
    }

    #[test]
    fn a_recursive_schema_is_checked_as_deep_as_its_tree_goes() {
        assert!(refusal(FILTER, Some("7")).is_some());
        assert_eq!(refusal(FILTER, Some(&nested(1, "\"fits\""))), None);
        assert_eq!(refusal(FILTER, Some(&nested(40, "7"))), None);
    }

    #[test]
    fn a_schema_that_is_cut_refuses_nothing_that_fits() {
        // Beyond its depth both branches accept, and exactly one should.
        let schema = json!({"oneOf": [
            {"properties": {"a": {"$ref": "#"}, "not": {"type": "string"}}, "additionalProperties": false},
            {"properties": {"b": {"$ref": "#"}}, "required": ["b"], "not": {"required": ["a"]}},
        ]});
        let fits = r#"{"a":{"a":{"a":{"a":{"b":{"not":"x"}}}}}}"#;
        assert_eq!(refusal(&schema.to_string(), Some(fits)), None);
        assert_eq!(refusal(&schema.to_string(), Some(r#"{"not":"x"}"#)), None);
        assert!(refusal(&schema.to_string(), Some(r#"{"not":7}"#)).is_some());
    }

    #[test]
    fn no_schema_of_a_stranger_takes_long() {
        for one in ["allOf", "anyOf", "oneOf"] {
            let mut ladder = serde_json::Map::new();
            for step in 0..40 {
                let next = json!({"$ref": format!("#/odd/{}", step + 1)});
                ladder.insert(step.to_string(), json!({one: [next, next]}));
            }
            ladder.insert("40".to_owned(), json!({"type": "string"}));
            let ladder = json!({"odd": ladder, "$ref": "#/odd/0"}).to_string();
            assert_eq!(refusal(&ladder, Some("1")), None, "{one}");
        }
        let mut chain = serde_json::Map::new();
        for step in 0..3_000 {
            chain.insert(
                step.to_string(),
                json!({"$ref": format!("#/definitions/{}", step + 1)}),
            );
        }
        let old = "http://json-schema.org/draft-07/schema#";
        let chain =
            json!({"$schema": old, "definitions": chain, "allOf": [{"$ref": "#/definitions/0"}]});
        assert_eq!(refusal(&chain.to_string(), Some("1")), None);
        let meta = json!({"allOf": vec![json!({"$ref": "https://json-schema.org/draft/2020-12/schema"}); 900]});
        assert_eq!(refusal(&meta.to_string(), Some(r#"{"type": 7}"#)), None);
        let many = json!({"items": {"anyOf": vec![false; 1_900]}}).to_string();
        assert_eq!(
            refusal(&many, Some(&json!(vec![1; 1_000]).to_string())),
            None
        );
        let states = json!({"pattern": "(a|b)*a[ab]{9000}c"}).to_string();
        assert_eq!(refusal(&states, Some("\"aaaa\"")), None);
        let large = json!({"properties": {"x".repeat(300_000): {}}}).to_string();
        assert_eq!(refusal(&large, Some("1")), None);
        let classes = json!({"pattern": format!("(?i:{})", r"\pL".repeat(10_000))}).to_string();
        assert_eq!(refusal(&classes, Some("\"a\"")), None);
        let long = Value::from("x".repeat(4 << 20)).to_string();
        let counted = json!({"allOf": vec![json!({"minLength": 5 << 20}); 1_900]}).to_string();
        assert_eq!(refusal(&counted, Some(&long)), None);
        // An error would have a copy of the text for each branch.
        let copied = json!({"anyOf": vec![json!({"type": "integer"}); 1_900]}).to_string();
        let said = refusal(&copied, Some(&long)).expect("refused");
        assert!(said.ends_with("does not fit its schema"), "{said}");
    }

    #[test]
    fn formats_addresses_and_old_keywords_refuse_nothing() {
        let old = "http://json-schema.org/draft-07/schema#";
        let format = json!({"$schema": old, "format": "email"}).to_string();
        assert_eq!(refusal(&format, Some("\"nobody\"")), None);
        let elsewhere = json!({
            "$ref": "#/$defs/a/$defs/b",
            "$defs": {
                "a": {"$id": "https://x/a", "$defs": {
                    "b": {"properties": {"c": {"$ref": "#/$defs/c"}}}, "c": {"type": "string"}}},
                "c": {"type": "number"},
            },
        });
        assert_eq!(
            refusal(&elsewhere.to_string(), Some(r#"{"c": "text"}"#)),
            None
        );
        let gone = json!({"dependencies": {"a": ["b"]}}).to_string();
        assert_eq!(refusal(&gone, Some(r#"{"a": 1}"#)), None);
    }

    #[test]
    fn a_long_input_of_honest_size_is_checked() {
        let lines = (0..50_000)
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
            .join(",");
        let input = |last: &str| format!("{{\"path\":\"a\",\"lines\":[{lines},{last}]}}");
        assert_eq!(refusal(READ, Some(&input("1"))), None);
        let said = refusal(READ, Some(&input("\"x\""))).expect("refused");
        assert!(said.contains("`input.lines[50000]`"), "{said}");
    }

    #[test]
    fn an_input_that_fits_and_a_schema_that_is_none_let_a_call_through() {
        assert_eq!(refusal(READ, Some(r#"{"path":"a"}"#)), None);
        for odd in [
            "[]",
            "7",
            r#"{"$ref":"https://example.invalid/x"}"#,
            r#"{"pattern":"(?=a)"}"#,
            r##"{"$ref":"#/nowhere"}"##,
        ] {
            assert_eq!(refusal(odd, Some("1")), None, "{odd}");
        }
    }
}
