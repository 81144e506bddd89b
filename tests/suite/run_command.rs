//! `code-mode run` and its examples, as a person at a shell meets them.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::program;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn code_mode(arguments: &[&str]) -> Output {
    Command::new(program())
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

fn script(folder: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn text_goes_to_standard_output_and_notifications_to_standard_error() {
    let folder = folder();
    let path = script(&folder, "a.js", "text('out'); notify('note'); text({a: 1})");
    let output = code_mode(&["run", &path]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), "out\n{\"a\":1}\n");
    assert_eq!(stderr(&output), "note\n");
}

#[test]
fn the_console_and_warnings_are_told_apart_from_the_output() {
    let folder = folder();
    let text = "console.error('careful'); Promise.reject(new Error('lost')); text('[log] out')";
    let path = script(&folder, "a.js", text);
    let output = code_mode(&["run", &path]);
    assert_eq!(stdout(&output), "[log] out\n");
    let said = stderr(&output);
    assert!(
        said.starts_with("[error] careful\nwarning: a promise was rejected"),
        "{said}"
    );
    let output = code_mode(&["run", "--json", &path]);
    let lines = stdout(&output);
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(
        lines[0],
        json!({"type": "log", "level": "error", "text": "careful"})
    );
    assert_eq!(lines[1], json!({"type": "text", "text": "[log] out"}));
    assert_eq!(
        (&lines[2]["type"], &lines[2]["unfinished"]),
        (&json!("warning"), &json!(true))
    );
    assert_eq!(lines[3], json!({"type": "result", "status": "completed"}));
}

#[test]
fn what_a_script_leaves_unfinished_is_an_exit_status_of_1() {
    let folder = folder();
    for (text, said) in [
        (
            "Promise.reject(new Error('lost'))",
            "nobody waited for it: Error: lost",
        ),
        (
            "setTimeout(() => text('late'), 60_000)",
            "before a timer of it",
        ),
        (
            "Promise.reject(new Error('lost')); await null; exit()",
            "a.js:1:16",
        ),
        (
            "async function main() { await new Promise((f) => setTimeout(f, 60_000)); text(1) } main()",
            "before a timer of it",
        ),
    ] {
        let path = script(&folder, "a.js", text);
        let output = code_mode(&["run", &path]);
        assert!(
            stderr(&output).contains(said),
            "{text}: {}",
            stderr(&output)
        );
        assert_eq!(output.status.code(), Some(1), "{text}");
    }
    let path = script(
        &folder,
        "a.js",
        "const late = new Promise((f) => setTimeout(f, 60_000)); await Promise.race([late, 1])",
    );
    let output = code_mode(&["run", &path]);
    assert_eq!(
        (output.status.code(), stderr(&output)),
        (Some(0), String::new())
    );
}

#[test]
fn the_status_that_a_script_exits_with_is_that_of_the_program() {
    let folder = folder();
    for (text, status) in [
        ("exit()", 0),
        ("exit(0)", 0),
        ("exit(3)", 3),
        ("exit(255)", 255),
    ] {
        let path = script(
            &folder,
            "a.js",
            &format!("text('before'); {text}; text('after')"),
        );
        let output = code_mode(&["run", &path]);
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert_eq!(stdout(&output), "before\n", "{text}");
        assert_eq!(stderr(&output), "", "{text}");
    }
}

