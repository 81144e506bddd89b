//! `code-mode doctor`: what this machine gives a worker.

use std::process::ExitCode;

use code_mode_host::{
    Examiner, ExitReason, LayerState, Limits, ProviderError, SandboxLayer, WorkerReport,
};
use code_mode_sandbox::{Expected, PROBES};
use code_mode_system::{say, show};
use serde_json::{Value, json};

use crate::args::RuntimeArgs;
use crate::units::{Bytes, Time};

/// The options of `code-mode doctor`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exit status: 0 every layer holds and every probe was refused, 1 not so, 2 wrong options, 3 no worker can
be started.")]
pub(crate) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// The signal of a forbidden system call.
const SIGSYS: i32 = 31;

/// One forbidden thing, and what came of it.
struct Probed {
    name: &'static str,
    refused: bool,
    what: String,
}

/// Starts real workers and shows what they find.
pub(crate) fn main(args: Args) -> ExitCode {
    if args.runtime.no_sandbox {
        // A probe that succeeds makes another program of the worker.
        say!(
            "code-mode doctor: it tries what the sandbox forbids, so it needs one: leave out --no-sandbox"
        );
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let examined = runtime.block_on(examine(&args.runtime));
    let (info, probes) = match examined {
        Ok(examined) => examined,
        Err(error) => return failed(&error),
    };
    let limits = args.runtime.limits.limits();
    if args.json {
        show!("{:#}", as_json(&info, &limits, &probes));
    } else {
        print(&info, &limits, &probes);
    }
    let wrong = wrong(&info, &probes);
    if !args.json {
        match &wrong {
            None => {
                show!("\nAll is well: every layer holds, and everything forbidden was refused.")
            }
            Some(wrong) => show!("\nNot well: {wrong}."),
        }
    }
    ExitCode::from(u8::from(wrong.is_some()))
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    say!("code-mode doctor: {error}");
    ExitCode::from(3)
}

async fn examine(runtime: &RuntimeArgs) -> Result<(WorkerReport, Vec<Probed>), ProviderError> {
    let examiner = Examiner::new(runtime.provider_options())?;
    let info = examiner.report().await?;
    let mut probes = Vec::new();
    if runtime.worker_host.is_some() {
        // Only the machine's owner may run the probes in its workers.
        return Ok((info, probes));
    }
    for (name, expected) in PROBES {
        probes.push(match examiner.probe(name).await? {
            Err(ExitReason::Signalled(SIGSYS)) => Probed {
                name,
                refused: true,
                what: "killed the process".to_owned(),
            },
            Err(reason) => Probed {
                name,
                refused: false,
                what: format!("the process {reason}"),
            },
            Ok(what) => {
                let what = what.unwrap_or_else(|| "unknown probe".to_owned());
                Probed {
                    name,
                    refused: *expected == Expected::Refused && !what.starts_with("allowed"),
                    what,
                }
            }
        });
    }
    Ok((info, probes))
}

fn limits_in_force(limits: &Limits) -> Vec<(&'static str, Value)> {
    let ms = |time: Option<std::time::Duration>| match time {
        Some(time) => json!(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        None => Value::Null,
    };
    vec![
        ("max_heap_bytes", json!(limits.heap_bytes())),
        ("max_cpu_time_ms", ms(limits.max_cpu_time)),
        ("max_wall_time_ms", ms(limits.max_wall_time)),
        ("max_yield_time_ms", ms(limits.max_yield_time)),
        ("max_output_bytes", json!(limits.max_output_bytes)),
        ("max_live_cells", json!(limits.max_live_cells)),
        ("max_ended_cells", json!(limits.max_ended_cells)),
        ("max_ended_bytes", json!(limits.max_ended_bytes)),
        (
            "max_pending_tool_calls",
            json!(limits.max_pending_tool_calls),
        ),
        ("max_pending_timers", json!(limits.max_pending_timers)),
        ("max_stored_bytes", json!(limits.max_stored_bytes)),
        ("max_frame_bytes", json!(limits.max_frame_bytes)),
    ]
}

fn limits_in_words(limits: &Limits) -> Vec<(&'static str, String)> {
    let bytes = |bytes: usize| Bytes(bytes).to_string();
    let time = |time: Option<std::time::Duration>| match time {
        Some(time) => Time(time).to_string(),
        None => "none".to_owned(),
    };
    vec![
        ("--max-heap", bytes(limits.heap_bytes())),
        ("--max-cpu-time", time(limits.max_cpu_time)),
        ("--max-wall-time", time(limits.max_wall_time)),
        ("--max-yield-time", time(limits.max_yield_time)),
        ("--max-output", bytes(limits.max_output_bytes)),
        ("--max-live-cells", limits.max_live_cells.to_string()),
        ("--max-ended-cells", limits.max_ended_cells.to_string()),
        ("--max-ended", bytes(limits.max_ended_bytes)),
        (
            "--max-pending-tool-calls",
            limits.max_pending_tool_calls.to_string(),
        ),
        (
            "--max-pending-timers",
            limits.max_pending_timers.to_string(),
        ),
        ("--max-stored", bytes(limits.max_stored_bytes)),
        ("--max-frame", bytes(limits.max_frame_bytes)),
    ]
}

/// The problems in one line for a person; `None` where the sandbox is complete.
fn wrong(info: &WorkerReport, probes: &[Probed]) -> Option<String> {
    let missing = SandboxLayer::missing(&info.sandbox).len();
    let allowed = probes.iter().filter(|probe| !probe.refused).count();
    match (missing, allowed) {
        (0, 0) => None,
        (missing, allowed) => Some(format!(
            "{missing} of {} layers are missing, {allowed} of {} forbidden things were allowed",
            info.sandbox.len(),
            probes.len()
        )),
    }
}

fn print(info: &WorkerReport, limits: &Limits, probes: &[Probed]) {
    show!("code-mode {}", env!("CARGO_PKG_VERSION"));
    let heap_sandbox = match info.v8_heap_sandbox {
        true => "with its heap sandbox",
        false => "without its heap sandbox, which this platform's build of V8 does not have",
    };
    show!("V8        {}, {heap_sandbox}", info.v8_version);
    match info.is_copy {
        Some(true) => show!("Workers   copies of a process that has loaded the program"),
        Some(false) => show!("Workers   started from the program's file, each for itself"),
        None => {}
    }
    show!("\nSandbox of a worker");
    for layer in &info.sandbox {
        let (mark, what) = match &layer.state {
            LayerState::Holds(how) => ("holds", how),
            LayerState::Missing(why) => ("MISSING", why),
        };
        show!("  {:18} {mark:8} {what}", layer.name);
    }
    show!("\nLimits, and the options that set them");
    for (option, value) in limits_in_words(limits) {
        show!("  {option:24} {value:>12}");
    }
    if probes.is_empty() {
        show!("\nForbidden things and limits in force are shown on the host itself");
        return;
    }
    show!("\nForbidden things, tried natively inside a locked-in worker");
    for probe in probes {
        let mark = if probe.refused { "refused" } else { "ALLOWED" };
        show!("  {:24} {mark:8} {}", probe.name, probe.what);
    }
}

fn as_json(info: &WorkerReport, limits: &Limits, probes: &[Probed]) -> Value {
    let layers: Vec<_> = info
        .sandbox
        .iter()
        .map(|layer| match &layer.state {
            LayerState::Holds(how) => json!({"name": layer.name, "holds": true, "how": how}),
            LayerState::Missing(why) => json!({"name": layer.name, "holds": false, "why": why}),
        })
        .collect();
    let probes: Vec<_> = probes
        .iter()
        .map(|p| json!({"name": p.name, "refused": p.refused, "what": p.what}))
        .collect();
    let limits: serde_json::Map<String, Value> = limits_in_force(limits)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "v8_version": info.v8_version,
        "v8_heap_sandbox": info.v8_heap_sandbox,
        "workers_are_copies": info.is_copy,
        "sandbox": layers,
        "limits": limits,
        "probes": probes,
    })
}
