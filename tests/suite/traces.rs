//! Traces of runs: written, drawn, and run again.

use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::grpc_client::wire::OpenSessionRequest;
use crate::grpc_client::{Host, texts};
use crate::mcp_client::Client;
use crate::support::{program, run, send};

const TOOLS: &str = r#"
[[tool]]
name = "say"
command = ["echo", "{what}"]
[[tool]]
name = "wait"
command = ["sleep", "{seconds}"]
[[tool]]
name = "fail"
command = ["sh", "-c", "echo no >&2; exit 1"]
"#;

/// Programs whose course depends on time, chance and the order of answers.
const PROGRAMS: [&str; 10] = [
    "text(Math.random()); text(Date.now()); text(new Date().toISOString())",
    "text(crypto.randomUUID()); text([...crypto.getRandomValues(new Uint8Array(4))])",
    "const t = performance.now(); await new Promise((r) => setTimeout(r, 5)); text(performance.now() - t)",
    "let n = 0; const id = setInterval(() => n++, 1); await new Promise((r) => setTimeout(r, 20)); clearInterval(id); text(n)",
    "text(await Promise.race([tools.wait({ seconds: 0.03 }).then(() => 'a'), tools.say({ what: 'b' })]))",
    "const done = []; await Promise.all([0.03, 0.01, 0.02].map((s) => tools.wait({ seconds: s }).then(() => done.push(s)))); text(done)",
    "for await (const { index } of as_settled([tools.wait({ seconds: 0.02 }), tools.say({ what: 'x' })])) text(index)",
    "try { await tools.fail({}) } catch (e) { text(e.message) } throw new Error('at ' + Math.random())",
    "notify('n'); yield_control(); text(typeof Date() + (new Date() instanceof Date) + new Date(5).getTime())",
    "tools.wait({ seconds: 5 }); await tools.say({ what: String(Math.random()) }); exit()",
];

fn code_mode(arguments: &[&str]) -> Output {
    Command::new(program())
        .args(arguments)
        .output()
        .expect("it runs")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("tools.toml"), TOOLS).expect("written");
        Self { folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a program and records it.
    fn record(&self, source: &str, more: &[&str]) -> (Output, std::path::PathBuf) {
        let (script, trace) = (self.path("a.js"), self.path("trace.jsonl"));
        std::fs::write(&script, source).expect("written");
        let tools = self.path("tools.toml");
        let mut arguments = vec!["run", "--tools", text(&tools), "--trace", text(&trace)];
        arguments.extend(more);
        arguments.push(text(&script));
        (code_mode(&arguments), trace)
    }
}

#[test]
fn recorded_runs_replay_without_a_difference() {
    let files = Files::new();
    for source in PROGRAMS {
        let (_, trace) = files.record(source, &["--trace-contents"]);
        let replayed = code_mode(&["replay", text(&trace)]);
        let said = String::from_utf8_lossy(&replayed.stdout);
        assert!(
            said.starts_with("no difference in 1 cell: "),
            "{source}: {said}"
        );
        assert_eq!(replayed.status.code(), Some(0));
    }
}

/// The traces in a folder.
fn traces_in(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    entries
        .map(|entry| entry.expect("an entry").path())
        .collect()
}

