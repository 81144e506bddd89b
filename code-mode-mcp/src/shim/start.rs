//! A connection to a gateway, which is started where it does not run.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;

use super::greeting::{GatewayStatus, Greeted, MAX_GREETING, MAX_STATUS, Wants, read, write};
use super::place::{GatewayName, Place};
use crate::broker::BrokerError;
use crate::pending::{PendingApproval, TerminalAnswer};

/// How long a gateway may take to greet, and to start. It takes some milliseconds.
const GREETING: Duration = Duration::from_secs(10);
/// A gateway that is about to end closes a connection that it has not greeted; then another is
/// started.
const ATTEMPTS: usize = 3;
/// A gateway's log that is longer is begun anew.
const MAX_LOG: u64 = 4 << 20;

/// Why a gateway cannot be connected to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// It does not greet.
    #[error("the gateway at {} does not answer: {source}", socket.display())]
    Silent {
        /// Its socket.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is another user's.
    #[error("the gateway at {} is another user's", socket.display())]
    Foreign {
        /// Its socket.
        socket: PathBuf,
    },
    /// It has as many clients as it may have.
    #[error("the gateway has no room for another client")]
    Full,
    /// It cannot be started.
    #[error("the gateway cannot be started: {0}")]
    Start(#[source] io::Error),
    /// It has ended before it could be used.
    #[error("the gateway ends at once: see {}", log.display())]
    Ended {
        /// What it has logged.
        log: PathBuf,
    },
}

/// How a gateway is started: this program's file, and the arguments after the gateway's name.
#[derive(Clone, Debug)]
pub struct GatewayProgram {
    /// The program.
    pub program: PathBuf,
    /// Its arguments before the gateway's name.
    pub before: Vec<OsString>,
    /// Its arguments after the gateway's name.
    pub after: Vec<OsString>,
}

/// A gateway that has greeted.
#[derive(Debug)]
pub struct Connection {
    pub(super) name: GatewayName,
    /// Its process.
    process: u32,
    pub(super) read: BufReader<OwnedReadHalf>,
    pub(super) write: OwnedWriteHalf,
}

/// Writes what a gateway logs to standard error, until it ends.
pub(super) async fn follow_log(place: &Place, name: &GatewayName) {
    if let Ok(Some(mut connection)) = dial(place, name, &Wants::Log).await {
        let _ = tokio::io::copy_buf(&mut connection.read, &mut tokio::io::stderr()).await;
    }
}

/// Why a client cannot have a gateway.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// It has no name.
    #[error("no gateway can be named: {0}")]
    Name(#[source] io::Error),
    /// It cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// What names the gateway of a client: it reads the configuration as it is now.
pub type NameNow = Box<dyn Fn() -> Result<GatewayName, FindError> + Send + Sync>;

/// The gateways of one client: where they are, which is its own now, and how that is started.
pub struct Gateways {
    /// Their place.
    pub place: Place,
    /// Names the client's gateway.
    pub name: NameNow,
    /// Starts it.
    pub program: GatewayProgram,
}

impl std::fmt::Debug for Gateways {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateways")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Gateways {
    /// Connects to the client's gateway; starts it where it does not run.
    ///
    /// # Errors
    /// [`FindError`].
    pub async fn find(&self) -> Result<Connection, FindError> {
        self.find_named((self.name)()?).await
    }

    /// As [`find`](Self::find), where the name was made a moment ago.
    ///
    /// # Errors
    /// [`FindError`].
    pub async fn find_named(&self, mut name: GatewayName) -> Result<Connection, FindError> {
        for _ in 0..ATTEMPTS {
            match connect(&self.place, &name, &self.program).await {
                // A gateway does not serve another configuration than that of its name.
                Err(ConnectError::Ended { log }) => {
                    let before = std::mem::replace(&mut name, (self.name)()?);
                    if before == name {
                        return Err(ConnectError::Ended { log }.into());
                    }
                }
                connected => return Ok(connected?),
            }
        }
        let log = self.place.log(&name);
        Err(ConnectError::Ended { log }.into())
    }
}

async fn connect(
    place: &Place,
    name: &GatewayName,
    program: &GatewayProgram,
) -> Result<Connection, ConnectError> {
    let process = std::process::id();
    for _ in 0..ATTEMPTS {
        if let Some(connection) = dial(place, name, &Wants::Serve { process }).await? {
            return Ok(connection);
        }
        let lock = lock(place.lock(name)).await.map_err(ConnectError::Start)?;
        // Another may have started it meanwhile.
        if let Some(connection) = dial(place, name, &Wants::Serve { process }).await? {
            return Ok(connection);
        }
        place.tidy();
        start(program, name, lock, &place.log(name)).await?;
    }
    Err(ConnectError::Ended {
        log: place.log(name),
    })
}

/// A connection that was greeted; `None` where no gateway runs, or one that ends.
async fn dial(
    place: &Place,
    name: &GatewayName,
    wants: &Wants,
) -> Result<Option<Connection>, ConnectError> {
    let socket = place.socket(name);
    let silent = |source| ConnectError::Silent {
        socket: socket.clone(),
        source,
    };
    let stream = match UnixStream::connect(&socket).await {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                _ if has_ended(&error) => Ok(None),
                _ => Err(silent(error)),
            };
        }
    };
    if !code_mode_system::is_own(&stream) {
        return Err(ConnectError::Foreign { socket });
    }
    let (read_half, write_half) = stream.into_split();
    let mut connection = Connection {
        name: name.clone(),
        process: 0,
        read: BufReader::new(read_half),
        write: write_half,
    };
    let greeting = async {
        write(&mut connection.write, wants).await?;
        read::<Greeted>(&mut connection.read, MAX_GREETING).await
    };
    match tokio::time::timeout(GREETING, greeting).await {
        Ok(Ok(Greeted { is_full: true, .. })) => Err(ConnectError::Full),
        Ok(Ok(greeted)) => {
            connection.process = greeted.process;
            Ok(Some(connection))
        }
        Ok(Err(error)) if has_ended(&error) => Ok(None),
        Ok(Err(error)) => Err(silent(error)),
        Err(_) => Err(silent(io::ErrorKind::TimedOut.into())),
    }
}

