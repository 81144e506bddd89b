//! What a server behind the gateway writes: lines, events and listings.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    code_mode_mcp::read_lines(bytes);
    if let Some((first, rest)) = bytes.split_first() {
        code_mode_mcp::read_events(rest, usize::from(*first));
    }
    if let Ok(items) = serde_json::from_slice(bytes) {
        code_mode_mcp::read_listing(items);
    }
});
