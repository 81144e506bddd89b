//! Nothing that comes over a wire or from a tool's author makes the decoders panic,
//! allocate without bound, or take in more than one message.
//!
//! A short run with every change; `PROPTEST_CASES=1000000 cargo test --release
//! -p code-mode-protocol --test fuzz` for a long one.

use bytes::BytesMut;
use code_mode_protocol::frame::{self, MessageCodec};
use code_mode_protocol::native::{FromWorker, ToWorker};
use code_mode_protocol::stdio::ClientMessage;
use code_mode_protocol::{CellId, describe};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;
use tokio_util::codec::Decoder;

fn json() -> impl Strategy<Value = Value> {
    let words = prop_oneof![
        Just("object"),
        Just("array"),
        Just("string"),
        Just("#"),
        Just("#/$defs/a"),
        Just("a"),
        Just("é\n"),
    ];
    let keys = prop_oneof![
        Just("type"),
        Just("properties"),
        Just("items"),
        Just("anyOf"),
        Just("allOf"),
        Just("$ref"),
        Just("$defs"),
        Just("enum"),
        Just("const"),
        Just("required"),
        Just("description"),
        Just("additionalProperties"),
        Just("prefixItems"),
        Just("a"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        words.prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            vec((keys.clone(), inner), 0..6).prop_map(|fields| {
                fields
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect::<Value>()
            }),
        ]
    })
}

fn tool_call() -> Vec<u8> {
    let message = FromWorker::ToolCall {
        call: 7,
        cell_id: CellId::nth(1),
        runtime_tool_call_id: 3,
        tool: 0,
        input: Some("{\"a\":1}".to_owned()),
    };
    bytes::Bytes::from(message.encode().expect("encodes")).to_vec()
}

const REQUEST: &str = r#"{"type":"operation/request","id":2,"request":{"method":"session/execute","sessionId":"s","request":{"tool_call_id":"c","enabled_tools":[],"source":"text(1)","yield_time_ms":1,"max_output_tokens":null}}}"#;

proptest! {
    #[test]
    fn native_messages_of_any_bytes(bytes in vec(any::<u8>(), 0..300)) {
        let _ = frame::decode::<FromWorker>(&bytes);
        let _ = frame::decode::<ToWorker>(&bytes);
    }

    #[test]
    fn a_native_message_with_changed_bytes(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = tool_call();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = frame::decode::<FromWorker>(&bytes);
    }

    #[test]
    fn frames_in_any_pieces_are_the_same_messages(cuts in vec(1usize..20, 1..40)) {
        let content = tool_call();
        let mut stream = Vec::new();
        for _ in 0..5 {
            stream.extend(u32::try_from(content.len()).expect("small").to_le_bytes());
            stream.extend(&content);
        }
        let mut codec = MessageCodec::<FromWorker>::new(1 << 16);
        let mut buffer = BytesMut::new();
        let mut messages = 0;
        let mut rest = stream.as_slice();
        for cut in cuts.into_iter().cycle() {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            buffer.extend_from_slice(piece);
            rest = after;
            while codec.decode(&mut buffer).expect("whole frames").is_some() {
                messages += 1;
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(messages, 5);
    }

    #[test]
    fn a_frame_past_the_limit_is_refused_before_it_is_buffered(length in 65_537u32..) {
        let mut buffer = BytesMut::from(&length.to_le_bytes()[..]);
        let mut codec = MessageCodec::<FromWorker>::new(1 << 16);
        prop_assert!(codec.decode(&mut buffer).is_err());
        prop_assert!(buffer.capacity() < 1 << 17);
    }

    #[test]
    fn a_stdio_message_with_changed_bytes(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = REQUEST.as_bytes().to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = ClientMessage::parse(&bytes);
    }

    #[test]
    fn a_schema_of_any_json_is_a_finite_type(schema in json()) {
        prop_assert!(describe::type_of(&schema).len() < 1 << 20);
    }
}
