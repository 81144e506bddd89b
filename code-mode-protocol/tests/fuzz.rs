//! Nothing that comes over a wire or from a tool's author makes the decoders panic,
//! allocate without bound, or take in more than one message.
//!
//! A short run with every change; `PROPTEST_CASES=1000000 cargo test --release
//! -p code-mode-protocol --test fuzz` for a long one.

use code_mode_protocol::wire::Texts;
use code_mode_protocol::wire::frame::FrameError;
use code_mode_protocol::wire::native::{FromWorker, JsonText, ToWorker};
use code_mode_protocol::wire::reader::{MaxMessage, MessageReader};
use code_mode_protocol::wire::stdio::ClientMessage;
use code_mode_protocol::{Json, RuntimeToolCallId, describe};
use proptest::collection::vec;
use proptest::prelude::*;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

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

const SECOND: &str = "{\"a\":1}";

const MAX: MaxMessage = MaxMessage {
    frame: 1 << 20,
    texts: 1 << 20,
};

/// The bytes of tool calls with this input and with [`SECOND`].
fn tool_calls(input: &str) -> Vec<u8> {
    [tool_call(input), tool_call(SECOND)].concat()
}

fn tool_call(input: &str) -> Vec<u8> {
    let message = FromWorker::ToolCall {
        cell: 7,
        call: RuntimeToolCallId(3),
        tool: 0,
        input: Some(JsonText::Unchecked(input.to_owned())),
        site: None,
    };
    let parts = message.encode().expect("encodes").into_parts();
    parts.flat_map(|part| part.to_vec()).collect()
}

/// The inputs of the tool calls that come over a connection which holds so many bytes
/// at a time, and how it ended.
fn received(bytes: Vec<u8>, holds: usize) -> (Vec<String>, Result<(), FrameError>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(async {
        let (mut send, receive) = tokio::io::duplex(holds);
        tokio::spawn(async move { send.write_all(&bytes).await });
        let mut messages = MessageReader::new(receive, MAX);
        let mut inputs = Vec::new();
        loop {
            match messages.next().await {
                Ok(Some(FromWorker::ToolCall { input, .. })) => inputs
                    .extend(input.map(|input| input.into_json().expect("checked").into_string())),
                Ok(Some(_)) => {}
                Ok(None) => return (inputs, Ok(())),
                Err(error) => return (inputs, Err(error)),
            }
        }
    })
}

/// Reads messages of either direction out of these bytes, whatever they are.
fn read_all<Rx: DeserializeOwned + Texts + Send + 'static>(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(async {
        let mut messages = MessageReader::<_, Rx>::new(bytes, MAX);
        while let Ok(Some(_)) = messages.next().await {}
    });
}

/// A text that is not copied into its message's frame, in quotes.
fn large() -> String {
    format!("\"{}\"", "aé€😀".repeat(10_000))
}

/// What large JSON may consist of, much of it without anything to escape.
fn json_piece() -> impl Strategy<Value = String> {
    let small = prop_oneof![
        Just("\""),
        Just("\\"),
        Just("\\u00"),
        Just("4"),
        Just("\n"),
        Just("\\n"),
        Just(","),
        Just("["),
        Just("]"),
        Just(" "),
        Just("\",\""),
        Just("é"),
        Just("true"),
    ];
    let many = (
        prop_oneof![Just("x"), Just(" "), Just("7"), Just("€")],
        0usize..60_000,
    );
    prop_oneof![
        small.prop_map(str::to_owned),
        many.prop_map(|(text, times)| text.repeat(times)),
    ]
}

const REQUEST: &str = r#"{"type":"operation/request","id":2,"request":{"method":"session/execute","sessionId":"s","request":{"tool_call_id":"c","enabled_tools":[],"source":"text(1)","yield_time_ms":1,"max_output_tokens":null}}}"#;

