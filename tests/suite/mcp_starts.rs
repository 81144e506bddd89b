//! `code-mode mcp` while its servers start.

use std::path::Path;

use serde_json::json;

use crate::mcp_client::{Client, cell_id, mad, texts};
use crate::support::run;

/// A server that starts when the gate is open.
pub fn behind(gate: &Path) -> String {
    format!(
        "mad=sh -c 'while [ ! -e {} ]; do sleep 0.05; done; exec {}'",
        gate.display(),
        mad("plain").replace('\'', "")
    )
}

#[test]
fn a_server_that_answers_the_probe_after_the_greeting_is_ready() {
    run(async {
        let mut client = Client::before("cold", &[], json!({})).await;
        let said = client
            .exec("text((await tools.mad__echo({})).called)")
            .await;
        assert_eq!(said[0], "echo", "{said:?}");
        assert_eq!(client.leave().await, Some(0));
    });
}

#[test]
fn the_tools_of_the_last_start_are_listed_before_a_server_has_started() {
    run(async {
        let caches = tempfile::tempdir().expect("a folder");
        let gate = caches.path().join("gate");
        let server = behind(&gate);
        // A shared gateway may outlive its first client long enough to serve the second.
        let arguments = ["--private", "--server", &server];
        let start = || Client::start_with_caches(&arguments, caches.path());
        std::fs::write(&gate, "").expect("written");
        let mut client = start();
        client.initialize(json!({})).await;
        client.exec("await tools.mad__echo({})").await;
        client.leave().await;
        std::fs::remove_file(&gate).expect("removed");
        let mut client = start();
        client.initialize(json!({})).await;
        let tools = client.request("tools/list", json!({})).await;
        assert!(tools.to_string().contains("mad__echo()"), "{tools}");
        assert!(tools.to_string().contains("## mad (starting"), "{tools}");
        // A call waits for the server.
        let code = "text((await tools.mad__echo({ a: 1 })).called)";
        let id = client
            .begin(
                "tools/call",
                json!({"name": "exec", "arguments": {"code": code}}),
            )
            .await;
        std::fs::write(&gate, "").expect("written");
        let answer = client.answer(id).await;
        assert_eq!(texts(&answer["result"])[0], "echo", "{answer}");
        client.leave().await;
    });
}

#[test]
fn a_program_of_the_second_day_knows_what_the_tools_gave_on_the_first() {
    run(async {
        let caches = tempfile::tempdir().expect("a folder");
        let server = format!("mad={}", mad("plain"));
        let arguments = ["--private", "--server", &server];
        for (day, expected) in [
            (1, "Promise<unknown>"),
            (2, "/* as observed before */ { called: string;"),
        ] {
            let mut client = Client::start_with_caches(&arguments, caches.path());
            client.initialize(json!({})).await;
            let said = client
                .exec(
                    "text(describe_tool('mad__echo')); await tools.mad__echo({ secret: 'xyzzy' })",
                )
                .await;
            assert!(said[0].contains(expected), "day {day}: {said:?}");
            client.leave().await;
        }
        let kept = std::fs::read_dir(caches.path().join("code-mode/mcp")).expect("a folder");
        for file in kept.map(|entry| entry.expect("an entry").path()) {
            let text = std::fs::read_to_string(&file).expect("text");
            assert!(!text.contains("xyzzy"), "{}: {text}", file.display());
        }
    });
}

#[test]
fn the_state_of_a_server_that_starts_is_named_where_its_tools_are_missed() {
    run(async {
        let server = "slow=sh -c 'echo fetching parts >&2; sleep 1000'";
        let mut client = Client::start(&["--server", server, "--patience", "1000"]);
        client.initialize(json!({})).await;
        let shown = client.exec("text(ALL_SERVERS[0].status)").await;
        let held = client.exec("await tools.slow__thing({})").await;
        for said in [&shown[0], &held[0]] {
            assert!(said.contains("starting since"), "{said}");
            assert!(said.contains("fetching parts"), "{said}");
        }
        client.leave().await;
    });
}

