//! `code-mode generate`: the man pages and the completions of the packages, from the arguments.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;
use code_mode_system::say;

/// The options of `code-mode generate`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The folder to write to; it is made where it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Writes `man/*.1` and `completions/*`.
pub(crate) fn main(args: &Args, command_line: Command) -> ExitCode {
    match write(&args.folder, command_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("code-mode generate: {}: {error}", args.folder.display());
            ExitCode::from(crate::RUNTIME_FAILED)
        }
    }
}

fn write(folder: &Path, mut command_line: Command) -> io::Result<()> {
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    std::fs::create_dir_all(&man)?;
    std::fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell] {
        clap_complete::generate_to(shell, &mut command_line, "code-mode", &completions)?;
    }
    clap_mangen::generate_to(command_line, &man)
}
