//! The description of a tool: any JSON as its schema is a finite type.
#![no_main]

use code_mode_protocol::describe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    if let Ok(schema) = serde_json::from_slice(json) {
        assert!(describe::type_of(&schema).len() < 64 * (json.len() + 1024));
    }
});
