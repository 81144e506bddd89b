//! Templates, of which workers are copies, before anything else of the program runs.

use std::fs::File;
use std::io::Read;
use std::process::ExitCode;

use code_mode_sandbox::template::{Half, Role, serve, split};

use crate::CODEX_HOST_NAME;

/// The commands whose workers are copies of a template that they make of themselves.
const FRONT_DOORS: [&str; 3] = ["run", "serve", "mcp"];

/// Makes a template of this program where its command starts workers, and lets it be one where it
/// was started as one. In a template and in its copies this returns what the process ends with.
pub(crate) fn at_start() -> Option<ExitCode> {
    match role()? {
        AtStart::FrontDoor => match split() {
            Ok(Half::Provider { socket, pidfd, pid }) => {
                code_mode_host::adopt_template(socket, pidfd, pid);
                return None;
            }
            Ok(Half::Template) => {}
            // Workers are started from the program's file then.
            Err(_) => return None,
        },
        AtStart::Template => {}
    }
    match serve() {
        Role::Template => Some(ExitCode::SUCCESS),
        Role::Worker(arguments) => {
            let own = ["code-mode".to_owned()].into_iter().chain(arguments);
            let arguments = own.chain(["--copied".to_owned()]).map(Into::into);
            Some(crate::run_command(arguments.collect()))
        }
    }
}

enum AtStart {
    FrontDoor,
    Template,
}

/// What this program was started as. It looks no further than the first arguments, and keeps no
/// copy of them, because a template must not have its program's arguments.
fn role() -> Option<AtStart> {
    let mut start = [0; 4096];
    let read = File::open("/proc/self/cmdline")
        .ok()?
        .read(&mut start)
        .ok()?;
    let mut arguments = start.get(..read)?.split(|byte| *byte == 0);
    let program = arguments.next().unwrap_or_default();
    let program = program.rsplit(|byte| *byte == b'/').next()?;
    let (command, option) = (arguments.next().unwrap_or_default(), arguments.next());
    let role = if program == CODEX_HOST_NAME.as_bytes()
        || FRONT_DOORS.iter().any(|door| command == door.as_bytes())
    {
        Some(AtStart::FrontDoor)
    } else if command == b"worker" && option == Some(b"--template") {
        Some(AtStart::Template)
    } else {
        None
    };
    start.fill(0);
    // The copy of this stack must not have them: the compiler may not leave the wiping out.
    std::hint::black_box(&start);
    role
}
