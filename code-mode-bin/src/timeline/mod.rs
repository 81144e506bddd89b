//! `code-mode timeline`: a trace as pictures.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use code_mode_host::{TraceEvent, TraceLine};
use code_mode_system::{say, show};
use serde_json::{Value, json};

use crate::trace_file::{self, TraceError};

/// The page; `TRACE` in it stands for the events.
const PAGE: &str = include_str!("page.html");
const PLACE: &str = "/*TRACE*/[]";

/// The options of `code-mode timeline`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Writes FILE.html, a page that needs no server and no network, and FILE.chrome.json, for
ui.perfetto.dev and chrome://tracing. Exit status: 0 written, 2 no trace, 3 not written.

Example: code-mode run --trace t.jsonl main.js && code-mode timeline t.jsonl")]
pub(crate) struct Args {
    /// A trace of `code-mode run --trace`
    #[arg(value_name = "FILE")]
    trace: PathBuf,
    /// Write the page here instead
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the Chrome trace here instead
    #[arg(long, value_name = "FILE")]
    chrome: Option<PathBuf>,
}

/// Writes both pictures.
pub(crate) fn main(args: Args) -> ExitCode {
    match write(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("code-mode timeline: {error}");
            error.exit_code()
        }
    }
}

fn write(args: &Args) -> Result<(), TraceError> {
    let lines = trace_file::read(&args.trace)?;
    let beside = |extension: &str| {
        let mut name = args.trace.clone().into_os_string();
        name.push(extension);
        PathBuf::from(name)
    };
    let html = args.html.clone().unwrap_or_else(|| beside(".html"));
    let chrome = args
        .chrome
        .clone()
        .unwrap_or_else(|| beside(".chrome.json"));
    put(&html, &page(&lines))?;
    put(&chrome, &chrome_trace(&lines).to_string())?;
    show!("{}\n{}", html.display(), chrome.display());
    Ok(())
}

fn put(path: &Path, text: &str) -> Result<(), TraceError> {
    std::fs::write(path, text).map_err(|error| TraceError::Write {
        path: path.to_owned(),
        error,
    })
}

/// The page with the events in it. They are data of strangers: nothing in them may end
/// the script around them.
fn page(lines: &[TraceLine]) -> String {
    let events = serde_json::to_string(lines).unwrap_or_else(|_| "[]".to_owned());
    let harmless = events
        .replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029");
    PAGE.replace(PLACE, &harmless)
}

/// The events in the format of Chrome's trace viewer, whose times are microseconds.
fn chrome_trace(lines: &[TraceLine]) -> Value {
    let mut events = Vec::new();
    let micros = |ms: f64| (ms * 1000.0).round();
    for line in lines {
        let at = micros(line.at_ms);
        let mut add = |phase: &str, name: &str, cell: &str, id: &str, args: Value| {
            events.push(json!({
                "ph": phase, "name": name, "cat": "code-mode", "ts": at, "pid": 1,
                "tid": cell.parse::<u64>().unwrap_or(0), "id": format!("{cell}/{id}"), "args": args,
            }));
        };
        match &line.event {
            TraceEvent::CellStarted { cell } => add("b", "cell", cell, "cell", json!({})),
            TraceEvent::CellEnded {
                cell,
                outcome,
                used,
                ..
            } => {
                add(
                    "e",
                    "cell",
                    cell,
                    "cell",
                    json!({"outcome": outcome, "used": used}),
                );
            }
            TraceEvent::CallStarted {
                cell,
                call,
                tool,
                input_bytes,
                ..
            } => {
                add(
                    "b",
                    &tool.name,
                    cell,
                    call,
                    json!({"input_bytes": input_bytes}),
                );
            }
            TraceEvent::CallFinished {
                cell,
                call,
                outcome,
                output_bytes,
                ..
            } => {
                let name = name_of(lines, cell, call);
                let args = json!({"outcome": outcome, "output_bytes": output_bytes});
                add("e", name, cell, call, args);
            }
            TraceEvent::Notified { cell, bytes, .. } => {
                add("n", "notification", cell, "cell", json!({"bytes": bytes}));
            }
            TraceEvent::Observed {
                cell,
                yielded: true,
                bytes,
                ..
            } => {
                add("n", "yield", cell, "cell", json!({"bytes": bytes}));
            }
            _ => {}
        }
    }
    json!({"traceEvents": events, "displayTimeUnit": "ms"})
}

fn name_of<'a>(lines: &'a [TraceLine], of: &str, id: &str) -> &'a str {
    let started = lines.iter().find_map(|line| match &line.event {
        TraceEvent::CallStarted {
            cell, call, tool, ..
        } if cell == of && call == id => Some(tool.name.as_str()),
        _ => None,
    });
    started.unwrap_or("call")
}
