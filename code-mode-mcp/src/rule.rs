//! A rule of the policy: which tools, and which of their calls.

use code_mode_protocol::text::line;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::policy::{Pattern, fits};

/// How much of a condition is shown.
const SHOWN: usize = 100;

/// Tools by a pattern, and conditions on a call's input, which must all hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) struct Rule {
    pub(crate) pattern: Pattern,
    conditions: Vec<Condition>,
}

/// A condition on one value of a call's input.
#[derive(Clone, Debug)]
struct Condition {
    /// Where the value is, as a JSON Pointer.
    at: String,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Equals(Value),
    /// `*` stands for any run of characters.
    Glob(String),
    Over(f64),
    Under(f64),
}

/// Whether a rule must not miss a call, or must not admit one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// The rule forbids: a value that a server may read as the one that is meant is that one. A number
    /// may be written in a string, and a text in another case.
    Forbids,
    /// The rule allows: only the very value.
    Allows,
}

impl TryFrom<Value> for Rule {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let object = match value {
            Value::String(pattern) => {
                let pattern = Pattern::try_from(pattern)?;
                let conditions = Vec::new();
                return Ok(Self {
                    pattern,
                    conditions,
                });
            }
            Value::Object(object) => object,
            _ => return Err("a rule is a pattern, or an object with tool and where".to_owned()),
        };
        if let Some(unknown) = object
            .keys()
            .find(|key| !["tool", "where"].contains(&key.as_str()))
        {
            return Err(format!("a rule has tool and where, not {unknown:?}"));
        }
        let pattern = object.get("tool").and_then(Value::as_str);
        let pattern = pattern.ok_or("a rule needs a pattern as its tool")?;
        let conditions = match object.get("where") {
            Some(Value::Object(conditions)) if !conditions.is_empty() => conditions,
            _ => return Err("where is an object of conditions, by JSON Pointers".to_owned()),
        };
        let conditions = conditions
            .iter()
            .map(|(at, test)| Condition::read(at, test));
        Ok(Self {
            pattern: Pattern::try_from(pattern.to_owned())?,
            conditions: conditions.collect::<Result<_, _>>()?,
        })
    }
}

impl Condition {
    fn read(at: &str, test: &Value) -> Result<Self, String> {
        if !at.is_empty() && !at.starts_with('/') {
            return Err(format!("{at:?} is not a JSON Pointer, which begins with /"));
        }
        let one = test.as_object().filter(|test| test.len() == 1);
        let one = one.and_then(|test| test.iter().next());
        let test = match one.map(|(name, value)| (name.as_str(), value)) {
            Some(("equals", value)) => Test::Equals(value.clone()),
            Some(("glob", Value::String(pattern))) => Test::Glob(pattern.clone()),
            Some(("over", Value::Number(number))) => {
                Test::Over(number.as_f64().unwrap_or(f64::NAN))
            }
            Some(("under", Value::Number(number))) => {
                Test::Under(number.as_f64().unwrap_or(f64::NAN))
            }
            _ => {
                return Err(format!(
                    "the condition at {at:?} is one of {{\"equals\": VALUE}}, {{\"glob\": \"TEXT*\"}}, {{\"over\": NUMBER}}, {{\"under\": NUMBER}}"
                ));
            }
        };
        Ok(Self {
            at: at.to_owned(),
            test,
        })
    }

    fn holds(&self, input: &Value, strictness: Strictness) -> bool {
        let Some(value) = input.pointer(&self.at) else {
            return false;
        };
        let is_loose = strictness == Strictness::Forbids;
        let number = match value {
            Value::String(text) if is_loose => text.trim().parse().ok(),
            other => other.as_f64(),
        };
        match &self.test {
            Test::Over(bound) => number.is_some_and(|number| number > *bound),
            Test::Under(bound) => number.is_some_and(|number| number < *bound),
            Test::Equals(wanted) if is_loose => {
                value == wanted || text(value).to_lowercase() == text(wanted).to_lowercase()
            }
            Test::Equals(wanted) => value == wanted,
            Test::Glob(pattern) if is_loose => {
                fits(&pattern.to_lowercase(), &text(value).to_lowercase())
            }
            Test::Glob(pattern) => value.as_str().is_some_and(|value| fits(pattern, value)),
        }
    }

