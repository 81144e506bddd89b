//! `code-mode worker`: one session's cells, in a process that locked itself in.

use std::path::PathBuf;
use std::process::ExitCode;

use code_mode::{ServeError, Surroundings};
use code_mode_protocol::Limits;
use code_mode_protocol::wire::native::{LayerState, SandboxLayer};
use interprocess::local_socket::tokio::Stream;

use crate::sandbox;

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
    /// `held` where the provider started this process in namespaces of its own,
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
}

/// Exit status where the process cannot serve.
const CANNOT_SERVE: u8 = 3;

/// Serves one session, then ends the process.
pub(crate) fn main(args: Args) -> ExitCode {
    match serve(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("code-mode worker: {error}");
            ExitCode::from(CANNOT_SERVE)
        }
    }
}

fn serve(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let endpoint = transport::open(args)?;
    #[cfg(unix)]
    leave_terminal()?;
    // What must be read from the file system is read now.
    let time_zone = sandbox::time_zone();
    let mut layers = if args.no_sandbox {
        sandbox::turned_off()
    } else {
        sandbox::lock_in(args.namespaces.as_deref(), args.jitless)
    };
    #[cfg(unix)]
    let room = match crate::address_space::make_room() {
        Ok(room) => room,
        Err(why) => return refuse(endpoint, &why),
    };
    if args.jitless {
        code_mode::Engine::forbid_machine_code();
    }
    let engine = code_mode::Engine::new();
    code_mode::Engine::set_time_zone(&time_zone);
    // Made on another thread while this one goes on; the filter covers that too.
    engine.prewarm();
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
    let missing = missing(&layers);
    if args.require_sandbox && !missing.is_empty() {
        let _ = runtime.block_on(code_mode::refuse(stream, &missing));
        return Err(missing.into());
    }
    let locked_in = LockedIn {
        layers,
        probes: args.probe,
    };
    match runtime.block_on(code_mode::serve(stream, engine, locked_in)) {
        Ok(()) => {}
        // The host is gone, and so is whoever could be told.
        Err(ServeError::Connection(error)) => tracing::debug!(%error, "the host is gone"),
        Err(error) => tracing::error!(%error, "this worker ends"),
    }
    // Threads may still run JavaScript, and V8 does not take its own end well
    // while they do: the process goes at once.
    sandbox::exit_now(0)
}

