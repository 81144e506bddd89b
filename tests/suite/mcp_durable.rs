//! `code-mode mcp --durable`: programs and their questions outlive the gateway and its clients.
#![cfg(unix)]

use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::mcp_client::{Client, cell_id, file_of, mad, path, texts};
use crate::support::{program, run};

/// A gateway's folder, its policy and its record of calls.
struct Place {
    folder: tempfile::TempDir,
    policy: tempfile::NamedTempFile,
}

impl Place {
    fn new(terminal_may_answer: bool) -> Self {
        let policy = json!({
            "ask": ["mad/plain"],
            "terminal_may_answer": terminal_may_answer,
        });
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            policy: file_of(&policy),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn client(&self, more: &[&str]) -> Client {
        let server = format!("mad={}", mad("claims"));
        let (durable, ledger) = (self.at("durable"), self.at("ledger"));
        let arguments = [
            "--server",
            &server,
            "--policy",
            path(&self.policy),
            "--durable",
            durable.to_str().expect("UTF-8"),
            "--ledger",
            ledger.to_str().expect("UTF-8"),
        ];
        let arguments: Vec<&str> = arguments
            .iter()
            .copied()
            .chain(more.iter().copied())
            .collect();
        Client::start_in(&arguments, self.folder.path())
    }

    /// A client with a separate gateway.
    async fn alone(&self, capabilities: Value) -> Client {
        let mut client = self.client(&["--private"]);
        client.initialize(capabilities).await;
        client
    }

    /// `code-mode approvals`: its exit status, and what it says.
    fn approvals(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = std::process::Command::new(program())
            .arg("approvals")
            .arg("--durable")
            .arg(self.at("durable"))
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .output()
            .expect("run");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8(said).expect("UTF-8"),
        )
    }

    /// The numbers of the questions that wait.
    fn waiting(&self) -> Vec<String> {
        let (code, listed) = self.approvals(&["list", "--json"]);
        assert_eq!(code, Some(0), "{listed}");
        let listed: Vec<Value> = serde_json::from_str(&listed).expect("JSON");
        listed.iter().map(|one| one["number"].to_string()).collect()
    }

    /// The numbers of the questions that wait, from when there is one.
    async fn asked(&self) -> Vec<String> {
        loop {
            let waiting = self.waiting();
            if !waiting.is_empty() {
                return waiting;
            }
            tokio::task::yield_now().await;
        }
    }

    /// How many calls of the tool were sent to its server.
    fn sent(&self) -> usize {
        let ledger = std::fs::read_to_string(self.at("ledger")).expect("a ledger");
        let lines = ledger
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        lines
            .filter(|line| line["tool"] == "plain" && line["outcome"] == "ran")
            .count()
    }
}

/// Ends a gateway at once, as a crash does.
async fn dies(mut client: Client) {
    let process = Pid::from_raw(client.pid().cast_signed()).expect("a process");
    kill_process(process, Signal::KILL).expect("it runs");
    client.ended().await;
}

const PROGRAM: &str = "
    text('begun');
    const answer = await tools.mad__plain({ file: 'a' });
    text(answer === undefined ? 'nothing' : 'answered');
";

/// Runs the program until it waits for a person; the name of its cell.
async fn asks(client: &mut Client) -> String {
    let said = client.exec(PROGRAM).await.concat();
    assert!(said.contains("waits for a person's approval"), "{said}");
    assert!(said.contains("code-mode approvals"), "{said}");
    cell_id(&said).to_owned()
}

/// The end of a cell.
async fn end_of(client: &mut Client, cell: &str) -> String {
    loop {
        let said = texts(&client.call("wait", json!({"cell_id": cell})).await).concat();
        if !said.contains("status: running") {
            return said;
        }
    }
}

