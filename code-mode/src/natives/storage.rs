//! `store` and `load`.

use std::sync::Arc;

use code_mode_protocol::{Limit, Limits};

use super::{Answer, CellState, Refusal, input, thrown};

/// `store(key, value)`: serialised now, the session's when the cell completes.
pub(super) fn store(
    scope: &mut v8::PinScope,
    state: &CellState,
    args: &v8::FunctionCallbackArguments,
) -> Answer {
    let key = key(scope, args.get(0), "store")?;
    let json = thrown(v8::json::stringify(scope, args.get(1)))?;
    let refused = |why: &dyn std::fmt::Display| {
        Err(Refusal::Error(format!("Unable to store {key:?}: {why}")))
    };
    let limits = &state.shared.limits;
    if key.len() > Limits::MAX_KEY_BYTES {
        return Err(Refusal::Error(format!(
            "Unable to store: the key has {} bytes, and may have {}",
            key.len(),
            Limits::MAX_KEY_BYTES
        )));
    }
    // Asked before the copy, which may be large.
    if json.length() > limits.max_frame_bytes {
        return refused(&Limit::Frame.exceeded(limits.max_frame_bytes as u64));
    }
    let json = json.to_rust_string_lossy(scope);
    // A value that JSON cannot express gives this word, which JSON does not know.
    if json == "undefined" {
        return Err(Refusal::Error(format!(
            "Unable to store {key:?}. Only plain serializable objects can be stored."
        )));
    }
    input::check(&json)?;
    let mut stored = state.stored.borrow_mut();
    if stored.bytes_with(&key, &json) > limits.max_stored_bytes {
        return refused(&Limit::StoredBytes.exceeded(limits.max_stored_bytes as u64));
    }
    let key: Arc<str> = key.into();
    stored.set(&key, json.into());
    state.written.borrow_mut().add(key);
    Ok(())
}

/// `load(key)`: what this cell stored, else what the session held when it
/// started.
pub(super) fn load<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<Option<v8::Local<'s, v8::Value>>> {
    let key = key(scope, args.get(0), "load")?;
    let json = {
        let stored = state.stored.borrow();
        let Some(json) = stored.get(&key) else {
            return Ok(None);
        };
        thrown(v8::String::new(scope, json))?
    };
    thrown(v8::json::parse(scope, json)).map(Some)
}

fn key(scope: &mut v8::PinScope, key: v8::Local<v8::Value>, helper: &str) -> Answer<String> {
    if key.is_symbol() {
        return Err(Refusal::Error(format!("{helper} key must be a string")));
    }
    Ok(thrown(key.to_string(scope))?.to_rust_string_lossy(scope))
}
