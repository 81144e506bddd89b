//! The stdio wire, version 1, against the real program.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::stdio_client::{Client, hello};
use crate::support::{program, run};

fn tools() -> Value {
    json!([{"name": "echo", "tool_name": {"name": "echo", "namespace": null}, "description": "",
        "kind": "function", "input_schema": null, "output_schema": null}])
}

const ALL: [&str; 4] = [
    "yield-observation",
    "session-cell-execution-resource-limits",
    "delegate-capacity-4096",
    "bounded-output-v1",
];

async fn ready() -> Client {
    let mut client = Client::start(&["serve", "--listen", "stdio"]);
    client.hello(&[], &ALL).await;
    client
}

async fn opened() -> Client {
    let mut client = ready().await;
    client.open("s").await;
    client
}

fn frame(content: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(content.len())
        .expect("small")
        .to_le_bytes()
        .to_vec();
    frame.extend(content);
    frame
}

fn texts(result: &Value) -> Vec<&str> {
    let response = result["value"].as_object().expect("a response");
    let (_, fields) = response.iter().next().expect("one variant");
    assert!(!fields["error_text"].is_string(), "{result}");
    fields["content_items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| item["text"].as_str().expect("text"))
        .collect()
}

#[test]
fn ready_has_the_known_capabilities_that_were_asked_for_sorted() {
    run(async {
        let mut client = Client::start(&["serve"]);
        let answer = client
            .hello(&["yield-observation"], &["bounded-output-v1", "unheard-of"])
            .await;
        assert_eq!(
            answer,
            json!({"type": "connection/ready", "selectedVersion": 1,
                "capabilities": ["bounded-output-v1", "yield-observation"]})
        );
        client.end_of_input().await;
        assert!(client.exit().await.success());
    });
}

#[test]
fn a_refused_hello_is_answered_with_the_reason_and_ends_well() {
    run(async {
        for (first, reason) in [
            (
                json!({"type": "operation/request", "id": 1, "request": {"method": "session/open", "sessionId": "s"}}),
                json!({"type": "invalidHello", "message": "first message must be connection/hello"}),
            ),
            (
                json!({"type": "connection/hello", "supportedVersions": [2, 3], "requiredCapabilities": [], "optionalCapabilities": []}),
                json!({"type": "noCompatibleVersion", "supportedVersions": [1]}),
            ),
            (
                hello(&["nope"], &[]),
                json!({"type": "missingRequiredCapability", "capability": "nope"}),
            ),
        ] {
            let mut client = Client::start(&["serve"]);
            client.send(&first).await;
            let answer = client.receive().await.expect("an answer");
            assert_eq!(
                answer,
                json!({"type": "connection/rejected", "reason": reason})
            );
            assert_eq!(client.exit().await.code(), Some(0));
        }
    });
}

#[test]
fn what_is_no_message_ends_the_connection_with_1_and_one_line_of_reason() {
    let request = |request: Value| {
        json!({"type": "operation/request", "id": 1, "request": request})
            .to_string()
            .into_bytes()
    };
    let broken: Vec<(Vec<u8>, &str)> = vec![
        (frame(b"{nope"), "key must be a string"),
        (frame(b"\xff\xfe"), "expected value"),
        (frame(b""), "EOF"),
        (frame(br#"{"type":"what"}"#), "unknown message type `what`"),
        (
            frame(&request(json!({"method": "session/dance"}))),
            "unknown method `session/dance`",
        ),
        (
            frame(&request(
                json!({"method": "session/open", "sessionId": "s", "x": 1}),
            )),
            "unknown field `x`",
        ),
        (
            frame(&request(json!({"method": "session/open", "sessionId": ""}))),
            "`sessionId` is empty",
        ),
        (
            frame(hello(&[], &[]).to_string().as_bytes()),
            "second connection/hello",
        ),
        (0x7fff_ffffu32.to_le_bytes().to_vec(), "frame size too big"),
        (
            frame(&request(
                json!({"method": "session/execute", "sessionId": "s", "request": {
                "tool_call_id": "c", "enabled_tools": [{"name": 1}], "source": "",
                "yield_time_ms": null, "max_output_tokens": null}}),
            )),
            "unknown code-mode session s",
        ),
    ];
    run(async {
        for (bytes, reason) in broken {
            let mut client = ready().await;
            client.send_bytes(&bytes).await;
            if reason.starts_with("unknown code-mode session") {
                // Not a mistake of the wire, but of the request.
                let response = client.response(1).await;
                assert_eq!(response, json!({"status": "error", "message": reason}));
                continue;
            }
            assert_eq!(client.exit().await.code(), Some(1), "{reason}");
            let error = client.standard_error().await;
            assert!(error.contains(reason), "{reason}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    });
}

#[test]
fn a_truncated_frame_at_the_end_of_input_is_an_error() {
    run(async {
        let mut client = ready().await;
        client.send_bytes(&[100, 0, 0, 0, b'{', b'}']).await;
        client.end_of_input().await;
        assert_eq!(client.exit().await.code(), Some(1));
    });
}

#[test]
fn a_repeated_request_id_ends_the_connection() {
    run(async {
        let mut client = opened().await;
        let open = json!({"type": "operation/request", "id": 1,
            "request": {"method": "session/open", "sessionId": "t"}});
        client.send(&open).await;
        assert_eq!(client.exit().await.code(), Some(1));
        assert!(
            client
                .standard_error()
                .await
                .contains("request id 1 was used before")
        );
    });
}

#[test]
fn request_ids_may_come_in_any_order() {
    run(async {
        let mut client = ready().await;
        for (id, session) in [(7, "a"), (3, "b"), (1, "c"), (2, "d"), (900, "e"), (0, "f")] {
            let open = json!({"type": "operation/request", "id": id,
                "request": {"method": "session/open", "sessionId": session}});
            client.send(&open).await;
            assert_eq!(client.response(id).await["status"], "ok");
        }
    });
}

#[test]
fn a_session_that_is_open_or_unknown_is_named_in_the_error() {
    run(async {
        let mut client = opened().await;
        let error = |message: &str| json!({"status": "error", "message": message});
        assert_eq!(
            client.open("s").await,
            error("code-mode session ID `s` is already open")
        );
        let id = client.wait("t", "1", &Value::Null).await;
        assert_eq!(
            client.response(id).await,
            error("unknown code-mode session t")
        );
        let id = client
            .request(json!({"method": "session/shutdown", "sessionId": "t"}))
            .await;
        assert_eq!(
            client.response(id).await,
            error("unknown code-mode session t")
        );
    });
}

#[test]
fn a_frame_split_into_single_bytes_is_a_frame() {
    run(async {
        let mut client = Client::start(&["serve"]);
        for byte in frame(hello(&[], &[]).to_string().as_bytes()) {
            client.send_bytes(&[byte]).await;
        }
        let answer = client.receive().await.expect("an answer");
        assert_eq!(answer["type"], "connection/ready");
    });
}

#[test]
fn many_frames_in_one_write_are_many_frames() {
    run(async {
        let mut client = Client::start(&["serve"]);
        let mut bytes = frame(hello(&[], &[]).to_string().as_bytes());
        for id in 1..=20 {
            let open = json!({"type": "operation/request", "id": id,
                "request": {"method": "session/open", "sessionId": id.to_string()}});
            bytes.extend(frame(open.to_string().as_bytes()));
        }
        client.send_bytes(&bytes).await;
        assert_eq!(
            client.receive().await.expect("ready")["type"],
            "connection/ready"
        );
        for id in 1..=20 {
            assert_eq!(
                client.response(id).await["value"]["sessionId"],
                id.to_string()
            );
        }
    });
}

#[test]
fn started_comes_first_and_closed_last() {
    run(async {
        let mut client = opened().await;
        let source = "text(await tools.echo(1)); notify('n'); yield_control(); text(2)";
        client.exec("s", source, &tools()).await;
        let id = client.wait("s", "1", &json!(100_000)).await;
        client.response(id).await;
        client.until_closed(1).await;
        let order: Vec<&str> = client.log[2..]
            .iter()
            .map(|m| match m["request"]["type"].as_str() {
                Some(callback) => callback,
                None => m["type"].as_str().expect("a type"),
            })
            .collect();
        assert_eq!(
            order,
            [
                "operation/response",
                "tool/invoke",
                "notification/send",
                "execute/initialResponse",
                "operation/response",
                "cell/closed"
            ]
        );
    });
}

#[test]
fn a_cancelled_call_is_told_before_the_answer_that_ends_its_cell() {
    run(async {
        let mut client = opened().await;
        client.silent = true;
        client
            .exec("s", "tools.echo({}); text('end')", &tools())
            .await;
        client.until_closed(1).await;
        let types: Vec<_> = client.log[3..].iter().map(|m| &m["type"]).collect();
        assert_eq!(
            types,
            [
                "delegate/request",
                "delegate/cancel",
                "execute/initialResponse",
                "cell/closed"
            ]
        );
        // An answer that crossed the cancellation is ignored.
        let late = json!({"status": "ok", "value": {"type": "tool/result", "result": 1}});
        client
            .send(&json!({"type": "delegate/response", "id": 1, "result": late}))
            .await;
        assert_eq!(
            texts(&client.exec("s", "text('on')", &tools()).await),
            ["on"]
        );
    });
}

#[test]
fn an_observation_can_be_yielded_and_a_request_dropped_without_touching_the_cell() {
    run(async {
        let mut client = opened().await;
        let id = client
            .busy("s", "text('x'); notify('up'); await new Promise(() => {})")
            .await;
        client
            .send(&json!({"type": "operation/yield", "id": id}))
            .await;
        let yielded = client.initial_response(id).await;
        assert_eq!(yielded["value"]["Yielded"]["content_items"][0]["text"], "x");
        let dropped = client.wait("s", "1", &json!(100_000)).await;
        client
            .send(&json!({"type": "operation/cancel", "id": dropped}))
            .await;
        let id = client.wait("s", "1", &json!(1)).await;
        let outcome = client.response(id).await;
        assert!(
            outcome["value"]["outcome"]["LiveCell"]["Yielded"].is_object(),
            "{outcome}"
        );
        let id = client.terminate("s", "1").await;
        let outcome = client.response(id).await;
        assert!(outcome["value"]["outcome"]["LiveCell"]["Terminated"].is_object());
        client.until_closed(1).await;
    });
}

#[test]
fn shutdown_answers_its_cells_then_closes_them_then_itself() {
    run(async {
        let mut client = opened().await;
        client.busy("s", "notify('up'); while (true) {}").await;
        let shutdown = client
            .request(json!({"method": "session/shutdown", "sessionId": "s"}))
            .await;
        let closed = client.response(shutdown).await;
        assert_eq!(
            closed["value"],
            json!({"type": "session/closed", "sessionId": "s"})
        );
        let types: Vec<_> = client
            .log
            .iter()
            .rev()
            .take(3)
            .map(|m| &m["type"])
            .collect();
        assert_eq!(
            types,
            [
                "operation/response",
                "cell/closed",
                "execute/initialResponse"
            ]
        );
        // The name is free again.
        assert_eq!(client.open("s").await["status"], "ok");
    });
}

#[test]
fn a_session_is_open_until_its_closing_was_told() {
    run(async {
        let mut client = opened().await;
        client.busy("s", "notify('up'); while (true) {}").await;
        let of_s = |id: u64, method: &str| {
            let request = json!({"method": method, "sessionId": "s"});
            let request = json!({"type": "operation/request", "id": id, "request": request});
            frame(request.to_string().as_bytes())
        };
        let together = [of_s(1001, "session/shutdown"), of_s(1002, "session/open")].concat();
        client.send_bytes(&together).await;
        let refused = client.response(1002).await;
        let error = "code-mode session ID `s` is already open";
        assert_eq!(refused, json!({"status": "error", "message": error}));
        assert_eq!(client.response(1001).await["status"], "ok");
        assert_eq!(client.open("s").await["status"], "ok");
    });
}

#[test]
fn the_heap_limit_of_a_session_ends_the_cell_beside_ten_healthy_sessions() {
    run(async {
        let mut client = ready().await;
        let mut waiting = Vec::new();
        for n in 0..10 {
            let session = format!("healthy-{n}");
            client.open(&session).await;
            let source = format!("text({n}); await new Promise(r => setTimeout(r, 1)); text('on')");
            waiting.push((
                n,
                client
                    .execute(&session, &json!(source), &tools(), &json!(100_000))
                    .await,
            ));
        }
        let id = client
            .request(json!({"method": "session/open", "sessionId": "greedy",
                "cellExecutionLimits": {"maxHeapSizeBytes": 33_554_432}}))
            .await;
        client.response(id).await;
        let result = client
            .exec("greedy", "const a = []; for (;;) a.push({x: 1})", &tools())
            .await;
        assert_eq!(
            result["value"]["Result"]["error_text"],
            "heap limit of 33554432 bytes exceeded"
        );
        assert_eq!(
            texts(&client.exec("greedy", "text('alive')", &tools()).await),
            ["alive"]
        );
        for (n, id) in waiting {
            let n = n.to_string();
            assert_eq!(
                texts(&client.initial_response(id).await),
                [n.as_str(), "on"]
            );
        }
    });
}

#[test]
fn an_absurdly_small_heap_is_raised_to_one_that_works() {
    run(async {
        let mut client = ready().await;
        let id = client
            .request(json!({"method": "session/open", "sessionId": "s",
                "cellExecutionLimits": {"maxHeapSizeBytes": 1}}))
            .await;
        client.response(id).await;
        assert_eq!(
            texts(&client.exec("s", "text('fits')", &tools()).await),
            ["fits"]
        );
    });
}

#[test]
fn the_yield_time_limit_caps_every_observation() {
    run(async {
        let mut client = ready().await;
        let id = client
            .request(json!({"method": "session/open", "sessionId": "s",
                "cellExecutionLimits": {"maxYieldTimeMs": 5}}))
            .await;
        client.response(id).await;
        let source = "text(1); await new Promise(() => {})";
        let yielded = client.exec("s", source, &tools()).await;
        assert!(yielded["value"]["Yielded"].is_object());
        let id = client.wait("s", "1", &json!(u32::MAX)).await;
        let outcome = client.response(id).await;
        assert!(outcome["value"]["outcome"]["LiveCell"]["Yielded"].is_object());
    });
}

#[test]
fn output_is_cut_to_its_budget_only_where_the_session_asks_for_that() {
    run(async {
        for (capabilities, truncation, bounded) in [
            (&["bounded-output-v1"][..], Value::Null, false),
            (&["bounded-output-v1"][..], json!("server"), true),
            (&["bounded-output-v1"][..], json!("client"), false),
            (&[][..], Value::Null, false),
        ] {
            let mut client = Client::start(&["serve"]);
            client.hello(&[], capabilities).await;
            let open =
                json!({"method": "session/open", "sessionId": "s", "outputTruncation": truncation});
            let id = client.request(open).await;
            assert_eq!(client.response(id).await["status"], "ok");
            let id = client
                .request(
                    json!({"method": "session/execute", "sessionId": "s", "request": {
                    "tool_call_id": "c", "enabled_tools": [],
                    "source": "for (let i = 0; i < 500; i++) text('word '.repeat(20) + i)",
                    "yield_time_ms": 0, "max_output_tokens": 100}}),
                )
                .await;
            client.initial_response(id).await;
            let id = client
                .request(
                    json!({"method": "session/wait", "sessionId": "s", "maxOutputTokens": 100,
                    "request": {"cell_id": "1", "yield_time_ms": 100_000}}),
                )
                .await;
            let result = client.response(id).await;
            let items = &result["value"]["outcome"]["LiveCell"]["Result"]["content_items"];
            let bytes: usize = items
                .as_array()
                .expect("items")
                .iter()
                .map(|item| item["text"].as_str().expect("text").len())
                .sum();
            assert_eq!(bytes < 600, bounded, "{bytes}");
        }
    });
}

#[test]
fn ten_thousand_parallel_tool_calls_complete() {
    run(async {
        for capabilities in [&["delegate-capacity-4096"][..], &[][..]] {
            let mut client = Client::start(&["serve"]);
            client.hello(&[], capabilities).await;
            client.open("s").await;
            let source = "const all = await Promise.all(Array.from({length: 10000}, (_, i) => tools.echo(i)));
                text(all.every((v, i) => v === i))";
            assert_eq!(texts(&client.exec("s", source, &tools()).await), ["true"]);
            assert_eq!(client.calls, 10_000);
        }
    });
}

#[test]
fn callbacks_beyond_the_capacity_wait_their_turn() {
    run(async {
        let mut client = Client::start(&["serve"]);
        client.hello(&[], &[]).await;
        client.open("s").await;
        client.silent = true;
        let source = "for (let i = 0; i < 200; i++) tools.echo(i); notify('all'); await new Promise(() => {})";
        let id = client
            .execute("s", &json!(source), &tools(), &json!(100_000))
            .await;
        client.response(id).await;
        while client.calls < 128 {
            client.step().await;
        }
        // One answer lets one more through.
        let result = json!({"status": "ok", "value": {"type": "tool/result", "result": 1}});
        client
            .send(&json!({"type": "delegate/response", "id": 1, "result": result}))
            .await;
        while client.calls < 129 {
            client.step().await;
        }
        assert!(client.notifications.is_empty());
        // Those of a cell that ends meanwhile are not wanted any more.
        let terminated = client.terminate("s", "1").await;
        client.response(terminated).await;
        client.until_closed(1).await;
        client.exec("s", "text('on')", &json!([])).await;
        assert_eq!(client.calls, 129);
        assert!(client.notifications.is_empty());
    });
}

#[test]
fn two_hundred_pending_cells_on_one_connection() {
    run(async {
        let mut client = opened().await;
        let mut ids = Vec::new();
        for _ in 0..200 {
            let source = json!("await tools.echo(1); await new Promise(() => {})");
            ids.push(client.execute("s", &source, &tools(), &json!(1)).await);
        }
        for id in ids {
            assert!(client.initial_response(id).await["value"]["Yielded"].is_object());
        }
        assert_eq!(
            texts(&client.exec("s", "text('on')", &tools()).await),
            ["on"]
        );
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_worker_that_dies_costs_its_sessions_cells_and_nothing_else() {
    use crate::processes::descendants;
    use crate::templates::name;
    run(async {
        let mut client = ready().await;
        client.open("a").await;
        client.exec("a", "store('k', 'kept')", &tools()).await;
        let mut only_a = descendants(client.process_id());
        only_a.retain(|process| name(*process) != "code-mode-templ");
        client.open("b").await;
        let running = client.busy("a", "notify('up'); while (true) {}").await;
        // Of these one is the session's, and the other the spare that became that
        // of `b`; the first was there first.
        let pid = rustix::process::Pid::from_raw(
            i32::try_from(*only_a.iter().min().expect("a worker")).expect("a pid"),
        );
        rustix::process::kill_process(pid.expect("not zero"), rustix::process::Signal::KILL)
            .expect("it runs");
        let result = client.initial_response(running).await;
        let error = result["value"]["Result"]["error_text"]
            .as_str()
            .expect("an error");
        assert!(error.contains("SIGKILL"), "{error}");
        assert_eq!(
            texts(&client.exec("a", "text(load('k'))", &tools()).await),
            ["kept"]
        );
        assert_eq!(texts(&client.exec("b", "text('b')", &tools()).await), ["b"]);
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_client_that_vanishes_leaves_no_process() {
    use crate::processes::descendants;
    run(async {
        let mut client = opened().await;
        client.busy("s", "notify('up'); while (true) {}").await;
        let mut processes = descendants(client.process_id());
        processes.push(client.process_id());
        assert!(processes.len() >= 2);
        client.end_of_input().await;
        assert!(client.exit().await.success());
        while processes
            .iter()
            .any(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists())
        {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_client_that_stops_reading_is_written_to_no_further() {
    run(async {
        let mut client = opened().await;
        client.open("other").await;
        // Calls of 64 KiB, far more than a pipe and the queue before it hold; none
        // is read for as long as the other session needs for its own cell.
        let source = "const s = 'x'.repeat(65536); for (let i = 0; i < 1500; i++) tools.echo(s);
            await new Promise(() => {})";
        let flood = client
            .execute("s", &json!(source), &tools(), &json!(1))
            .await;
        let other = client
            .execute("other", &json!("text('on')"), &tools(), &json!(100_000))
            .await;
        let status = format!("/proc/{}/status", client.process_id());
        let resident = || {
            let status = std::fs::read_to_string(&status).expect("it runs");
            let line = status
                .lines()
                .find(|l| l.starts_with("VmRSS"))
                .expect("a size");
            line.split_whitespace()
                .nth(1)
                .expect("kB")
                .parse::<u64>()
                .expect("a number")
        };
        // The whole flood is 94 MiB; the program holds it once, as calls whose
        // turn has not come, and not again as messages.
        client.silent = true;
        assert_eq!(texts(&client.initial_response(other).await), ["on"]);
        assert!(resident() < 400_000, "{} kB", resident());
        let terminate = client.terminate("s", "1").await;
        client.initial_response(flood).await;
        client.response(terminate).await;
    });
}

#[test]
fn large_texts_of_many_cells_reach_a_client_that_reads_late_as_they_were() {
    run(async {
        let mut client = opened().await;
        let mut cells = Vec::new();
        for n in 0..5 {
            let source = format!(
                "const s = '{n}'.repeat(5_000_000 + {n});
                 const answer = await tools.echo({{ s }});
                 text(answer.s === s); text(s)"
            );
            let cell = client
                .execute("s", &json!(source), &tools(), &json!(100_000))
                .await;
            cells.push((n, cell));
        }
        for (n, cell) in cells {
            let result = client.initial_response(cell).await;
            let text = n.to_string().repeat(5_000_000 + n);
            assert!(texts(&result) == ["true", &text], "cell {n}");
        }
    });
}

#[test]
#[cfg(unix)]
fn under_the_name_of_codex_host_the_program_serves() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let link = folder.path().join("codex-code-mode-host");
        std::os::unix::fs::symlink(program(), &link).expect("linked");
        for arguments in [&[][..], &["--listen", "stdio"], &["--listen", "stdio://"]] {
            let mut command = tokio::process::Command::new(&link);
            command.args(arguments).stderr(Stdio::null());
            let mut client = Client::spawn(command);
            let answer = client.hello(&[], &[]).await;
            assert_eq!(answer["type"], "connection/ready");
            client.open("s").await;
            assert_eq!(texts(&client.exec("s", "text(1)", &tools()).await), ["1"]);
        }
    });
}

#[test]
fn the_end_of_input_before_hello_is_no_error() {
    let status = std::process::Command::new(program())
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .expect("the program starts");
    assert_eq!(status.code(), Some(0));
}
