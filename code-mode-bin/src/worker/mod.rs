//! `code-mode worker`: one session's cells, in a process that locked itself in.

#[cfg(target_os = "linux")]
pub(crate) mod template;
#[cfg(unix)]
mod transport;
#[cfg(not(unix))]
#[path = "transport_other.rs"]
mod transport;

use std::path::PathBuf;
use std::process::ExitCode;

use code_mode::{ServeError, WorkerEnvironment};
use code_mode_protocol::Limits;
use code_mode_protocol::SandboxLayer;

use code_mode_sandbox as sandbox;
use code_mode_system::say;

/// The options of `code-mode worker`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Listen on this socket for one provider of the same user, instead of
    /// serving the connection on standard input
    #[arg(long, value_name = "SOCKET")]
    listen: Option<PathBuf>,
    /// Connect to this local socket instead (where standard input cannot be one)
    #[arg(long, value_name = "NAME", hide = true, conflicts_with = "listen")]
    connect: Option<String>,
    /// End where a layer of the sandbox is missing
    #[arg(long, conflicts_with = "no_sandbox")]
    require_sandbox: bool,
    /// Do not lock the process in (to measure what that costs)
    #[arg(long)]
    no_sandbox: bool,
    /// `held` where the provider started this process in separate namespaces,
    /// else why not
    #[arg(long, value_name = "STATE", hide = true)]
    namespaces: Option<String>,
    /// Run JavaScript without compiling it to machine code, and turn off what the
    /// processor guesses ahead: less to attack, and slower
    #[arg(long)]
    jitless: bool,
    /// Try what the sandbox forbids when the provider asks for it (for tests)
    #[arg(long, hide = true)]
    probe: bool,
    /// The most that the session's limits may be, as JSON: the provider is on another
    /// machine, and this one's owner decides
    #[arg(long, value_name = "LIMITS", hide = true, value_parser = limits)]
    most: Option<Box<Limits>>,
    /// This process is a copy of a template, and its first thread the template's
    #[arg(long, hide = true)]
    copied: bool,
}

fn limits(json: &str) -> Result<Box<Limits>, serde_json::Error> {
    serde_json::from_str(json).map(Box::new)
}

/// Exit status where the process cannot serve.
const CANNOT_SERVE: u8 = 3;

/// Serves one session, then ends the process.
pub(crate) fn main(args: Args) -> ExitCode {
    match serve(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("code-mode worker: {error}");
            ExitCode::from(CANNOT_SERVE)
        }
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

fn serve(args: &Args) -> Result<(), Error> {
    let endpoint = transport::open(args)?;
    #[cfg(unix)]
    transport::leave_terminal()?;
    // What must be read from the file system is read now.
    let time_zone = sandbox::time_zone();
    let layers = if args.no_sandbox {
        sandbox::turned_off()
    } else {
        sandbox::lock_in(args.namespaces.as_deref(), args.jitless)
    };
    let rest = || serve_locked_in(args, endpoint, &time_zone, layers);
    if !args.copied {
        return rest();
    }
    // The C library has the template's number for the first thread of a copy, which waits.
    std::thread::scope(|scope| {
        let rest = std::thread::Builder::new().spawn_scoped(scope, rest)?;
        rest.join()
            .unwrap_or_else(|_| Err("the worker panicked".into()))
    })
}

/// Starts V8 in a process that has lost everything else, and serves a session with it.
fn serve_locked_in(
    args: &Args,
    endpoint: transport::Endpoint,
    time_zone: &str,
    mut layers: Vec<SandboxLayer>,
) -> Result<(), Error> {
    #[cfg(unix)]
    let room = match crate::address_space::make_room() {
        Ok(room) => room,
        Err(why) => return refuse(endpoint, &why),
    };
    if args.jitless {
        code_mode::Engine::forbid_machine_code();
    }
    let engine = code_mode::Engine::new();
    // Made on another thread while this one continues; the filter covers that too. It runs no
    // JavaScript that asks for the time zone.
    engine.prewarm();
    code_mode::Engine::set_time_zone(time_zone);
    #[cfg(unix)]
    room.restore()?;
    // One thread carries all messages; JavaScript runs on others. Made now, and
    // the connection with it, because both make descriptors and set them up in
    // ways that nothing may later.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let stream = runtime.block_on(transport::into_async(endpoint))?;
    if !args.no_sandbox {
        layers.push(sandbox::filter_system_calls());
    }
    let missing = SandboxLayer::missing(&layers).join("; ");
    if args.require_sandbox && !missing.is_empty() {
        let _ = runtime.block_on(code_mode::refuse(stream, &missing));
        return Err(missing.into());
    }
    let locked_in = LockedIn {
        layers,
        probes: args.probe,
        most: args.most.as_deref().cloned(),
    };
    match runtime.block_on(code_mode::serve(stream, engine, locked_in)) {
        Ok(()) => {}
        // Its thread runs on: only the end of the process ends it.
        Err(error @ ServeError::DoesNotStop) => {
            tracing::error!(%error, "this worker ends");
            sandbox::exit_now(i32::from(CANNOT_SERVE))
        }
        // The host is gone: nobody is left to report this to.
        Err(ServeError::Connection(error)) => tracing::debug!(%error, "the host is gone"),
        Err(error) => tracing::error!(%error, "this worker ends"),
    }
    // Threads may still run JavaScript, and V8 does not take its own end well
    // while they do: the process goes at once.
    sandbox::exit_now(0)
}

/// What this process does for the worker in it.
struct LockedIn {
    layers: Vec<SandboxLayer>,
    /// Whether it runs the sandbox's probes on request.
    probes: bool,
    /// The most that the session's limits may be.
    most: Option<Limits>,
}

impl WorkerEnvironment for LockedIn {
    fn sandbox(&self) -> Vec<SandboxLayer> {
        self.layers.clone()
    }

    fn most(&self) -> Option<&Limits> {
        self.most.as_ref()
    }

    fn opened(&mut self, limits: &Limits) {
        sandbox::limit_memory(memory(limits));
    }

    fn probe(&mut self, name: &str) -> Option<String> {
        match self.probes {
            true => sandbox::probe(name),
            false => None,
        }
    }
}

/// What a worker may have in all: V8's own needs, and room for several cells at their
/// limit. V8 counts an array buffer only once it is there, so this is what one that is
/// far too large runs into.
fn memory(limits: &Limits) -> u64 {
    const BASE: u64 = 6 << 30;
    const CELLS_AT_THEIR_LIMIT: u64 = 8;
    let cells = (limits.heap_bytes() as u64).saturating_mul(CELLS_AT_THEIR_LIMIT);
    BASE.saturating_add(cells)
}

/// Answers the provider's greeting with the reason why this process cannot serve,
/// which is where its user looks.
#[cfg(unix)]
fn refuse(endpoint: transport::Endpoint, why: &str) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let stream = runtime.block_on(transport::into_async(endpoint))?;
    let _ = runtime.block_on(code_mode::refuse(stream, why));
    Err(why.into())
}
