//! Templates, of which workers are copies, before anything else of the program runs.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use code_mode_sandbox::template::{Role, serve};

use crate::CODEX_HOST_NAME;

/// Is a template where this program was started as one, and starts one where workers are expected.
/// In a template and in its copies this returns what the process ends with.
pub(crate) fn at_start(arguments: &[OsString]) -> Option<ExitCode> {
    if !is_template(arguments) {
        if expects_workers(arguments) {
            // It loads while the options are read. Where they are wrong, it ends with this process.
            code_mode_host::load_ahead();
        }
        return None;
    }
    match serve() {
        Role::Template => Some(ExitCode::SUCCESS),
        Role::Worker(settings) => Some(super::main_of_copy(&settings)),
    }
}

fn is_template(arguments: &[OsString]) -> bool {
    matches!(arguments, [_, command, option, ..] if command == "worker" && option == "--template")
}

/// Whether the command will have workers of this program, and soon.
fn expects_workers(arguments: &[OsString]) -> bool {
    let Some((program, arguments)) = arguments.split_first() else {
        return false;
    };
    let has = |start: &str| {
        let mut options = arguments.iter();
        options.any(|option| option.as_encoded_bytes().starts_with(start.as_bytes()))
    };
    let command = arguments.first().and_then(|command| command.to_str());
    let has_workers = match command {
        Some("serve" | "doctor") => true,
        // Others of `mcp` relay to a gateway.
        Some("mcp") => has("--gateway") || has("--private") || has("--http"),
        _ => {
            let name = Path::new(program).file_stem();
            name.is_some_and(|name| name == CODEX_HOST_NAME)
        }
    };
    has_workers && !has("--worker-") && !has("-h") && !has("--help")
}
