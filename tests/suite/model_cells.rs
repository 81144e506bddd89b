//! Cells as models write them: each runs, or fails with an error that says how to fix it.

use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{
    CellResponse, CodeModeSessionDelegate, ContentItem, ExecuteRequest, Json, NestedToolCall,
    Provider, SessionOptions, ToolAnswer, ToolDefinition, ToolError, ToolName, ToolSet, describe,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::durable_corpus::cut_after_every_turn;
use crate::support::{options, provider_in_process, run};

struct Tools;

#[async_trait]
impl CodeModeSessionDelegate for Tools {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        _: CancellationToken,
    ) -> Result<Json, ToolError> {
        let input: Value = call
            .input
            .map_or(Value::Null, |json| json.to().expect("JSON"));
        let answer = match call.tool_name.name.as_str() {
            "list" => json!({"items": [{"id": 1}, {"id": 2}], "next": null}),
            "search_code" => json!([{"path": "a.rs", "line": 3}]),
            "add" => json!(input["a"].as_i64().unwrap_or(0) + input["b"].as_i64().unwrap_or(0)),
            "stat" => json!({"bytes": 7, "given": input}),
            "slow" => {
                // Longer than the rest of any program takes.
                tokio::time::sleep(Duration::from_millis(100)).await;
                json!({"paid": input["amount"]})
            }
            "shot" => {
                let image = json!({"type": "image", "data": "AAAA", "mimeType": "image/png"});
                let resource =
                    json!({"type": "resource", "resource": {"uri": "a:b", "text": "embedded"}});
                json!({"content": [{"type": "text", "text": "Taken."}, image, image, resource]})
            }
            "nothing" => json!({"content": []}),
            "never" => std::future::pending().await,
            _ => match input["path"].as_str() {
                Some("missing") => return Err("no such file: missing".into()),
                path => json!(format!("content of {}", path.unwrap_or_default())),
            },
        };
        Ok(Json::from_value(&answer).expect("JSON"))
    }
}

fn tools() -> ToolSet {
    let tool = |name: &str, description: &str, schema: Value| {
        let mut tool = ToolDefinition::function(name, description);
        tool.input_schema = (!schema.is_null()).then(|| Json::from_value(&schema).expect("JSON"));
        tool
    };
    let object = |properties: Value, required: Value| json!({"type": "object", "properties": properties, "required": required});
    let of_server = |server: &str, name: &str, schema: Value| {
        tool(&format!("{server}__{name}"), "Of a server.", schema)
            .tool_name(ToolName::namespaced(server, name))
    };
    let number = json!({"type": "number"});
    ToolSet::from([
        of_server(
            "files",
            "stat",
            object(
                json!({"path": {"type": "string"}, "deep": {"type": "boolean", "default": false}}),
                json!(["deep"]),
            ),
        ),
        of_server(
            "bank",
            "slow",
            object(json!({"amount": number}), json!(["amount"])),
        ),
        of_server("bank", "never", Value::Null),
        of_server("browser", "shot", Value::Null).answer(ToolAnswer::McpResult),
        of_server("browser", "nothing", Value::Null).answer(ToolAnswer::McpResult),
        tool("list", "Lists items.", Value::Null),
        tool(
            "read_file",
            "Reads a file.",
            object(json!({"path": {"type": "string"}}), json!(["path"])),
        ),
        tool(
            "search_code",
            "Finds code.",
            object(json!({"query": {"type": "string"}}), json!(["query"])),
        ),
        tool(
            "add",
            "Adds two numbers.",
            object(
                json!({"a": {"type": "number"}, "b": {"type": "number"}}),
                json!(["a", "b"]),
            ),
        ),
    ])
}

struct Case {
    name: String,
    source: String,
    fails: bool,
    wanted: String,
}

fn cases() -> Vec<Case> {
    let text = include_str!("../fixtures/model_cells.txt");
    let cases = text.split("\n=== ").skip(1).map(|case| {
        let (name, rest) = case.split_once('\n').expect("a name");
        let (source, wanted) = rest.rsplit_once("\n--- ").expect("what must come");
        let (kind, wanted) = wanted
            .trim_end()
            .split_once(' ')
            .expect("a kind and a text");
        Case {
            name: name.to_owned(),
            source: source.to_owned(),
            fails: match kind {
                "ok" => false,
                "mend" => true,
                other => panic!("{name}: {other}"),
            },
            wanted: wanted.to_owned(),
        }
    });
    cases.collect()
}

