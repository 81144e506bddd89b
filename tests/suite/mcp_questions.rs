//! Questions about the calls of a loop: few of them, and each call decided.

use serde_json::{Value, json};

use crate::mcp_client::{Client, Person, cell_id, file_of, mad, path, texts};
use crate::support::{program, run};

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

/// Whether a question is about several calls. On a busy machine those of a loop do not all come at
/// the same moment.
fn is_about_several(question: &Value) -> bool {
    message(question).contains(" calls:\n- ")
}

#[test]
fn the_writes_of_a_loop_are_one_question_that_lists_them() {
    run(async {
        let yes = |question: &Value| match is_about_several(question) {
            true => answer("all"),
            false => answer("once"),
        };
        let no = |_: &Value| answer("no");
        for (person, ran) in [(yes as Person, "12"), (no as Person, "0")] {
            let mut client = Client::before("claims", &[], json!({"elicitation": {}})).await;
            client.person = person;
            assert_eq!(client.exec(LOOP).await[0], ran);
            assert!(client.asked.len() < 12);
            assert!(client.asked.iter().any(is_about_several));
            let listed: String = client.asked.iter().map(message).collect();
            for file in ["f0", "f1", "f2", "f3", "f4", "f5", "same"] {
                let call = format!(r#"mad/destroy with {{file: "{file}"}}"#);
                assert!(listed.contains(&call), "{listed}");
            }
            client.leave().await;
        }
    });
}

#[test]
fn a_person_can_be_asked_about_each_call_of_a_loop() {
    run(async {
        let mut client = Client::before("claims", &[], json!({"elicitation": {}})).await;
        client.person = |question| match is_about_several(question) {
            true => answer("each"),
            false if message(question).contains("same") => answer("no"),
            false => answer("once"),
        };
        assert_eq!(client.exec(LOOP).await[0], "6");
        let alone = client.asked.iter().filter(|one| !is_about_several(one));
        assert_eq!(alone.count(), 12);
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
        let mut rounds = 0;
        let done = loop {
            let asked = client.request("tools/call", exec.clone()).await["result"].clone();
            let Some(requests) = asked["inputRequests"].as_object() else {
                break asked;
            };
            rounds += 1;
            let answers = requests.iter().map(|(key, request)| {
                let word = match is_about_several(&request["params"]) {
                    true => "all",
                    false => "once",
                };
                (key.clone(), answer(word))
            });
            exec["inputResponses"] = Value::Object(answers.collect());
            exec["requestState"] = asked["requestState"].clone();
        };
        assert_eq!(texts(&done)[0], "12", "{done}");
        assert!((1..12).contains(&rounds), "{rounds}");
        client.leave().await;
    });
}

/// A client that cannot ask, behind a policy that lets a terminal answer.
struct Headless {
    folder: tempfile::TempDir,
    policy: tempfile::NamedTempFile,
}

impl Headless {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            policy: file_of(&json!({"terminal_may_answer": true})),
        }
    }

    async fn client(&self, more: &[&str]) -> Client {
        let server = format!("mad={}", mad("claims"));
        let mut arguments = vec!["--server", &server, "--policy", path(&self.policy)];
        arguments.extend(more);
        let mut client = Client::start_with_caches(&arguments, self.folder.path());
        client.initialize(json!({})).await;
        client
    }

    fn approvals(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = std::process::Command::new(program())
            .args(["mcp", "approvals"])
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .output()
            .expect("run");
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        (output.status.code(), said)
    }

    /// The calls that wait, once there are so many.
    fn waiting(&self, count: usize) -> Vec<Value> {
        loop {
            let (_, listed) = self.approvals(&["--json"]);
            let listed: Vec<Value> = serde_json::from_str(&listed).expect("JSON");
            if listed.len() == count {
                return listed;
            }
        }
    }
}

fn id(call: &Value) -> &str {
    call["id"].as_str().expect("an id")
}

