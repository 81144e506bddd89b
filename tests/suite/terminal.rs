//! Questions to a person at a terminal.
#![cfg(target_os = "linux")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::mcp_client::mad;
use crate::support::program;

/// Runs a script at a terminal, with a server whose destructive tool needs an approval. Returns
/// the contents of the terminal, and the exit status.
fn at_terminal(script: &str, steps: &[Value]) -> (String, Option<i32>) {
    let folder = tempfile::tempdir().expect("a folder");
    let [source, config] = ["main.js", "mcp.json"].map(|name| folder.path().join(name));
    let command = mad("claims");
    let mut words = command
        .split_whitespace()
        .map(|word| word.trim_matches('\''));
    let servers = json!({"mcpServers": {"mad": {
        "command": words.next(), "args": words.collect::<Vec<_>>()}}});
    std::fs::write(&source, script).expect("written");
    std::fs::write(&config, servers.to_string()).expect("written");
    typed(
        &["run", "--mcp-config", path(&config), path(&source)],
        steps,
    )
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Runs the program at a new terminal. Returns the contents of the terminal, and the exit status.
fn typed(arguments: &[&str], steps: &[Value]) -> (String, Option<i32>) {
    let harness = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/terminal.py");
    let mut child = Command::new("python3")
        .arg(harness)
        .arg(program())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut input = child.stdin.take().expect("a pipe");
    for step in steps {
        writeln!(input, "{step}").expect("written");
    }
    drop(input);
    let done = child.wait_with_output().expect("it ends");
    (
        String::from_utf8_lossy(&done.stdout).into_owned(),
        done.status.code(),
    )
}

#[test]
fn nothing_is_written_between_a_question_and_its_answer() {
    let script = "const call = tools.mad__destroy({ path: '/home' });\n\
         for (let i = 0; i < 60; i++) notify('\\n'.repeat(60) + 'May it? [y/N] ');\n\
         text('output'); await call; text('done')";
    let steps = [
        json!(["expect", "{path: \"/home\"}. May it? [y/N] "]),
        json!(["type", "y\n"]),
    ];
    let (shown, status) = at_terminal(script, &steps);
    assert_eq!(status, Some(0), "{shown}");
    let asked = shown.find("/home\"}. May it? [y/N] ").expect("asked");
    let answered = shown[asked..]
        .find("y\r\n")
        .expect("the echo of the answer");
    let between = &shown[asked..asked + answered];
    assert!(between.ends_with("[y/N] "), "{between:?}");
    // Whatever the script says is marked.
    let forged = shown
        .lines()
        .filter(|line| line.ends_with("May it? [y/N] "));
    for line in forged.filter(|line| !line.contains("/home")) {
        assert!(
            line.trim_start_matches(['\r', '\u{1b}', '[', '2', 'K'])
                .starts_with("| "),
            "{line:?}"
        );
    }
}

#[test]
fn a_tool_that_asks_its_user_reads_from_the_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let [source, tools, ask] =
        ["main.js", "tools.toml", "ask.sh"].map(|name| folder.path().join(name));
    std::fs::write(
        &source,
        "notify('before'); const call = tools.login({}); notify('meanwhile'); text(await call)",
    )
    .expect("written");
    std::fs::write(
        &ask,
        "printf 'Password: ' > /dev/tty; read -r word < /dev/tty; printf 'got %s' \"$word\"",
    )
    .expect("written");
    let text = format!(
        "[[tool]]\nname = 'login'\nasks_user = true\ncommand = ['sh', '{}']\n",
        ask.display()
    );
    std::fs::write(&tools, text).expect("written");
    let steps = [json!(["expect", "Password: "]), json!(["type", "secret\n"])];
    let (shown, status) = typed(&["run", "--tools", path(&tools), path(&source)], &steps);
    assert_eq!(status, Some(0), "{shown}");
    let (_, after) = shown.split_once("Password: ").expect("asked");
    assert!(after.starts_with("secret"), "{after:?}");
    assert!(after.contains("got secret"), "{after:?}");
}

#[test]
fn what_was_typed_before_a_question_answers_nothing() {
    let script = "notify('Go on? [y/N]'); await tools.mad__read({});\n\
         const until = Date.now() + 300; while (Date.now() < until) {}\n\
         await tools.mad__destroy({})";
    let steps = [
        json!(["expect", "Go on? [y/N]"]),
        json!(["type", "y\n"]),
        json!(["expect", "mad/destroy with {}. May it? [y/N] "]),
        json!(["type", "n\n"]),
    ];
    let (shown, status) = at_terminal(script, &steps);
    assert_eq!(status, Some(1), "{shown}");
    assert!(shown.contains("was refused"), "{shown}");
}

#[test]
fn a_terminal_is_not_controlled_by_the_names_of_servers() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("mcp.json");
    let name = "evil\u{1b}[2J\u{1b}]0;title\u{7}";
    let servers = json!({"mcpServers": {name: {"url": "http://127.0.0.1:1/mcp"}}});
    std::fs::write(&config, servers.to_string()).expect("written");
    for command in [vec!["mcp", "login"], vec!["mcp", "check"]] {
        let mut arguments = command;
        arguments.extend(["--config", path(&config)]);
        let (shown, _) = typed(&arguments, &[]);
        assert!(shown.contains("evil"), "{shown:?}");
        assert!(
            !shown.contains("\u{1b}[2J") && !shown.contains('\u{7}'),
            "{shown:?}"
        );
    }
}
