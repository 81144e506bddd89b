//! What became of a cell's calls: told at its end, and kept in a file where one is named.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use code_mode_protocol::text::line;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::texts::hex;

/// The names of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallIds {
    /// The session, by a name that nobody can use it by. Only its client sees its questions.
    pub session: String,
    /// The cell.
    pub cell: String,
    /// The call in its cell.
    pub call: String,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It ran and gave a result.
    Ran,
    /// It ran and failed, or was refused by its server.
    Failed,
    /// The policy or a person said no: it never reached its server.
    Denied,
    /// It was cancelled before it was sent.
    Cancelled,
    /// It was sent, and no answer came: its server was lost, or nobody waited any longer.
    Unknown,
}

/// One call.
#[derive(Clone, Debug, Serialize)]
pub struct AuditRecord {
    /// Milliseconds since 1970.
    time: u64,
    pub(crate) session: String,
    pub(crate) cell: String,
    pub(crate) call: String,
    pub(crate) server: String,
    pub(crate) tool: String,
    input_bytes: usize,
    input_sha256: String,
    /// The rule that decided, and what a person said.
    pub(crate) decision: String,
    pub(crate) outcome: Outcome,
    duration_ms: u64,
}

impl AuditRecord {
    /// A record of a call that is about to be decided.
    pub(crate) fn new(ids: CallIds, server: &str, tool: &str, input: &str) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let digest = Sha256::digest(input.as_bytes());
        Self {
            time: millis(since.unwrap_or_default()),
            session: ids.session,
            cell: ids.cell,
            call: ids.call,
            server: server.to_owned(),
            tool: tool.to_owned(),
            input_bytes: input.len(),
            input_sha256: hex(&digest),
            decision: String::new(),
            outcome: Outcome::Unknown,
            duration_ms: 0,
        }
    }

    /// The same record, decided and done.
    pub(crate) fn ended(mut self, decision: String, outcome: Outcome, took: Duration) -> Self {
        self.decision = decision;
        self.outcome = outcome;
        self.duration_ms = millis(took);
        self
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A file of records, one JSON object a line.
#[derive(Debug)]
pub struct AuditLog(Mutex<File>);

impl AuditLog {
    /// Opens a file to append to. A new one is its owner's alone (mode 0600 on Unix): records
    /// name sessions and tools.
    ///
    /// # Errors
    /// What the system says where the file cannot be opened.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path)?;
        Ok(Self(Mutex::new(file)))
    }

    /// Appends a record. One write, so that two programs may share the file.
    pub(crate) fn write(&self, record: &AuditRecord) {
        let Ok(mut line) = serde_json::to_vec(record) else {
            return;
        };
        line.push(b'\n');
        let mut file = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Err(error) = file.write_all(&line) {
            tracing::warn!(%error, "the audit log cannot be written");
        }
    }
}

/// What became of the calls of a cell, in words: counts where all ran, every call where not.
pub(crate) fn in_words(records: &[AuditRecord], running: usize) -> Option<String> {
    if records.is_empty() && running == 0 {
        return None;
    }
    let of = |outcome| {
        records
            .iter()
            .filter(move |record| record.outcome == outcome)
    };
    let mut counts = vec![format!("{} ran", of(Outcome::Ran).count())];
    for (outcome, word) in [
        (Outcome::Failed, "failed"),
        (Outcome::Denied, "denied"),
        (Outcome::Cancelled, "cancelled"),
        (Outcome::Unknown, "unknown: may have run"),
    ] {
        match of(outcome).count() {
            0 => {}
            count => counts.push(format!("{count} {word}")),
        }
    }
    if running > 0 {
        counts.push(format!("{running} running"));
    }
    let mut told = format!("calls: {}", counts.join(", "));
    if records.iter().all(|record| record.outcome == Outcome::Ran) {
        let mut names: Vec<String> = Vec::new();
        for record in records {
            let name = shown(record);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        const NAMES: usize = 8;
        let more = names.len().saturating_sub(NAMES);
        names.truncate(NAMES);
        if more > 0 {
            names.push(format!("and {more} more"));
        }
        if !names.is_empty() {
            told.push_str(&format!(" ({})", names.join(", ")));
        }
    } else {
        const LINES: usize = 100;
        for record in records.iter().take(LINES) {
            told.push_str(&format!(
                "\n  {} {}: {}",
                record.call,
                shown(record),
                match record.outcome {
                    Outcome::Ran => "ran".to_owned(),
                    Outcome::Failed => "failed".to_owned(),
                    Outcome::Denied => format!("denied ({}), did not run", record.decision),
                    Outcome::Cancelled => "cancelled".to_owned(),
                    Outcome::Unknown => "no answer came: it may have run".to_owned(),
                }
            ));
        }
        if records.len() > LINES {
            told.push_str(&format!("\n  and {} more", records.len() - LINES));
        }
    }
    Some(told)
}

/// A tool's name is a stranger's text.
fn shown(record: &AuditRecord) -> String {
    format!("{}/{}", line(&record.server, 100), line(&record.tool, 100))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(tool: &str, outcome: Outcome) -> AuditRecord {
        let ids = CallIds {
            session: "s".to_owned(),
            cell: "1".to_owned(),
            call: "tool-1".to_owned(),
        };
        AuditRecord::new(ids, "git", tool, "{}").ended(
            "deny \"git/*\"".to_owned(),
            outcome,
            Duration::ZERO,
        )
    }

    #[test]
    #[cfg(unix)]
    fn a_new_log_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log.jsonl");
        let log = AuditLog::open(&path).expect("opened");
        log.write(&record("log", Outcome::Ran));
        let mode = path.metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn calls_that_all_ran_are_counted_and_others_are_listed() {
        let ran = [record("log", Outcome::Ran), record("log", Outcome::Ran)];
        assert_eq!(in_words(&ran, 0).as_deref(), Some("calls: 2 ran (git/log)"));
        let mixed = [record("log", Outcome::Ran), record("push", Outcome::Denied)];
        let told = in_words(&mixed, 1).expect("something");
        assert!(
            told.starts_with("calls: 1 ran, 1 denied, 1 running\n"),
            "{told}"
        );
        assert!(told.contains("tool-1 git/push: denied (deny \"git/*\"), did not run"));
    }
}
