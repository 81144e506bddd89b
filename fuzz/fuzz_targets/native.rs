//! The native wire: frames and messages of both directions, in any pieces.
#![no_main]

use bytes::BytesMut;
use code_mode_protocol::message::MessageCodec;
use code_mode_protocol::native::{FromWorker, ToWorker};
use libfuzzer_sys::fuzz_target;
use tokio_util::codec::Decoder;

fuzz_target!(|bytes: &[u8]| {
    let mut buffer = BytesMut::from(bytes);
    let mut from_worker = MessageCodec::<FromWorker>::new(1 << 16);
    while let Ok(Some(message)) = from_worker.decode(&mut buffer) {
        message.encode().expect("what was decoded can be encoded");
    }
    let mut buffer = BytesMut::from(bytes);
    let mut to_worker = MessageCodec::<ToWorker>::new(1 << 16);
    while let Ok(Some(message)) = to_worker.decode(&mut buffer) {
        message.encode().expect("what was decoded can be encoded");
    }
});