#[test]
fn a_person_at_a_terminal_answers_for_a_client_that_cannot_ask() {
    run(async {
        let headless = Headless::new();
        let mut client = headless.client(&[]).await;
        let code = r#"
            const one = (file) => tools.mad__destroy({ file }).then(() => "ran", (e) => e.message);
            text(await Promise.all([one("a"), one("b")]));
        "#;
        let exec = json!({"name": "exec", "arguments": {"code": code}});
        let id_of_exec = client.begin("tools/call", exec).await;
        let waiting = headless.waiting(2);
        let call = waiting[0]["call"].as_str().expect("a text");
        assert!(call.contains("mad/destroy with {file: "), "{call}");
        let (code, _) = headless.approvals(&["allow", id(&waiting[0])]);
        assert_eq!(code, Some(0));
        let (code, said) = headless.approvals(&["deny", "all"]);
        assert_eq!((code, said.trim()), (Some(0), "1 calls were answered"));
        let answer = texts(&client.answer(id_of_exec).await["result"]);
        let refused = "not approved: mad/destroy was refused";
        let all: Vec<String> = serde_json::from_str(&answer[0]).expect("JSON");
        assert!(
            all.contains(&"ran".to_owned()) && all.contains(&refused.to_owned()),
            "{all:?}"
        );
        // An answer counts once.
        let (code, _) = headless.approvals(&["allow", id(&waiting[0])]);
        assert_eq!(code, Some(1));
        assert_eq!(
            headless.approvals(&[]).1.trim(),
            "no call waits for an answer"
        );
        client.leave().await;
    });
}

#[test]
fn an_answer_at_a_terminal_holds_for_the_program() {
    run(async {
        let headless = Headless::new();
        let mut client = headless.client(&[]).await;
        let code = "for (let i = 0; i < 5; i++) await tools.mad__destroy({ i }); text('done')";
        let exec = json!({"name": "exec", "arguments": {"code": code}});
        let id_of_exec = client.begin("tools/call", exec).await;
        headless.waiting(1);
        assert_eq!(headless.approvals(&["program", "all"]).0, Some(0));
        assert_eq!(texts(&client.answer(id_of_exec).await["result"])[0], "done");
        client.leave().await;
    });
}

#[test]
fn an_answer_for_a_program_is_for_no_other_caller() {
    run(async {
        let headless = Headless::new();
        let direct = ["--direct", "mad/destroy"];
        let mut client = headless.client(&direct).await;
        // The server has started then.
        client.exec("text(1)").await;
        let call = |file: &str| json!({"name": "mad__destroy", "arguments": {"file": file}});
        let first = client.begin("tools/call", call("a")).await;
        let second = client.begin("tools/call", call("b")).await;
        let waiting = headless.waiting(2);
        let (_, said) = headless.approvals(&["program", id(&waiting[0])]);
        assert_eq!(said.trim(), "1 calls were answered");
        headless.waiting(1);
        headless.approvals(&["deny", "all"]);
        for id in [first, second] {
            client.answer(id).await;
        }
        client.leave().await;
    });
}

#[test]
fn a_client_is_answered_within_its_patience_while_a_call_waits_at_a_terminal() {
    run(async {
        let headless = Headless::new();
        let mut client = headless.client(&["--patience", "300ms"]).await;
        let said = client
            .exec("await tools.mad__destroy({}); text('ran')")
            .await;
        assert!(said[0].starts_with("status: running"), "{said:?}");
        let cell = json!({"cell_id": cell_id(&said[0])});
        let said = texts(&client.call("wait", cell.clone()).await);
        assert!(said[0].starts_with("status: running"), "{said:?}");
        assert_eq!(headless.approvals(&["allow", "all"]).0, Some(0));
        let said = loop {
            let said = texts(&client.call("wait", cell.clone()).await);
            if !said[0].starts_with("status: running") {
                break said;
            }
        };
        assert!(said.contains(&"ran".to_owned()), "{said:?}");
        client.leave().await;
    });
}

#[test]
fn a_call_of_a_client_that_has_left_waits_for_nobody() {
    run(async {
        let headless = Headless::new();
        let mut first = headless.client(&[]).await;
        let mut second = headless.client(&[]).await;
        second.exec("text(1)").await;
        let exec = json!({"name": "exec", "arguments": {"code": "await tools.mad__destroy({})"}});
        first.begin("tools/call", exec).await;
        headless.waiting(1);
        first.leave().await;
        headless.waiting(0);
        second.leave().await;
    });
}
