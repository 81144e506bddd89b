//! Templates: processes of which workers are copies.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::process::Stdio;
use std::sync::Arc;

use code_mode_host::{Limits, Provider};
use rustix::process::{Pid, Signal, kill_process};

use crate::processes::descendants;
use crate::stdio_client::Client;
use crate::support::{Agent, exec, options, program, run, session_of, texts};

/// What the program is started with, and no process of its cells may have.
const SECRET: &str = "an-unlikely-needle-in-the-memory-of-a-process";

/// What a process calls itself, in at most 15 bytes.
pub(crate) fn name(process: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{process}/comm"));
    name.unwrap_or_default().trim_end().to_owned()
}

/// Whether a process has these bytes anywhere in its memory.
fn has(process: u32, needle: &[u8]) -> bool {
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
        }
    });
}

/// A provider whose second worker has started its template, and the template.
async fn with_template() -> (Provider, u32) {
    let provider = Provider::new(options().prewarmed(0)).expect("the program is there");
    for _ in 0..2 {
        let session = session_of(&provider, Arc::new(Agent::default()), Limits::default()).await;
        exec(&session, "text(1)").await;
    }
    let all = descendants(std::process::id());
    let template = all.into_iter().find(|process| {
        let cmdline = fs::read_to_string(format!("/proc/{process}/cmdline"));
        cmdline.unwrap_or_default().contains("--template") && name(*process) == "code-mode"
    });
    (provider, template.expect("a template"))
}

async fn works(provider: &Provider) {
    let session = session_of(provider, Arc::new(Agent::default()), Limits::default()).await;
    assert_eq!(texts(&exec(&session, "text('on')").await), ["on"]);
}

#[test]
fn a_template_that_is_killed_or_stands_still_costs_no_session() {
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
