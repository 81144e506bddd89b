//! A run whose session lives in a journal: the same command continues it, whatever ended the last one.

use std::path::Path;
use std::sync::Arc;

use code_mode_host::{
    CellId, CodeModeSessionDelegate, Journal, JournalError, JournalOptions, JournaledCell, Json,
    Provider, Session, SessionError, SessionOptions,
};
use code_mode_mcp::QuestionKeeper;
use code_mode_protocol::text::visible;
use code_mode_system::say;

use super::approvals::AtTerminal;
use super::{ARGUMENTS, Args, Failure, arguments};
#[cfg(unix)]
use crate::approvals::Door;
use crate::journal::JournalFile;
use crate::units::{Bytes, Time};

/// The options of a run whose session lasts.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Durable sessions")]
pub(super) struct DurableArgs {
    /// Keep the script in the journal under this name, and continue it if it is there
    #[arg(long, value_name = "NAME", conflicts_with_all = ["store", "trace"])]
    pub(super) durable: Option<String>,
    #[command(flatten)]
    file: JournalFile,
    /// Inputs and answers of a script that a journal keeps
    #[arg(long, value_name = "SIZE", requires = "durable", default_value_t = Bytes(JournalOptions::default().max_cell_bytes))]
    max_log: Bytes,
    /// A script that has waited for so long, and whose next timer is a minute away, leaves its process
    #[arg(long, value_name = "TIME", requires = "durable", default_value_t = Time(JournalOptions::default().park_after))]
    park_after: Time,
}

impl DurableArgs {
    /// The journal that the user names.
    pub(super) fn journal(&self) -> Option<&Path> {
        self.file.named()
    }
}

/// A session that was opened, and the script in it that continues.
pub(super) struct Opened {
    pub(super) session: Session,
    pub(super) continues: Option<CellId>,
    #[cfg(unix)]
    pub(super) _door: Door,
}

/// Opens the session of this name, in which this script may run already.
pub(super) async fn open(
    args: &Args,
    name: &str,
    source: &str,
    provider: &Provider,
    (delegate, at_terminal): (Arc<dyn CodeModeSessionDelegate>, &AtTerminal),
    (options, may_answer): (SessionOptions, bool),
) -> Result<Opened, Failure> {
    let path = (args.durable.file.path()).map_err(|error| Failure::Usage(error.to_string()))?;
    let (max_log, park_after) = (args.durable.max_log.0, args.durable.park_after.0);
    let (file, wanted) = (path.clone(), name.to_owned());
    let opening = move || {
        let options = JournalOptions::default().max_cell_bytes(max_log);
        let journal = Journal::open(file, options.park_after(park_after))?;
        let cells = match journal.session(&wanted) {
            Ok(session) => session.cells,
            Err(JournalError::NoSession(_)) => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok((journal, cells))
    };
    let opened = tokio::task::spawn_blocking(opening).await;
    let opened = opened.map_err(|error| Failure::Runtime(error.to_string()))?;
    let (journal, cells) =
        opened.map_err(|error: JournalError| Failure::Session(SessionError::from(error)))?;
    let continues = cells.iter().find(|cell| cell.source == source);
    let refused = |why: &str| {
        Failure::Usage(format!(
            "the session {name:?} {why}; run that one, or end it with `code-mode journal rm`"
        ))
    };
    match continues {
        None if !cells.is_empty() => return Err(refused("continues another script")),
        Some(cell) if arguments_of(cell) != Some(arguments(args)) => {
            return Err(refused("continues the script with other arguments"));
        }
        _ => {}
    }
    if let Some(cell) = continues {
        say_what_is_repeated(name, cell);
    }
    let continues = continues.map(|cell| CellId::nth(cell.cell));
    #[cfg(not(unix))]
    let _ = may_answer;
    at_terminal.keep_in(QuestionKeeper::new(journal.clone(), name));
    let session = provider
        .open_durable(&journal, name, delegate, options)
        .await?;
    Ok(Opened {
        session,
        continues,
        #[cfg(unix)]
        _door: Door::open(&path, &journal, may_answer),
    })
}

/// Says how much of a script is repeated from the journal.
fn say_what_is_repeated(name: &str, cell: &JournaledCell) {
    let name = visible(name);
    if let Some(outcome) = cell.outcome {
        return say!("code-mode run: {name} has ended ({outcome}); its result is in the journal");
    }
    let answered = cell.calls.iter().filter(|call| call.is_answered).count();
    let open = cell.calls.len() - answered;
    say!(
        "code-mode run: {name} continues: {answered} answered calls are repeated from the journal, and {open} have no answer there"
    );
}

/// The arguments of a script that continues.
fn arguments_of(cell: &JournaledCell) -> Option<Json> {
    let constant = cell.constants.iter().find(|(name, _)| name == ARGUMENTS);
    constant.map(|(_, json)| json.clone())
}
