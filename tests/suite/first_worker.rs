//! The first worker, which is split off the program before that starts itself anew.
#![cfg(target_os = "linux")]

use std::fs;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::json;
use tokio::process::Command;

use crate::processes::descendants;
use crate::stdio_client::Client;
use crate::support::{program, run, send};
use crate::templates::{has, name};

/// What hands the worker over.
const VARIABLE: &str = "CODE_MODE_MADE_AHEAD";

/// Where the program's file lies in a process's memory.
fn addresses(process: u32) -> Vec<String> {
    let file = fs::read_link(format!("/proc/{process}/exe")).expect("its file");
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).expect("its maps");
    let own = maps
        .lines()
        .filter(|line| line.ends_with(&*file.to_string_lossy()));
    own.filter_map(|line| Some(line.split_once('-')?.0.to_owned()))
        .collect()
}

/// A client whose host has a worker, the host, and its children with their names.
async fn serving(command: Command) -> (Client, u32, Vec<(String, u32)>) {
    let mut client = Client::spawn(command);
    client.hello(&[], &[]).await;
    client.open("a").await;
    client.exec("a", "text(1)", &json!([])).await;
    let host = client.process_id();
    (client, host, children_of(host))
}

/// The children of a process, with their names.
fn children_of(process: u32) -> Vec<(String, u32)> {
    let children = descendants(process).into_iter();
    children.map(|child| (name(child), child)).collect()
}

/// The program as a host, with a variable.
fn host_with(variable: &str, value: &str) -> Command {
    let mut command = Command::new(program());
    command
        .arg("serve")
        .env(variable, value)
        .stderr(Stdio::null());
    command
}

/// Whether a worker was split off. One that was made otherwise has `code-mode` and `worker` as separate arguments.
fn is_split(children: &[(String, u32)]) -> bool {
    split_off(children).is_some()
}

/// The worker that was split off.
fn split_off(children: &[(String, u32)]) -> Option<u32> {
    let mut children = children.iter().map(|(_, child)| *child);
    children.find(|child| {
        let cmdline = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        cmdline.starts_with(b"code-mode worker\0")
    })
}

#[test]
fn the_first_session_is_in_the_worker_that_was_split_off() {
    run(async {
        let (mut client, _, children) = serving(host_with("A", "1")).await;
        let worker = split_off(&children).expect("there");
        let source = "notify('runs'); await new Promise(() => {})";
        let cell = client.busy("a", source).await;
        send(worker, Signal::KILL);
        let end = client.initial_response(cell).await;
        assert!(end.to_string().contains("(SIGKILL)"), "{end}");
    });
}

#[test]
fn a_first_worker_that_ends_before_a_session_has_it_costs_none() {
    run(async {
        let mut client = Client::spawn(host_with("A", "1"));
        let host = client.process_id();
        let worker = loop {
            match split_off(&children_of(host)) {
                Some(worker) => break worker,
                None => tokio::task::yield_now().await,
            }
        };
        send(worker, Signal::KILL);
        client.hello(&[], &[]).await;
        client.open("a").await;
        let end = client.exec("a", "text('on')", &json!([])).await;
        assert!(end.to_string().contains("\"on\""), "{end}");
    });
}

#[test]
fn the_program_lies_elsewhere_in_memory_than_its_first_worker() {
    run(async {
        let (_client, host, children) = serving(host_with("A", "1")).await;
        assert!(is_split(&children), "{children:?}");
        let own = addresses(host);
        assert!(!own.is_empty());
        // A spare worker and its template may be there too, and lie elsewhere as well.
        let workers = children
            .iter()
            .filter(|(name, _)| name == "code-mode-worke");
        let workers: Vec<_> = workers.map(|(_, worker)| addresses(*worker)).collect();
        assert!(!workers.is_empty(), "{children:?}");
        for its in workers {
            assert!(!its.is_empty(), "{children:?}");
            for address in its {
                assert!(!own.contains(&address), "{address}");
            }
        }
    });
}

#[test]
fn a_program_that_has_split_has_its_name_its_arguments_and_its_environment() {
    let folder = tempfile::tempdir_in(program().parent().expect("a folder")).expect("a folder");
    let link = folder.path().join("codex-code-mode-host");
    fs::hard_link(program(), &link).expect("linked");
    run(async {
        let mut command = Command::new(&link);
        command.args(["--listen", "stdio"]).env("KEPT", "a value");
        command.stderr(Stdio::null());
        let (_client, host, children) = serving(command).await;
        assert!(is_split(&children), "{children:?}");
        assert_eq!(name(host), "codex-code-mode");
        let read = |file: &str| {
            let text = fs::read(format!("/proc/{host}/{file}")).expect("its own");
            String::from_utf8_lossy(&text).into_owned()
        };
        let expected = format!("{}\0--listen\0stdio\0", link.display());
        assert_eq!(read("cmdline"), expected);
        assert!(read("environ").contains("KEPT=a value\0"));
    });
}

