//! The program `code-mode`: JavaScript cells in sandboxed worker processes.
//!
//! `main.rs` calls [`main`] and nothing else. The rest is here so that tests and fuzz
//! targets can reach it; it promises nothing to other programs.

#[cfg(unix)]
mod address_space;
mod approvals;
mod args;
mod doctor;
mod generate;
mod journal;
mod large_buffers;
mod mcp;
mod replay;
mod run;
mod serve;
mod telemetry;
mod timeline;
mod trace_file;
mod units;
mod worker;

pub use large_buffers::LargeBuffers;
pub use run::tools_file;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use code_mode_system::say;

/// Started under this name, the program is `code-mode serve`.
const CODEX_HOST_NAME: &str = "codex-code-mode-host";

/// Exit status where the command line cannot be understood; clap's own too.
const WRONG_USAGE: u8 = 2;

/// Exit status where the runtime cannot serve the request.
const RUNTIME_FAILED: u8 = 3;

/// The options of a command.
trait Arguments: FromArgMatches {
    /// Where its traces and metrics go.
    fn telemetry(&self) -> Option<&telemetry::TelemetryArgs> {
        None
    }

    /// What it wants of them besides.
    fn wanted(&self) -> telemetry::Wanted {
        telemetry::Wanted::default()
    }
}

impl Arguments for approvals::Args {}
impl Arguments for journal::Args {}
impl Arguments for timeline::Args {}
impl Arguments for replay::Args {}
impl Arguments for doctor::Args {}
impl Arguments for worker::Args {}
impl Arguments for generate::Args {}
impl Arguments for run::Args {
    fn telemetry(&self) -> Option<&telemetry::TelemetryArgs> {
        Some(&self.telemetry)
    }
}
impl Arguments for serve::Args {
    fn telemetry(&self) -> Option<&telemetry::TelemetryArgs> {
        Some(&self.telemetry)
    }

    fn wanted(&self) -> telemetry::Wanted {
        telemetry::Wanted {
            metrics_page: self.has_metrics_page(),
            is_host: true,
            serves: true,
            reports: false,
        }
    }
}
impl Arguments for mcp::Args {
    fn telemetry(&self) -> Option<&telemetry::TelemetryArgs> {
        (!self.is_shim()).then_some(&self.telemetry)
    }

    fn wanted(&self) -> telemetry::Wanted {
        let reports = self.reports();
        telemetry::Wanted {
            serves: !reports,
            reports,
            ..Default::default()
        }
    }
}

const ABOUT: &str = "Run JavaScript cells for an AI agent, outside its process, with no access to \
                     anything but the tools it hands in";
const RUN: &str = "Run one script as a cell and print what it outputs";
const SERVE: &str = "Serve the wires of the Codex CLI's code-mode host, stdio and gRPC";
const MCP: &str = "Serve the tools of many MCP servers as one tool that runs programs";
const JOURNAL: &str = "List, show, remove and check durable sessions";
const APPROVALS: &str = "List, allow and deny the questions of durable programs";
const TIMELINE: &str = "Make a page and a Chrome trace of a trace";
const REPLAY: &str = "Run the cells of a trace again and say what differs";
const DOCTOR: &str = "Show the runtime, its sandbox and its limits, and test the sandbox";
const GENERATE: &str = "Write the man pages and the completions of the packages";
const WORKER: &str = "Run a session's cells for the provider that started this process";

