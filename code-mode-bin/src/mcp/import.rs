//! `code-mode mcp import`.

use std::path::PathBuf;
use std::process::ExitCode;

use code_mode_mcp::import::{Folders, ImportError, Imported, undo};
use code_mode_system::{say, show};

use super::Failure;

#[derive(clap::Args, Debug)]
pub(super) struct ImportArgs {
    /// Write the servers here [default: code-mode/servers.json in the user's folder for configurations]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Show what would be written, and write nothing
    #[arg(long, conflicts_with_all = ["install", "undo"])]
    dry_run: bool,
    /// Put code-mode into the clients' files in place of these servers; a copy is kept beside each
    #[arg(long)]
    install: bool,
    /// Give the clients their files back
    #[arg(long, conflicts_with_all = ["install", "out"])]
    undo: bool,
}

pub(super) fn import(args: &ImportArgs) -> Result<ExitCode, Failure> {
    let folders = Folders::of_user().ok_or(Failure::NoHome)?;
    if args.undo {
        let done = undo(&folders);
        if done.is_empty() {
            say!("no client's file was changed");
        }
        return Ok(report(done));
    }
    let servers = args.out.clone().unwrap_or_else(|| folders.servers());
    let servers = std::path::absolute(&servers)?;
    let imported = match Imported::find(&folders, &servers) {
        Ok(imported) => imported,
        Err(error) => return Ok(report(vec![Err(error)])),
    };
    for line in imported.lines() {
        say!("{line}");
    }
    if imported.count() == 0 {
        say!("no client has a server that can be imported");
        return Ok(ExitCode::FAILURE);
    }
    if args.dry_run {
        show!("{:#}", imported.document());
        return Ok(ExitCode::SUCCESS);
    }
    imported.write(&servers)?;
    say!("{} servers are in {}", imported.count(), servers.display());
    let program = std::env::current_exe()?;
    if !args.install {
        say!(
            "Write this into your clients' files in place of their servers, or have it written: --install"
        );
        for entry in imported.entries(&program, &servers) {
            show!("{entry}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    Ok(report(imported.install(&program, &servers)))
}

fn report(done: Vec<Result<String, ImportError>>) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for one in done {
        match one {
            Ok(line) => show!("{line}"),
            Err(error) => {
                say!("code-mode mcp import: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
