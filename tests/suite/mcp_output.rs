//! What programs of `code-mode mcp` put out, and how long answers to them take.

use serde_json::{Value, json};

use crate::mcp_client::{Client, texts};
use crate::mcp_starts::behind;
use crate::support::run;

/// A program that puts out a megabyte, with a needle in the middle.
const LARGE: &str = "text('a'.repeat(500_000) + ' needle=42 ' + 'b'.repeat(500_000))";

/// The status of an answer, which comes first.
fn status(answer: &Value) -> String {
    let status = answer["content"][0]["text"].as_str();
    status.expect("a text").to_owned()
}

#[test]
fn what_a_budget_left_out_is_there_for_a_later_program() {
    run(async {
        let mut client = Client::before("plain", &[], json!({})).await;
        let answer = client.call("exec", json!({"code": LARGE})).await;
        assert!(answer.to_string().len() < 42_000);
        let status = status(&answer);
        assert!(
            status.contains("960011 bytes of the output are left out"),
            "{status}"
        );
        assert!(status.contains(r#"output("1") in a program"#), "{status}");
        let code = "const all = output('1'); text([all.length, all.match(/needle=\\d+/)[0]]); text(output(1) === all)";
        let said = client.exec(code).await;
        assert_eq!(said[..2], [r#"[1000011,"needle=42"]"#, "true"], "{said:?}");
        let said = client.exec("output('77')").await;
        assert!(
            said[0].contains("nothing is kept of a cell 77; there is the output of 1, 2"),
            "{said:?}"
        );
        client.leave().await;
    });
}

#[test]
fn pages_of_an_output_make_the_whole() {
    run(async {
        for is_stateless in [false, true] {
            let mut client = Client::before("plain", &[], json!({})).await;
            if is_stateless {
                client = client.modern();
            }
            let code = "for (let i = 0; i < 3; i++) { text(`${i}`.repeat(50_000)); if (i < 2) yield_control(); }";
            client
                .call("exec", json!({"code": code, "max_output_tokens": 10}))
                .await;
            let cell = json!({"cell_id": "1", "max_output_tokens": 10});
            while status(&client.call("wait", cell.clone()).await).starts_with("status: running") {}
            let (mut from, mut whole) = (0, String::new());
            loop {
                let page = json!({"cell_id": "1", "from": from, "max_output_tokens": 10_000});
                let answer = client.call("wait", page).await;
                let part = answer["content"][1]["text"].as_str().expect("a part");
                whole.push_str(part);
                from += part.len();
                if !status(&answer).contains("shows more") {
                    break;
                }
                assert!(
                    status(&answer).contains(&format!(r#""from": {from}}}"#)),
                    "{answer}"
                );
            }
            let lines: Vec<_> = ["0", "1", "2"].iter().map(|i| i.repeat(50_000)).collect();
            assert_eq!(whole, lines.join("\n"));
            client.leave().await;
        }
    });
}

#[test]
fn an_output_is_there_again_for_a_client_that_missed_it() {
    run(async {
        let mut client = Client::before("plain", &[], json!({})).await;
        client.exec("text('the result')").await;
        let late = status(&client.call("wait", json!({"cell_id": "1"})).await);
        assert!(late.contains("wait with from: 0 shows it again"), "{late}");
        let again = client
            .call("wait", json!({"cell_id": "1", "from": 0}))
            .await;
        assert_eq!(texts(&again)[1], "the result", "{again}");
        client.leave().await;
    });
}

#[test]
fn outputs_are_kept_up_to_a_limit_and_the_oldest_goes_first() {
    run(async {
        let mut client = Client::before("plain", &[], json!({})).await;
        let code = "text('x'.repeat(3 << 20))";
        for _ in 0..4 {
            client
                .call("exec", json!({"code": code, "max_output_tokens": 1}))
                .await;
        }
        let gone = client
            .call("wait", json!({"cell_id": "1", "from": 0}))
            .await;
        assert_eq!(gone["isError"], true, "{gone}");
        assert!(status(&gone).contains("not kept any more"), "{gone}");
        let said = client.exec("text(output('4').length); output('1')").await;
        assert_eq!(said[0], (3 << 20).to_string(), "{said:?}");
        assert!(said[1].contains("nothing is kept of a cell 1;"), "{said:?}");
        client.leave().await;
    });
}

#[test]
fn a_client_that_progress_keeps_waiting_is_answered_at_the_end() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let gate = folder.path().join("gate");
        let arguments = ["--server", &behind(&gate), "--patience", "100"];
        let mut client = Client::start(&arguments);
        client.initialize(json!({})).await;
        let exec = |token: Value| {
            let code = "text((await tools.mad__echo({})).called)";
            let mut params = json!({"name": "exec", "arguments": {"code": code}});
            if !token.is_null() {
                params["_meta"] = json!({"progressToken": token});
            }
            params
        };
        let patient = client.begin("tools/call", exec(json!("p"))).await;
        // It began later, and its answer comes first.
        let other = client.request("tools/call", exec(Value::Null)).await;
        assert!(
            status(&other["result"]).contains("it has not begun"),
            "{other}"
        );
        std::fs::write(&gate, "").expect("written");
        let answer = client.answer(patient).await;
        assert_eq!(texts(&answer["result"])[0], "echo", "{answer}");
        let shown = &client.notifications;
        let shows_progress = |shown: &Value| shown["params"]["progressToken"] == "p";
        assert!(shown.iter().any(shows_progress), "{shown:?}");
        client.leave().await;
    });
}