#[test]
fn a_question_is_answered_while_no_gateway_runs() {
    run(async {
        let place = Place::new(true);
        let mut client = place.alone(json!({})).await;
        let cell = asks(&mut client).await;
        dies(client).await;

        let waiting = place.waiting();
        assert_eq!(waiting.len(), 1);
        let (code, said) = place.approvals(&["show", &waiting[0]]);
        assert!(
            code == Some(0) && said.contains("mad/plain with {file: "),
            "{said}"
        );
        let (code, said) = place.approvals(&["allow", &waiting[0]]);
        assert!(code == Some(0) && said.contains("allowed"), "{said}");
        // The second answer changes nothing.
        let (code, said) = place.approvals(&["deny", &waiting[0]]);
        assert!(code == Some(1) && said.contains("allowed"), "{said}");

        let mut client = place.alone(json!({})).await;
        let said = end_of(&mut client, &cell).await;
        assert!(said.contains("answered"), "{said}");
        assert!(said.contains("status: completed"), "{said}");
        assert_eq!(place.sent(), 1);
        client.leave().await;
    });
}

#[test]
fn a_question_is_answered_at_the_gateway_that_has_the_folder() {
    run(async {
        let place = Place::new(true);
        let mut client = place.alone(json!({})).await;
        let cell = asks(&mut client).await;
        let waiting = place.waiting();
        let (code, said) = place.approvals(&["deny", &waiting[0], "77"]);
        assert!(code == Some(1) && said.contains("no question 77"), "{said}");
        let said = end_of(&mut client, &cell).await;
        assert!(said.contains("was refused"), "{said}");
        assert_eq!(place.waiting(), Vec::<String>::new());
        client.leave().await;
        let (_, said) = place.approvals(&["list"]);
        assert!(said.starts_with("no question waits in"), "{said}");
    });
}

#[test]
fn a_policy_keeps_other_terminals_out() {
    run(async {
        let place = Place::new(false);
        let mut client = place.alone(json!({"elicitation": {}})).await;
        let exec = json!({"name": "exec", "arguments": {"code": PROGRAM}});
        client.begin("tools/call", exec).await;
        let waiting = place.asked().await;
        let (code, said) = place.approvals(&["allow", &waiting[0]]);
        assert!(
            code == Some(1) && said.contains("another terminal"),
            "{said}"
        );
        dies(client).await;
    });
}

#[test]
fn a_client_that_comes_back_is_asked_again_and_finds_its_program() {
    run(async {
        let place = Place::new(false);
        let mut client = place.alone(json!({"elicitation": {}})).await;
        let exec = json!({"name": "exec", "arguments": {"code": PROGRAM}});
        client.begin("tools/call", exec).await;
        // The person does not answer before the machine goes down.
        place.asked().await;
        dies(client).await;

        let journal = place.at("durable").join("sessions.journal");
        let cell = {
            let journal = code_mode_host::Journal::open(&journal, Default::default());
            let sessions = journal.expect("free").sessions().expect("read");
            sessions[0].cells[0].tool_call_id.clone()
        };
        let mut client = place.alone(json!({"elicitation": {}})).await;
        client.answers = vec![json!({"action": "accept", "content": {"answer": "once"}})];
        let said = end_of(&mut client, &cell).await;
        assert!(said.contains("answered"), "{said}");
        assert_eq!((client.asked.len(), place.sent()), (1, 1));
        client.leave().await;
    });
}

#[test]
fn a_stateless_client_answers_the_question_of_an_earlier_gateway() {
    run(async {
        let place = Place::new(false);
        let mut client = place.client(&["--private"]).modern();
        let mut exec = json!({"name": "exec", "arguments": {"code": PROGRAM}});
        let asked = client.request("tools/call", exec.clone()).await["result"].clone();
        let requests = asked["inputRequests"].as_object().expect("a question");
        let key = requests.keys().next().expect("one").clone();
        dies(client).await;

        let mut client = place.client(&["--private"]).modern();
        exec["inputResponses"] = json!({key: {"action": "accept", "content": {"answer": "once"}}});
        exec["requestState"] = asked["requestState"].clone();
        let done = client.request("tools/call", exec).await["result"].clone();
        let said = texts(&done).concat();
        assert!(
            said.contains("answered") && said.contains("completed"),
            "{done}"
        );
        assert_eq!(place.sent(), 1);
        client.leave().await;
    });
}