#[test]
fn each_session_of_a_gateway_is_recorded_and_replays() {
    let folder = tempfile::tempdir().expect("a folder");
    let traces = folder.path().join("traces");
    run(async {
        let options = ["--trace", text(&traces), "--trace-contents"];
        let mut client = Client::before("plain", &options, json!({})).await;
        client.exec("const r = await tools.mad__echo({ a: Math.random() }); text(r.called); store('k', 1)").await;
        client.exec("text(load('k') + Math.random())").await;
        client.leave().await;
    });
    let [trace] = &traces_in(&traces)[..] else {
        panic!("one session has one trace");
    };
    let replayed = code_mode(&["replay", text(trace)]);
    let said = String::from_utf8_lossy(&replayed.stdout).into_owned();
    assert!(
        said.starts_with("no difference in 2 cells: 1 call, 2 items"),
        "{said}"
    );
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(trace).expect("there").permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[cfg(unix)]
#[test]
fn each_session_of_the_codex_hosts_wires_is_recorded_and_replays() {
    let folder = tempfile::tempdir().expect("a folder");
    let traces = folder.path().join("traces");
    run(async {
        let options = ["--trace", text(&traces), "--trace-contents"];
        let mut host = Host::tcp_with(&options).await;
        let session = host.open(OpenSessionRequest::default()).await;
        let outcome = session
            .exec("e", "text(Math.random()); text(typeof URL)")
            .await;
        assert_eq!(texts(&outcome)[1], "undefined");
        session.close().await;
        drop(session);
        send(host.child.id().expect("it runs"), Signal::TERM);
        host.gone().await;
    });
    let [trace] = &traces_in(&traces)[..] else {
        panic!("one session has one trace");
    };
    let replayed = code_mode(&["replay", text(trace)]);
    let said = String::from_utf8_lossy(&replayed.stdout).into_owned();
    assert!(
        said.starts_with("no difference in 1 cell: 0 calls, 2 items"),
        "{said}"
    );
}

#[test]
fn an_edited_script_is_run_against_a_recording_to_the_first_difference() {
    let files = Files::new();
    let source = "const a = await tools.say({ what: 'a' }); text(a)";
    let (_, trace) = files.record(source, &["--trace-contents"]);
    let edited = files.path("edited.js");
    for (source, status, found) in [
        (
            "// A comment.\nconst b = await tools.say({ what: 'a' }); text(b)",
            0,
            "no difference in 1 cell: 1 call, 1 item",
        ),
        (
            "text(await tools.say({ what: 'b' }))",
            1,
            "another input: tool-1 say was {\"what\":\"a\"}",
        ),
        // It would never end.
        (
            "await tools.say({ what: 'a' }); tools.say({}); for (;;) await new Promise((f) => setTimeout(f, 5))",
            1,
            "another call: tool-2 say",
        ),
        ("text(1)", 1, "a call is missing: tool-1"),
    ] {
        std::fs::write(&edited, source).expect("written");
        let replayed = code_mode(&["replay", text(&trace), "--source", text(&edited)]);
        let said = String::from_utf8_lossy(&replayed.stdout).into_owned();
        assert!(said.contains(found), "{source}: {said}");
        assert_eq!(said.lines().count(), 1, "{source}: {said}");
        assert_eq!(replayed.status.code(), Some(status), "{source}: {said}");
    }
}

#[test]
fn each_kind_of_change_is_found() {
    let files = Files::new();
    let source = "const a = await tools.say({ what: 'a' }); const b = await tools.say({ what: 'b' }); text(a + b)";
    for (from, to, found) in [
        (
            "what: 'b'",
            "what: 'c'",
            "another input: tool-2 say was {\\\"what\\\":\\\"b\\\"}",
        ),
        (
            "const b = await tools.say({ what: 'b' })",
            "const b = 1",
            "a call is missing: tool-2",
        ),
        (
            "text(a + b)",
            "text(a); await tools.say({ what: 'c' })",
            "another call: tool-3 say",
        ),
        ("text(a + b)", "text(b)", "another output: item 0"),
        (
            "text(a + b)",
            "throw 1",
            "another end: was completed, is script_error",
        ),
        (
            "tools.say({ what: 'b' })",
            "tools.fail({ what: 'b' })",
            "another tool: tool-2 was say, is fail",
        ),
    ] {
        let (_, trace) = files.record(source, &["--trace-contents"]);
        let recorded = std::fs::read_to_string(&trace).expect("a trace");
        assert!(recorded.contains(from), "{from}");
        std::fs::write(&trace, recorded.replacen(from, to, 1)).expect("written");
        let replayed = code_mode(&["replay", text(&trace)]);
        let said = String::from_utf8_lossy(&replayed.stdout).into_owned();
        assert!(said.replace('"', "\\\"").contains(found), "{to}: {said}");
        assert_eq!(replayed.status.code(), Some(1));
    }
}

#[test]
fn a_cell_that_ended_with_a_call_in_flight_is_replayed_as_it_was() {
    let files = Files::new();
    for source in [
        "Promise.race([tools.say({ what: 'a' }), 1]); text('end')",
        "tools.say({ what: 'a' }); throw new Error('first')",
    ] {
        let (_, trace) = files.record(source, &["--trace-contents"]);
        let replayed = code_mode(&["replay", text(&trace)]);
        let said = String::from_utf8_lossy(&replayed.stdout).into_owned();
        assert_eq!(replayed.status.code(), Some(0), "{source}: {said}");
    }
}

#[test]
fn without_contents_a_trace_has_sizes_only() {
    let files = Files::new();
    let (_, trace) = files.record(
        "text(await tools.say({ what: 'a-secret-word' })); notify('a-secret-word')",
        &[],
    );
    let recorded = std::fs::read_to_string(&trace).expect("a trace");
    assert!(!recorded.contains("a-secret-word"), "{recorded}");
    let events: Vec<Value> = recorded
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let find = |kind: &str| {
        let found = events.iter().find_map(|line| line["event"].get(kind));
        found.unwrap_or_else(|| panic!("{kind}: {recorded}"))
    };
    assert_eq!(find("call_started")["input_bytes"], 24);
    assert_eq!(find("call_finished")["output_bytes"], 17);
    assert_eq!(find("notified")["bytes"], 13);
    assert_eq!(find("cell_ended")["outcome"], "completed");
    let replayed = code_mode(&["replay", text(&trace)]);
    assert_eq!(replayed.status.code(), Some(2));
}

#[test]
fn a_timeline_is_a_page_and_a_chrome_trace() {
    let files = Files::new();
    let (_, trace) = files.record(
        "await Promise.all([tools.say({ what: '</script><script>alert(1)</script>' }), tools.say({ what: 'b' })])",
        &["--trace-contents"],
    );
    let made = code_mode(&["timeline", text(&trace)]);
    assert_eq!(made.status.code(), Some(0));
    let page = std::fs::read_to_string(format!("{}.html", text(&trace))).expect("a page");
    assert_eq!(
        page.matches("</script>").count(),
        1,
        "no data ends the script"
    );
    assert!(
        !page.contains("http://") && !page.contains("https://"),
        "it stands alone"
    );
    let chrome = std::fs::read(format!("{}.chrome.json", text(&trace))).expect("a trace");
    let chrome: Value = serde_json::from_slice(&chrome).expect("JSON");
    let events = chrome["traceEvents"].as_array().expect("events");
    let of = |phase: &str, name: &str| {
        events
            .iter()
            .filter(|e| e["ph"] == phase && e["name"] == name)
            .count()
    };
    assert_eq!(
        (
            of("b", "cell"),
            of("e", "cell"),
            of("b", "say"),
            of("e", "say")
        ),
        (1, 1, 2, 2)
    );
}

#[test]
fn a_trace_that_was_cut_is_read_and_what_is_none_is_named() {
    let files = Files::new();
    let (_, trace) = files.record("text(1)", &[]);
    let recorded = std::fs::read_to_string(&trace).expect("a trace");
    std::fs::write(&trace, &recorded[..recorded.len() - 5]).expect("written");
    assert_eq!(
        code_mode(&["timeline", text(&trace)]).status.code(),
        Some(0)
    );
    for (content, said) in [
        ("{}\n{}\n", "line 1"),
        ("", "no trace"),
        ("garbage", "line 1"),
    ] {
        std::fs::write(&trace, content).expect("written");
        let output = code_mode(&["timeline", text(&trace)]);
        assert_eq!(output.status.code(), Some(2), "{content}");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains(said), "{stderr}");
    }
}
