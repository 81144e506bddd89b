//! The pragma at the head of a cell's source.
#![no_main]

use code_mode_protocol::pragma;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let _ = pragma::parse(source);
});