#[test]
fn a_program_outlives_the_client_of_a_shared_gateway() {
    run(async {
        let place = Place::new(true);
        let shared = ["--linger", "60s", "--patience", "500ms"];
        let mut first = place.client(&shared);
        first.initialize(json!({})).await;
        let cell = asks(&mut first).await;
        first.leave().await;
        let waiting = place.waiting();
        let (code, said) = place.approvals(&["allow", &waiting[0]]);
        assert_eq!(code, Some(0), "{said}");
        let mut second = place.client(&shared);
        second.initialize(json!({})).await;
        let said = end_of(&mut second, &cell).await;
        assert!(said.contains("answered"), "{said}");
        assert_eq!(place.sent(), 1);
        second.leave().await;
        let stopped = std::process::Command::new(program())
            .args(["mcp", "stop"])
            .env("XDG_RUNTIME_DIR", place.folder.path())
            .status();
        assert!(stopped.expect("run").success());
    });
}

#[test]
fn a_request_that_is_cancelled_ends_its_program_and_one_whose_client_leaves_does_not() {
    run(async {
        let place = Place::new(true);
        let mut client = place.alone(json!({"elicitation": {}})).await;
        let exec = json!({"name": "exec", "arguments": {"code": PROGRAM}});
        let id = client.begin("tools/call", exec.clone()).await;
        place.asked().await;
        let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}});
        client.send(&cancel).await;
        while !place.waiting().is_empty() {
            tokio::task::yield_now().await;
        }
        client.begin("tools/call", exec).await;
        place.asked().await;
        client.leave().await;
        assert_eq!(place.waiting().len(), 1);
    });
}

#[test]
fn a_folder_has_one_gateway() {
    run(async {
        let place = Place::new(true);
        let mut client = place.alone(json!({})).await;
        client.exec("text(1)").await;
        let mut second = place.client(&["--private"]);
        assert_eq!(second.ended().await, Some(3));
        client.leave().await;
    });
}

/// Answers the questions of a stateless request alike, and repeats it.
async fn answered(client: &mut Client, exec: &mut Value, asked: &Value, word: &str) -> Value {
    let requests = asked["inputRequests"].as_object().expect("a question");
    let answer = json!({"action": "accept", "content": {"answer": word}});
    let answers = requests.keys().map(|key| (key.clone(), answer.clone()));
    exec["inputResponses"] = Value::Object(answers.collect());
    exec["requestState"] = asked["requestState"].clone();
    client.request("tools/call", exec.clone()).await["result"].clone()
}

#[test]
fn an_answer_about_some_calls_is_for_no_others_of_the_next_gateway() {
    run(async {
        let place = Place::new(true);
        let program = "
            const both = (a, b) => Promise.allSettled([a, b].map((file) => tools.mad__plain({ file })));
            await both('a', 'b');
            await both('c', 'd');
            text('over');
        ";
        let mut client = place.client(&["--private"]).modern();
        let mut exec = json!({"name": "exec", "arguments": {"code": program}});
        let asked = client.request("tools/call", exec.clone()).await["result"].clone();
        dies(client).await;
        let waiting = place.waiting();
        let deny: Vec<&str> = ["deny"]
            .into_iter()
            .chain(waiting.iter().map(String::as_str))
            .collect();
        assert_eq!(place.approvals(&deny).0, Some(0));

        let mut client = place.client(&["--private"]).modern();
        while place.waiting().len() < 2 {
            tokio::task::yield_now().await;
        }
        // The person who answered this has seen a and b.
        let asked_now = answered(&mut client, &mut exec, &asked, "all").await;
        assert!(asked_now["inputRequests"].is_object(), "{asked_now}");
        assert_eq!(place.sent(), 0);
        client.leave().await;
    });
}

