//! Templates: processes of which workers are copies.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use code_mode_host::{Limits, Provider, Sandbox};
use rustix::process::{Pid, Signal, kill_process};

use crate::processes::descendants;
use crate::stdio_client::Client;
use crate::support::{Agent, alone, exec, options, own_processes, program, run, session_of, texts};

/// What the program is started with, and no process of its cells may have.
const SECRET: &str = "an-unlikely-needle-in-the-memory-of-a-process";

/// What a process calls itself, in at most 15 bytes.
pub(crate) fn name(process: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{process}/comm"));
    name.unwrap_or_default().trim_end().to_owned()
}

/// Whether a process has these bytes anywhere in its memory.
pub(crate) fn has(process: u32, needle: &[u8]) -> bool {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).expect("its maps");
    let mut memory = fs::File::open(format!("/proc/{process}/mem")).expect("its memory");
    maps.lines().any(|line| {
        let (range, rest) = line.split_once(' ').expect("a range");
        let (start, end) = range.split_once('-').expect("two ends");
        let address = |text| u64::from_str_radix(text, 16).expect("an address");
        let (start, end) = (address(start), address(end));
        // The memory that it can write; the program's file has no secret.
        if !rest.starts_with("rw") || memory.seek(SeekFrom::Start(start)).is_err() {
            return false;
        }
        let mut content = Vec::new();
        let _ = (&mut memory).take(end - start).read_to_end(&mut content);
        memchr::memmem::find(&content, needle).is_some()
    })
}

#[test]
fn neither_a_template_nor_a_worker_has_what_the_program_was_started_with() {
    run(async {
        let mut command = tokio::process::Command::new(program());
        command
            .args(["serve", "--otel-trace-exporter"])
            .arg(format!("http://127.0.0.1:1/{SECRET}"))
            .env("A_SECRET", SECRET)
            .stderr(Stdio::null());
        let mut client = Client::spawn(command);
        client.hello(&[], &[]).await;
        for session in ["a", "b"] {
            client.open(session).await;
            client
                .exec(session, "text(1)", &serde_json::json!([]))
                .await;
        }
        let host = client.process_id();
        assert!(has(host, SECRET.as_bytes()), "the search finds the secret");
        let processes = descendants(host);
        let names: Vec<_> = processes.iter().map(|process| name(*process)).collect();
        for kind in ["code-mode-templ", "code-mode-worke"] {
            assert!(names.iter().any(|name| name == kind), "{kind} in {names:?}");
        }
        for process in processes {
            for file in ["environ", "cmdline"] {
                let said = fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
                let said = String::from_utf8_lossy(&said);
                assert!(
                    !said.contains(SECRET),
                    "{file} of {}: {said}",
                    name(process)
                );
            }
            assert!(!has(process, SECRET.as_bytes()), "{}", name(process));
            // The standard streams, a connection that the runtime made for itself, and what it polls.
            let open = fs::read_dir(format!("/proc/{process}/fd")).expect("its descriptors");
            for open in open.flatten() {
                let what = fs::read_link(open.path()).unwrap_or_default();
                let what = what.to_string_lossy();
                let is_own = [
                    "socket:",
                    "pipe:",
                    "anon_inode:",
                    "/dev/null",
                    "/dev/urandom",
                ];
                assert!(
                    is_own.iter().any(|own| what.starts_with(own)),
                    "{} has {what}",
                    name(process)
                );
            }
        }
    });
}

#[test]
fn each_worker_of_a_template_is_alone_in_its_namespaces() {
    if !alone("templates::each_worker_of_a_template_is_alone_in_its_namespaces") {
        return;
    }
    run(async {
        let (provider, _) = with_template().await;
        let mut sessions = Vec::new();
        for _ in 0..3 {
            let session =
                session_of(&provider, Arc::new(Agent::default()), Limits::default()).await;
            exec(&session, "text(1)").await;
            sessions.push(session);
        }
        let workers = own_processes().into_iter();
        let workers: Vec<_> = workers
            .filter(|process| name(*process) == "code-mode-worke")
            .collect();
        assert!(workers.len() >= sessions.len(), "{workers:?}");
        for kind in ["user", "pid", "mnt", "net", "ipc", "uts"] {
            let of = |process| {
                let link = fs::read_link(format!("/proc/{process}/ns/{kind}"));
                link.expect("a namespace of this process's child")
            };
            let mut seen = vec![of(std::process::id())];
            for worker in &workers {
                let its = of(*worker);
                assert!(
                    !seen.contains(&its),
                    "{kind}: {its:?} of {worker}: {seen:?}"
                );
                seen.push(its);
            }
        }
    });
}