fn has_ended(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

/// Waits until nobody else starts the gateway.
async fn lock(path: PathBuf) -> io::Result<File> {
    let locking = tokio::task::spawn_blocking(move || {
        let file = open_to_append(&path)?;
        file.lock()?;
        Ok(file)
    });
    // The process that holds it may stand still.
    match tokio::time::timeout(GREETING, locking).await {
        Ok(locked) => locked.map_err(io::Error::other)?,
        Err(late) => Err(late.into()),
    }
}

/// Opens a file of this user's, and nothing else that has its name.
fn open_to_append(path: &Path) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::APPEND | OFlags::WRONLY | OFlags::CLOEXEC;
    // A pipe would wait for its other side.
    let flags = flags | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other(format!("{} is no file", path.display()))),
    }
}

/// Starts a gateway and waits until it listens. It has the lock at its standard input until then:
/// where this process is killed meanwhile, nobody else begins to start one.
async fn start(
    program: &GatewayProgram,
    name: &GatewayName,
    lock: File,
    log: &Path,
) -> Result<(), ConnectError> {
    let log_file = open_to_append(log).and_then(|file| {
        if file.metadata()?.len() > MAX_LOG {
            file.set_len(0)?;
        }
        Ok(file)
    });
    let mut started = Command::new(&program.program)
        .args(&program.before)
        .arg(name.to_string())
        .args(&program.after)
        .stdin(Stdio::from(lock))
        .stdout(Stdio::piped())
        .stderr(Stdio::from(log_file.map_err(ConnectError::Start)?))
        .spawn()
        .map_err(ConnectError::Start)?;
    let mut listens = [0];
    let says = match &mut started.stdout {
        Some(stdout) => tokio::time::timeout(GREETING, stdout.read_exact(&mut listens))
            .await
            .is_ok_and(|read| read.is_ok()),
        None => false,
    };
    match says {
        true => Ok(()),
        false => {
            let _ = started.start_kill();
            Err(ConnectError::Ended {
                log: log.to_owned(),
            })
        }
    }
}

/// What a gateway that was just started has of its starter, until it listens.
#[derive(Debug)]
pub struct HeldName(());

