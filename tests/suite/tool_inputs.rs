//! What a cell passes to a tool, against a strict parser: whatever value it is, the delegate
//! gets JSON that every parser takes, or the call throws.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use code_mode_host::{
    CodeModeSessionDelegate, Json, NestedToolCall, SessionOptions, ToolError, ToolSet,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{Opened, open, provider_in_process, run, texts, tool};

/// Keeps every input and gives it back.
#[derive(Default)]
struct Keeps(Mutex<Vec<String>>);

#[async_trait]
impl CodeModeSessionDelegate for Keeps {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        _: CancellationToken,
    ) -> Result<Json, ToolError> {
        let input = call.input.unwrap_or_else(Json::null);
        self.0
            .lock()
            .expect("no panic")
            .push(input.as_str().to_owned());
        Ok(input)
    }
}

/// An expression of JavaScript, of every kind of value there is.
fn expression(random: &mut StdRng, depth: usize) -> String {
    let leaf = [
        "undefined",
        "null",
        "true",
        "-0",
        "NaN",
        "Infinity",
        "1e400",
        "5e-324",
        "2**53+1",
        "10n",
        "Symbol('s')",
        "() => 1",
        "new Date(0)",
        "new Date(NaN)",
        "/x/g",
        "new Map([[1, 2]])",
        "new Uint8Array(3)",
        "Object('s')",
        "Object(1)",
        "Object(false)",
        "new Error('e')",
        "Promise.resolve(1)",
        "[,]",
        "new Array(5)",
        "{toJSON() { return '\\ud83d' }}",
        "{toJSON() { return undefined }}",
        "{get a() { throw new Error('mine') }}",
        "new Proxy({}, {})",
        "Object.create(null)",
        "globalThis.cycle",
    ];
    match random.random_range(0..if depth == 0 { 2 } else { 5 }) {
        0 => format!("({})", leaf[random.random_range(0..leaf.len())]),
        1 => text(random),
        2 => {
            let elements = random.random_range(0..4);
            let elements: Vec<_> = (0..elements)
                .map(|_| expression(random, depth - 1))
                .collect();
            format!("[{}]", elements.join(", "))
        }
        3 => {
            let properties = random.random_range(0..4);
            let properties: Vec<_> = (0..properties)
                .map(|_| format!("[{}]: {}", text(random), expression(random, depth - 1)))
                .collect();
            format!("({{{}}})", properties.join(", "))
        }
        _ => {
            let deep = random.random_range(1..200);
            format!(
                "{}{}{}",
                "[".repeat(deep),
                expression(random, 0),
                "]".repeat(deep)
            )
        }
    }
}

/// A string of any UTF-16 units, short or large.
fn text(random: &mut StdRng) -> String {
    let units: String = (0..random.random_range(0..6))
        .map(|_| {
            let ranges = [
                0..0x80_u32,
                0xd7f0..0xe010,
                0x2020..0x2030,
                0xfff0..0x1_0000,
            ];
            let range = ranges[random.random_range(0..ranges.len())].clone();
            format!("\\u{:04x}", random.random_range(range))
        })
        .collect();
    match random.random_range(0..20) {
        // Past the size from which texts go another way.
        0 => format!("'{units}'.padEnd(70000, 'x')"),
        _ => format!("'{units}'"),
    }
}

#[test]
fn a_tool_whose_schema_cannot_be_read_is_taken_or_left_out_as_the_session_asks() {
    run(async {
        let bad = json!({"type": "no type", "properties": 1});
        let tools = ToolSet::from([
            tool("good"),
            tool("bad").input_schema(Json::from_value(&bad).ok()),
        ]);
        let provider = provider_in_process();
        for (require, offered) in [(false, "good,bad"), (true, "good")] {
            let options = SessionOptions::default()
                .check_inputs(true)
                .require_readable_schemas(require);
            let session = provider
                .open_session(Arc::new(Keeps::default()), options)
                .await
                .expect("a session");
            // Twice: the set is looked through once, and known then.
            for _ in 0..2 {
                let source = "text(ALL_TOOLS.map((tool) => tool.name).join())";
                let request = crate::support::request(source).tools(tools.clone());
                let started = session.execute(request).await.expect("admitted");
                let response = started.outcome().await.expect("observed");
                assert_eq!(texts(&response), [offered]);
            }
        }
        provider.shutdown().await;
    });
}

#[test]
fn every_input_is_json_that_a_strict_parser_takes_or_throws() {
    run(async {
        let keeps = Arc::new(Keeps::default());
        let Opened { provider, session } = open(keeps.clone(), Default::default()).await;
        let mut random = StdRng::seed_from_u64(13);
        let values: Vec<String> = (0..1500).map(|_| expression(&mut random, 3)).collect();
        let mut passed = 0;
        for some in values.chunks(100) {
            let calls: Vec<String> = some
                .iter()
                .map(|value| format!("await check(() => {value});"))
                .collect();
            let source = format!(
                "globalThis.cycle = {{}}; cycle.cycle = cycle;
                 let passed = 0;
                 const check = async (make) => {{
                   const value = make();
                   let json;
                   try {{ json = JSON.stringify(value); }} catch {{}}
                   let back;
                   try {{ back = await tools.echo(value); }} catch (e) {{ if (typeof e.message !== 'string') throw e; return; }}
                   passed++;
                   if (value !== undefined && JSON.stringify(back) !== json) throw new Error('changed: ' + json);
                 }};
                 {}
                 text(passed);",
                calls.join("\n")
            );
            let mut request = crate::support::request(&source);
            request.enabled_tools = [tool("echo")].into_iter().collect();
            let started = session.execute(request).await.expect("admitted");
            let response = started.outcome().await.expect("observed");
            let said = texts(&response);
            passed += said
                .first()
                .and_then(|count| count.parse::<usize>().ok())
                .unwrap_or_else(|| panic!("{response:?}"));
        }
        provider.shutdown().await;
        let inputs = keeps.0.lock().expect("no panic");
        assert_eq!(inputs.len(), passed);
        assert!(passed > 500, "{passed} of 1500 are JSON");
        for input in inputs.iter() {
            // The parser with its own limit on nesting, and no leniency.
            serde_json::from_str::<serde_json::Value>(input)
                .unwrap_or_else(|error| panic!("{error}: {input}"));
        }
    });
}
