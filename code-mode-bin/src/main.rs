//! The program `code-mode`: JavaScript cells in sandboxed worker processes.

#[cfg(unix)]
mod address_space;
mod args;
mod doctor;
#[cfg(target_os = "linux")]
mod large_pages;
mod run;
mod sandbox;
mod stdio;
mod worker;

use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Started under this name, the program is `code-mode serve`.
const CODEX_HOST_NAME: &str = "codex-code-mode-host";

/// Exit status where the command line cannot be understood; clap's own too.
const WRONG_USAGE: u8 = 2;

/// Run JavaScript cells for an AI agent, outside its process, with no access to
/// anything but the tools it hands in.
#[derive(Parser)]
#[command(name = "code-mode", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one script as a cell and print what it outputs.
    Run(run::Args),
    /// Serve the stdio wire (version 1) of the Codex CLI's code-mode host.
    Serve(stdio::Args),
    /// Show the runtime, its sandbox and its limits, and test the sandbox.
    Doctor(doctor::Args),
    /// Run a session's cells for the provider that started this process.
    Worker(worker::Args),
}

fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let started_as_codex_host = arguments
        .first()
        .and_then(|program| Path::new(program).file_stem()?.to_str())
        == Some(CODEX_HOST_NAME);
    if started_as_codex_host {
        arguments.insert(1, "serve".into());
    }
    let cli = match Cli::command()
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches))
    {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { WRONG_USAGE } else { 0 });
        }
    };
    log_to_stderr();
    match cli.command {
        Command::Run(args) => run::main(args),
        Command::Serve(args) => stdio::main(args),
        Command::Doctor(args) => doctor::main(args),
        Command::Worker(args) => worker::main(args),
    }
}

/// Logs go to standard error, as many as `RUST_LOG` asks for; by default errors.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}
