//! The thread that writes a journal.
//!
//! Records wait until one of them must be on disk; then all that wait go there in
//! one transaction, and one sync of the file. So a turn that makes a hundred calls costs one.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use super::JournalError;
use super::record::Record;
use super::store::{Places, SharedStore, guarded};

/// What nobody waits for is on disk after this long.
const AT_LEAST_EVERY: Duration = Duration::from_secs(1);

/// The thread, and the records that wait for it.
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    written: watch::Sender<Written>,
}

#[derive(Default)]
struct Queue {
    records: Vec<(u64, Record)>,
    /// The number of the last record.
    last: u64,
    /// Up to which number somebody waits.
    wanted: u64,
    /// Up to which number all is on disk, or lost.
    done: u64,
    /// Writing has failed: later records are lost.
    has_failed: bool,
    is_closed: bool,
}

/// How far the file is.
#[derive(Clone, Default)]
struct Written {
    last: u64,
    failed: Option<Arc<JournalError>>,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work; `None` when there will be none.
    fn next(&self) -> Option<(Vec<(u64, Record)>, u64)> {
        let mut queue = self.queue();
        loop {
            let has_some = !queue.records.is_empty();
            if has_some && (queue.wanted > queue.done || queue.is_closed) {
                break;
            }
            if queue.is_closed {
                return None;
            }
            // Without a record there is nothing to be late with.
            let limit = if has_some {
                AT_LEAST_EVERY
            } else {
                Duration::MAX
            };
            let waited = self.changed.wait_timeout(queue, limit);
            let (again, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = again;
            if timeout.timed_out() && !queue.records.is_empty() {
                break;
            }
        }
        Some((std::mem::take(&mut queue.records), queue.last))
    }

    /// Writes until there will be no work, or writing fails.
    fn run(&self, store: &SharedStore, is_full: impl Fn() -> Result<(), JournalError>) {
        let mut places = Places::new();
        while let Some((records, last)) = self.next() {
            let written = guarded(&store.path, || {
                is_full()?;
                prepare(store, &records, &mut places)?;
                store.write(records, &mut places)
            });
            let failed = written.err().map(Arc::new);
            if let Some(error) = &failed {
                tracing::error!(%error, "a journal cannot be written");
            }
            let is_over = failed.is_some();
            {
                let mut queue = self.queue();
                queue.done = last;
                queue.has_failed = is_over;
                if is_over {
                    queue.records = Vec::new();
                }
            }
            self.written.send_replace(Written { last, failed });
            if is_over {
                return;
            }
        }
    }
}

/// Finds where the logs continue that are not known yet.
fn prepare(
    store: &SharedStore,
    records: &[(u64, Record)],
    places: &mut Places,
) -> Result<(), JournalError> {
    for (session, record) in records {
        if let Record::Step { cell, .. } = record
            && !places.contains_key(&(*session, *cell))
        {
            let place = store.place(*session, *cell)?;
            places.insert((*session, *cell), place);
        }
    }
    Ok(())
}

impl Writer {
    /// Starts the thread. It calls `is_full` before each transaction.
    pub(super) fn start(
        store: SharedStore,
        is_full: impl Fn() -> Result<(), JournalError> + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            written: watch::Sender::default(),
        });
        let running = shared.clone();
        let thread = std::thread::Builder::new()
            .name("code-mode-journal".to_owned())
            .spawn(move || running.run(&store, is_full))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Adds a record of a session.
    pub(super) fn append(&self, session: u64, record: Record) {
        let mut queue = self.shared.queue();
        if queue.has_failed {
            return;
        }
        queue.records.push((session, record));
        queue.last += 1;
        if queue.records.len() == 1 {
            // The time until it is written at the latest begins.
            self.shared.changed.notify_one();
        }
    }

    /// The number of the last record, which the thread writes now, with all before it.
    pub(super) fn wanted(&self) -> u64 {
        let mut queue = self.shared.queue();
        if queue.done < queue.last {
            queue.wanted = queue.last;
            self.shared.changed.notify_one();
        }
        queue.last
    }

    /// What tells how far the file is, for as long as this is.
    pub(super) fn progress(&self) -> Progress {
        Progress(self.shared.written.subscribe())
    }
}

/// Tells how far a journal's file is.
pub(super) struct Progress(watch::Receiver<Written>);

impl Progress {
    /// Waits until a record, with all before it, is on disk.
    pub(super) async fn reaches(&self, last: u64) -> Result<(), Arc<JournalError>> {
        let mut written = self.0.clone();
        let is_there = |written: &Written| written.last >= last || written.failed.is_some();
        let Ok(written) = written.wait_for(is_there).await else {
            return Err(Arc::new(JournalError::Closed));
        };
        match &written.failed {
            Some(failed) => Err(failed.clone()),
            None => Ok(()),
        }
    }

    /// Completes where writing has failed; never after the journal is closed.
    pub(super) fn failing(&self) -> impl Future<Output = Arc<JournalError>> + Send + use<> {
        let mut written = self.0.clone();
        async move {
            let failed = written.wait_for(|written| written.failed.is_some()).await;
            match failed.ok().and_then(|written| written.failed.clone()) {
                Some(failed) => failed,
                None => std::future::pending().await,
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue().is_closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
