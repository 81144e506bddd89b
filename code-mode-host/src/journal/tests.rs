//! Files that are damaged, of another version, or on a disk that fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use code_mode_protocol::{ExecuteRequest, SessionOptions, ToolDefinition};
use redb::StorageBackend;
use redb::backends::{FileBackend, InMemoryBackend};

use super::open::Inner;
use super::record::{Program, Record};
use super::store::{META, PROGRAMS, Store};
use super::{Journal, JournalError, JournalOptions, Limits, OpenSession, check_journal};

/// A disk that fails once a test says so.
#[derive(Debug)]
struct Disk {
    memory: InMemoryBackend,
    fails: Arc<AtomicBool>,
}

impl Disk {
    fn may(&self) -> Result<(), std::io::Error> {
        match self.fails.load(Ordering::SeqCst) {
            true => Err(std::io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.may()?;
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.may()?;
        self.memory.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.may()?;
        self.memory.write(offset, data)
    }
}

pub(super) fn began(cell: u64) -> Record {
    let request = ExecuteRequest::new("call", "source");
    Record::Began {
        cell,
        program: Box::new(Program {
            tool_call_id: request.tool_call_id,
            source: request.source,
            tools: vec![ToolDefinition::function("tool", "")].into(),
            constants: Vec::new(),
            seed: 1,
            start_ms: 0.0,
            to_pending: false,
            view: 0,
        }),
    }
}

pub(super) fn opened(journal: &Arc<Inner>) -> OpenSession {
    let options = SessionOptions::default();
    let opened = journal.open_session("work", Some((&options, Limits::default())));
    opened.expect("a session").session
}

/// A file with one session, in which one cell runs.
async fn written(folder: &Path) -> PathBuf {
    let file = folder.join("journal");
    let journal = Journal::open(&file, JournalOptions::default()).expect("a journal");
    let session = opened(journal.inner());
    session.append(began(1));
    session.flushed().await.expect("written");
    file
}

/// Changes the tables of a file as no program of ours does.
fn spoilt(file: &Path, spoil: impl FnOnce(&Store)) {
    let open = std::fs::File::options().read(true).write(true).open(file);
    let backend = FileBackend::new(open.expect("there")).expect("not locked");
    spoil(&Store::open(file, backend).expect("a journal"));
}

#[tokio::test]
async fn a_disk_that_fails_is_an_error_to_all_who_wait_and_to_all_who_come_later() {
    let fails = Arc::new(AtomicBool::new(false));
    let disk = Disk {
        memory: InMemoryBackend::new(),
        fails: fails.clone(),
    };
    let journal = Inner::with_backend(PathBuf::from("none"), JournalOptions::default(), disk);
    let journal = Arc::new(journal.expect("a journal"));
    let session = opened(&journal);
    session.append(began(1));
    session.flushed().await.expect("the disk is well");

    fails.store(true, Ordering::SeqCst);
    session.append(began(2));
    let failed = session.flushed().await.expect_err("the disk fails");
    assert!(matches!(*failed, JournalError::Storage(_)), "{failed}");
    assert!(failed.to_string().contains("cannot be used any more"));
    // It stays so where the disk is well again: the records lost meanwhile would be missing.
    fails.store(false, Ordering::SeqCst);
    session.append(began(3));
    session.flushed().await.expect_err("it is given up");
    session.failing().await;
}

#[tokio::test]
async fn what_was_written_is_there_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = written(folder.path()).await;
    let sessions = check_journal(&file).expect("well");
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].cells[0].source, "source");
    assert_eq!(sessions[0].cells[0].outcome, None);
}

#[tokio::test]
async fn a_journal_of_a_newer_version_stays_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = written(folder.path()).await;
    spoilt(&file, |store| {
        let write = store.begin().expect("a transaction");
        let mut meta = write.open_table(META).expect("a table");
        meta.insert("version", 7).expect("written");
        drop(meta);
        write.commit().expect("written");
    });
    let before = std::fs::metadata(&file).expect("there").len();
    let error = Journal::open(&file, JournalOptions::default()).expect_err("newer");
    assert!(
        matches!(
            error,
            JournalError::Newer {
                found: 7,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(std::fs::metadata(&file).expect("there").len(), before);
}

#[tokio::test]
async fn a_damaged_entry_names_its_session() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = written(folder.path()).await;
    spoilt(&file, |store| {
        let write = store.begin().expect("a transaction");
        let mut programs = write.open_table(PROGRAMS).expect("a table");
        programs
            .insert((1, 1), [253; 9].as_slice())
            .expect("written");
        drop(programs);
        write.commit().expect("written");
    });
    let error = check_journal(&file).expect_err("damaged");
    assert!(
        matches!(&error, JournalError::Entry { session, .. } if session == "work"),
        "{error}"
    );
    let journal = Journal::open(&file, JournalOptions::default()).expect("the tables are well");
    journal.remove("work").expect("removed");
    assert!(journal.sessions().expect("none").is_empty());
}

#[tokio::test]
async fn a_file_of_any_bytes_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = written(folder.path()).await;
    let bytes = std::fs::read(&file).expect("there");
    // One byte of each part of the file, and the file cut there.
    for place in (0..bytes.len()).step_by(bytes.len() / 97) {
        let mut changed = bytes.clone();
        changed[place] ^= 0x5a;
        std::fs::write(&file, &changed).expect("written");
        let _ = check_journal(&file);
        std::fs::write(&file, &bytes[..place]).expect("written");
        let _ = check_journal(&file);
    }
}

#[test]
fn looking_at_a_journal_that_is_not_there_makes_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("none");
    let error = check_journal(&file).expect_err("nothing there");
    assert!(matches!(error, JournalError::Open { .. }), "{error}");
    assert!(!file.exists());
}
