//! Why a journal cannot be used.

use std::path::PathBuf;
use std::sync::Arc;

use code_mode_protocol::SessionError;

/// A journal cannot be used. The file stays as it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// A process has it open; one at a time may.
    #[error("the journal {} is in use{}", path.display(), holder(.process))]
    InUse {
        /// The file.
        path: PathBuf,
        /// The process, where it has left its number.
        process: Option<u32>,
    },
    /// A newer version of this crate has written it.
    #[error("the journal {} has version {found}, and this program knows {known}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version that can be read.
        known: u32,
    },
    /// The file is not a journal, or is damaged.
    #[error("{} is not a journal, or is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The file cannot be opened.
    #[error("the journal {} cannot be opened: {error}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        error: std::io::Error,
    },
    /// Reading or writing failed, for example because the disk is full. Nothing is written any more.
    #[error("the journal cannot be used any more: {0}")]
    Storage(String),
    /// The file is as large as it may be. Nothing is written any more.
    #[error("the journal has {bytes} bytes, and may have {most}")]
    Full {
        /// Its size.
        bytes: u64,
        /// [`JournalOptions::max_bytes`](field@super::JournalOptions::max_bytes).
        most: u64,
    },
    /// The session was shut down.
    #[error("the session was shut down")]
    Closed,
    /// The session is open already.
    #[error("the session {0:?} is open")]
    SessionIsOpen(String),
    /// The journal has no such session.
    #[error("the journal has no session {0:?}")]
    NoSession(String),
    /// The journal has no such question (any more): its cell has ended.
    #[error("no question {0} is in the journal (any more)")]
    NoQuestion(u64),
    /// The asker of this question does not let another terminal decide it.
    #[error("the policy does not let another terminal decide it (\"terminal_may_answer\")")]
    NotFromTerminal,
    /// A session's name has 1 to 200 characters, none of them a control character.
    #[error("a session's name has 1 to 200 characters, and no control characters")]
    Name,
    /// An entry cannot be read.
    #[error("an entry of the session {session:?} cannot be read: {why}")]
    Entry {
        /// The session.
        session: String,
        /// The reason.
        why: String,
    },
}

fn holder(process: &Option<u32>) -> String {
    match process {
        Some(process) => format!(" by process {process}"),
        None => String::new(),
    }
}

impl From<JournalError> for SessionError {
    fn from(error: JournalError) -> Self {
        Self::Journal(Arc::new(error))
    }
}