/// The command line. The options of a command are made only where it is the one
/// that is meant: all of them are a good part of the time that a worker takes to
/// start.
fn command_line() -> Command {
    Command::new("code-mode")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .max_term_width(100)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            Command::new("run")
                .about(RUN)
                .defer(|command| run::Args::augment_args(command).about(RUN)),
            Command::new("serve")
                .about(SERVE)
                .defer(|command| serve::Args::augment_args(command).about(SERVE)),
            Command::new("mcp")
                .about(MCP)
                .defer(|command| mcp::Args::augment_args(command).about(MCP)),
            Command::new("approvals")
                .about(APPROVALS)
                .defer(|command| approvals::Args::augment_args(command).about(APPROVALS)),
            Command::new("journal")
                .about(JOURNAL)
                .defer(|command| journal::Args::augment_args(command).about(JOURNAL)),
            Command::new("timeline")
                .about(TIMELINE)
                .defer(|command| timeline::Args::augment_args(command).about(TIMELINE)),
            Command::new("replay")
                .about(REPLAY)
                .defer(|command| replay::Args::augment_args(command).about(REPLAY)),
            Command::new("doctor")
                .about(DOCTOR)
                .defer(|command| doctor::Args::augment_args(command).about(DOCTOR)),
            Command::new("generate")
                .hide(true)
                .about(GENERATE)
                .defer(|command| generate::Args::augment_args(command).about(GENERATE)),
            Command::new("worker")
                .about(WORKER)
                .defer(|command| worker::Args::augment_args(command).about(WORKER)),
        ])
}

/// Runs the command that the arguments name. Returns its exit status.
pub fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if let Some(done) = worker::template::at_start() {
        return done;
    }
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let started_as_codex_host = arguments
        .first()
        .and_then(|program| Path::new(program).file_stem()?.to_str())
        == Some(CODEX_HOST_NAME);
    if started_as_codex_host {
        arguments.insert(1, "serve".into());
    }
    #[cfg(target_os = "linux")]
    if let Some([command, mark]) = arguments.get(1..3)
        && command == "guard"
    {
        // Started by this program itself, for what it starts.
        code_mode_system::guard(&mark.to_string_lossy());
        return ExitCode::SUCCESS;
    }
    let done = command_line()
        .try_get_matches_from(arguments)
        .and_then(|matches| match matches.subcommand() {
            Some(("run", matches)) => start(run::main, matches),
            Some(("serve", matches)) => start(serve::main, matches),
            Some(("mcp", matches)) => start(mcp::main, matches),
            Some(("approvals", matches)) => start(approvals::main, matches),
            Some(("journal", matches)) => start(journal::main, matches),
            Some(("timeline", matches)) => start(timeline::main, matches),
            Some(("replay", matches)) => start(replay::main, matches),
            Some(("doctor", matches)) => start(doctor::main, matches),
            Some(("generate", matches)) => start(
                |args: generate::Args| generate::main(&args, command_line()),
                matches,
            ),
            Some(("worker", matches)) => start(worker::main, matches),
            _ => Err(command_line().error(ErrorKind::MissingSubcommand, "a command is needed")),
        });
    done.unwrap_or_else(|error| {
        let _ = error.print();
        ExitCode::from(if error.use_stderr() { WRONG_USAGE } else { 0 })
    })
}

/// Has what this program starts guarded, and ends all that is below it after `work`.
async fn with_children<T>(work: impl Future<Output = T>) -> T {
    /// How long the last processes may take to end.
    const TIME: std::time::Duration = std::time::Duration::from_secs(1);
    #[cfg(target_os = "linux")]
    if let Ok(program) = std::env::current_exe() {
        code_mode_system::guard_with(program);
    }
    let children = code_mode_system::Children::adopt();
    let done = work.await;
    children.end(TIME).await;
    done
}

/// Runs a command with its options. In one function with the others, it would have a stack for all their
/// options and tasks, which the kernel must make before the first of them runs.
#[inline(never)]
fn start<A: Arguments>(
    command: fn(A) -> ExitCode,
    matches: &ArgMatches,
) -> Result<ExitCode, clap::Error> {
    let arguments = A::from_arg_matches(matches)?;
    let _telemetry = match arguments.telemetry() {
        None => {
            telemetry::log_only();
            None
        }
        Some(asked) => match asked.begin(arguments.wanted()) {
            Ok(telemetry) => Some(telemetry),
            Err(error) => {
                say!("code-mode: {error}");
                return Ok(ExitCode::from(RUNTIME_FAILED));
            }
        },
    };
    Ok(command(arguments))
}