#[test]
fn a_program_begins_when_the_server_that_it_names_has_started() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let gate = folder.path().join("gate");
        let arguments = ["--server", &behind(&gate), "--patience", "100"];
        for is_stateless in [false, true] {
            let mut client = Client::start(&arguments);
            match is_stateless {
                true => client = client.modern(),
                false => drop(client.initialize(json!({})).await),
            }
            let code = "text((await tools.mad__echo({})).called)";
            let held = client.exec(code).await;
            assert!(
                held[0].contains("it has not begun: the server mad is starting"),
                "{held:?}"
            );
            let cell = json!({"cell_id": cell_id(&held[0])});
            let held = client.call("wait", cell.clone()).await;
            assert!(texts(&held)[0].contains("it has not begun"), "{held}");
            std::fs::write(&gate, "").expect("written");
            let said = loop {
                let said = texts(&client.call("wait", cell.clone()).await);
                if !said[0].starts_with("status: running") {
                    break said;
                }
            };
            assert_eq!(said[0], "echo", "{said:?}");
            assert!(said[1].starts_with("status: completed"), "{said:?}");
            let late = texts(&client.call("wait", cell).await);
            assert!(late[0].contains("given before"), "{late:?}");
            std::fs::remove_file(&gate).expect("removed");
            client.leave().await;
        }
    });
}

#[test]
fn a_program_that_has_not_begun_is_ended_and_never_runs() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let gate = folder.path().join("gate");
        let arguments = ["--server", &behind(&gate), "--patience", "100"];
        let mut client = Client::start(&arguments);
        client.initialize(json!({})).await;
        let code = "await tools.mad__echo({}); store('ran', true)";
        let held = client.exec(code).await;
        let cell = cell_id(&held[0]);
        let ended = client
            .call("wait", json!({"cell_id": cell, "terminate": true}))
            .await;
        assert_eq!(texts(&ended), ["status: terminated"]);
        let late = texts(&client.call("wait", json!({"cell_id": cell})).await);
        assert!(late[0].starts_with("status: terminated"), "{late:?}");
        std::fs::write(&gate, "").expect("written");
        let said = loop {
            let said = client
                .exec("await tools.mad__echo({}); text(load('ran') ?? 'never')")
                .await;
            if !said[0].starts_with("status: running") {
                break said;
            }
        };
        assert_eq!(said[0], "never", "{said:?}");
        client.leave().await;
    });
}

#[test]
fn programs_that_have_not_begun_are_bounded_like_those_that_run() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let gate = folder.path().join("gate");
        let arguments = ["--server", &behind(&gate), "--patience", "0"];
        let mut client = Client::start(&arguments);
        client.initialize(json!({})).await;
        for _ in 0..64 {
            let held = client.exec("await tools.mad__echo({})").await;
            assert!(held[0].starts_with("status: running"), "{held:?}");
        }
        let refused = client.exec("await tools.mad__echo({})").await;
        assert!(refused[0].contains("64 programs"), "{refused:?}");
        client.leave().await;
    });
}

#[test]
fn a_client_that_shows_no_progress_gets_an_answer_before_its_patience_ends() {
    run(async {
        let mut client = Client::before("plain", &["--patience", "100"], json!({})).await;
        let forever = json!({"code": "await new Promise((f) => setTimeout(f, 1e9))", "yield_time_ms": 600_000});
        let said = texts(&client.call("exec", forever.clone()).await);
        assert!(said[0].starts_with("status: running"), "{said:?}");
        client.leave().await;
    });
}

#[test]
fn wait_without_a_cell_answers_for_the_program_that_ends_first() {
    run(async {
        let mut client = Client::before("plain", &[], json!({})).await;
        let none = texts(&client.call("wait", json!({})).await);
        assert!(none[0].contains("no program"), "{none:?}");
        let begin = |code: &str| json!({"code": code, "yield_time_ms": 0});
        let slow = "await new Promise((f) => setTimeout(f, 1e9))";
        let soon = "await new Promise((f) => setTimeout(f, 50)); text('the second')";
        client.call("exec", begin(slow)).await;
        client.call("exec", begin(soon)).await;
        let first = texts(&client.call("wait", json!({})).await);
        assert_eq!(first[0], "the second", "{first:?}");
        // One is left: it is observed at once.
        let only = texts(&client.call("wait", json!({"yield_time_ms": 0})).await);
        assert!(only[0].starts_with("status: running"), "{only:?}");
        client.leave().await;
    });
}
