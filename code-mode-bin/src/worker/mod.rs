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
use code_mode_protocol::wire::template::WorkerSettings;

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
}

impl Args {
    fn settings(&self) -> WorkerSettings {
        WorkerSettings {
            require_sandbox: self.require_sandbox,
            no_sandbox: self.no_sandbox,
            namespaces: self.namespaces.clone(),
            jitless: self.jitless,
            probe: self.probe,
            most: self.most.as_deref().cloned(),
        }
    }
}

fn limits(json: &str) -> Result<Box<Limits>, serde_json::Error> {
    serde_json::from_str(json).map(Box::new)
}

/// Exit status where the process cannot serve.
const CANNOT_SERVE: u8 = 3;

/// Serves one session, then ends the process.
pub(crate) fn main(args: Args) -> ExitCode {
    let settings = args.settings();
    end_with(|| {
        let endpoint = transport::open(&args)?;
        serve(&settings, endpoint, lock_in(&settings)?)
    })
}

/// Serves one session in this process, a copy of a template or of the program, then ends it.
#[cfg(target_os = "linux")]
fn main_of_copy(settings: &WorkerSettings) -> ExitCode {
    crate::telemetry::log_only();
    end_with(|| {
        let locked_in = lock_in(settings)?;
        let serve = || serve(settings, transport::Endpoint, locked_in);
        // The C library has the number of another process for the first thread of a copy, which waits.
        std::thread::scope(|scope| {
            let serving = std::thread::Builder::new().spawn_scoped(scope, serve)?;
            serving
                .join()
                .unwrap_or_else(|_| Err("the worker panicked".into()))
        })
    })
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The process's exit status after `work`, whose error it says.
fn end_with(work: impl FnOnce() -> Result<(), Error>) -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("code-mode worker: {error}");
            ExitCode::from(CANNOT_SERVE)
        }
    }
}

/// A process that has lost everything but its connection.
struct LockedIn {
    layers: Vec<SandboxLayer>,
    time_zone: String,
}

/// Locks this process in, while it has one thread.
fn lock_in(settings: &WorkerSettings) -> Result<LockedIn, Error> {
    #[cfg(unix)]
    transport::leave_terminal()?;
    // What must be read from the file system is read now.
    let time_zone = sandbox::time_zone();
    let layers = match settings.no_sandbox {
        true => sandbox::turned_off(),
        false => sandbox::lock_in(settings.namespaces.as_deref(), settings.jitless),
    };
    Ok(LockedIn { layers, time_zone })
}

/// Starts V8 in a process that has lost everything else, and serves a session with it.
fn serve(
    settings: &WorkerSettings,
    endpoint: transport::Endpoint,
    locked_in: LockedIn,
) -> Result<(), Error> {
    #[cfg(unix)]
    let room = match crate::address_space::make_room() {
        Ok(room) => room,
        Err(why) => return refuse(endpoint, &why),
    };
    if settings.jitless {
        code_mode::Engine::forbid_machine_code();
    }
    let engine = code_mode::Engine::new();
    // Made on another thread while this one continues; the filter covers that too. It runs no
    // JavaScript that asks for the time zone.
    engine.prewarm();
    code_mode::Engine::set_time_zone(&locked_in.time_zone);
    #[cfg(unix)]
    room.restore()?;
    // One thread carries all messages; JavaScript runs on others. Made now, and
    // the connection with it, because both make descriptors and set them up in
    // ways that nothing may later.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let stream = runtime.block_on(transport::into_async(endpoint))?;
    let mut layers = locked_in.layers;
    if !settings.no_sandbox {
        layers.push(sandbox::filter_system_calls());
    }
    let missing = SandboxLayer::missing(&layers).join("; ");
    if settings.require_sandbox && !missing.is_empty() {
        let _ = runtime.block_on(code_mode::refuse(stream, &missing));
        return Err(missing.into());
    }
    let environment = Environment {
        layers,
        probes: settings.probe,
        most: settings.most.clone(),
    };
    match runtime.block_on(code_mode::serve(stream, engine, environment)) {
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
struct Environment {
    layers: Vec<SandboxLayer>,
    /// Whether it runs the sandbox's probes on request.
    probes: bool,
    /// The most that the session's limits may be.
    most: Option<Limits>,
}

impl WorkerEnvironment for Environment {
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
