//! The signals that end this program in order: cells are stopped, output is
//! shown or sent, and processes end.

use std::io;

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Who ends the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// Ctrl-C.
    Person,
    /// SIGTERM.
    #[cfg(unix)]
    Terminate,
    /// SIGHUP: the terminal is gone.
    #[cfg(unix)]
    HangUp,
}

impl Interrupt {
    /// As a shell reports a program that the signal ended: 128 and its number.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Person => 130,
            #[cfg(unix)]
            Self::Terminate => 143,
            #[cfg(unix)]
            Self::HangUp => 129,
        }
    }
}

/// The signals, from when this was made: none is missed between two calls of
/// [`next`](Self::next).
#[cfg(unix)]
#[derive(Debug)]
pub struct Interrupts {
    person: Signal,
    terminate: Signal,
    /// `None` where the program was started to outlive its terminal.
    hang_up: Option<Signal>,
}

#[cfg(unix)]
impl Interrupts {
    /// Takes the signals over from their defaults. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What the system says where a handler cannot be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            person: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: match ignores_hang_up() {
                true => None,
                false => Some(signal(SignalKind::hangup())?),
            },
        })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> Interrupt {
        let hang_up = async {
            match &mut self.hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.person.recv() => Interrupt::Person,
            _ = self.terminate.recv() => Interrupt::Terminate,
            _ = hang_up => Interrupt::HangUp,
        }
    }
}

/// Whether the program was started so that it ignores SIGHUP, as `nohup` does. Only
/// Linux tells.
#[cfg(unix)]
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 != 0)
}

/// Ctrl-C.
#[cfg(windows)]
#[derive(Debug)]
pub struct Interrupts(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Interrupts {
    /// Takes Ctrl-C over. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What the system says where a handler cannot be installed.
    pub fn new() -> io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    /// Waits for the next Ctrl-C.
    pub async fn next(&mut self) -> Interrupt {
        self.0.recv().await;
        Interrupt::Person
    }
}
