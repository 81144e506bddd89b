//! Workers and templates that are copies of this program, before anything else of it runs.
#![allow(
    unsafe_code,
    reason = "what a program does first is safe only because it is the first"
)]

use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use code_mode_host::ahead::{Ahead, Origin, origin};
use code_mode_protocol::wire::template::{NAMESPACES_HELD, NewWorker, WorkerSettings};
use code_mode_sandbox::split::{Split, close_inherited, split};
use code_mode_sandbox::template::{Role, serve};
use code_mode_system::InitialStrings;

use crate::CODEX_HOST_NAME;

/// Is a template where this program was started as one. Where workers are expected, it makes the first, or a
/// template at least. In a template and in workers this returns what the process ends with.
pub(crate) fn at_start() -> Option<ExitCode> {
    // Until the program has split, nothing may copy an argument: a copy in its memory is one in a worker's.
    // SAFETY: this is the first that the program does.
    let origin = unsafe { origin() };
    let strings = match origin {
        Origin::Itself(_) => None,
        Origin::User => InitialStrings::find(),
    };
    let start = match &strings {
        Some(strings) => {
            let arguments = strings.arguments().map(CStr::to_bytes);
            Start::of(&arguments.collect::<Vec<_>>())
        }
        None => {
            let arguments: Vec<OsString> = std::env::args_os().collect();
            let arguments = arguments.iter().map(|argument| argument.as_bytes());
            Start::of(&arguments.collect::<Vec<_>>())
        }
    };
    match start {
        Start::Template => return Some(end_as(serve())),
        Start::Worker(settings) => match (origin, strings) {
            (Origin::Itself(Some(handed)), _) => {
                handed.keep(settings);
                return None;
            }
            (Origin::User, Some(strings)) => {
                // Otherwise the first worker is started later.
                if let Ok(role) = split_off(strings, settings) {
                    return Some(end_as(role));
                }
            }
            _ => {}
        },
        Start::LaterWorkers => {}
        Start::Other => return None,
    }
    // The template loads while the options are read. Where they are wrong, it ends with this process.
    code_mode_host::load_ahead();
    None
}

fn end_as(role: Role) -> ExitCode {
    match role {
        Role::Template => ExitCode::SUCCESS,
        Role::Worker(settings) => super::main_of_copy(&settings),
    }
}

/// Makes a first worker, and starts the program anew. Returns in the worker, and with an error where
/// the program continues as it is.
fn split_off(strings: InitialStrings, settings: WorkerSettings) -> io::Result<Role> {
    if !strings.has_one_thread() || has_told_a_loader(&strings) {
        return Err(io::Error::other("this process is not alone"));
    }
    let log = strings.variable("RUST_LOG");
    let worker = NewWorker {
        log: log.map(|log| String::from_utf8_lossy(log).into_owned()),
        settings,
        in_namespaces: true,
    };
    let ahead = Ahead::new()?;
    let [connection, stderr] = ahead.ends();
    let mut strings = Some(strings);
    let forget = || {
        if let Some(strings) = strings.take() {
            // SAFETY: the copy has one thread, and nothing else has these strings.
            unsafe { strings.forget("code-mode worker") };
        }
    };
    match split(&worker, connection, stderr, forget)? {
        Split::Worker => {
            drop(ahead);
            close_inherited();
            Ok(Role::Worker(worker.settings))
        }
        Split::Program(id, pidfd) => {
            let arguments = strings.iter().flat_map(InitialStrings::arguments);
            let environment = strings.iter().flat_map(InitialStrings::environment);
            Err(ahead.start_anew((id, pidfd), arguments, environment))
        }
    }
}

/// Whether somebody has told the system's loader what to do with this program. A library that it loads besides may have
/// read the environment, and the loader keeps copies of the variables that are for it.
fn has_told_a_loader(strings: &InitialStrings) -> bool {
    let is_loaders = |pair: &CStr| {
        let names: [&[u8]; 2] = [b"LD_", b"GLIBC_TUNABLES="];
        names.iter().any(|name| pair.to_bytes().starts_with(name))
    };
    let of_system = std::fs::metadata("/etc/ld.so.preload");
    strings.environment().any(is_loaders) || of_system.is_ok_and(|file| file.len() > 0)
}

/// What this program was started for, as far as workers go.
enum Start {
    /// It is a template.
    Template,
    /// It will have workers, and soon: the first one has these settings.
    Worker(WorkerSettings),
    /// It will have workers, and soon: none of a kind that is made before the options are read.
    LaterWorkers,
    /// Perhaps it will have workers.
    Other,
}

impl Start {
    fn of(arguments: &[&[u8]]) -> Self {
        if matches!(arguments, [_, command, option, ..] if *command == b"worker" && *option == b"--template")
        {
            return Self::Template;
        }
        let Some((program, arguments)) = arguments.split_first() else {
            return Self::Other;
        };
        let has = |start: &str| {
            let mut options = arguments.iter();
            options.any(|option| option.starts_with(start.as_bytes()))
        };
        let has_workers = match arguments.first() {
            Some(command) if *command == b"serve" || *command == b"doctor" => true,
            // Others of `mcp` relay to a gateway.
            Some(command) if *command == b"mcp" => {
                has("--gateway") || has("--private") || has("--http")
            }
            _ => {
                let name = Path::new(OsStr::from_bytes(program)).file_stem();
                name.is_some_and(|name| name == CODEX_HOST_NAME)
            }
        };
        if !has_workers || has("--worker-") || has("-h") || has("--help") {
            return Self::Other;
        }
        if arguments.first() == Some(&b"doctor".as_slice()) || has("--no-sandbox") {
            return Self::LaterWorkers;
        }
        Self::Worker(WorkerSettings {
            require_sandbox: has("--require-sandbox"),
            jitless: has("--jitless"),
            namespaces: Some(NAMESPACES_HELD.to_owned()),
            ..WorkerSettings::default()
        })
    }
}