#[test]
fn a_script_gets_its_arguments_and_its_standard_input() {
    let folder = folder();
    let path = script(
        &folder,
        "a.js",
        "text(args); const lines = (await tools.stdin()).trim().split('\\n'); text(lines.length)",
    );
    let mut child = Command::new(program())
        .args(["run", &path, "--", "one", "--two"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut input = child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut input, b"a\nb\nc\n").expect("written");
    drop(input);
    let output = child.wait_with_output().expect("ended");
    assert_eq!(stdout(&output), "[\"one\",\"--two\"]\n3\n");
    let none = code_mode(&["run", &script(&folder, "b.js", "text(args.length)")]);
    assert_eq!(stdout(&none), "0\n");
}

#[test]
fn the_reference_of_tools_names_every_key_and_its_example_is_accepted() {
    let folder = folder();
    let page = std::fs::read_to_string(root().join("docs/tools-toml.md")).expect("read");
    let (_, rest) = page.split_once("```toml\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    let tools = script(&folder, "tools.toml", example);
    let output = code_mode(&["run", "--list-tools", "--tools", &tools]);
    assert_eq!(
        (output.status.code(), stderr(&output)),
        (Some(0), String::new())
    );
    assert!(
        stdout(&output).contains("count_lines(args: { word: string | number | boolean; })"),
        "{}",
        stdout(&output)
    );
    // A key that does not exist is refused with the list of those that do.
    let tools = script(&folder, "odd.toml", "[[tool]]\nodd = 1\n");
    let refused = stderr(&code_mode(&["run", "--list-tools", "--tools", &tools]));
    let (_, keys) = refused.split_once("expected one of ").expect("the keys");
    let keys: Vec<&str> = keys.lines().next().expect("a line").split(", ").collect();
    assert!(
        !stdout(&output).contains("login"),
        "it is deferred: {}",
        stdout(&output)
    );
    assert!(
        !stdout(&output).contains("tools.patch({"),
        "it takes a text: {}",
        stdout(&output)
    );
    assert!(keys.len() > 10, "{refused}");
    for key in keys {
        assert!(page.contains(&format!("| {key} |")), "{key}");
    }
}

#[test]
fn a_tools_file_that_is_probably_not_meant_so_is_warned_of() {
    let folder = folder();
    let tools = script(
        &folder,
        "tools.toml",
        r#"
[[tool]]
name = "a"
command = ["echo", "{word}"]
[tool.input_schema]
type = "object"
properties.wrod.type = "string"
[[tool]]
name = "a"
command = ["bash", "-ec", "echo {word} > log"]
"#,
    );
    let path = script(&folder, "a.js", "text(1)");
    let output = code_mode(&["run", "--tools", &tools, &path]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0));
    for wanted in [
        "tool `a`: `{word}` in its command is not a property of its input_schema",
        "tool `a` is defined twice",
        "tool `a`: its shell runs what the script puts into `echo {word} > log`",
    ] {
        assert!(said.contains(wanted), "{said}");
    }
    assert_eq!(said.lines().count(), 3, "{said}");
}

#[test]
fn a_failing_script_exits_with_1_and_shows_the_line_it_points_at() {
    let folder = folder();
    let path = script(&folder, "a.js", "text(1);\nnull.x;\n");
    let output = code_mode(&["run", &path]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "1\n");
    let error = stderr(&output);
    assert!(
        error.contains("TypeError: Cannot read properties of null"),
        "{error}"
    );
    assert!(error.contains("2 | null.x;"), "{error}");
    assert!(error.contains(&format!("{path}:2:6")), "{error}");
}

#[test]
fn a_syntax_error_shows_its_line_too() {
    let folder = folder();
    let path = script(&folder, "a.js", "text(1);\ntext(;\n");
    let output = code_mode(&["run", &path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("2 | text(;"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_missing_script_or_a_wrong_tools_file_is_wrong_usage() {
    let folder = folder();
    let tools = script(
        &folder,
        "tools.toml",
        "[[tool]]\nname = 'x'\ncommand = ['echo', '{']\n",
    );
    let path = script(&folder, "a.js", "text(1)");
    for arguments in [
        &["run", "/nowhere/a.js"][..],
        &["run", "--tools", "/nowhere/tools.toml", &path],
        &["run", "--tools", &tools, &path],
    ] {
        let output = code_mode(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            stderr(&output).starts_with("code-mode run: "),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_worker_that_cannot_start_exits_with_3() {
    let folder = folder();
    let path = script(&folder, "a.js", "text(1)");
    let output = code_mode(&["run", "--worker-program", "/nowhere/worker", &path]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stderr(&output).contains("/nowhere/worker"),
        "{}",
        stderr(&output)
    );
}

#[cfg(unix)]
#[test]
fn the_last_words_of_a_worker_that_does_not_start_are_in_the_error() {
    use std::os::unix::fs::PermissionsExt;

    let folder = folder();
    let path = script(&folder, "a.js", "text(1)");
    let worker = script(
        &folder,
        "worker.sh",
        "#!/bin/sh\necho no licence >&2\nexit 7\n",
    );
    let executable = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&worker, executable).expect("set");
    let output = code_mode(&["run", "--worker-program", &worker, &path]);
    assert_eq!(output.status.code(), Some(3));
    let wanted = "the worker exited with status 7 before it was ready: no licence\n";
    assert!(stderr(&output).ends_with(wanted), "{}", stderr(&output));
}

#[test]
fn json_prints_one_object_a_line() {
    let folder = folder();
    let path = script(
        &folder,
        "a.js",
        "text('x'); notify('n'); throw new Error('e')",
    );
    let output = code_mode(&["run", "--json", &path]);
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<Value> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let types: Vec<_> = lines
        .iter()
        .map(|l| l["type"].as_str().expect("a type"))
        .collect();
    assert_eq!(types, ["notification", "text", "result"]);
    assert_eq!(lines[2]["status"], "failed");
    assert_eq!(lines[2]["error"]["position"]["line"], 1);
}

#[test]
fn images_are_written_to_the_media_folder() {
    let folder = folder();
    let media = folder.path().join("media");
    let path = script(&folder, "a.js", "image('data:image/png;base64,AAEC')");
    let media_dir = media.to_str().expect("UTF-8");
    let output = code_mode(&["run", "--media-dir", media_dir, &path]);
    let file = media.join("image-1.png");
    assert_eq!(stdout(&output), format!("[image: {}]\n", file.display()));
    assert_eq!(std::fs::read(file).expect("written"), [0, 1, 2]);
}

#[test]
fn stored_values_live_from_one_run_to_the_next() {
    let folder = folder();
    let store = folder.path().join("store.json");
    let store = store.to_str().expect("UTF-8");
    let path = script(
        &folder,
        "a.js",
        "const n = (load('n') ?? 0) + 1; store('n', n); text(n)",
    );
    for n in 1..=3 {
        let output = code_mode(&["run", "--store", store, &path]);
        assert_eq!(stdout(&output), format!("{n}\n"));
    }
    std::fs::write(store, "[]").expect("written");
    let output = code_mode(&["run", "--store", store, &path]);
    assert_eq!(output.status.code(), Some(2));
}

const TOOLS: &str = r#"
[[tool]]
name = "say"
description = "Says it"
command = ["printf", "%s|%s", "{what}", "{n}"]
[tool.input_schema]
type = "object"
properties.what.type = "string"
properties.n.type = "integer"
required = ["what"]

[[tool]]
name = "cat"
namespace = "shell"
kind = "freeform"
json = true
command = ["cat"]

[[tool]]
name = "fails"
command = ["sh", "-c", "echo why >&2; exit 7"]

[[tool]]
name = "hangs"
command = ["sleep", "1000"]
timeout_ms = 20

[[tool]]
name = "floods"
command = ["yes"]
max_output_bytes = 1000
"#;

#[test]
#[cfg(unix)]
fn tools_are_commands_without_a_shell() {
    let folder = folder();
    let tools = script(&folder, "tools.toml", TOOLS);
    let path = script(
        &folder,
        "a.js",
        "text(await tools.say({what: '$(id); `x`', n: 5}));
         text(await tools.shell__cat('free text'));
         for (const call of [
           () => tools.say({n: 1}), () => tools.say({what: {}, n: 1}),
           () => tools.fails(), () => tools.hangs(), () => tools.floods(),
         ]) await call().catch(error => text(error));",
    );
    let output = code_mode(&["run", "--tools", &tools, &path]);
    assert_eq!(
        stdout(&output).lines().collect::<Vec<_>>(),
        [
            "$(id); `x`|5",
            "free text",
            "the input of tools.say does not fit its schema: `input` lacks the property `what`; it has `n` (rule: required); it takes { n?, what }",
            "the input of tools.say does not fit its schema: `input.what` must be string, not an object (rule: type)",
            "sh exited with status 7: why",
            "sleep did not end within 20 ms",
            "yes put out more than 1000 bytes",
        ],
        "{}",
        stderr(&output)
    );
}

#[test]
fn list_tools_prints_what_a_model_would_be_told() {
    let folder = folder();
    let tools = script(&folder, "tools.toml", TOOLS);
    let output = code_mode(&["run", "--list-tools", "--tools", &tools]);
    let text = stdout(&output);
    assert!(text.contains("TypeScript is accepted"), "{text}");
    assert!(
        text.contains("\nsay(args: { what: string; n?: number; }): Promise<unknown>;\n"),
        "{text}"
    );
    assert!(text.contains("## shell"));
    assert!(text.contains("shell__cat(input: string)"));
}

#[test]
#[cfg(unix)]
fn ctrl_c_terminates_the_cell_and_exits_with_130() {
    use std::io::{BufRead, BufReader};
    let folder = folder();
    let path = script(
        &folder,
        "a.js",
        "text('up'); yield_control(); while (true) {}",
    );
    let mut child = Command::new(program())
        .args(["run", &path])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "up");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    assert_eq!(child.wait().expect("a status").code(), Some(130));
}

#[test]
fn limits_of_the_command_line_hold_and_are_named() {
    let folder = folder();
    let path = script(&folder, "a.js", "for (;;) text('x'.repeat(100))");
    // The second is how these options were called when they took bare numbers only.
    for [output, yield_time] in [
        ["--max-output=4K", "--yield-time=100s"],
        ["--max-output-bytes=4096", "--yield-time-ms=100000"],
    ] {
        let output = code_mode(&["run", output, yield_time, &path]);
        assert_eq!(output.status.code(), Some(1));
        let wanted = "error: output limit of 4096 bytes exceeded (--max-output sets it)\n";
        assert!(stderr(&output).contains(wanted), "{}", stderr(&output));
    }
    // The line that a limit stopped, whatever the program does there.
    for (option, value, code) in [
        ("--max-cpu-time", "200ms", "let n = 0;\n\nfor (;;) n++;"),
        (
            "--max-cpu-time",
            "200ms",
            "const slow = /(a*)*b/;\n\nslow.test('a'.repeat(40));",
        ),
        (
            "--max-heap",
            "32M",
            "const all = [];\n\nfor (;;) all.push(new Array(1000).fill(1.5));",
        ),
        (
            "--max-heap",
            "32M",
            "function grow(all) {\n  // Outside of the heap of objects.\n  for (;;) all.push(new Uint8Array(1 << 20));\n}\ngrow([])",
        ),
        (
            "--max-output",
            "4K",
            "while (true)\n{\n  text('x'.repeat(100)); }",
        ),
    ] {
        let path = script(&folder, "stopped.js", code);
        let output = code_mode(&["run", option, value, &path]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let wanted = format!("({option} sets it)");
        assert!(
            said.contains(&wanted) && said.contains("stopped.js:3:"),
            "{said}"
        );
    }
    // No option sets the time for reading TypeScript.
    let ts = script(
        &folder,
        "a.ts",
        &format!("const x: number = a{}", "<a".repeat(8000)),
    );
    let output = code_mode(&["run", "--max-cpu-time", "1h", &ts]);
    assert!(!stderr(&output).contains("sets it"), "{}", stderr(&output));
    let odd = code_mode(&["run", "--max-cpu-time", "5 parsecs", &path]);
    assert_eq!(odd.status.code(), Some(2));
    assert!(
        stderr(&odd).contains("expected a number and one of ms, s, m and h, such as 30s"),
        "{}",
        stderr(&odd)
    );
}

#[test]
fn doctor_ends_with_a_verdict_and_shows_sizes_that_people_read() {
    let output = code_mode(&["doctor", "--max-heap", "64M"]);
    let said = stdout(&output);
    let verdict = said.lines().last().expect("a line");
    match output.status.code() {
        Some(0) => assert!(verdict.starts_with("All is well"), "{said}"),
        Some(1) => assert!(verdict.starts_with("Not well: "), "{said}"),
        other => panic!("{other:?}: {said}"),
    }
    assert!(
        said.contains("--max-heap") && said.contains(" 64M\n"),
        "{said}"
    );
    assert!(said.contains("its heap sandbox"), "{said}");
}

#[test]
fn doctor_tries_nothing_forbidden_without_a_sandbox() {
    let output = code_mode(&["doctor", "--no-sandbox"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("leave out --no-sandbox"));
}

/// Runs an example with its own tools file.
fn example(name: &str, more: &[&str]) -> Output {
    let main = format!("examples/{name}/main.js");
    let tools = format!("examples/{name}/tools.toml");
    let mut arguments = vec!["run", "--tools", &tools];
    arguments.extend(more);
    arguments.push(&main);
    code_mode(&arguments)
}

#[test]
fn the_git_history_example_reports_who_changed_what() {
    let output = example("git-history", &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("commits by"), "{text}");
    assert!(text.contains("most changed files"), "{text}");
}

#[test]
fn the_line_count_example_reads_many_files_in_parallel() {
    let output = example("line-count", &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains(".rs"), "{text}");
    assert!(text.contains("files,"), "{text}");
}

#[test]
fn the_changed_since_example_remembers_the_last_run() {
    let folder = folder();
    let store = folder.path().join("seen.json");
    let store = store.to_str().expect("UTF-8");
    let first = example("changed-since", &["--store", store]);
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    assert!(stdout(&first).contains("first run"), "{}", stdout(&first));
    let second = example("changed-since", &["--store", store]);
    assert!(
        stdout(&second).contains("nothing changed"),
        "{}",
        stdout(&second)
    );
}

#[test]
#[cfg(target_os = "linux")]
fn under_an_address_space_limit_it_works_or_says_what_it_needs() {
    use rustix::process::{Resource, Rlimit};
    let folder = folder();
    let path = script(&folder, "a.js", "text('fits')");
    for gib in [4, 16, 64, 200, 256, 300, 600, 1050, 3000] {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(program());
        command.args(["run", &path]).stdin(Stdio::null());
        let limit = Rlimit {
            current: Some(gib << 30),
            maximum: Some(gib << 30),
        };
        // SAFETY: between fork and exec this makes one system call and allocates
        // nothing.
        unsafe {
            command.pre_exec(move || Ok(rustix::process::setrlimit(Resource::As, limit)?));
        }
        let output = command.output().expect("the program starts");
        if gib >= 256 {
            assert_eq!(stdout(&output), "fits\n", "{gib} GiB: {}", stderr(&output));
        } else {
            assert_eq!(output.status.code(), Some(3), "{gib} GiB");
            let error = stderr(&output);
            assert!(
                error.contains("needs 56 GiB") || error.contains("needs 256 GiB"),
                "{error}"
            );
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
