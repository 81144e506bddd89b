//! A client's requests on the gRPC wire.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| code_mode_serve::decode_and_check(bytes));