#[test]
fn a_first_worker_does_not_know_by_which_name_the_program_was_started() {
    let folder = tempfile::tempdir().expect("a folder");
    let link = folder.path().join("an-unlikely-name-of-the-program");
    std::os::unix::fs::symlink(program(), &link).expect("linked");
    run(async {
        let mut command = Command::new(&link);
        command.arg("serve").stderr(Stdio::null());
        let (_client, host, children) = serving(command).await;
        assert!(is_split(&children), "{children:?}");
        let link = link.as_os_str().as_encoded_bytes();
        assert!(has(host, link), "the search finds it");
        for (name, child) in children {
            assert!(!has(child, link), "{name}");
        }
    });
}

#[test]
fn what_another_process_has_handed_over_is_not_taken() {
    run(async {
        // The first names process 1, and the others do not have the form.
        for handed in ["1 2 3 4 5 name", "\u{1f980}", ""] {
            let (_client, host, children) = serving(host_with(VARIABLE, handed)).await;
            assert!(is_split(&children), "{handed}: {children:?}");
            let name = name(host);
            assert!(program().ends_with(&name), "{handed}: {name}");
        }
    });
}

#[test]
fn what_is_handed_over_by_this_processs_number_but_is_no_worker_costs_nothing() {
    run(async {
        // A shell has the number of the program that takes its place. In turn: descriptors that are closed, one three
        // times, three of another kind, the standard streams, and numbers that are too large.
        for numbers in [
            "1 91 92 93",
            "1 5 5 5",
            "1 5 6 7",
            "1 0 1 2",
            "4294967295 5 6 4294967295",
        ] {
            let mut command = Command::new("bash");
            let script = format!(
                "exec 5</dev/null 6</dev/null 7</dev/null
                export {VARIABLE}=\"$$ {numbers} name\"
                exec \"$0\" serve"
            );
            command.args(["-c", &script]).arg(program());
            command.stderr(Stdio::null());
            let (mut client, _, children) = serving(command).await;
            assert!(!children.is_empty(), "{numbers}");
            client.end_of_input().await;
            assert!(client.exit().await.success(), "{numbers}");
        }
    });
}

#[test]
fn a_program_splits_unless_its_loader_was_told_what_to_do() {
    let told = [
        ("LD_PRELOAD", ""),
        ("LD_LIBRARY_PATH", "/nowhere"),
        ("LD_BIND_NOW", "1"),
        ("GLIBC_TUNABLES", "glibc.malloc.check=0"),
    ];
    run(async {
        let (_client, _, children) = serving(host_with("LD", "1")).await;
        assert!(is_split(&children), "{children:?}");
        for (variable, value) in told {
            let (_client, _, children) = serving(host_with(variable, value)).await;
            assert!(!children.is_empty(), "{variable}");
            assert!(!is_split(&children), "{variable}: {children:?}");
        }
    });
}

/// Starts a program with an environment that no shell would give it. Its second argument says how large that is: `0`
/// or `most`, with which the program's own variable does not fit.
const STARTER: &str = "
import ctypes, os, sys
program, command = os.fsencode(sys.argv[1]), b'serve'

def start(command, room):
    pairs = [b'B=first', b'B=second', b'NEITHER', b'=x=y', b'A=1']
    # A string may have 128 KiB.
    while room > 0:
        pairs.append(b'F=' + b'x' * min(room, 100000))
        room -= 100000
    argv = (ctypes.c_char_p * 3)(program, command, None)
    envp = (ctypes.c_char_p * (len(pairs) + 1))(*pairs, None)
    ctypes.CDLL(None).execve(program, argv, envp)

def fits(room):
    child = os.fork()
    if child == 0:
        nothing = os.open('/dev/null', os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        # Not a command, but as long as one.
        start(b'SERVE', room)
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 99

room, too_much = 0, 8 << 20
while sys.argv[2] == 'most' and too_much - room > 1:
    half = (room + too_much) // 2
    if fits(half):
        room = half
    else:
        too_much = half
start(command, room)
";

#[test]
fn a_program_has_its_environment_as_it_was_given_whether_it_can_start_anew_or_not() {
    // The kernel counts the path too, and the program starts itself anew by another one, which must not be shorter by as much
    // as its variable needs.
    let folder = tempfile::tempdir().expect("a folder");
    let link = folder.path().join("p");
    std::os::unix::fs::symlink(program(), &link).expect("linked");
    run(async {
        for (size, can_start_anew) in [("0", true), ("most", false)] {
            let mut command = Command::new("python3");
            command.args(["-c", STARTER]).arg(&link).arg(size);
            command.stderr(Stdio::null());
            let (_client, host, children) = serving(command).await;
            assert_eq!(is_split(&children), can_start_anew, "{size}: {children:?}");
            let environment = fs::read(format!("/proc/{host}/environ")).expect("its own");
            let start = b"B=first\0B=second\0NEITHER\0=x=y\0A=1\0";
            assert!(environment.starts_with(start), "{size}");
            let status = fs::read_to_string(format!("/proc/{host}/status")).expect("its own");
            let ignored = status
                .lines()
                .find_map(|line| line.strip_prefix("SigIgn:\t"));
            let ignored = u64::from_str_radix(ignored.expect("a mask"), 16).expect("a number");
            // The bit of SIGPIPE: a reader that has gone is an error, and ends nothing.
            assert_ne!(ignored & (1 << 12), 0, "{size}: {status}");
        }
    });
}