#[test]
fn a_call_whose_tool_has_changed_is_not_allowed_by_the_old_answer() {
    run(async {
        let place = Place::new(true);
        let flag = place.at("changed");
        let policy = file_of(&json!({"ask": ["mad/t"], "terminal_may_answer": true}));
        let start = || {
            let server = format!("mad={} '{}'", mad("changing"), flag.display());
            let durable = place.at("durable");
            let arguments = [
                "--private",
                "--server",
                &server,
                "--policy",
                path(&policy),
                "--durable",
                durable.to_str().expect("UTF-8"),
            ];
            Client::start_in(&arguments, place.folder.path())
        };
        let mut client = start();
        client.initialize(json!({})).await;
        let said = client.exec("text(await tools.mad__t({}))").await.concat();
        let cell = cell_id(&said).to_owned();
        dies(client).await;
        let waiting = place.waiting();
        assert_eq!(place.approvals(&["allow", &waiting[0]]).0, Some(0));
        std::fs::write(&flag, "").expect("written");

        let mut client = start();
        client.initialize(json!({})).await;
        let again = place.asked().await;
        assert_ne!(again, waiting);
        assert_eq!(place.approvals(&["deny", &again[0]]).0, Some(0));
        let said = end_of(&mut client, &cell).await;
        assert!(said.contains("was refused"), "{said}");
        client.leave().await;
    });
}

#[test]
fn a_policy_that_has_changed_decides_who_may_answer() {
    run(async {
        let place = Place::new(true);
        let mut client = place.alone(json!({})).await;
        let cell = asks(&mut client).await;
        dies(client).await;
        let allow = |may: bool| {
            let policy = json!({"ask": ["mad/plain"], "terminal_may_answer": may});
            std::fs::write(place.policy.path(), policy.to_string()).expect("written");
        };
        allow(false);
        let mut client = place.alone(json!({"elicitation": {}})).await;
        let number = place.waiting().remove(0);
        let (code, said) = place.approvals(&["allow", &number]);
        assert!(
            code == Some(1) && said.contains("terminal_may_answer"),
            "{said}"
        );
        dies(client).await;
        allow(true);
        client = place.alone(json!({})).await;
        let number = place.waiting().remove(0);
        while place.approvals(&["allow", &number]).0 != Some(0) {}
        let said = end_of(&mut client, &cell).await;
        assert!(said.contains("answered"), "{said}");
        client.leave().await;
    });
}

#[test]
fn requests_that_come_together_for_a_session_that_is_closed_all_find_it() {
    run(async {
        let place = Place::new(true);
        let mut client = place.alone(json!({})).await;
        // The server has started then.
        client.exec("await tools.mad__read({})").await;
        let mut cells = Vec::new();
        for _ in 0..4 {
            let exec =
                json!({"code": "await tools.mad__read({}); text('done')", "yield_time_ms": 1});
            let said = texts(&client.call("exec", exec).await).concat();
            cells.push(cell_id(&said).to_owned());
        }
        let journal = place.at("durable").join("sessions.journal");
        client.leave().await;
        // All have ended before somebody looks.
        loop {
            let mut client = place.alone(json!({})).await;
            client.exec("await tools.mad__read({})").await;
            client.leave().await;
            let journal = code_mode_host::Journal::open(&journal, Default::default());
            let sessions = journal.expect("free").sessions().expect("read");
            if sessions
                .iter()
                .flat_map(|it| &it.cells)
                .all(|it| it.outcome.is_some())
            {
                break;
            }
        }
        let mut client = place.alone(json!({})).await;
        let mut ids = Vec::new();
        for cell in &cells {
            let wait = json!({"name": "wait", "arguments": {"cell_id": cell}});
            ids.push(client.begin("tools/call", wait).await);
        }
        for _ in ids {
            let said = client.next_answer().await["result"].to_string();
            assert!(said.contains("done"), "{said}");
        }
        client.leave().await;
    });
}