/// Makes this process a gateway that was started for a client: it leaves the session of its starter's
/// terminal, and holds its name until [`HeldName::listens`].
///
/// # Errors
/// What the system says where the session cannot be left.
pub fn hold_name() -> io::Result<HeldName> {
    // Where a person has started it from a shell it leads a group already, and stays in it.
    match rustix::process::setsid() {
        Ok(_) | Err(rustix::io::Errno::PERM) => Ok(HeldName(())),
        Err(error) => Err(error.into()),
    }
}

impl HeldName {
    /// The gateway listens: its starter connects now, and others find it.
    ///
    /// # Errors
    /// What the system says where the standard streams cannot be left.
    pub fn listens(self) -> io::Result<()> {
        let nothing = File::options().read(true).write(true).open("/dev/null")?;
        let mut stdout = io::stdout();
        let told = stdout.write_all(b"\n").and_then(|()| stdout.flush());
        if let Err(error) = told {
            // The starter is gone. Its client may come back.
            tracing::debug!(%error, "nobody waits for the gateway");
        }
        rustix::stdio::dup2_stdin(&nothing)?;
        rustix::stdio::dup2_stdout(&nothing)?;
        Ok(())
    }
}

/// The status of a gateway; `None` where it does not run.
///
/// # Errors
/// [`ConnectError`].
pub async fn ask_status(
    place: &Place,
    name: &GatewayName,
) -> Result<Option<GatewayStatus>, ConnectError> {
    let status = ask(place, name, &Wants::Status).await?;
    Ok(status.map(|(_, status)| status))
}

/// The calls at a gateway that wait for a person; `None` where it does not run.
///
/// # Errors
/// [`ConnectError`].
pub async fn ask_approvals(
    place: &Place,
    name: &GatewayName,
) -> Result<Option<(u32, Vec<PendingApproval>)>, ConnectError> {
    ask(place, name, &Wants::Approvals).await
}

/// Answers calls at a gateway, by their numbers. Returns how many waited; `None` where it does not run.
///
/// # Errors
/// [`ConnectError`].
pub async fn answer_approvals(
    place: &Place,
    name: &GatewayName,
    numbers: Vec<u64>,
    answer: TerminalAnswer,
) -> Result<Option<usize>, ConnectError> {
    let answered = ask(place, name, &Wants::Answer { numbers, answer }).await?;
    Ok(answered.map(|(_, count)| count))
}

/// A gateway's process and its answer; `None` where it does not run.
async fn ask<T: DeserializeOwned>(
    place: &Place,
    name: &GatewayName,
    wants: &Wants,
) -> Result<Option<(u32, T)>, ConnectError> {
    let socket = place.socket(name);
    let Some(mut connection) = dial(place, name, wants).await? else {
        return Ok(None);
    };
    let answer = tokio::time::timeout(GREETING, read(&mut connection.read, MAX_STATUS)).await;
    let answer = answer.unwrap_or_else(|late| Err(late.into()));
    answer
        .map(|answer| Some((connection.process, answer)))
        .map_err(|source| ConnectError::Silent { socket, source })
}

/// Ends a gateway, and waits until it has ended. Returns its process; `None` where it does not run.
///
/// # Errors
/// [`ConnectError`].
pub async fn ask_to_stop(place: &Place, name: &GatewayName) -> Result<Option<u32>, ConnectError> {
    /// Its servers have some seconds.
    const END: Duration = Duration::from_secs(20);
    let socket = place.socket(name);
    let Some(mut connection) = dial(place, name, &Wants::Stop).await? else {
        return Ok(None);
    };
    // It closes the connection when everything has ended.
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(END, connection.read.read_to_end(&mut rest)).await;
    let ended = ended.unwrap_or_else(|late| Err(late.into()));
    ended
        .map(|_| Some(connection.process))
        .map_err(|source| ConnectError::Silent { socket, source })
}

/// Begins a log anew that has become too long. The log is this process's standard error.
pub(crate) fn bound_log() {
    let stderr = rustix::stdio::stderr();
    let is_long = rustix::fs::fstat(stderr).is_ok_and(|file| {
        let is_file = rustix::fs::FileType::from_raw_mode(file.st_mode).is_file();
        is_file && u64::try_from(file.st_size).is_ok_and(|size| size > MAX_LOG)
    });
    if is_long {
        let _ = rustix::fs::ftruncate(stderr, 0);
    }
}