proptest! {
    #[test]
    fn native_messages_of_any_bytes(bytes in vec(any::<u8>(), 0..300)) {
        let length = u32::try_from(bytes.len()).expect("short").to_le_bytes();
        let framed = [&length[..], &bytes].concat();
        read_all::<FromWorker>(&framed);
        read_all::<ToWorker>(&framed);
    }

    #[test]
    fn a_native_message_with_changed_bytes(
        is_large in any::<bool>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = tool_calls(&if is_large { large() } else { "1".to_owned() });
        let head = bytes.len().min(40);
        for (at, value) in changes {
            bytes[at.index(head)] = value;
        }
        read_all::<FromWorker>(&bytes);
    }

    #[test]
    fn messages_from_a_connection_are_the_same_however_much_it_holds(
        is_large in any::<bool>(),
        holds in prop_oneof![1usize..20, 1usize..100_000],
        left in prop_oneof![Just(None), any::<prop::sample::Index>().prop_map(Some)],
    ) {
        let input = if is_large { large() } else { "[]".to_owned() };
        let mut bytes = tool_calls(&input);
        let whole = bytes.len();
        let first = tool_call(&input).len();
        bytes.truncate(left.map_or(whole, |left| left.index(whole)));
        let left = bytes.len();
        let (inputs, end) = received(bytes, holds);
        let expected = match left {
            left if left < first => vec![],
            left if left < whole => vec![input],
            _ => vec![input, SECOND.to_owned()],
        };
        prop_assert!(inputs == expected);
        // Between two messages a connection may end, and elsewhere it breaks off.
        prop_assert_eq!(end.is_ok(), [0, first, whole].contains(&left));
    }

    #[test]
    fn a_large_text_that_is_not_utf_8_is_refused(at in any::<prop::sample::Index>()) {
        let mut bytes = tool_calls(&format!("\"{}\"", "a".repeat(100_000)));
        let text = bytes.windows(9).position(|nine| nine == b"aaaaaaaaa");
        bytes[text.expect("follows") + at.index(100_000)] = 0xff;
        let (_, refused) = received(bytes, 7_000);
        prop_assert!(matches!(refused, Err(FrameError::Malformed(_))));
    }

    #[test]
    fn a_text_that_belongs_nowhere_in_its_message_is_refused(number in 1u8..100) {
        let mut bytes = tool_calls(&large());
        // After the frame's length comes how many texts follow, and the first's number.
        prop_assert_eq!(&bytes[4..6], [1, 0]);
        bytes[5] = number;
        let (_, refused) = received(bytes, 1 << 20);
        prop_assert!(matches!(refused, Err(FrameError::Malformed(_))));
    }

    #[test]
    fn texts_past_the_limit_are_refused_before_they_come(bytes in (1u32 << 20) + 1..) {
        let mut head = tool_calls(&large());
        let announced = u32::try_from(large().len()).expect("small").to_le_bytes();
        let at = head.windows(4).position(|four| four == announced).expect("announced");
        head[at..at + 4].copy_from_slice(&bytes.to_le_bytes());
        head.truncate(100);
        let (_, refused) = received(head, 1 << 20);
        prop_assert!(matches!(refused, Err(FrameError::TooLarge(_))));
    }

    #[test]
    fn a_frame_past_the_limit_is_refused_before_it_is_buffered(length in (1u32 << 20) + 1..) {
        let (_, refused) = received(length.to_le_bytes().to_vec(), 1 << 20);
        prop_assert!(matches!(refused, Err(FrameError::TooLarge(_))));
    }

    #[test]
    fn a_large_text_is_json_where_serde_says_so(
        pieces in vec(json_piece(), 1..12),
        in_quotes in any::<bool>(),
        holds in prop_oneof![1usize..20, 1usize..100_000],
    ) {
        let mut text = pieces.concat();
        if in_quotes {
            text = format!("[\"{text}\"]");
        }
        let expected = serde_json::from_str::<IgnoredAny>(&text).is_ok();
        let (inputs, end) = received(tool_call(&text), holds);
        prop_assert_eq!((inputs.len(), end.is_ok()), (usize::from(expected), expected));
        prop_assert_eq!(Json::parse(text).is_ok(), expected);
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