    fn in_words(&self) -> String {
        let (how, what) = match &self.test {
            Test::Equals(value) => ("equals", value.to_string()),
            Test::Glob(pattern) => ("fits", format!("{pattern:?}")),
            Test::Over(bound) => ("is over", bound.to_string()),
            Test::Under(bound) => ("is under", bound.to_string()),
        };
        line(&format!("{} {how} {what}", self.at), SHOWN)
    }
}

/// A value as a text, without quotation marks.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl Rule {
    /// Whether the rule depends on a call's input.
    pub(crate) fn has_conditions(&self) -> bool {
        !self.conditions.is_empty()
    }

    /// Whether all conditions hold for a call's input. Without an input only a rule without conditions
    /// holds.
    pub(crate) fn holds(&self, input: Option<&Map<String, Value>>, strictness: Strictness) -> bool {
        if self.conditions.is_empty() {
            return true;
        }
        input.is_some_and(|input| {
            let input = Value::Object(input.clone());
            let mut conditions = self.conditions.iter();
            conditions.all(|condition| condition.holds(&input, strictness))
        })
    }

    /// The rule in words, as records and errors have it.
    pub(crate) fn in_words(&self) -> String {
        let mut words = format!("{:?}", self.pattern.text());
        for (at, condition) in self.conditions.iter().enumerate() {
            words.push_str(if at == 0 { " where " } else { " and " });
            words.push_str(&condition.in_words());
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(test: Value) -> Rule {
        serde_json::from_value(json!({"tool": "s/t", "where": test})).expect("a rule")
    }

    fn holds(test: &Value, input: Value, strictness: Strictness) -> bool {
        rule(test.clone()).holds(input.as_object(), strictness)
    }

    #[test]
    fn what_forbids_holds_for_every_way_to_write_a_value_and_what_allows_for_one() {
        let equals = json!({"/branch": {"equals": "main"}});
        let over = json!({"/amount/value": {"over": 100}});
        let glob = json!({"/path": {"glob": "/etc/*"}});
        for (test, exact, odd) in [
            (
                &equals,
                json!({"branch": "main"}),
                json!({"branch": "MAIN"}),
            ),
            (
                &over,
                json!({"amount": {"value": 101}}),
                json!({"amount": {"value": "1e9"}}),
            ),
            (
                &glob,
                json!({"path": "/etc/shadow"}),
                json!({"path": "/ETC/shadow"}),
            ),
        ] {
            for strictness in [Strictness::Forbids, Strictness::Allows] {
                assert!(holds(test, exact.clone(), strictness), "{test} {exact}");
            }
            assert!(
                holds(test, odd.clone(), Strictness::Forbids),
                "{test} {odd}"
            );
            assert!(
                !holds(test, odd.clone(), Strictness::Allows),
                "{test} {odd}"
            );
            assert!(!holds(test, json!({}), Strictness::Forbids), "{test}");
        }
        assert!(!holds(
            &over,
            json!({"amount": {"value": 100}}),
            Strictness::Forbids
        ));
        assert!(holds(
            &json!({"/n": {"under": 0}}),
            json!({"n": -1}),
            Strictness::Allows
        ));
    }

    #[test]
    fn all_conditions_of_a_rule_must_hold() {
        let both = json!({"/a": {"equals": 1}, "/b": {"equals": 2}});
        assert!(holds(&both, json!({"a": 1, "b": 2}), Strictness::Allows));
        assert!(!holds(&both, json!({"a": 1, "b": 3}), Strictness::Forbids));
        assert_eq!(
            rule(both).in_words(),
            r#""s/t" where /a equals 1 and /b equals 2"#
        );
    }

    #[test]
    fn what_is_wrong_with_a_rule_is_said() {
        let said = |value: Value| match serde_json::from_value::<Rule>(value) {
            Ok(_) => panic!("it is read"),
            Err(error) => error.to_string(),
        };
        assert!(said(json!(7)).contains("a rule is a pattern"));
        assert!(said(json!({"tool": "s/t"})).contains("where is an object"));
        assert!(said(json!({"tool": "s/t", "when": {}})).contains("\"when\""));
        assert!(said(json!({"where": {"/a": {"equals": 1}}})).contains("tool"));
        assert!(
            said(json!({"tool": "s/t", "where": {"a": {"equals": 1}}})).contains("JSON Pointer")
        );
        assert!(said(json!({"tool": "s/t", "where": {"/a": 1}})).contains("equals"));
        assert!(said(json!({"tool": "s/t", "where": {"/a": {"over": "1"}}})).contains("over"));
    }
}
