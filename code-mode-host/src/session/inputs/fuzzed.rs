//! What the fuzzer reaches of the checks of inputs.

use code_mode_protocol::Json;
use serde_json::Value;

use super::bounded::Cost;
use super::compile;

/// Whether an input fits a schema, as a call's input is checked; `None` where it would pass
/// unchecked.
pub fn input_fits(schema: &Json, input: &Value) -> Option<bool> {
    let (bounded, validator) = compile(schema)?;
    match bounded.cost(input) {
        Cost::TooMuch => None,
        Cost::Short | Cost::Long => Some(validator.is_valid(input)),
    }
}
