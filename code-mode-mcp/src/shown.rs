//! The arguments of a call as a person sees them before it runs.
//!
//! A program chooses its arguments, so a long one must not hide another: every key is shown, and
//! each value is shortened by itself. Omissions are counted outside of quotation marks,
//! where no value can write.

use code_mode_protocol::text::quoted;
use serde_json::{Map, Value};

use crate::secrets::Secrets;

/// The most bytes that a person is shown.
const MOST: usize = 4000;
/// The longest key.
const LONGEST_KEY: usize = 200;
/// How deep arguments may be nested.
const DEEPEST: usize = 12;
/// How many bytes of each end of a long text are looked at.
const NEAR: usize = 64 << 10;
/// Characters of a text and items of an array that are shown, the most generous first.
const LEVELS: [(usize, usize); 4] = [(600, 30), (200, 20), (80, 8), (30, 3)];

/// The arguments on one line, in the order of the tool's schema. `None` where a person could not
/// see every key of them.
pub(crate) fn arguments_shown(
    arguments: &Map<String, Value>,
    schema: Option<&Value>,
    secrets: &Secrets,
) -> Option<String> {
    LEVELS.iter().find_map(|(characters, items)| {
        let mut shown = Shown {
            text: String::new(),
            characters: *characters,
            items: *items,
            secrets,
        };
        shown.object(arguments, schema, 0)?;
        Some(shown.text)
    })
}

/// A stranger's name in a question: as it is where it is made of plain words, else between
/// quotation marks. `None` where a person could not see it whole.
pub(crate) fn name_shown(name: &str, secrets: &Secrets) -> Option<String> {
    /// The longest name.
    const LONGEST: usize = 1000;
    let name = secrets.hide(name);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/@".contains(c);
    match name.len() {
        0 => Some("\"\"".to_owned()),
        1..=LONGEST if name.chars().all(is_plain) => Some(name),
        1..=LONGEST => Some(quoted(&name)),
        _ => None,
    }
}

struct Shown<'a> {
    text: String,
    characters: usize,
    items: usize,
    secrets: &'a Secrets,
}

impl Shown<'_> {
    /// Adds a text; `None` where it does not fit.
    fn add(&mut self, text: &str) -> Option<()> {
        self.text.push_str(text);
        (self.text.len() <= MOST).then_some(())
    }

    fn object(
        &mut self,
        object: &Map<String, Value>,
        schema: Option<&Value>,
        depth: usize,
    ) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        let declared = schema
            .and_then(|schema| schema.get("properties"))
            .and_then(Value::as_object);
        let is_declared = |key: &str| declared.is_some_and(|keys| keys.contains_key(key));
        let first = declared
            .into_iter()
            .flatten()
            .filter_map(|(key, _)| object.get_key_value(key));
        let others = object.iter().filter(|(key, _)| !is_declared(key));
        let members = first.chain(others);
        self.add("{")?;
        for (number, (key, value)) in members.enumerate() {
            if number > 0 {
                self.add(", ")?;
            }
            let own = declared.and_then(|keys| keys.get(key));
            self.key(key)?;
            self.add(": ")?;
            self.value(value, own, depth + 1)?;
        }
        self.add("}")
    }

    fn key(&mut self, key: &str) -> Option<()> {
        let key = self.secrets.hide(key);
        if key.len() > LONGEST_KEY {
            return None;
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '$' | '.');
        match !key.is_empty() && key.chars().all(is_word) {
            true => self.add(&key),
            // With anything else in it, a key could pass for several.
            false => self.add(&quoted(&key)),
        }
    }

    fn value(&mut self, value: &Value, schema: Option<&Value>, depth: usize) -> Option<()> {
        match value {
            Value::String(text) => self.string(text),
            Value::Array(items) => self.array(items, schema, depth),
            Value::Object(object) => self.object(object, schema, depth),
            other => self.add(&other.to_string()),
        }
    }

    fn array(&mut self, items: &[Value], schema: Option<&Value>, depth: usize) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        let own = schema.and_then(|schema| schema.get("items"));
        self.add("[")?;
        for (number, item) in items.iter().take(self.items).enumerate() {
            if number > 0 {
                self.add(", ")?;
            }
            self.value(item, own, depth + 1)?;
        }
        if items.len() > self.items {
            self.add(&format!(", and {} more items", items.len() - self.items))?;
        }
        self.add("]")
    }

    /// A text with both of its ends, because either may be what matters.
    fn string(&mut self, text: &str) -> Option<()> {
        let hidden = |text: &str| self.secrets.hide(text);
        let end = self.characters / 3;
        let begin = self.characters - end;
        let all = text.chars().count();
        if all <= self.characters {
            return self.add(&quoted(&hidden(text)));
        }
        // Secrets are hidden before the text is cut, in as much of it as a shown one could be in.
        let near = text.floor_char_boundary(text.len().min(NEAR));
        let far = text.ceil_char_boundary(text.len().saturating_sub(NEAR));
        let head: String = hidden(&text[..near]).chars().take(begin).collect();
        let tail = hidden(&text[far..]);
        let skipped = tail.chars().count().saturating_sub(end);
        let tail: String = tail.chars().skip(skipped).collect();
        self.add(&format!(
            "{}({} characters left out){}",
            quoted(&head),
            all - self.characters,
            quoted(&tail)
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(arguments: Value, schema: Value) -> Option<String> {
        let secrets = Secrets::default();
        secrets.add("hidden-token");
        let arguments = arguments.as_object().expect("an object").clone();
        arguments_shown(&arguments, Some(&schema), &secrets)
    }

    #[test]
    fn padding_hides_no_other_argument() {
        let padded =
            json!({"note": "x".repeat(100_000), "path": "/home/me", "list": vec!["y"; 5000]});
        let text = shown(padded, json!({})).expect("shown");
        assert!(text.contains(r#"path: "/home/me""#), "{text}");
        assert!(text.contains("(99400 characters left out)"), "{text}");
        assert!(text.contains("and 4970 more items"), "{text}");
    }

    #[test]
    fn arguments_come_in_the_order_of_the_schema_without_secrets() {
        let schema = json!({"properties": {"path": {}, "note": {}}});
        let arguments = json!({"more": 1, "note": "hidden-token", "path": {"a": [true, null]}});
        assert_eq!(
            shown(arguments, schema).as_deref(),
            Some(r#"{path: {a: [true, null]}, note: "[secret]", more: 1}"#)
        );
    }

    #[test]
    fn a_value_cannot_write_outside_of_its_quotation_marks() {
        let text = shown(
            json!({"a": "\", path: \"/tmp", "b\n": "\u{202e}c\nd"}),
            json!({}),
        );
        assert_eq!(
            text.as_deref(),
            Some(r#"{a: "\", path: \"/tmp", "b\n": "\u{202e}c\nd"}"#)
        );
        let text = shown(json!({"a: 1, b": true, "x": "rm # \nls"}), json!({}));
        assert_eq!(
            text.as_deref(),
            Some(r#"{"a: 1, b": true, x: "rm # \nls"}"#)
        );
    }

    #[test]
    fn what_a_person_could_not_see_whole_is_refused() {
        let many: Map<String, Value> = (0..2000).map(|n| (format!("key{n}"), json!(n))).collect();
        assert_eq!(shown(Value::Object(many), json!({})), None);
        assert_eq!(shown(json!({"k".repeat(300): 1}), json!({})), None);
        let deep = (0..20).fold(json!(1), |inner, _| json!({"a": inner}));
        assert_eq!(shown(deep, json!({})), None);
    }
}
