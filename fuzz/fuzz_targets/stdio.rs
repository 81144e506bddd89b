//! A client's messages on the stdio wire.
#![no_main]

use code_mode_protocol::wire::stdio::ClientMessage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = ClientMessage::parse(bytes);
});
