//! What became of a cell's calls: told at its end, and kept in a file where one is named.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::texts::line;

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    /// It ran and gave a result.
    Ran,
    /// It ran and failed, or was refused by its server.
    Failed,
    /// The policy or a person said no: it never reached its server.
    Denied,
    /// It was cancelled: before it was sent, or its server was told.
    Cancelled,
    /// It was sent, and no answer came.
    Unknown,
}

/// One call.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Entry {
    /// Milliseconds since 1970.
    time: u64,
    pub(super) session: String,
    pub(super) cell: String,
    pub(super) call: String,
    pub(super) server: String,
    pub(super) tool: String,
    input_bytes: usize,
    input_sha256: String,
    /// The rule that decided, and what a person said.
    pub(super) decision: String,
    pub(super) outcome: Outcome,
    duration_ms: u64,
}

impl Entry {
    /// An entry for a call that is about to be decided.
    pub(super) fn new(
        (session, cell, call): (String, String, String),
        (server, tool): (&str, &str),
        input: &str,
    ) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let digest = Sha256::digest(input.as_bytes());
        Self {
            time: millis(since.unwrap_or_default()),
            session,
            cell,
            call,
            server: server.to_owned(),
            tool: tool.to_owned(),
            input_bytes: input.len(),
            input_sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            decision: String::new(),
            outcome: Outcome::Unknown,
            duration_ms: 0,
        }
    }

    /// The same entry, decided and done.
    pub(super) fn ended(mut self, decision: String, outcome: Outcome, took: Duration) -> Self {
        self.decision = decision;
        self.outcome = outcome;
        self.duration_ms = millis(took);
        self
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A file of entries, one JSON object a line.
#[derive(Debug)]
pub(super) struct LedgerFile(Mutex<File>);

impl LedgerFile {
    /// Opens a file to append to.
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self(Mutex::new(file)))
    }

    /// Appends an entry. One write, so that two programs may share the file.
    pub(super) fn write(&self, entry: &Entry) {
        let Ok(mut line) = serde_json::to_vec(entry) else {
            return;
        };
        line.push(b'\n');
        let mut file = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Err(error) = file.write_all(&line) {
            tracing::warn!(%error, "the ledger cannot be written");
        }
    }
}

/// The entries of a cell, in words: counts where all ran, every call where not.
pub(super) fn told(entries: &[Entry], running: usize) -> Option<String> {
    if entries.is_empty() && running == 0 {
        return None;
    }
    let of = |outcome| entries.iter().filter(move |entry| entry.outcome == outcome);
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
    if entries.iter().all(|entry| entry.outcome == Outcome::Ran) {
        let mut names: Vec<String> = Vec::new();
        for entry in entries {
            let name = shown(entry);
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
        for entry in entries.iter().take(LINES) {
            told.push_str(&format!(
                "\n  {} {}: {}",
                entry.call,
                shown(entry),
                match entry.outcome {
                    Outcome::Ran => "ran".to_owned(),
                    Outcome::Failed => "failed".to_owned(),
                    Outcome::Denied => format!("denied ({}), did not run", entry.decision),
                    Outcome::Cancelled => "cancelled".to_owned(),
                    Outcome::Unknown => "no answer came: it may have run".to_owned(),
                }
            ));
        }
        if entries.len() > LINES {
            told.push_str(&format!("\n  and {} more", entries.len() - LINES));
        }
    }
    Some(told)
}

/// A tool's name is a stranger's text.
fn shown(entry: &Entry) -> String {
    format!("{}/{}", line(&entry.server, 100), line(&entry.tool, 100))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tool: &str, outcome: Outcome) -> Entry {
        let ids = ("s".to_owned(), "1".to_owned(), "tool-1".to_owned());
        Entry::new(ids, ("git", tool), "{}").ended(
            "deny \"git/*\"".to_owned(),
            outcome,
            Duration::ZERO,
        )
    }

    #[test]
    fn calls_that_all_ran_are_counted_and_others_are_listed() {
        let ran = [entry("log", Outcome::Ran), entry("log", Outcome::Ran)];
        assert_eq!(told(&ran, 0).as_deref(), Some("calls: 2 ran (git/log)"));
        let mixed = [entry("log", Outcome::Ran), entry("push", Outcome::Denied)];
        let told = told(&mixed, 1).expect("something");
        assert!(
            told.starts_with("calls: 1 ran, 1 denied, 1 running\n"),
            "{told}"
        );
        assert!(told.contains("tool-1 git/push: denied (deny \"git/*\"), did not run"));
    }
}
