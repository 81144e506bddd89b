//! Hostile input is input: a clear error each, and nothing lost.

use std::sync::Arc;

use code_mode_host::{Json, Limits, ToolDefinition, ToolName, describe};

use crate::support::{Agent, error_text, exec, open, request, run, texts, tool};

#[test]
fn broken_utf16_and_huge_strings_from_a_cell_are_text_or_an_error() {
    run(async {
        let opened = open(Arc::new(Agent::default()), Limits::default()).await;
        let session = &opened.session;
        let broken = exec(
            session,
            r"text('a\ud800b'); store('\udc00', 'x'); text(load('\udc00').length)",
        )
        .await;
        assert_eq!(texts(&broken), ["a\u{fffd}b", "1"]);
        let huge = exec(session, "text('x'.repeat(2 ** 29 - 24))").await;
        assert_eq!(
            error_text(&huge),
            Some("output limit of 16777216 bytes exceeded")
        );
        let huge = exec(
            session,
            "await tools.echo('x'.repeat(80 * 2 ** 20)).catch(e => text(e.message))",
        )
        .await;
        let error = error_text(&huge).expect("refused at the call");
        assert!(
            error.contains("frame limit of 67108864 bytes exceeded"),
            "{error}"
        );
        assert_eq!(texts(&exec(session, "text('on')").await), ["on"]);
    });
}

#[test]
fn what_strict_parsers_refuse_is_refused_at_the_call_and_can_be_caught() {
    run(async {
        let agent = Arc::new(Agent::default());
        let opened = open(agent.clone(), Limits::default()).await;
        let deep = "JSON.parse('['.repeat(200) + ']'.repeat(200))";
        for value in [r"'\ud800'", r"{[`\udc00`]: 1}", deep] {
            for call in [
                format!("await tools.echo({value})"),
                format!("store('k', {value})"),
            ] {
                let source =
                    format!("try {{ {call}; text('sent') }} catch (e) {{ text(e.message) }}");
                let response = exec(&opened.session, &source).await;
                let [error] = texts(&response)[..] else {
                    panic!("{response:?}");
                };
                let prefix = "failed to serialize JavaScript value: ";
                assert!(error.starts_with(prefix), "{call}: {error}");
            }
        }
        assert_eq!(agent.calls.load(std::sync::atomic::Ordering::SeqCst), 0);
        opened.provider.shutdown().await;
    });
}

#[test]
fn a_source_or_a_result_past_the_frame_limit_is_refused_by_name() {
    run(async {
        let limits = Limits::default().max_frame_bytes(10_000);
        let mut agent = Agent::default();
        let long = serde_json::json!("x".repeat(20_000)).to_string();
        agent.answers.insert("long", Ok(long));
        let opened = open(Arc::new(agent), limits).await;
        let refused = opened.session.execute(request(&" ".repeat(20_000))).await;
        assert_eq!(
            refused.expect_err("too long").to_string(),
            "frame limit of 10000 bytes exceeded"
        );
        let mut calls = request("await tools.long().catch(e => text(e.message))");
        calls.enabled_tools = [tool("long")].into_iter().collect();
        let started = opened.session.execute(calls).await.expect("admitted");
        let response = started.outcome().await.expect("observed");
        assert_eq!(
            texts(&response),
            ["the tool's result has 20002 bytes: frame limit of 10000 bytes exceeded"]
        );
    });
}

#[test]
fn of_colliding_tool_names_the_last_is_reached_and_both_are_listed() {
    run(async {
        let opened = open(Arc::new(Agent::default()), Limits::default()).await;
        let mut collide =
            request("text(ALL_TOOLS.length); text(await tools.echo_(7)); text(Object.keys(tools))");
        let named = |name: &str, reached: &str| {
            ToolDefinition::function(name, "").tool_name(ToolName::plain(reached))
        };
        collide.enabled_tools = [named("echo-", "never"), named("echo.", "echo")]
            .into_iter()
            .collect();
        let started = opened.session.execute(collide).await.expect("admitted");
        let response = started.outcome().await.expect("observed");
        assert_eq!(texts(&response), ["2", "7", "[\"echo_\"]"]);
    });
}

#[test]
fn a_tool_with_a_schema_that_is_none_is_described_and_callable() {
    run(async {
        let json = |text: &str| Some(Json::parse(text.to_owned()).expect("JSON"));
        let odd = tool("echo")
            .input_schema(json("[1, {\"type\": 7}]"))
            .output_schema(json("\"?\""));
        assert_eq!(
            describe::declaration(&odd),
            "declare const tools: { echo(args: unknown): Promise<unknown>; };"
        );
        let opened = open(Arc::new(Agent::default()), Limits::default()).await;
        let mut call = request("text(await tools.echo('called'))");
        call.enabled_tools = [odd].into_iter().collect();
        let started = opened.session.execute(call).await.expect("admitted");
        let response = started.outcome().await.expect("observed");
        assert_eq!(texts(&response), ["called"]);
    });
}
