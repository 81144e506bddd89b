//! What `code-mode run` keeps from whom: tools from this program's environment and from
//! outliving their calls, cells from a person's terminal.

use crate::support::program;

/// A folder with a tools file of these tools.
fn tools_file(tools: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tools.toml");
    std::fs::write(&path, tools).expect("written");
    let path = path.to_str().expect("text").to_owned();
    (folder, path)
}

#[test]
#[cfg(target_os = "linux")]
fn a_tool_whose_time_is_over_leaves_no_process_however_it_hides() {
    let (folder, tools) = tools_file(
        r#"
[[tool]]
name = "hides"
# One child in the group, one that has left the group, one whose parent is gone.
command = ["sh", "-c", "sleep 1000 & setsid sleep 1001 & (setsid sh -c 'sleep 1002 & sleep 1003' &); echo up > up; sleep 1004"]
timeout_ms = 1000
"#,
    );
    let script = folder.path().join("script.js");
    std::fs::write(
        &script,
        "try { await tools.hides() } catch (e) { text(e.message) }",
    )
    .expect("written");
    let output = std::process::Command::new(program())
        .args(["run", "--tools", &tools])
        .arg(&script)
        .current_dir(folder.path())
        .output()
        .expect("it starts");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "sh did not end within 1000 ms\n"
    );
    assert!(folder.path().join("up").exists());
    assert_eq!(sleeping(1000..=1004), [""; 0]);
}

#[test]
#[cfg(unix)]
fn a_tool_gets_the_variables_that_it_names_and_no_others() {
    let (_folder, tools) = tools_file(
        r#"
[[tool]]
name = "plain"
command = ["env"]
[[tool]]
name = "named"
command = ["env"]
env = ["CODE_MODE_TEST_SECRET", "SET=here"]
"#,
    );
    let output = std::process::Command::new(program())
        .args(["run", "--tools", &tools, "-"])
        .env("CODE_MODE_TEST_SECRET", "s3cret")
        .stdin(input(
            "text(await tools.plain()); text('---'); text(await tools.named())",
        ))
        .output()
        .expect("it starts");
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let (plain, named) = output.split_once("---").expect("both");
    assert!(
        plain.contains("PATH=") && !plain.contains("s3cret"),
        "{plain}"
    );
    assert!(named.contains("CODE_MODE_TEST_SECRET=s3cret"), "{named}");
    assert!(named.contains("SET=here"), "{named}");
}

/// A file that has this script, for standard input.
#[cfg(unix)]
fn input(source: &str) -> std::fs::File {
    use std::io::{Seek, Write};
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(source.as_bytes()).expect("written");
    file.rewind().expect("rewound");
    file
}

#[test]
#[cfg(target_os = "linux")]
fn a_terminal_is_shown_what_it_would_obey() {
    use std::io::Read;

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&ours).expect("granted");
    unlockpt(&ours).expect("unlocked");
    let name = ptsname(&ours, Vec::new()).expect("a name");
    let theirs = std::fs::File::options()
        .read(true)
        .write(true)
        .open(name.to_str().expect("text"))
        .expect("opened");
    let source = r"text('\x1b[31mred\x07'); notify('\x1b]0;title\x07'); throw new Error('\x1b[2J')";
    let status = std::process::Command::new(program())
        .args(["run", "-"])
        .stdin(input(source))
        .stdout(theirs.try_clone().expect("copied"))
        .stderr(theirs)
        .env("RUST_LOG", "error")
        .status()
        .expect("it starts");
    assert_eq!(status.code(), Some(1));
    let mut shown = Vec::new();
    // The end of a terminal is an error.
    let _ = std::fs::File::from(ours).read_to_end(&mut shown);
    let shown = String::from_utf8_lossy(&shown).into_owned();
    for (obeyed, visible) in [
        ("\x1b[31m", r"\u{1b}[31mred\u{7}"),
        ("\x1b]0;", r"\u{1b}]0;title\u{7}"),
        ("\x1b[2J", r"\u{1b}[2J"),
    ] {
        assert!(!shown.contains(obeyed), "{shown:?}");
        assert!(shown.contains(visible), "{shown:?}");
    }
}

#[test]
#[cfg(unix)]
fn with_standard_streams_closed_it_still_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("script.js");
    std::fs::write(&script, "store('ran', 1)").expect("written");
    for closed in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"] {
        let store = folder.path().join(format!("{}.json", closed.len()));
        let line = format!(
            "exec {:?} run --store {store:?} {script:?} {closed}",
            program()
        );
        let status = std::process::Command::new("sh")
            .args(["-c", &line])
            .status()
            .expect("it starts");
        assert_eq!(status.code(), Some(0), "{closed}");
        let stored = std::fs::read_to_string(&store).expect("written");
        assert!(stored.contains("ran"), "{closed}");
    }
}

#[test]
fn without_machine_code_scripts_run_all_the_same() {
    let output = std::process::Command::new(program())
        .args(["run", "--jitless", "-"])
        .stdin(input(
            "let n = 0; for (let i = 0; i < 1e5; i++) n += i; text(n); text(/a(b+)/.exec('abb')[1]);
             text(new Intl.NumberFormat('en').format(12345.5)); text(typeof WebAssembly)",
        ))
        .output()
        .expect("it starts");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(shown, "4999950000\nbb\n12,345.5\nundefined\n");
}

#[test]
#[cfg(target_os = "linux")]
fn a_run_that_is_told_to_end_ends_its_script_and_its_tools() {
    use std::io::{BufRead, BufReader};

    use rustix::process::{Pid, Signal, kill_process};

    let (folder, tools) = tools_file(
        r#"
[[tool]]
name = "sleeps"
command = ["sh", "-c", "echo up > up; exec sleep 1005"]
"#,
    );
    let script = folder.path().join("script.js");
    let source = "tools.sleeps(); text('up'); yield_control(); await new Promise(() => {})";
    std::fs::write(&script, source).expect("written");
    for (signal, status) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130)] {
        if signal == Signal::HUP && crate::support::ignores_hang_up() {
            // Under `nohup` the whole tree ignores SIGHUP and continues.
            continue;
        }
        let mut child = std::process::Command::new(program())
            .args(["run", "--tools", &tools])
            .arg(&script)
            .current_dir(folder.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut shown = String::new();
        let stdout = child.stdout.take().expect("piped");
        let read = BufReader::new(stdout).read_line(&mut shown);
        read.expect("text");
        assert_eq!(shown, "up\n");
        let pid = Pid::from_child(&child);
        kill_process(pid, signal).expect("it runs");
        assert_eq!(child.wait().expect("it ended").code(), Some(status));
        assert_eq!(sleeping(1005..=1005), [""; 0]);
    }
}

/// The command lines of `sleep` with one of these numbers that run.
#[cfg(target_os = "linux")]
fn sleeping(numbers: std::ops::RangeInclusive<u32>) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("there").flatten();
    processes
        .filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok())
        .filter(|line| {
            numbers
                .clone()
                .into_iter()
                .any(|n| *line == format!("sleep\0{n}\0"))
        })
        .collect()
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error_and_never_success() {
    let full = || std::fs::File::create("/dev/full").expect("opened");
    for (options, said) in [
        (&[][..], "cannot write the output"),
        (&["--json"][..], "cannot write the output"),
        (&["--store", "/dev/full"][..], "it is not a file"),
    ] {
        let done = std::process::Command::new(program())
            .arg("run")
            .args(options)
            .arg("-")
            .stdin(input("text('output')"))
            .stdout(full())
            .output()
            .expect("it runs");
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && error.contains(said), "{error}");
    }
}