/// Runs a cell in a guided session; its output, and its error.
async fn outcome(provider: &Provider, source: &str) -> (String, Option<String>) {
    let options = SessionOptions::default().guided(true).check_inputs(true);
    let session = provider
        .open_session(Arc::new(Tools), options)
        .await
        .expect("a session");
    let request = ExecuteRequest::new("call-1", source)
        .tools(tools())
        .yield_time(Duration::from_secs(60));
    let started = session.execute(request).await.expect("admitted");
    let response = started.outcome().await.expect("observed");
    session.shutdown().await;
    shown(&[response])
}

/// The output of a cell by its observations, and its error.
fn shown(responses: &[CellResponse]) -> (String, Option<String>) {
    let mut output = String::new();
    for item in responses.iter().flat_map(CellResponse::content_items) {
        match item {
            ContentItem::Text { text, .. } => writeln!(output, "{text}").expect("a string"),
            ContentItem::Image { image_url, .. } => {
                writeln!(output, "<{image_url}>").expect("a string");
            }
            other => panic!("{other:?}"),
        }
    }
    match responses.last() {
        Some(CellResponse::Result { error_text, .. }) => (output, error_text.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hidden_tool_can_be_called_and_nothing_names_it() {
    run(async {
        let provider = provider_in_process();
        let hidden = ToolDefinition::function("read_file", "Reads a file.").hidden(true);
        let shown = ToolDefinition::function("list", "Lists files.");
        let source = "text(ALL_TOOLS.map((tool) => tool.name)); text(search_tools('file').length); \
                      text(await tools.read_file({ path: 'a' }))";
        let session = provider
            .open_session(Arc::new(Tools), SessionOptions::default().guided(true))
            .await
            .expect("a session");
        let request = ExecuteRequest::new("call-1", source).tools([hidden.clone(), shown.clone()]);
        let started = session.execute(request).await.expect("admitted");
        let response = started.outcome().await.expect("observed");
        let said = response.content_items();
        assert_eq!(said[0], ContentItem::text(r#"["list"]"#));
        assert_eq!(
            said[1..],
            ["1", "content of a"].map(ContentItem::text),
            "{said:?}"
        );
        let tools = [hidden, shown];
        let groups = describe::ToolGroup::by_namespace(&tools);
        let text = describe::guided_exec_tool(describe::ToolsFrom::Agent, &groups, usize::MAX);
        for text in [text, describe::exec_tool(&tools, false)] {
            assert!(
                text.contains("list(") && !text.contains("read_file("),
                "{text}"
            );
        }
        session.shutdown().await;
    });
}

#[test]
fn cells_as_models_write_them_run_or_name_the_mend() {
    run(async {
        let cases = cases();
        assert!(cases.len() >= 200, "{} cases", cases.len());
        let provider = provider_in_process();
        let mut wrong = String::new();
        for case in &cases {
            let shown = outcome(&provider, &case.source).await;
            wrong += &case.difference(shown);
        }
        provider.shutdown().await;
        assert!(wrong.is_empty(), "{wrong}");
    });
}

impl Case {
    /// How this output and error differ from what must come; nothing where they do not.
    fn difference(&self, (output, error): (String, Option<String>)) -> String {
        let fits = match (&error, self.fails) {
            (None, false) => output.contains(&self.wanted),
            (Some(error), true) => error.contains(&self.wanted),
            _ => false,
        };
        match fits {
            true => String::new(),
            false => format!(
                "\n{}: wanted {:?}\n  output {output:?}\n  error {error:?}",
                self.name, self.wanted
            ),
        }
    }
}

#[test]
fn cells_as_models_write_them_end_alike_when_they_are_cut_after_every_turn() {
    run(async {
        let (mut wrong, mut cuts, mut calls) = (String::new(), 0, 0);
        for case in cases() {
            let request = ExecuteRequest::new("call-1", case.source.as_str()).tools(tools());
            let options = SessionOptions::default().guided(true).check_inputs(true);
            let cut = cut_after_every_turn(Arc::new(Tools), request, options).await;
            cuts += cut.cuts;
            calls += cut.calls;
            wrong += &case.difference(shown(&cut.responses));
        }
        assert!(wrong.is_empty(), "{wrong}");
        assert!(calls >= 40 && cuts >= calls, "{cuts} cuts, {calls} calls");
    });
}

#[test]
fn arrays_of_blocks_without_end_are_left_when_their_cell_is_terminated() {
    run(async {
        let provider = Provider::new(options()).expect("the program is there");
        let session = provider
            .open_session(Arc::new(Tools), SessionOptions::default().guided(true))
            .await
            .expect("a session");
        let start = async |source: &str| {
            let request = ExecuteRequest::new("call-1", source)
                .tools(tools())
                .yield_time(Duration::from_millis(1));
            let started = session.execute(request).await.expect("admitted");
            let id = started.id().clone();
            started.outcome().await.expect("observed");
            id
        };
        let other = start("await tools.bank__never()").await;
        for endless in [
            "image(new Array(4294967295))",
            "const blocks = new Array(4294967295); blocks[0] = { type: 'text' }; image(blocks)",
            "content(Array(3e6).fill(''))",
        ] {
            let id = start(endless).await;
            session.terminate(id).await.expect("terminated");
        }
        // Nothing had to be killed for it.
        assert_eq!(session.live_cells(), [other]);
        provider.shutdown().await;
    });
}

#[test]
fn calls_that_a_program_forgot_are_named_when_their_time_is_over() {
    run(async {
        let provider = provider_in_process();
        let (output, error) = outcome(&provider, "text(1);\ntools.bank__never();").await;
        assert_eq!(error, None);
        assert_eq!(
            output,
            "1\n[warning] the program ended and these calls still have no answer; they may have run: \
             tools.bank__never (line 2); write `await` before a call whose work must be done\n"
        );
        provider.shutdown().await;
    });
}

#[test]
fn calls_of_one_turn_reach_the_agent_in_the_order_they_were_made() {
    #[derive(Default)]
    struct Ordered(Mutex<Vec<u64>>);

    #[async_trait]
    impl CodeModeSessionDelegate for Ordered {
        async fn invoke_tool(
            &self,
            call: NestedToolCall,
            _: CancellationToken,
        ) -> Result<Json, ToolError> {
            let number = call
                .input
                .ok_or("an input")?
                .to()
                .map_err(|e| e.to_string())?;
            self.0.lock().expect("not poisoned").push(number);
            tokio::task::yield_now().await;
            Ok(Json::null())
        }
    }

    run(async {
        let provider = provider_in_process();
        let agent = Arc::new(Ordered::default());
        let session = provider
            .open_session(agent.clone(), SessionOptions::default().guided(true))
            .await
            .expect("a session");
        let source = "await Promise.all(Array.from({ length: 1000 }, (_, n) => tools.list(n)));";
        let request = ExecuteRequest::new("call-1", source).tools(tools());
        let started = session.execute(request).await.expect("admitted");
        started.outcome().await.expect("observed");
        assert!(
            agent
                .0
                .lock()
                .expect("not poisoned")
                .iter()
                .copied()
                .eq(0..1000)
        );
        provider.shutdown().await;
    });
}

#[test]
fn what_guides_a_cell_is_the_same_in_a_worker_process() {
    run(async {
        let provider = Provider::new(options()).expect("the program is there");
        let source = "const u: URL = new URL('https://a.b/c'); console.log(u.host, crypto.randomUUID().length);\nawait tools.serch_code({})";
        let (output, error) = outcome(&provider, source).await;
        assert_eq!(output, "[log] a.b 36\n");
        let error = error.expect("it fails");
        assert!(error.contains("did you mean tools.search_code?"), "{error}");
        assert!(error.contains("2 | await tools.serch_code({})"), "{error}");
        provider.shutdown().await;
    });
}

#[test]
fn a_source_that_takes_too_long_to_read_ends_its_cell() {
    run(async {
        // Each level of this takes the parser twice as long.
        let provider = Provider::new(options().stop_grace(Duration::from_millis(500)))
            .expect("the program is there");
        let source = format!(
            "let t: number = 1;\n{}x{};",
            "<T>(".repeat(60),
            ")".repeat(60)
        );
        let (_, error) = outcome(&provider, &source).await;
        let error = error.expect("it fails");
        assert!(error.contains("CPU time"), "{error}");
        provider.shutdown().await;
    });
}

#[test]
fn what_v8_cannot_interrupt_is_refused_before_it_takes_long() {
    run(async {
        let provider = provider_in_process();
        for (source, expected) in [
            (
                "new URLSearchParams('a=b&'.repeat(2 ** 20))",
                "characters at most",
            ),
            (
                "new URL('http://a/' + 'b'.repeat(2 ** 21))",
                "characters at most",
            ),
            (
                "const p = new URLSearchParams(Array(200_000).fill(['a', ''])); `${p}`",
                "pairs at most",
            ),
            (
                "const b = new ArrayBuffer(8); structuredClone(b, {transfer: Array(10 ** 6).fill(b)})",
                "buffers at most",
            ),
            (
                "const b = new ArrayBuffer(8); structuredClone(b, {transfer: [b, b]})",
                "cannot be moved",
            ),
            ("search_tools('word '.repeat(10_000))", "characters at most"),
        ] {
            let (_, error) = outcome(&provider, source).await;
            let error = error.expect("an error");
            assert!(error.contains(expected), "{source}: {error}");
        }
        // A message of megabytes has no help.
        let (_, error) = outcome(&provider, "throw new Error('x'.repeat(2 ** 22))").await;
        assert!(!error.expect("an error").contains("help:"));
        provider.shutdown().await;
    });
}

#[test]
fn a_plain_session_has_none_of_it() {
    run(async {
        let provider = provider_in_process();
        let session = provider
            .create_session(Arc::new(Tools))
            .await
            .expect("a session");
        let source = "text([typeof console, typeof URL, typeof search_tools, typeof tools.nope, Object.keys(ALL_TOOLS[0])])";
        let request = ExecuteRequest::new("call-1", source).tools(tools());
        let started = session.execute(request).await.expect("admitted");
        let response = started.outcome().await.expect("observed");
        let wanted = r#"["undefined","undefined","undefined","undefined",["name","description"]]"#;
        assert_eq!(response.content_items(), [ContentItem::text(wanted)]);
        provider.shutdown().await;
    });
}

/// Of an MCP result a cell gets what a model expects.
#[test]
fn an_mcp_result_is_the_value_in_it() {
    struct Server;
    #[async_trait]
    impl CodeModeSessionDelegate for Server {
        async fn invoke_tool(
            &self,
            call: NestedToolCall,
            _: CancellationToken,
        ) -> Result<Json, ToolError> {
            // The input is the answer.
            let answer = call.input.unwrap_or_else(Json::null);
            let value: serde_json::Value = answer.to().expect("JSON");
            match value.get("error") {
                Some(error) => {
                    let message = error["message"].as_str().expect("a message");
                    let data = Json::from_value(&error["data"]).expect("JSON");
                    let code = error["code"].as_i64().expect("a code");
                    Err(ToolError::new(message).code(code).data(data))
                }
                None => Ok(answer),
            }
        }
    }
    run(async {
        let provider = provider_in_process();
        let session = provider
            .open_session(Arc::new(Server), SessionOptions::default().guided(true))
            .await
            .expect("a session");
        let mut tool = ToolDefinition::function("t", "");
        tool.answer = code_mode_host::ToolAnswer::McpResult;
        let source = r#"
            const t = (text) => ({ type: "text", text });
            const show = async (result) => text(JSON.stringify(await tools.t(result)) ?? "undefined");
            await show({ content: [t('{"a":1}')] });
            await show({ content: [t("12345678901234567890")] });
            await show({ content: [t("a"), t("b")] });
            await show({ content: [t("a"), { type: "odd" }] });
            await show({ content: [t("a")], structuredContent: null });
            await show({ content: [] });
            text((await tools.t.raw({ isError: true, content: [t("x")] })).isError);
            for (const failing of [
                { isError: true, content: [t("bad"), t("worse")] },
                { isError: true, content: [] },
                { error: { code: -32602, message: "wrong", data: { a: 1 } } },
            ]) {
                try { await tools.t(failing); } catch (e) { text([e.message, e.code ?? null, e.data ?? null, e.result?.isError ?? null]); }
            }"#;
        let request = ExecuteRequest::new("call-1", source).tools([tool]);
        let started = session.execute(request).await.expect("admitted");
        let response = started.outcome().await.expect("observed");
        let texts: Vec<_> = response
            .content_items()
            .iter()
            .map(|item| match item {
                ContentItem::Text { text, .. } => text.as_str(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            texts,
            [
                r#"{"a":1}"#,
                r#""12345678901234567890""#,
                r#""a\nb""#,
                r#"[{"type":"text","text":"a"},{"type":"odd"}]"#,
                "null",
                "[]",
                "true",
                r#"["bad\nworse",null,null,true]"#,
                r#"["t failed without a message",null,null,true]"#,
                r#"["wrong",-32602,{"a":1},null]"#,
            ]
        );
        provider.shutdown().await;
    });
}
