//! The transcript in the documentation of the stdio wire is what happens.

use serde_json::Value;

use crate::conformance::without_timings;
use crate::stdio_client::Client;
use crate::support::run;

#[test]
fn the_documented_transcript_is_what_happens() {
    let document = include_str!("../../docs/stdio-wire.md");
    let (_, after) = document
        .split_once("```transcript\n")
        .expect("a transcript");
    let (transcript, _) = after.split_once("```").expect("its end");
    assert!(transcript.lines().count() > 20);
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
                assert_eq!(got, message);
            }
        }
        client.end_of_input().await;
        assert!(client.exit().await.success());
    });
}
