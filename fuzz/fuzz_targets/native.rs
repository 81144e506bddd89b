//! The native wire: frames and messages of both directions.
#![no_main]

use code_mode_protocol::wire::Texts;
use code_mode_protocol::wire::native::{FromWorker, ToWorker};
use code_mode_protocol::wire::reader::{MaxMessage, MessageReader};
use code_mode_protocol::wire::watch::{Watch, begun, ended};
use libfuzzer_sys::fuzz_target;
use serde::de::DeserializeOwned;

const MAX: MaxMessage = MaxMessage {
    frame: 1 << 16,
    texts: 1 << 16,
};

async fn read<Rx: DeserializeOwned + Texts + Send + 'static>(bytes: &[u8]) -> Vec<Rx> {
    let mut reader = MessageReader::new(bytes, MAX);
    let mut messages = Vec::new();
    while let Ok(Some(message)) = reader.next().await {
        messages.push(message);
    }
    messages
}

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(async {
        for message in read::<FromWorker>(bytes).await {
            message.encode().expect("a decoded message can be encoded");
        }
        for message in read::<ToWorker>(bytes).await {
            message.encode().expect("a decoded message can be encoded");
        }
    });
    // A host that lends a worker looks at the bytes in both directions.
    for mut watch in [Watch::to_worker(), Watch::from_worker()] {
        watch.pass(bytes, |frame| {
            let _ = (begun(frame), ended(frame));
        });
    }
});
