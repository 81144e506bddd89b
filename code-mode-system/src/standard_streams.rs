//! Standard input and output as streams.
//!
//! tokio reads standard input on a separate thread, which costs two thread
//! switches a read. Where it is a pipe or a socket, as for every client that
//! starts this program, the event loop can read it itself.

use std::borrow::Cow;

use code_mode_protocol::text::visible;
use tokio::io::{AsyncRead, AsyncWrite};

/// Writes a line to standard error. A line that cannot be written, because the reader is gone
/// or the disk is full, is lost; `eprintln!` would panic. A terminal gets no character that it would
/// obey: names and texts of strangers are in many lines.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        // One write, so that two lines do not mix.
        let line = format!("{}\n", format_args!($($text)*));
        let line = $crate::for_reader(&line, std::io::IsTerminal::is_terminal(&std::io::stderr()));
        let _ = $crate::StandardError.write_all(line.as_bytes());
    }};
}

/// Writes a line to standard output, as [`say!`](crate::say) does to standard error.
#[macro_export]
macro_rules! show {
    ($($text:tt)*) => {{
        use std::io::Write;
        let line = format!("{}\n", format_args!($($text)*));
        let line = $crate::for_reader(&line, std::io::IsTerminal::is_terminal(&std::io::stdout()));
        let _ = std::io::stdout().write_all(line.as_bytes());
    }};
}

/// A line as its reader may have it.
#[doc(hidden)]
pub fn for_reader(line: &str, is_terminal: bool) -> Cow<'_, str> {
    match is_terminal {
        true => visible(line),
        false => Cow::Borrowed(line),
    }
}

type Reader = Box<dyn AsyncRead + Unpin + Send>;
type Writer = Box<dyn AsyncWrite + Unpin + Send>;

/// Standard input and standard output.
#[cfg(unix)]
pub fn standard_streams() -> (Reader, Writer) {
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::fs::FileTypeExt;

    use tokio::net::unix::pipe;

    let kind = |fd: std::io::Result<OwnedFd>| {
        let file = std::fs::File::from(fd.ok()?);
        let kind = file.metadata().ok()?.file_type();
        let fd = OwnedFd::from(file);
        if kind.is_fifo() {
            enlarge(&fd);
        }
        Some((fd, kind))
    };
    let stdin = kind(std::io::stdin().as_fd().try_clone_to_owned());
    let reader: Reader = match stdin {
        Some((fd, kind)) if kind.is_fifo() => match pipe::Receiver::from_owned_fd(fd) {
            Ok(pipe) => Box::new(pipe),
            Err(_) => Box::new(tokio::io::stdin()),
        },
        Some((fd, kind)) if kind.is_socket() => match socket(fd) {
            Ok(socket) => Box::new(socket),
            Err(_) => Box::new(tokio::io::stdin()),
        },
        _ => Box::new(tokio::io::stdin()),
    };
    let stdout = kind(std::io::stdout().as_fd().try_clone_to_owned());
    let writer = match stdout {
        Some((fd, kind)) if kind.is_fifo() => {
            let pipe = pipe::Sender::from_owned_fd(fd).ok();
            pipe.map(|pipe| Box::new(pipe) as Writer)
        }
        Some((fd, kind)) if kind.is_socket() => {
            let socket = socket(fd).ok();
            socket.map(|socket| Box::new(socket) as Writer)
        }
        _ => None,
    };
    (
        reader,
        writer.unwrap_or_else(|| Box::new(tokio::io::stdout())),
    )
}

/// Gives a pipe room for more than the usual 64 KiB, so that a large message does
/// not take a thread switch for each of them. Where that is refused it works all
/// the same.
#[cfg(target_os = "linux")]
fn enlarge(pipe: &std::os::fd::OwnedFd) {
    const ROOM: usize = 1 << 20;
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, ROOM);
}

#[cfg(all(unix, not(target_os = "linux")))]
fn enlarge(_: &std::os::fd::OwnedFd) {}

#[cfg(unix)]
fn socket(fd: std::os::fd::OwnedFd) -> std::io::Result<tokio::net::UnixStream> {
    let socket = std::os::unix::net::UnixStream::from(fd);
    socket.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(socket)
}

#[cfg(not(unix))]
pub fn standard_streams() -> (Reader, Writer) {
    (Box::new(tokio::io::stdin()), Box::new(tokio::io::stdout()))
}

/// Completes when nobody reads standard output any more, also while nothing is written.
/// Only pipes report this, and only Linux was tested.
#[cfg(target_os = "linux")]
pub async fn output_closed() {
    use std::os::fd::AsFd;

    use tokio::io::Interest;
    use tokio::net::unix::pipe;

    let output = std::io::stdout().as_fd().try_clone_to_owned();
    let watched = output.and_then(pipe::Sender::from_owned_fd);
    if let Ok(watched) = watched
        && watched.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// See above.
#[cfg(not(target_os = "linux"))]
pub async fn output_closed() {
    std::future::pending().await
}
