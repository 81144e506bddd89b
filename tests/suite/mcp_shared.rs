//! `code-mode mcp`: one gateway for all clients of a user.
#![cfg(unix)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::mcp_client::{Client, file_of, mad, path};
use crate::support::{program, run};

/// A place of gateways. They are ended with it.
struct Place(tempfile::TempDir);

impl Drop for Place {
    fn drop(&mut self) {
        self.command(&["stop"]);
    }
}

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, arguments: &[&str]) -> Output {
        std::process::Command::new(program())
            .arg("mcp")
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.path())
            .output()
            .expect("it runs")
    }

    /// What `status` says of the gateways.
    fn gateways(&self) -> Vec<Value> {
        let output = self.command(&["status", "--json"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let all: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        all.into_iter().map(|one| one["gateway"].clone()).collect()
    }

    /// The status of the only gateway.
    fn gateway(&self) -> Value {
        let mut all = self.gateways();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// Waits until the status of the only gateway is so: nothing tells when it changes.
    async fn until(&self, is_so: impl Fn(&Value) -> bool) {
        while !is_so(&self.gateway()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until there is a gateway.
    async fn until_any(&self) {
        while self.gateways().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn client(&self, arguments: &[&str]) -> Client {
        let mut client = Client::start_in(arguments, self.path());
        client.initialize(json!({"elicitation": {}})).await;
        client
    }
}

fn process(value: &Value) -> Pid {
    let number = value.as_u64().expect("a process");
    Pid::from_raw(i32::try_from(number).expect("a number")).expect("a process")
}

async fn gone(process: Pid) {
    while test_kill_process(process).is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn plain() -> String {
    format!("mad={}", mad("plain"))
}

#[test]
fn clients_share_a_server_and_nothing_of_their_sessions() {
    run(async {
        let place = Place::new();
        let server = plain();
        let mut one = place.client(&["--server", &server]).await;
        let mut two = place.client(&["--server", &server]).await;
        let said = one
            .exec("store('mine', 1); await tools.mad__echo({}); text('called')")
            .await;
        assert_eq!(said[0], "called");
        let said = two
            .exec("await tools.mad__echo({}); text(load('mine') ?? 'nothing')")
            .await;
        assert_eq!(said[0], "nothing");
        let gateway = place.gateway();
        assert_eq!(gateway["clients"].as_array().map(Vec::len), Some(2));
        assert_eq!(gateway["clients"][0]["name"], "test 1");
        assert_eq!(gateway["clients"][0]["process"], one.pid());
        assert_eq!(gateway["servers"].as_array().map(Vec::len), Some(1));
        assert_eq!(gateway["servers"][0]["status"], "ready");
        assert!(gateway["servers"][0]["process"].is_u64());
        let said = place.command(&["status"]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(
            said.contains("test 1") && said.contains("mad: ready"),
            "{said}"
        );
    });
}

#[test]
fn a_server_that_is_not_shared_is_started_for_each_client_and_ends_with_it() {
    run(async {
        let place = Place::new();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mad_server.py");
        let config = file_of(&json!({"mcpServers": {
            "all": {"command": "python3", "args": [script, "plain"]},
            "own": {"command": "python3", "args": [script, "plain"], "shared": false},
        }}));
        let options = ["--config", path(&config)];
        let mut one = place.client(&options).await;
        let mut two = place.client(&options).await;
        let program = "await tools.all__echo({}); await tools.own__echo({}); text('called')";
        for client in [&mut one, &mut two] {
            assert_eq!(client.exec(program).await[0], "called");
        }
        let servers = place.gateway()["servers"].clone();
        let of = |name: &str| -> Vec<Value> {
            let all = servers.as_array().expect("servers").iter();
            all.filter(|server| server["name"] == name)
                .cloned()
                .collect()
        };
        assert_eq!(of("all").len(), 1);
        let own = of("own");
        assert_eq!(own.len(), 2);
        assert_ne!(own[0]["process"], own[1]["process"]);
        assert_eq!(own[0]["client"], one.pid());
        assert_eq!(one.leave().await, Some(0));
        gone(process(&own[0]["process"])).await;
        assert_eq!(two.exec(program).await[0], "called");
        assert_eq!(place.gateway()["servers"].as_array().map(Vec::len), Some(2));
    });
}

#[test]
fn a_gateway_that_is_killed_fails_what_ran_and_the_next_request_starts_another() {
    run(async {
        let place = Place::new();
        let server = plain();
        let mut client = place.client(&["--server", &server]).await;
        let code = "notify('called'); await tools.mad__slow({})";
        let id = client
            .begin(
                "tools/call",
                json!({"name": "exec", "arguments": {"code": code}}),
            )
            .await;
        place
            .until(|gateway| gateway["servers"][0]["calls"] == 1)
            .await;
        let first = place.gateway();
        kill_process(process(&first["process"]), Signal::KILL).expect("sent");
        let answer = client.answer(id).await;
        let why = answer["error"]["message"].as_str().expect("an error");
        assert!(why.contains("may have run"), "{why}");
        assert_eq!(
            client
                .exec("text(await tools.mad__echo({}) !== null)")
                .await[0],
            "true"
        );
        let second = place.gateway();
        assert_ne!(first["process"], second["process"]);
        assert_eq!(second["clients"][0]["name"], "test 1");
        gone(process(&first["servers"][0]["process"])).await;
    });
}

#[test]
fn a_question_reaches_the_client_whose_program_asks() {
    run(async {
        let place = Place::new();
        let policy = file_of(&json!({"ask": ["mad/echo"]}));
        let (server, policy) = (plain(), path(&policy));
        let options = ["--server", &server, "--policy", policy];
        let mut one = place.client(&options).await;
        let mut two = place.client(&options).await;
        one.answers = vec![json!({"action": "accept", "content": {"decision": "allow"}})];
        two.exec("text('it has a session')").await;
        one.exec("await tools.mad__echo({})").await;
        assert_eq!(one.asked.len(), 1, "{:?}", one.asked);
        two.exec("text('nobody asked')").await;
        assert!(two.asked.is_empty(), "{:?}", two.asked);
        assert_eq!(place.gateways().len(), 1);
    });
}

#[test]
fn a_killed_client_ends_its_calls_and_those_of_nobody_else() {
    run(async {
        let place = Place::new();
        let notes = tempfile::NamedTempFile::new().expect("a file");
        let server = format!("mad={} '{}'", mad("noting"), path(&notes));
        let options = ["--server", &server];
        let mut one = place.client(&options).await;
        let mut two = place.client(&options).await;
        let code = json!({"name": "exec", "arguments": {"code": "await tools.mad__slow({})"}});
        one.begin("tools/call", code.clone()).await;
        two.begin("tools/call", code).await;
        place
            .until(|gateway| gateway["servers"][0]["calls"] == 2)
            .await;
        let one = process(&json!(one.pid()));
        kill_process(one, Signal::KILL).expect("sent");
        place
            .until(|gateway| gateway["servers"][0]["calls"] == 1)
            .await;
        place
            .until(|gateway| gateway["clients"].as_array().map(Vec::len) == Some(1))
            .await;
        let heard = std::fs::read_to_string(notes.path()).expect("notes");
        assert_eq!(
            heard.matches("notifications/cancelled").count(),
            1,
            "{heard}"
        );
        assert_eq!(place.gateway()["clients"][0]["process"], two.pid());
    });
}

#[test]
fn a_gateway_ends_a_while_after_its_last_client_with_its_servers() {
    run(async {
        let place = Place::new();
        let server = plain();
        let mut client = place
            .client(&["--linger", "0ms", "--server", &server])
            .await;
        client.exec("await tools.mad__echo({})").await;
        let gateway = place.gateway();
        assert_eq!(client.leave().await, Some(0));
        gone(process(&gateway["process"])).await;
        gone(process(&gateway["servers"][0]["process"])).await;
        assert!(place.gateways().is_empty());
    });
}

#[test]
fn stop_ends_every_gateway_and_says_which() {
    run(async {
        let place = Place::new();
        let server = plain();
        let mut client = place.client(&["--server", &server]).await;
        client.exec("await tools.mad__echo({})").await;
        let gateway = place.gateway();
        let output = place.command(&["stop"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said, format!("gateway {} has ended\n", gateway["process"]));
        gone(process(&gateway["process"])).await;
        gone(process(&gateway["servers"][0]["process"])).await;
        let output = place.command(&["status"]);
        assert_eq!(output.stdout, b"no gateways\n");
    });
}

#[test]
fn clients_of_other_options_or_secrets_have_another_gateway() {
    run(async {
        let place = Place::new();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mad_server.py");
        let config = |token: &str| {
            let env = json!({"TOKEN": token});
            json!({"mcpServers": {"mad": {"command": "python3", "args": [script], "env": env}}})
        };
        let file = file_of(&config("one"));
        let first = place.client(&["--config", path(&file)]).await;
        std::fs::write(file.path(), config("two").to_string()).expect("written");
        let second = place.client(&["--config", path(&file)]).await;
        let third = place
            .client(&["--config", path(&file), "--patience", "5s"])
            .await;
        assert_eq!(place.gateways().len(), 3);
        for client in [first, second, third] {
            client.leave().await;
        }
    });
}

#[test]
fn twenty_clients_that_start_at_once_have_one_gateway() {
    run(async {
        let place = Place::new();
        let server = plain();
        let options = ["--server", &server];
        let clients = (0..20).map(|_| place.client(&options));
        let mut clients = futures::future::join_all(clients).await;
        for client in &mut clients {
            let said = client
                .exec("await tools.mad__echo({}); text('called')")
                .await;
            assert_eq!(said[0], "called");
        }
        let gateway = place.gateway();
        assert_eq!(gateway["clients"].as_array().map(Vec::len), Some(20));
        assert_eq!(gateway["servers"].as_array().map(Vec::len), Some(1));
    });
}

#[test]
fn a_place_that_others_could_write_to_is_not_used_and_the_client_is_served_alone() {
    run(async {
        let place = Place::new();
        let folder = place.path().join("code-mode");
        std::fs::create_dir(&folder).expect("made");
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&folder, open).expect("set");
        let mut alone = tokio::process::Command::new(program())
            .args(["mcp", "--server", &plain()])
            .env("XDG_RUNTIME_DIR", place.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut said = BufReader::new(alone.stderr.take().expect("a pipe")).lines();
        let said = said.next_line().await.expect("read").expect("a line");
        assert!(said.contains("not this user's alone"), "{said}");
        drop(alone.stdin.take());
        assert_eq!(alone.wait().await.expect("it ends").code(), Some(0));
        assert_eq!(std::fs::read_dir(&folder).expect("read").count(), 0);
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&folder, private).expect("set");
    });
}

#[test]
fn private_starts_nothing_that_others_find() {
    run(async {
        let place = Place::new();
        let server = plain();
        let mut client = place.client(&["--private", "--server", &server]).await;
        assert_eq!(client.exec("text(1)").await[0], "1");
        assert!(place.gateways().is_empty());
        assert_eq!(client.leave().await, Some(0));
    });
}

#[test]
fn a_gateway_that_is_started_again_has_the_configuration_of_that_time_under_another_name() {
    run(async {
        let place = Place::new();
        let denying = json!({"deny": ["mad/echo"]});
        let policy = file_of(&denying);
        let server = plain();
        let options = ["--server", &server, "--policy", path(&policy)];
        let mut first = place.client(&options).await;
        let call = "await tools.mad__echo({}); text('ran')";
        assert!(first.exec(call).await[0].contains("denied"));
        std::fs::write(policy.path(), "{}").expect("written");
        let gateway = place.gateway();
        kill_process(process(&gateway["process"]), Signal::KILL).expect("sent");
        gone(process(&gateway["process"])).await;
        // Its next request may be lost with the gateway.
        let code = json!({"name": "exec", "arguments": {"code": call}});
        let lost = first.request("tools/call", code.clone()).await;
        if lost["error"].is_null() {
            assert_eq!(lost["result"]["isError"], false, "{lost}");
        }
        assert_eq!(first.exec(call).await[0], "ran");
        std::fs::write(policy.path(), denying.to_string()).expect("written");
        let mut second = place.client(&options).await;
        assert!(second.exec(call).await[0].contains("denied"));
        assert_eq!(place.gateways().len(), 2);
    });
}

#[test]
fn what_a_client_was_started_with_ends_with_it() {
    run(async {
        let place = Place::new();
        let (write, mut read) = tokio::net::unix::pipe::pipe().expect("a pipe");
        let script = "exec \"$0\" mcp --server \"$1\" 7>&1 1>&2";
        let write = write.into_blocking_fd().expect("a descriptor");
        // The pipe is the descriptor 7 of the shim.
        let mut shim = tokio::process::Command::new("sh")
            .args(["-c", script])
            .arg(program())
            .arg(plain())
            .env("XDG_RUNTIME_DIR", place.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::from(write))
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        place.until_any().await;
        drop(shim.stdin.take());
        shim.wait().await.expect("it ends");
        let mut rest = Vec::new();
        let ended = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut rest);
        ended.await.expect("its end");
        assert_eq!(place.gateways().len(), 1);
    });
}

#[test]
fn a_client_that_leaves_early_gets_no_answer_that_its_gateway_has_not_given() {
    run(async {
        let place = Place::new();
        let server = plain();
        let mut client = place.client(&["--server", &server]).await;
        let code = json!({"name": "exec", "arguments": {"code": "await tools.mad__slow({})"}});
        client.begin("tools/call", code).await;
        place
            .until(|gateway| gateway["servers"][0]["calls"] == 1)
            .await;
        assert_eq!(client.said_when_it_leaves().await, Vec::<String>::new());
    });
}

#[test]
fn clients_that_come_while_a_gateway_ends_are_served() {
    run(async {
        let place = Place::new();
        let server = plain();
        for _ in 0..20 {
            let mut client = place
                .client(&["--linger", "0ms", "--server", &server])
                .await;
            let listed = client.request("tools/list", json!({})).await;
            assert!(listed["error"].is_null(), "{listed}");
            client.leave().await;
        }
    });
}

#[test]
fn clients_whose_options_name_relative_paths_share_a_gateway_in_one_folder_only() {
    run(async {
        let place = Place::new();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mad_server.py");
        let servers = json!({"mad": {"command": "python3", "args": [script], "cwd": "/"}});
        let config = file_of(&json!({"mcpServers": servers}));
        let folders =
            [tempfile::tempdir(), tempfile::tempdir()].map(|made| made.expect("a folder"));
        let mut clients = Vec::new();
        for options in [vec![], vec!["--store", "values"]] {
            for folder in &folders {
                let mut all = vec!["--config", path(&config)];
                all.extend(&options);
                let mut client = Client::start_at(&all, place.path(), folder.path());
                client.initialize(json!({})).await;
                clients.push(client);
            }
        }
        // One for both without the option, and one for each with it.
        assert_eq!(place.gateways().len(), 3);
    });
}

#[test]
fn a_configuration_from_a_pipe_is_served_to_its_client_alone() {
    run(async {
        let place = Place::new();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mad_server.py");
        let config = json!({"mcpServers": {"mad": {"command": "python3", "args": [script]}}});
        // The shell's own input is the descriptor 4 of the program.
        let script =
            "exec 4<&0; echo \"$1\" | { exec \"$0\" mcp --config /dev/fd/3 3<&0 <&4 4<&-; }";
        let mut shell = tokio::process::Command::new("sh")
            .args(["-c", script])
            .arg(program())
            .arg(config.to_string())
            .env("XDG_RUNTIME_DIR", place.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let mut input = shell.stdin.take().expect("a pipe");
        let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
        let hello = format!("{hello}\n");
        let written = tokio::io::AsyncWriteExt::write_all(&mut input, hello.as_bytes());
        written.await.expect("written");
        let mut lines = BufReader::new(shell.stdout.take().expect("a pipe")).lines();
        let answer = lines.next_line().await.expect("read").expect("an answer");
        assert!(answer.contains("\"serverInfo\""), "{answer}");
        assert!(place.gateways().is_empty());
        drop(input);
        assert!(shell.wait().await.expect("it ends").success());
    });
}
