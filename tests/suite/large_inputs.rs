//! A tool gets its input as `JSON.stringify` writes it, however large its texts, whatever
//! worker they come from.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use code_mode_protocol::{
    CellResponse, CodeModeSessionDelegate, ContentItem, Json, Limits, NestedToolCall,
    RuntimeToolCallId, ToolError,
};
use tokio_util::sync::CancellationToken;

use crate::support::{open, request, run};

/// Keeps what tools were called with.
#[derive(Default)]
struct Recorder(Mutex<BTreeMap<RuntimeToolCallId, String>>);

impl Recorder {
    /// What tools were called with, in the order of the calls.
    fn take(&self) -> Vec<String> {
        let inputs = std::mem::take(&mut *self.0.lock().expect("not poisoned"));
        inputs.into_values().collect()
    }
}

#[async_trait]
impl CodeModeSessionDelegate for Recorder {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        _: CancellationToken,
    ) -> Result<Json, ToolError> {
        let input = call.input.expect("an input");
        let mut inputs = self.0.lock().expect("not poisoned");
        // Calls may reach the delegate in another order than the cell made them.
        inputs.insert(call.runtime_tool_call_id, input.into_string());
        Ok(Json::null())
    }
}

/// What tools were called with, and what the cell put out.
async fn called(source: &str) -> (Vec<String>, Vec<String>) {
    let recorder = Arc::new(Recorder::default());
    let opened = open(recorder.clone(), Limits::default()).await;
    let large = "const large = 'x'.repeat(100_000);";
    let source = format!("{large}{source}");
    let texts = put_out(&opened.session, &source).await;
    opened.provider.shutdown().await;
    let inputs = recorder.take();
    (inputs, texts)
}

/// What a cell put out.
async fn put_out(session: &code_mode_host::Session, source: &str) -> Vec<String> {
    let started = session.execute(request(source)).await;
    let response = started.expect("admitted").outcome().await;
    let CellResponse::Result {
        content_items,
        error_text: None,
        ..
    } = response.expect("observed")
    else {
        panic!("no result");
    };
    let texts = content_items.into_iter().map(|item| match item {
        ContentItem::Text { text, .. } => text,
        other => panic!("not a text: {other:?}"),
    });
    texts.collect()
}

/// The input that this expression makes arrives as `JSON.stringify` writes it.
async fn arrives_as_it_is_stringified(input: &str) {
    let (inputs, texts) = called(&format!(
        "const make = () => ({input}); await tools.echo(make()); text(JSON.stringify(make()));"
    ))
    .await;
    assert!(inputs == texts, "{input} is not what it was");
}

#[test]
fn an_input_with_large_texts_is_what_json_stringify_writes() {
    run(async {
        for input in [
            "large",
            "{ large }",
            "{ a: 1, large, b: [null, { c: undefined, d: 'd' }], other: large + large }",
            "{ first: large, deep: { list: [large, 'small', large] } }",
            "{ [large]: large }",
            "{ large, date: new Date(0), text: new String(large), toString: () => large }",
        ] {
            arrives_as_it_is_stringified(input).await;
        }
    });
}

#[test]
fn what_json_escapes_is_escaped_in_a_large_text_of_an_input() {
    run(async {
        for input in [
            r#"{ quotes: `"\\/\b\f\n\r\t\0\x1f\x7f` + large + `"` }"#,
            r"{ latin: large + 'é\u00ff\u00a0' + 'Ã©'.repeat(100_000) }",
            r"{ wide: large + '€😀\u2028' }",
            r"{ whole: '😀'.repeat(100_000), plain: large }",
        ] {
            arrives_as_it_is_stringified(input).await;
        }
    });
}

/// What code of the cell sees while this `input` is made JSON, which notes it in
/// `seen`: the same as for `JSON.stringify`.
async fn seen_while_stringified(input: &str) -> String {
    let (inputs, texts) = called(&format!(
        "let seen = [];
        {input}
        await tools.echo(input);
        text(seen.join());
        seen = [];
        text(JSON.stringify(input));
        text(seen.join());"
    ))
    .await;
    assert!(inputs[0] == texts[1]);
    assert_eq!(texts[0], texts[2]);
    texts[0].clone()
}

#[test]
fn code_of_the_cell_runs_once_for_an_input_with_a_large_text() {
    run(async {
        let seen = seen_while_stringified(
            "const input = {
                large,
                get got() { seen.push('got'); return large; },
                made: { toJSON(key) { seen.push(key); return { large }; } },
                hidden: new Proxy({}, { ownKeys() { seen.push('keys'); return []; } }),
            };",
        )
        .await;
        assert_eq!(seen, "got,made,keys");
    });
}

