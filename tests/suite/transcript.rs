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
