//! `code-mode journal`: the durable sessions in a journal.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use code_mode_host::{Journal, JournalError, JournalOptions, JournaledSession, check_journal};
use code_mode_protocol::text::visible;
use code_mode_system::{say, show};

/// The options of `code-mode journal`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
A journal has the sessions of `code-mode run --durable NAME`, of `code-mode mcp --durable DIR`
(DIR/sessions.journal), of the SDKs and of agents that opened it with the crate. One process at
a time has it open.

Exit status: 0 done, 1 there is no such session, or the file is damaged, 2 wrong usage,
3 the file cannot be used.

Example: code-mode journal show nightly")]
pub(crate) struct Args {
    #[command(flatten)]
    file: JournalFile,
    #[command(subcommand)]
    action: Action,
}

/// Which journal.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct JournalFile {
    /// The journal (default: sessions.journal in this user's folder for state)
    #[arg(long, value_name = "FILE", global = true)]
    journal: Option<PathBuf>,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// List the sessions, and how many of their cells run
    Ls,
    /// Show the cells of a session, and which of their calls have no answer
    Show {
        /// The session
        name: String,
    },
    /// Remove a session with its cells and its stored values
    Rm {
        /// The session
        name: String,
    },
    /// Read the whole file and say whether it is well
    Check,
}

/// Why a journal cannot be shown.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Folder(#[from] NoFolder),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The user has no folder for a journal.
#[derive(Debug, thiserror::Error)]
#[error(
    "a folder for the journal does not exist: neither XDG_STATE_HOME nor HOME is set (--journal names a file)"
)]
pub(crate) struct NoFolder;

impl Failure {
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Folder(_) => crate::WRONG_USAGE,
            Self::Journal(
                JournalError::NoSession(_)
                | JournalError::Damaged { .. }
                | JournalError::Entry { .. },
            ) => 1,
            Self::Journal(_) => crate::RUNTIME_FAILED,
        })
    }
}

impl JournalFile {
    /// The file, where the user names it.
    pub(crate) fn named(&self) -> Option<&Path> {
        self.journal.as_deref()
    }

    /// The file.
    pub(crate) fn path(&self) -> Result<PathBuf, NoFolder> {
        let of_user = || Some(code_mode_system::state_folder()?.join("sessions.journal"));
        self.journal.clone().or_else(of_user).ok_or(NoFolder)
    }
}

/// Does what the arguments say.
pub(crate) fn main(args: Args) -> ExitCode {
    match done(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say!("code-mode journal: {failure}");
            failure.exit_code()
        }
    }
}

fn done(args: &Args) -> Result<(), Failure> {
    let path = args.file.path()?;
    match &args.action {
        Action::Ls => {
            for session in sessions(&path)? {
                show!("{}", summary(&session));
            }
        }
        Action::Show { name } => {
            show_session(&with_sessions(&path, name)?.session(name)?);
        }
        Action::Rm { name } => with_sessions(&path, name)?.remove(name)?,
        Action::Check => {
            let sessions = check_journal(&path)?;
            show!("{}: well, sessions: {}", path.display(), sessions.len());
        }
    }
    Ok(())
}

/// The journal, where there is one: looking makes none.
fn existing(path: &Path) -> Result<Option<Journal>, JournalError> {
    match path.exists() {
        true => Journal::open(path, JournalOptions::default()).map(Some),
        false => Ok(None),
    }
}

/// The journal, which must be there for a session to be in it.
fn with_sessions(path: &Path, name: &str) -> Result<Journal, JournalError> {
    existing(path)?.ok_or_else(|| JournalError::NoSession(name.to_owned()))
}

fn sessions(path: &Path) -> Result<Vec<JournaledSession>, JournalError> {
    existing(path)?.map_or_else(|| Ok(Vec::new()), |journal| journal.sessions())
}

fn summary(session: &JournaledSession) -> String {
    let running = (session.cells.iter()).filter(|cell| cell.outcome.is_none());
    format!(
        "{}: {} running, {} ended, {} stored values, opened {}",
        visible(&session.name),
        running.clone().count(),
        session.cells.len() - running.count(),
        session.stored.len(),
        ago(session.opened_ms),
    )
}

fn show_session(session: &JournaledSession) {
    show!("{}", summary(session));
    for cell in &session.cells {
        let state = cell.outcome.unwrap_or("running");
        show!(
            "cell {} ({}): {state}, began {}, turns: {}, bytes of its log: {}",
            cell.cell,
            visible(&cell.tool_call_id),
            ago(cell.began_ms),
            cell.turns,
            cell.log_bytes
        );
        let cuts_after = |calls| cell.cuts.iter().filter(move |cut| cut.calls == calls);
        let show_cuts = |calls| {
            for cut in cuts_after(calls) {
                show!(
                    "  -- it ran again {}, and repeated the calls above",
                    ago(cut.at_ms)
                );
            }
        };
        show_cuts(0);
        for (place, call) in cell.calls.iter().enumerate() {
            let state = match (call.is_answered, call.attempts) {
                (true, 1) => "answered".to_owned(),
                (true, attempts) => format!("answered, attempt {attempts}"),
                (false, 1) => "no answer".to_owned(),
                (false, attempts) => format!("no answer, attempt {attempts}"),
            };
            show!("  call {}: {} ({state})", call.call, visible(&call.tool));
            show_cuts(place + 1);
        }
    }
    for (key, bytes) in &session.stored {
        show!("stored {}: {bytes} bytes", visible(key));
    }
}

/// How long ago it was that time, in milliseconds since 1970.
pub(crate) fn ago(ms: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_millis(ms);
    let passed = SystemTime::now().duration_since(then).unwrap_or_default();
    match passed.as_secs() {
        0 => "now".to_owned(),
        passed => format!("{} ago", in_words(passed)),
    }
}

/// So many seconds in the largest unit of which there is one.
pub(crate) fn in_words(seconds: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)];
    let unit = UNITS.into_iter().find(|(_, unit)| seconds >= *unit);
    let (name, unit) = unit.unwrap_or(("s", 1));
    format!("{} {name}", seconds / unit)
}