#[test]
fn a_proxy_as_input_is_asked_only_what_json_stringify_asks() {
    run(async {
        seen_while_stringified(
            "const input = new Proxy({ large }, new Proxy({}, {
                get: (_, trap) => { seen.push(trap); },
            }));",
        )
        .await;
    });
}

#[test]
fn a_tool_called_while_an_input_is_made_gets_its_own_texts() {
    run(async {
        let (inputs, _) = called(
            "let inner;
            const input = {
                large,
                inner: { toJSON() { inner = tools.echo({ a: 'y'.repeat(100_000) }); return 1; } },
                last: 'z'.repeat(100_000),
            };
            await tools.echo(input);
            await inner;",
        )
        .await;
        let text = |letter: &str| letter.repeat(100_000);
        assert!(inputs[0] == format!(r#"{{"a":"{}"}}"#, text("y")));
        assert!(
            inputs[1]
                == format!(
                    r#"{{"large":"{}","inner":1,"last":"{}"}}"#,
                    text("x"),
                    text("z")
                )
        );
    });
}

#[test]
fn an_input_with_a_large_text_that_json_cannot_express_is_refused() {
    run(async {
        let (inputs, texts) = called(
            "const refused = async (input) => {
                try { await tools.echo(input); } catch (error) { text(error.message); }
            };
            await refused({ large, toJSON() {} });
            await refused({ large, n: 1n });",
        )
        .await;
        assert!(inputs.is_empty());
        assert_eq!(
            texts,
            [
                "the input of tools.echo cannot be serialized as JSON",
                "Do not know how to serialize a BigInt"
            ]
        );
    });
}

#[test]
fn an_input_whose_texts_do_not_fit_a_frame_is_refused() {
    run(async {
        let (inputs, texts) = called(
            "const huge = 'x'.repeat(40 << 20);
            try { await tools.echo({ a: huge, b: huge }); } catch (error) { text(error.message); }",
        )
        .await;
        assert!(inputs.is_empty());
        assert!(texts[0].starts_with("cannot send "), "{}", texts[0]);
    });
}

/// Has a cell send and put out texts of megabytes.
async fn megabytes_arrive(session: &code_mode_host::Session, recorder: &Recorder) {
    let texts = put_out(
        session,
        "const plain = 'x'.repeat(3 << 20), other = 'é\\n'.repeat(1 << 20);
        await tools.echo({ plain, other });
        text(plain);
        text('small');
        text(other);",
    )
    .await;
    let (plain, other) = ("x".repeat(3 << 20), "é\n".repeat(1 << 20));
    assert!(texts == [plain.as_str(), "small", &other]);
    let inputs = recorder.take();
    let escaped = other.replace('\n', "\\n");
    assert!(inputs == [format!(r#"{{"plain":"{plain}","other":"{escaped}"}}"#)]);
}

#[test]
fn megabytes_arrive_from_a_worker_of_the_providers_own() {
    run(async {
        let recorder = Arc::new(Recorder::default());
        let opened = open(recorder.clone(), Limits::default()).await;
        megabytes_arrive(&opened.session, &recorder).await;
        opened.provider.shutdown().await;
    });
}

#[test]
#[cfg(unix)]
fn megabytes_arrive_from_a_worker_that_was_connected_to() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let (_worker, socket) = crate::listening::listening(&folder).await;
        let provider = crate::support::provider_at(socket);
        let recorder = Arc::new(Recorder::default());
        let session = provider.create_session(recorder.clone()).await;
        megabytes_arrive(&session.expect("opened"), &recorder).await;
        provider.shutdown().await;
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_worker_keeps_no_text_that_has_arrived() {
    use crate::processes::kib;

    if !crate::support::alone("large_inputs::a_worker_keeps_no_text_that_has_arrived") {
        return;
    }
    run(async {
        let recorder = Arc::new(Recorder::default());
        let opened = open(recorder, Limits::default()).await;
        for _ in 0..48 {
            put_out(&opened.session, "text('y'.repeat(8 << 20))").await;
        }
        let workers = crate::support::own_processes();
        let kib_of_all = workers.into_iter().filter_map(|worker| {
            let status = std::fs::read_to_string(format!("/proc/{worker}/status"));
            kib(&status.ok()?, "VmRSS:")
        });
        let mib = kib_of_all.sum::<u64>() >> 10;
        // They put out 384.
        assert!(mib < 250, "the workers have {mib} MiB");
        opened.provider.shutdown().await;
    });
}