#[test]
fn workers_without_a_sandbox_are_copies_too() {
    if !alone("templates::workers_without_a_sandbox_are_copies_too") {
        return;
    }
    run(async {
        let options = options().prewarmed(0).sandbox(Sandbox::Off);
        let provider = Provider::new(options).expect("the program is there");
        let mut sessions = Vec::new();
        for _ in 0..4 {
            let session =
                session_of(&provider, Arc::new(Agent::default()), Limits::default()).await;
            exec(&session, "text(1)").await;
            sessions.push(session);
        }
        let copies = own_processes().into_iter().filter(|process| {
            let cmdline = fs::read_to_string(format!("/proc/{process}/cmdline"));
            cmdline.unwrap_or_default().contains("--template")
                && name(*process) == "code-mode-worke"
        });
        assert_eq!(
            copies.count(),
            3,
            "all but the first, which is from the file"
        );
    });
}

/// A provider whose second worker has started its template, and the template.
async fn with_template() -> (Provider, u32) {
    let provider = Provider::new(options().prewarmed(0)).expect("the program is there");
    for _ in 0..2 {
        let session = session_of(&provider, Arc::new(Agent::default()), Limits::default()).await;
        exec(&session, "text(1)").await;
    }
    let all = own_processes();
    let template = all.into_iter().find(|process| {
        let cmdline = fs::read_to_string(format!("/proc/{process}/cmdline"));
        cmdline.unwrap_or_default().contains("--template") && name(*process) == "code-mode-templ"
    });
    (provider, template.expect("a template"))
}

async fn works(provider: &Provider) {
    let session = session_of(provider, Arc::new(Agent::default()), Limits::default()).await;
    assert_eq!(texts(&exec(&session, "text('on')").await), ["on"]);
}

#[test]
fn a_template_that_is_killed_or_stands_still_costs_no_session() {
    if !alone("templates::a_template_that_is_killed_or_stands_still_costs_no_session") {
        return;
    }
    run(async {
        for signal in [Signal::KILL, Signal::STOP] {
            let (provider, template) = with_template().await;
            let template = Pid::from_raw(template.cast_signed()).expect("a process");
            kill_process(template, signal).expect("sent");
            works(&provider).await;
            works(&provider).await;
            provider.shutdown().await;
        }
    });
}

#[test]
fn doctor_looks_at_workers_that_are_made_as_those_of_sessions() {
    let output = std::process::Command::new(program())
        .args(["doctor", "--json"])
        .output()
        .expect("it starts");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(report["workers_are_copies"], true, "{report}");
}

#[test]
fn a_link_with_the_name_of_the_codex_host_starts_workers_from_the_file_too() {
    let folder = tempfile::tempdir_in(program().parent().expect("a folder")).expect("a folder");
    let link = folder.path().join("codex-code-mode-host");
    fs::hard_link(program(), &link).expect("linked");
    run(async {
        let mut command = tokio::process::Command::new(&link);
        // Without a user's namespaces, the file is the way.
        command.args(["--no-sandbox"]).stderr(Stdio::null());
        let mut client = Client::spawn(command);
        client.hello(&[], &[]).await;
        for session in ["a", "b", "c"] {
            client.open(session).await;
            client
                .exec(session, "text(1)", &serde_json::json!([]))
                .await;
            for process in descendants(client.process_id()) {
                if name(process) == "code-mode-templ" {
                    let process = Pid::from_raw(process.cast_signed()).expect("a process");
                    kill_process(process, Signal::KILL).expect("sent");
                }
            }
        }
    });
}

#[test]
fn a_program_short_of_descriptors_has_no_worker_with_less_of_a_sandbox_and_leaves_no_process() {
    run(async {
        for limit in [16, 20, 24, 28, 32, 40] {
            let log = tempfile::NamedTempFile::new().expect("a file");
            let mut command = tokio::process::Command::new("sh");
            let script = format!("ulimit -n {limit}; exec \"$0\" serve");
            command.args(["-c", &script]).arg(program());
            command.stderr(log.reopen().expect("opened"));
            let mut client = Client::spawn(command);
            client.hello(&[], &[]).await;
            let names: Vec<String> = (0..6).map(|number| format!("s{number}")).collect();
            for session in &names {
                // It may fail for want of descriptors.
                client.open(session).await;
            }
            for session in &names {
                let shutdown =
                    serde_json::json!({"method": "session/shutdown", "sessionId": session});
                let id = client.request(shutdown).await;
                client.response(id).await;
            }
            let host = client.process_id();
            let zombies = || {
                let ended = |process: &u32| {
                    let stat = fs::read_to_string(format!("/proc/{process}/stat"));
                    stat.is_ok_and(|stat| stat.contains(") Z "))
                };
                descendants(host).into_iter().filter(ended).count()
            };
            // Nothing tells when a process that has ended was waited for.
            while zombies() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let said = fs::read_to_string(log.path()).expect("a log");
            assert!(!said.contains("without a part"), "{limit}: {said}");
        }
    });
}
