//! Questions about the calls of a loop: few of them, and each call decided.

use serde_json::{Value, json};

use crate::mcp_client::{Client, mad, texts};
use crate::support::run;

/// Twelve writes at once, of two kinds.
const LOOP: &str = r#"
const all = [];
for (let i = 0; i < 12; i++) all.push(tools.mad__destroy({ file: i < 6 ? `f${i}` : "same" }));
const done = await Promise.allSettled(all);
text(done.filter((one) => one.status === "fulfilled").length);
"#;

fn answer(word: &str) -> Value {
    json!({"action": "accept", "content": {"answer": word}})
}

fn message(question: &Value) -> &str {
    question["message"].as_str().expect("a text")
}

#[test]
fn the_writes_of_a_loop_are_one_question_that_lists_them() {
    run(async {
        for (word, ran) in [("all", "12"), ("no", "0")] {
            let mut client = Client::before("claims", &[], json!({"elicitation": {}})).await;
            client.answers = vec![answer(word)];
            assert_eq!(client.exec(LOOP).await[0], ran);
            assert_eq!(client.asked.len(), 1);
            let message = message(&client.asked[0]);
            assert!(message.contains("wants to make 12 calls"), "{message}");
            assert!(
                message.contains(r#"- mad/destroy with {file: "f3"}"#),
                "{message}"
            );
            assert!(
                message.contains(r#"- 6 times mad/destroy with {file: "same"}"#),
                "{message}"
            );
            client.leave().await;
        }
    });
}

#[test]
fn a_person_can_be_asked_about_each_call_of_a_loop() {
    run(async {
        let mut client = Client::before("claims", &[], json!({"elicitation": {}})).await;
        client.answers = vec![answer("each")];
        client.answers.extend((0..6).map(|_| answer("once")));
        client.answers.extend((0..6).map(|_| answer("no")));
        assert_eq!(client.exec(LOOP).await[0], "6");
        assert_eq!(client.asked.len(), 13);
        client.leave().await;
    });
}

#[test]
fn an_answer_for_the_program_holds_for_its_loop_and_for_no_other_program() {
    run(async {
        let mut client = Client::before("claims", &[], json!({"elicitation": {}})).await;
        client.answers = vec![answer("program")];
        let code = "for (let i = 0; i < 20; i++) await tools.mad__destroy({ i }); text('done')";
        assert_eq!(client.exec(code).await[0], "done");
        assert_eq!(client.asked.len(), 1);
        client.answers = vec![answer("no")];
        let said = client.exec("await tools.mad__destroy({})").await;
        assert!(said[0].contains("was refused"), "{said:?}");
        assert_eq!(client.asked.len(), 2);
        client.leave().await;
    });
}

#[test]
fn a_loop_of_the_stateless_era_is_one_question_too() {
    run(async {
        let server = format!("mad={}", mad("claims"));
        let mut client = Client::start(&["--server", &server]).modern();
        let mut exec = json!({"name": "exec", "arguments": {"code": LOOP}});
        for (word, questions) in [("each", 1), ("once", 12)] {
            let asked = client.request("tools/call", exec.clone()).await["result"].clone();
            let requests = asked["inputRequests"].as_object().expect("questions");
            assert_eq!(requests.len(), questions, "{asked}");
            let answers = requests.keys().map(|key| (key.clone(), answer(word)));
            exec["inputResponses"] = Value::Object(answers.collect());
            exec["requestState"] = asked["requestState"].clone();
        }
        let done = client.request("tools/call", exec).await["result"].clone();
        assert_eq!(texts(&done)[0], "12", "{done}");
        client.leave().await;
    });
}
