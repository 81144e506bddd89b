//! `code-mode run --durable`, killed and started again, and `code-mode journal`.
#![cfg(unix)]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::Signal;

use crate::support::{program, send};

/// A folder with a script, its tools, and the file in which they say that they ran.
///
/// The tool `log` writes a line there. The tool `held` does too, and then ends when somebody has read
/// from a pipe.
struct Place {
    folder: tempfile::TempDir,
    script: PathBuf,
}

const SCRIPT: &str = "
    text(await tools.log({what: 'first'}));
    store('begun', Date.now());
    try { text(await tools.held({what: 'second'})) } catch (error) { text(error.message) }
    text(await tools.log({what: 'third'}));
";

impl Place {
    fn new(script: &str, held_is_idempotent: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let (log, pipe) = (at("log"), at("pipe"));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            pipe.as_str(),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .expect("a pipe");
        let tools = format!(
            r#"
[[tool]]
name = "log"
command = ["sh", "-c", 'echo "$0" >> {log}; echo "$0"', "{{what}}"]

[[tool]]
name = "held"
idempotent = {held_is_idempotent}
command = ["sh", "-c", 'echo "$0" >> {log}; echo > {pipe}; echo "$0"', "{{what}}"]
"#
        );
        std::fs::write(at("tools.toml"), tools).expect("written");
        let path = folder.path().join("script.js");
        std::fs::write(&path, script).expect("written");
        Self {
            folder,
            script: path,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self) -> Command {
        let mut command = Command::new(program());
        command
            .args(["run", "--durable", "work", "--journal"])
            .arg(self.at("journal"))
            .arg("--tools")
            .arg(self.at("tools.toml"))
            .arg(&self.script)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts the script and waits until its tool `held` has begun.
    fn started(&self) -> Child {
        let child = self.run().spawn().expect("the program starts");
        self.release();
        child
    }

    /// Lets the tool `held` end, once it is there.
    fn release(&self) {
        let mut text = String::new();
        let mut pipe = std::fs::File::open(self.at("pipe")).expect("a pipe");
        pipe.read_to_string(&mut text).expect("read");
    }

    fn journal(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program());
        command.arg("journal").args(arguments).arg("--journal");
        let output = command.arg(self.at("journal")).output();
        output.expect("the program starts")
    }

    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.at("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn ended(child: Child, by: Signal) -> Output {
    send(child.id(), by);
    child.wait_with_output().expect("it ends")
}

/// Starts a script that holds until a line is in a file, and ends it there.
fn interrupted(place: &Place, by: Signal) -> Output {
    // Nobody reads the pipe, so the tool stays.
    let child = place.run().spawn().expect("the program starts");
    wait_for_line(&place.at("log"), "second");
    ended(child, by)
}

fn wait_for_line(file: &Path, line: &str) {
    let is_there = || {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().any(|known| known == line)
    };
    while !is_there() {
        std::thread::yield_now();
    }
}

#[test]
fn a_script_that_was_killed_continues_and_says_what_may_have_run() {
    let place = Place::new(SCRIPT, false);
    let killed = interrupted(&place, Signal::KILL);
    assert_eq!(killed.status.code(), None);
    let shown = text(&place.journal(&["show", "work"]).stdout);
    assert!(shown.contains("cell 1 (run): running"), "{shown}");
    assert!(shown.contains("call 1: log (answered)"), "{shown}");
    assert!(shown.contains("call 2: held (no answer)"), "{shown}");

    let done = place.run().output().expect("it runs");
    let said = text(&done.stderr);
    assert_eq!(done.status.code(), Some(0), "{said}");
    assert!(
        said.contains("1 answered calls are repeated from the journal, and 1 have no answer"),
        "{said}"
    );
    let shown = text(&killed.stdout) + &text(&done.stdout);
    assert!(shown.starts_with("first\n"), "{shown}");
    assert!(
        shown.contains("it may have run before the restart"),
        "{shown}"
    );
    assert!(shown.ends_with("third\n"), "{shown}");
    assert_eq!(place.log(), ["first", "second", "third"]);
    let shown = text(&place.journal(&["ls"]).stdout);
    assert!(
        shown.starts_with("work: 0 running, 0 ended, 1 stored values"),
        "{shown}"
    );
}

#[test]
fn an_interrupt_leaves_the_script_to_the_same_command() {
    let place = Place::new(SCRIPT, true);
    let stopped = interrupted(&place, Signal::INT);
    assert_eq!(stopped.status.code(), Some(130));
    let said = text(&stopped.stderr);
    assert!(said.contains("the same command continues it"), "{said}");

    let child = place.started();
    let done = child.wait_with_output().expect("it ends");
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let shown = text(&stopped.stdout) + &text(&done.stdout);
    assert_eq!(shown, "first\nsecond\nthird\n");
    assert_eq!(place.log(), ["first", "second", "second", "third"]);
}

#[test]
fn a_name_that_continues_another_script_is_wrong_usage() {
    let place = Place::new(SCRIPT, true);
    interrupted(&place, Signal::INT);
    std::fs::write(&place.script, "text('another')").expect("written");
    let refused = place.run().output().expect("it runs");
    assert_eq!(refused.status.code(), Some(2));
    let said = text(&refused.stderr);
    assert!(said.contains("continues another script"), "{said}");

    assert_eq!(place.journal(&["rm", "work"]).status.code(), Some(0));
    let again = place.journal(&["rm", "work"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("has no session \"work\""));
    let done = place.run().output().expect("it runs");
    assert_eq!(
        (done.status.code(), text(&done.stdout).as_str()),
        (Some(0), "another\n")
    );
}

#[test]
fn a_journal_in_use_names_its_process() {
    let place = Place::new(SCRIPT, true);
    let child = place.run().spawn().expect("the program starts");
    wait_for_line(&place.at("log"), "second");
    let refused = place.journal(&["check"]);
    assert_eq!(refused.status.code(), Some(3));
    let said = text(&refused.stderr);
    assert!(
        said.contains(&format!("is in use by process {}", child.id())),
        "{said}"
    );
    ended(child, Signal::TERM);
    let well = place.journal(&["check"]);
    assert_eq!(well.status.code(), Some(0), "{}", text(&well.stderr));
}

#[test]
fn looking_at_no_journal_makes_none() {
    let place = Place::new(SCRIPT, true);
    let shown = place.journal(&["ls"]);
    assert_eq!((shown.status.code(), shown.stdout.len()), (Some(0), 0));
    assert_eq!(place.journal(&["check"]).status.code(), Some(3));
    assert!(!place.at("journal").exists());
}

/// The number of the one question that waits, once there is one.
fn question(place: &Place) -> String {
    while !place.at("journal").exists() {
        std::thread::yield_now();
    }
    loop {
        let output = approvals(place, &["list", "--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let all: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        if let [one] = all.as_slice() {
            return one["number"].to_string();
        }
    }
}

fn approvals(place: &Place, arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.arg("approvals").args(arguments).arg("--journal");
    command.arg(place.at("journal"));
    command.env("XDG_RUNTIME_DIR", place.folder.path());
    command.output().expect("the program starts")
}

#[test]
fn a_script_without_a_terminal_waits_for_an_answer_from_another_one() {
    let place = Place::new(
        "text(await tools.mad__plain({})); await tools.mad__plain({})",
        false,
    );
    let servers = serde_json::json!({
        "mcpServers": {"mad": {"command": "sh", "args": ["-c", crate::mcp_client::mad("claims")]}},
    });
    let policy = serde_json::json!({"ask": ["mad/plain"], "terminal_may_answer": true});
    std::fs::write(place.at("mcp.json"), servers.to_string()).expect("written");
    std::fs::write(place.at("policy.json"), policy.to_string()).expect("written");
    let run = || {
        let mut command = place.run();
        command.arg("--mcp-config").arg(place.at("mcp.json"));
        command.arg("--policy").arg(place.at("policy.json"));
        command.env("XDG_RUNTIME_DIR", place.folder.path());
        command.spawn().expect("the program starts")
    };
    let first = run();
    let number = question(&place);
    let interrupted = ended(first, Signal::INT);
    let said = text(&interrupted.stderr);
    assert!(
        said.contains(&format!(" allow {number}, or deny {number}")),
        "{said}"
    );
    // Nobody has the journal now.
    assert!(approvals(&place, &["allow", &number]).status.success());
    let second = run();
    let later = loop {
        let waits = question(&place);
        if waits != number {
            break waits;
        }
    };
    // The process that runs has it.
    assert!(
        approvals(&place, &["allow", "--program", &later])
            .status
            .success()
    );
    let done = second.wait_with_output().expect("it ends");
    assert!(done.status.success(), "{}", text(&done.stderr));
}

#[test]
fn a_journal_shows_where_a_script_was_cut() {
    let place = Place::new(
        "await tools.log({what: 'first'}); await tools.held({what: 'second'})",
        true,
    );
    interrupted(&place, Signal::KILL);
    std::fs::remove_file(place.at("log")).expect("removed");
    interrupted(&place, Signal::KILL);
    let shown = text(&place.journal(&["show", "work"]).stdout);
    let lines: Vec<&str> = shown.lines().map(str::trim).collect();
    let at = |text: &str| lines.iter().position(|line| line.contains(text));
    assert_eq!(at("call 1: log (answered)"), Some(2), "{shown}");
    assert_eq!(
        at("call 2: held (no answer, attempt 2)"),
        Some(3),
        "{shown}"
    );
    assert_eq!(at("it ran again"), Some(4), "{shown}");
}
