//! No input within the limits ends a worker: longer values are cut with a notice, and
//! everything before it is kept.

use std::sync::Arc;

use code_mode_host::{CellResponse, Limits, ToolSet};
use serde_json::json;

use crate::stdio_client::Client;
use crate::support::{Agent, error_text, exec, on_both, open, request, run, texts, tool};

#[test]
fn a_long_error_text_keeps_its_ends_and_says_how_much_is_missing() {
    on_both(Limits::default(), |session, _| async move {
        let thrown = exec(&session, "throw 'a' + 'x'.repeat(90 << 20) + 'z'").await;
        let error = error_text(&thrown).expect("an error");
        assert!(error.len() <= Limits::MAX_ERROR_BYTES);
        assert!(error.starts_with("ax") && error.ends_with("xz"));
        assert!(error.contains("bytes of the error left out"));
        assert_eq!(texts(&exec(&session, "text('on')").await), ["on"]);
    });
}

#[test]
fn stored_values_larger_together_than_a_message_are_all_kept() {
    on_both(Limits::default(), |session, _| async move {
        let source = "store('a', 'x'.repeat(45 << 20)); store('b', 'y'.repeat(45 << 20))";
        let stored = exec(&session, source).await;
        assert_eq!(error_text(&stored), None);
        let loaded = exec(&session, "text(load('a').length + load('b').length)").await;
        assert_eq!(texts(&loaded), [(90 << 20).to_string()]);
    });
}

#[test]
fn thousands_of_stored_values_and_items_come_in_as_many_messages_as_it_takes() {
    on_both(Limits::default(), |session, _| async move {
        let source = "for (let i = 0; i < 10_000; i++) { store('k' + i, i); text(i) }";
        let response = exec(&session, source).await;
        assert_eq!(texts(&response).len(), 10_000);
        let loaded = exec(
            &session,
            "let n = 0; for (let i = 0; i < 10_000; i++) n += load('k' + i) === i; text(n)",
        )
        .await;
        assert_eq!(texts(&loaded), ["10000"]);
        assert_eq!(session.stored_values().len(), 10_000);
    });
}

#[test]
fn a_stored_value_larger_than_a_message_is_refused_at_the_call() {
    on_both(Limits::default(), |session, _| async move {
        let source = "try { store('k', 'x'.repeat(70 << 20)) } catch (e) { text(e.message) }";
        let response = exec(&session, source).await;
        assert_eq!(
            texts(&response),
            ["Unable to store \"k\": frame limit of 67108864 bytes exceeded"]
        );
    });
}

#[test]
fn a_key_larger_than_keys_may_be_is_refused_at_the_call() {
    on_both(Limits::default(), |session, _| async move {
        let source = "const key = 'k'.repeat(65_536); store(key, 1);
            try { store(key + 'k', 1) } catch (e) { text(e.message) }";
        let response = exec(&session, source).await;
        assert_eq!(
            texts(&response),
            ["Unable to store: the key has 65537 bytes, and may have 65536"]
        );
        assert_eq!(session.stored_values().len(), 1);
    });
}

#[test]
fn answers_that_a_cell_lets_wait_count_as_its_memory() {
    run(async {
        let large = format!("\"{}\"", "x".repeat(1 << 20));
        let agent = Agent {
            answers: [("large", Ok(large))].into(),
            ..Agent::default()
        };
        let limits = Limits::default().max_heap_bytes(64 << 20);
        let opened = open(Arc::new(agent), limits).await;
        let source = "for (let i = 0; i < 1000; i++) tools.large(); while (true) {}";
        let request = request(source).tools(ToolSet::from(vec![tool("large")]));
        let started = opened.session.execute(request).await.expect("admitted");
        let response = started.outcome().await.expect("observed");
        assert_eq!(
            error_text(&response),
            Some("heap limit of 67108864 bytes exceeded")
        );
        assert_eq!(texts(&exec(&opened.session, "text('on')").await), ["on"]);
        opened.provider.shutdown().await;
    });
}

#[test]
fn output_that_does_not_fit_a_frame_of_the_stdio_wire_is_cut_and_said() {
    run(async {
        let mut client = Client::start(&["serve"]);
        client.hello(&[], &[]).await;
        client.open("s").await;
        let source = json!("text('first'); text('\\u0001'.repeat(12 << 20)); text('last')");
        let id = client
            .execute("s", &source, &json!([]), &json!(100_000))
            .await;
        client.response(id).await;
        let result = client.initial_response(id).await;
        let items = &result["value"]["Result"]["content_items"];
        assert_eq!(items[0]["text"], "first");
        let kept = items[1]["text"].as_str().expect("a text").len();
        assert!(kept > 10 << 20, "{kept}");
        let said = items[2]["text"].as_str().expect("a text");
        assert!(said.contains("bytes of output left out"), "{said}");
        assert_eq!(items.as_array().map(Vec::len), Some(3));
        let next = client.exec("s", "text('on')", &json!([])).await;
        assert_eq!(next["value"]["Result"]["content_items"][0]["text"], "on");
    });
}

#[test]
#[cfg(target_os = "linux")]
fn what_small_stored_values_count_is_what_they_use() {
    use crate::processes::kib;

    if !crate::support::alone("limits::what_small_stored_values_count_is_what_they_use") {
        return;
    }
    run(async {
        let limits = Limits::default().max_heap_bytes(1 << 30);
        let opened = open(Arc::new(Agent::default()), limits.clone()).await;
        let response = exec(&opened.session, "for (let i = 0; ; i++) store(i, 1)").await;
        let CellResponse::Result {
            error_text: Some(error),
            ..
        } = response
        else {
            panic!("{response:?}");
        };
        assert!(error.contains("stored values limit of"), "{error}");
        // What the worker and this process ever used for it, and the values twice.
        let peak = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
            kib(&status.unwrap_or_default(), "VmHWM:").unwrap_or(0) << 10
        };
        let workers = crate::support::own_processes();
        let worker = workers.into_iter().map(peak).max().expect("a worker");
        let allowed = 2 * limits.max_stored_bytes as u64 + (100 << 20);
        assert!(worker < allowed, "{worker} bytes in the worker");
        assert!(peak(std::process::id()) < allowed);
        opened.provider.shutdown().await;
    });
}
