//! The transcript in the documentation of the stdio wire is what happens.

use serde_json::Value;

use crate::conformance::without_timings;
use crate::stdio_client::Client;
use crate::support::run;

#[test]
fn the_documented_transcripts_are_what_happens() {
    let document = include_str!("../../docs/stdio-wire.md");
    let transcripts = document.split("```transcript\n").skip(1);
    let transcripts: Vec<&str> = transcripts
        .map(|after| after.split("```").next().expect("its end"))
        .collect();
    assert_eq!(transcripts.len(), 2);
    for transcript in transcripts {
        replay(transcript);
    }
}

fn replay(transcript: &str) {
    assert!(transcript.lines().count() > 10);
    run(async {
        let mut client = Client::start(&["serve", "--listen", "stdio"]);
        for line in transcript.lines() {
            let (direction, message) = line.split_once(' ').expect("a direction");
            let message: Value = serde_json::from_str(message).expect("JSON");
            if direction == ">" {
                client.send(&message).await;
            } else {
                let mut got = client.receive().await.expect("a message");
                without_timings(&mut got);
                without_use(&mut got);
                assert_eq!(got, message);
            }
        }
        client.end_of_input().await;
        assert!(client.exit().await.success());
    });
}

/// Leaves out what a cell used, wherever it stands.
fn without_use(message: &mut Value) {
    if let Value::Object(members) = message {
        members.remove("stats");
        members.values_mut().for_each(without_use);
    }
}

#[test]
fn what_guided_sessions_have_is_unknown_without_their_capability() {
    for request in [
        r#"{"method": "session/open", "sessionId": "s", "guided": {}}"#,
        r#"{"method": "session/stored", "sessionId": "s"}"#,
        r#"{"method": "session/pause", "sessionId": "s"}"#,
        r#"{"method": "session/describe", "sessionId": "s", "enabledTools": []}"#,
    ] {
        run(async {
            let mut client = Client::start(&["serve", "--listen", "stdio"]);
            client.hello(&[], &[]).await;
            let request: Value = serde_json::from_str(request).expect("JSON");
            let request =
                serde_json::json!({"type": "operation/request", "id": 1, "request": request});
            client.send(&request).await;
            assert_eq!(client.exit().await.code(), Some(1), "{request}");
        });
    }
}

#[test]
fn what_an_sdks_user_writes_wrongly_costs_its_request_or_its_call_alone() {
    let long = "[".repeat(300) + &"]".repeat(300);
    let wrong = [
        r#"{"method": "session/wait", "sessionId": "s", "request": {"cell_id": ""}}"#.to_owned(),
        r#"{"method": "session/wait", "sessionId": "s", "request": {"cell_id": "1", "yield_time_ms": 1.5}}"#.to_owned(),
        r#"{"method": "session/terminate", "sessionId": "s", "cellId": ""}"#.to_owned(),
        r#"{"method": "session/pause", "sessionId": "s", "cellId": ""}"#.to_owned(),
        r#"{"method": "session/execute", "sessionId": "s", "request": {"tool_call_id": "c", "enabled_tools": [], "source": "\ud800"}}"#.to_owned(),
        r#"{"method": "session/execute", "sessionId": "s", "request": {"tool_call_id": "c", "enabled_tools": [{"name": "a b"}, {"name": "a-b"}], "source": ""}}"#.to_owned(),
        r#"{"method": "session/open", "sessionId": "t", "guided": {"limits": {"maxHeapBytes": -1}}}"#.to_owned(),
        format!(r#"{{"method": "session/open", "sessionId": "t", "guided": {{"stored": {{"k": {long}}}}}}}"#),
    ];
    run(async {
        let mut client = Client::start(&["serve", "--listen", "stdio"]);
        client.hello(&["guided-sessions-v1"], &[]).await;
        let mut ask = async |id: usize, request: &str| {
            let message =
                format!(r#"{{"type": "operation/request", "id": {id}, "request": {request}}}"#);
            client.send(&Value::String(message)).await;
            loop {
                let answer = client.receive().await.expect("an answer");
                if answer["type"] == "delegate/request" {
                    let id = &answer["id"];
                    let result = r#"{"status": "error", "message": 5}"#;
                    let answer = format!(
                        r#"{{"type": "delegate/response", "id": {id}, "result": {result}}}"#
                    );
                    client.send(&Value::String(answer)).await;
                } else if answer["id"] == id
                    && answer["result"]["value"]["type"] != "execution/started"
                {
                    return answer["result"].clone();
                }
            }
        };
        let open = r#"{"method": "session/open", "sessionId": "s", "guided": {}}"#;
        assert_eq!(ask(1, open).await["status"], "ok");
        for (at, request) in wrong.iter().enumerate() {
            assert_eq!(ask(at + 2, request).await["status"], "error", "{request}");
        }
        // An answer that cannot be read fails its call.
        let calls = r#"{"method": "session/execute", "sessionId": "s", "request": {"tool_call_id": "c",
            "enabled_tools": [{"name": "t"}], "source": "await tools.t({}).catch((e) => text(e.message))"}}"#;
        let result = ask(100, calls).await;
        let said = &result["value"]["Result"]["content_items"][0]["text"];
        let said = said.as_str().expect("text");
        assert!(said.contains("answer cannot be read"), "{said}");
    });
}
