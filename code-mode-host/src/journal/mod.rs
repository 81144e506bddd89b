//! Durable sessions on disk.
//!
//! A [`Journal`] is one file, which one process has open. A session in it is opened by its name, and
//! opened again after whatever ended its process: [`Provider::open_durable`](crate::Provider::open_durable).
//!
//! [`record`] has the records, [`store`] the tables, and [`writer`] the thread that writes them.

mod error;
mod open;
#[cfg(test)]
mod power_cuts;
mod question_rows;
#[cfg(test)]
mod question_tests;
mod questions;
mod record;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use error::JournalError;
pub(crate) use open::{OpenSession, Opened};
pub use questions::{Answer, AskedQuestion, Decision, JournaledQuestion, Question};
pub(crate) use record::{
    EndRecord, Loaded, Program, Record, Repeated, Restored, RestoredCell, Step,
};

use code_mode_protocol::{Json, Limits};
use open::Inner;
use store::guarded;

/// How much a journal keeps, and for how long.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JournalOptions {
    /// The log of one cell, in bytes of inputs and answers. Past it the cell ends with the limit
    /// `journal`. Default 64 MiB.
    pub max_cell_bytes: usize,
    /// The size of the file, in bytes. Past it nothing is written any more, and the cells of all its
    /// sessions end with an error that says so. Default 4 GiB.
    pub max_bytes: u64,
    /// A cell that has waited for so long for answers, and for timers that are at least a minute away
    /// (or this long, where that is less), leaves its worker; it runs again from its journal when it need
    /// not wait any more. At least 10 ms; default 10 minutes.
    pub park_after: Duration,
    /// Sessions in which no cell runs are removed when the journal is opened so long after they were
    /// last opened. Default 30 days.
    pub keep_for: Duration,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            max_cell_bytes: 64 << 20,
            max_bytes: 4 << 30,
            park_after: Duration::from_secs(600),
            keep_for: Duration::from_secs(30 * 86_400),
        }
    }
}

impl JournalOptions {
    /// Sets the most bytes of one cell's log.
    #[must_use]
    pub fn max_cell_bytes(mut self, bytes: usize) -> Self {
        self.max_cell_bytes = bytes;
        self
    }

    /// Sets the most bytes of the file.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets how long a cell waits before it leaves its worker.
    #[must_use]
    pub fn park_after(mut self, time: Duration) -> Self {
        self.park_after = time;
        self
    }

    /// Sets how long sessions without running cells are kept.
    #[must_use]
    pub fn keep_for(mut self, time: Duration) -> Self {
        self.keep_for = time;
        self
    }
}

/// A file with durable sessions. Clones are the same journal; the file is closed with the last of
/// them and of its sessions.
#[derive(Clone)]
pub struct Journal(Arc<Inner>);

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("path", &self.0.path)
            .finish_non_exhaustive()
    }
}

/// A session as its journal has it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JournaledSession {
    /// The name that it is opened by.
    pub name: String,
    /// When it was first opened, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it was last opened.
    pub opened_ms: u64,
    /// The version of this crate that opened it first.
    pub version: String,
    /// As [`SessionOptions::guided`](field@crate::SessionOptions::guided).
    pub guided: bool,
    /// As [`SessionOptions::check_inputs`](field@crate::SessionOptions::check_inputs).
    pub check_inputs: bool,
    /// What its cells may use.
    pub limits: Limits,
    /// Its cells that are there: running, or ended with a result that nobody has taken.
    pub cells: Vec<JournaledCell>,
    /// The keys and sizes in bytes of its stored values.
    pub stored: Vec<(String, usize)>,
}

/// A cell as its session's journal has it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JournaledCell {
    /// Its number in the session.
    pub cell: u64,
    /// When it began, in milliseconds since 1970.
    pub began_ms: u64,
    /// As [`ExecuteRequest::tool_call_id`](field@crate::ExecuteRequest::tool_call_id).
    pub tool_call_id: String,
    /// Its source.
    pub source: String,
    /// As [`ExecuteRequest::constants`](field@crate::ExecuteRequest::constants).
    pub constants: Vec<(String, Json)>,
    /// How it ended, in one word as [`CellOutcome::as_str`](crate::CellOutcome::as_str) has it; `None`
    /// while it runs.
    pub outcome: Option<&'static str>,
    /// Its calls, in order.
    pub calls: Vec<JournaledCall>,
    /// When it ran again, because it had lost its worker or its process.
    pub cuts: Vec<JournaledCut>,
    /// Its turns: answers and timers that let it continue.
    pub turns: usize,
    /// The bytes of its log.
    pub log_bytes: usize,
}

/// A cell ran again from its first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournaledCut {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// So many calls were in its log then.
    pub calls: usize,
}

/// A call as its cell's log has it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JournaledCall {
    /// Its place in the cell.
    pub call: u32,
    /// The tool's name.
    pub tool: String,
    /// Its input.
    pub input: Option<Json>,
    /// Whether its answer is there.
    pub is_answered: bool,
    /// How often the delegate got it.
    pub attempts: u32,
}

impl Journal {
    /// Opens a journal, or makes one: a file for this user alone. It blocks while the file is read, and for
    /// up to a second while another process has it open.
    ///
    /// # Errors
    /// [`JournalError`]. A file that is not a journal, or is of a newer version, stays as it is.
    pub fn open(path: impl Into<PathBuf>, options: JournalOptions) -> Result<Self, JournalError> {
        let path = path.into();
        guarded(&path, || Inner::open(path.clone(), options)).map(|inner| Self(Arc::new(inner)))
    }

    /// The sessions, in order of their names. It blocks while they are read.
    ///
    /// # Errors
    /// [`JournalError::Storage`] and [`JournalError::Entry`].
    pub fn sessions(&self) -> Result<Vec<JournaledSession>, JournalError> {
        guarded(&self.0.path, || self.0.sessions())
    }

    /// One session. It blocks while it is read, and reads no other.
    ///
    /// # Errors
    /// [`JournalError::NoSession`], [`JournalError::Storage`] and [`JournalError::Entry`].
    pub fn session(&self, name: &str) -> Result<JournaledSession, JournalError> {
        guarded(&self.0.path, || self.0.session(name))
    }

    /// Removes a session that is not open, with all that is kept of it.
    ///
    /// # Errors
    /// [`JournalError::NoSession`], [`JournalError::SessionIsOpen`] and [`JournalError::Storage`].
    pub fn remove(&self, name: &str) -> Result<(), JournalError> {
        guarded(&self.0.path, || self.0.remove(name))
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }
}

/// Checks every page and every entry of a journal that no process has open, without changing it
/// where it is well.
///
/// # Errors
/// [`JournalError`].
pub fn check_journal(path: impl Into<PathBuf>) -> Result<Vec<JournaledSession>, JournalError> {
    let path = path.into();
    guarded(&path, || Inner::check(path.clone()))
}
