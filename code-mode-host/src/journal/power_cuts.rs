//! The power fails at any write: flushed records are on disk.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use code_mode_protocol::{Json, RuntimeToolCallId};
use redb::StorageBackend;

use super::open::Inner;
use super::record::{Record, Step};
use super::store::guarded;
use super::tests::{began, opened};
use super::{Journal, JournalError, JournalOptions};

/// The steps of one cell, each of which somebody waits for.
const STEPS: u32 = 25;

/// A disk that loses every write after so many.
#[derive(Clone, Debug, Default)]
struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    writes: Arc<AtomicU64>,
    /// Writes that reach it.
    most: u64,
}

impl Disk {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().expect("not poisoned")
    }

    /// The same disk when the power is back.
    fn again(&self) -> Self {
        Self {
            bytes: Arc::new(Mutex::new(self.bytes().clone())),
            writes: Arc::default(),
            most: u64::MAX,
        }
    }

    /// Counts a write; whether it reaches the disk.
    fn reaches(&self) -> bool {
        self.writes.fetch_add(1, Ordering::SeqCst) < self.most
    }

    fn has_power(&self) -> bool {
        self.writes.load(Ordering::SeqCst) <= self.most
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.bytes().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let bytes = self.bytes();
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let part = bytes.get(from..from + out.len());
        out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        if self.reaches() {
            let len = usize::try_from(len).map_err(io::Error::other)?;
            self.bytes().resize(len, 0);
        }
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        if self.reaches() {
            let mut bytes = self.bytes();
            let from = usize::try_from(offset).map_err(io::Error::other)?;
            let part = bytes.get_mut(from..from + data.len());
            let part = part.ok_or(io::ErrorKind::UnexpectedEof)?;
            part.copy_from_slice(data);
        }
        Ok(())
    }
}

fn open(place: &std::path::Path, disk: Disk) -> Result<Journal, JournalError> {
    let path: PathBuf = place.join("journal");
    let inner = guarded(&path.clone(), || {
        Inner::with_backend(path, JournalOptions::default(), disk)
    });
    inner.map(|inner| Journal(Arc::new(inner)))
}

/// Writes steps until the power fails; returns how many were flushed before.
async fn written(place: &std::path::Path, disk: &Disk) -> u32 {
    let Ok(journal) = open(place, disk.clone()) else {
        return 0;
    };
    let Ok(session) = guarded(place, || Ok(opened(journal.inner()))) else {
        return 0;
    };
    session.append(began(1));
    let mut kept = 0;
    for place in 1..=STEPS {
        let step = Step::Intent {
            call: RuntimeToolCallId(place),
            tool: 0,
            input: Some(Json::string(&"x".repeat(500))),
        };
        session.append(Record::Step { cell: 1, step });
        let flushed = session.flushed().await;
        if flushed.is_err() || !disk.has_power() {
            break;
        }
        kept = place;
    }
    kept
}

#[tokio::test]
async fn what_was_said_to_be_on_disk_is_there_wherever_the_power_failed() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = Disk {
        most: u64::MAX,
        ..Disk::default()
    };
    assert_eq!(written(folder.path(), &whole).await, STEPS);
    let all = whole.writes.load(Ordering::SeqCst);
    let mut cuts = 0;
    // From the first write on there is a file.
    for most in 0..all {
        let disk = Disk {
            most,
            ..Disk::default()
        };
        let kept = written(folder.path(), &disk).await;
        let Ok(journal) = open(folder.path(), disk.again()) else {
            assert_eq!(kept, 0, "the file is lost after {most} writes");
            continue;
        };
        let found = match journal.session("work") {
            Ok(session) => session.cells,
            Err(JournalError::NoSession(_)) => Vec::new(),
            Err(error) => panic!("after {most} writes: {error}"),
        };
        let calls = found.iter().flat_map(|cell| &cell.calls);
        let calls: Vec<u32> = calls.map(|call| call.call).collect();
        let expected: Vec<u32> = (1..=calls.len() as u32).collect();
        assert_eq!(calls, expected, "after {most} writes");
        assert!(calls.len() >= kept as usize, "{kept} were kept, {calls:?}");
        cuts += 1;
    }
    assert!(cuts > 20, "{cuts} of {all} writes");
}