/// Sees to it that this process has no terminal: code that took it over could write
/// there what the terminal obeys.
#[cfg(unix)]
fn leave_terminal() -> std::io::Result<()> {
    use std::io::IsTerminal;
    use std::os::fd::AsRawFd;

    if !std::io::stderr().is_terminal() && !std::io::stdout().is_terminal() {
        return Ok(());
    }
    eprintln!("code-mode worker: nothing is logged to a terminal; 2> FILE keeps a log");
    let nothing = std::fs::File::options().write(true).open("/dev/null")?;
    for standard in [1, 2] {
        // SAFETY: both descriptors are this process's own, and nothing holds on to what
        // the number of a standard stream meant before.
        if unsafe { libc::dup2(nothing.as_raw_fd(), standard) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The layers that do not hold, in words.
fn missing(layers: &[SandboxLayer]) -> String {
    let missing = layers.iter().filter_map(|layer| match &layer.state {
        LayerState::Holds(_) => None,
        LayerState::Missing(why) => Some(format!("{}: {why}", layer.name)),
    });
    missing.collect::<Vec<_>>().join("; ")
}

/// What this process does for the worker in it.
struct LockedIn {
    layers: Vec<SandboxLayer>,
    /// Whether it tries what the sandbox forbids when it is asked to.
    probes: bool,
}

impl Surroundings for LockedIn {
    fn sandbox(&self) -> Vec<SandboxLayer> {
        self.layers.clone()
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
fn refuse(
    endpoint: transport::OnStandardInput,
    why: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let stream = runtime.block_on(transport::into_async(endpoint))?;
    let _ = runtime.block_on(code_mode::refuse(stream, why));
    Err(why.into())
}

#[cfg(unix)]
mod transport {
    use std::io;
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;

    use interprocess::os::unix::uds_local_socket::tokio::Stream as UnixLocalStream;

    use super::{Args, Stream};

    /// Standard input, as the connection to the provider. It stays at its number
    /// until the process has closed all others.
    pub(super) struct OnStandardInput;

    /// Sees to it that standard input is the connection to the provider; with
    /// `--listen` that is the first that a process of the same user makes.
    pub(super) fn open(args: &Args) -> io::Result<OnStandardInput> {
        let Some(path) = &args.listen else {
            let input = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
            if !input.metadata()?.file_type().is_socket() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "standard input is not a provider's connection; --listen SOCKET waits for one",
                ));
            }
            return Ok(OnStandardInput);
        };
        let listener = listen(path)?;
        let stream = loop {
            let (stream, _) = listener.accept()?;
            if is_own(&stream) {
                break stream;
            }
            tracing::warn!("a stranger connected to the socket and was turned away");
        };
        // One session, so nobody else is to find the socket.
        std::fs::remove_file(path)?;
        // SAFETY: both descriptors are open; nothing has read standard input.
        if unsafe { libc::dup2(stream.as_raw_fd(), 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OnStandardInput)
    }

    /// A socket that can be connected to, by its user alone, from the moment that
    /// its name is there: between `bind` and `listen` it refuses, and until its
    /// permissions are set it is anybody's.
    fn listen(path: &Path) -> io::Result<UnixListener> {
        let hidden = path.with_file_name(format!(".{}", std::process::id()));
        let listener = UnixListener::bind(&hidden)?;
        let shown = std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))
            // Unlike a renaming, a link never takes the name of what is there.
            .and_then(|()| std::fs::hard_link(&hidden, path));
        std::fs::remove_file(&hidden)?;
        shown?;
        Ok(listener)
    }

    #[cfg(target_os = "linux")]
    fn is_own(stream: &UnixStream) -> bool {
        rustix::net::sockopt::socket_peercred(stream)
            .is_ok_and(|peer| peer.uid == rustix::process::geteuid())
    }

    /// Elsewhere the socket's permissions keep others away.
    #[cfg(not(target_os = "linux"))]
    fn is_own(_: &UnixStream) -> bool {
        true
    }

    /// The connection, for the runtime that this runs on.
    pub(super) async fn into_async(_: OnStandardInput) -> io::Result<Stream> {
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        stream.set_nonblocking(true)?;
        Ok(UnixLocalStream::try_from(OwnedFd::from(stream))?.into())
    }
}

#[cfg(not(unix))]
mod transport {
    use std::io;

    use interprocess::local_socket::tokio::prelude::*;
    use interprocess::local_socket::{
        GenericFilePath, GenericNamespaced, ListenerOptions, Name, ToFsName, ToNsName,
    };

    use super::{Args, Stream};

    pub(super) enum Transport {
        Listen(Name<'static>),
        Connect(Name<'static>),
    }

    pub(super) fn open(args: &Args) -> io::Result<Transport> {
        match (&args.listen, &args.connect) {
            (Some(path), _) => Ok(Transport::Listen(
                path.clone().to_fs_name::<GenericFilePath>()?,
            )),
            (_, Some(name)) => Ok(Transport::Connect(
                name.clone().to_ns_name::<GenericNamespaced>()?,
            )),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "needs --listen SOCKET on this platform",
            )),
        }
    }

    pub(super) async fn into_async(transport: Transport) -> io::Result<Stream> {
        match transport {
            Transport::Listen(name) => {
                let listener = ListenerOptions::new().name(name).create_tokio()?;
                listener.accept().await
            }
            Transport::Connect(name) => Stream::connect(name).await,
        }
    }
}
