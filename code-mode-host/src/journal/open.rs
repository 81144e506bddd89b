//! An open journal, and the sessions that are open in it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use code_mode_protocol::{Json, Limits, RuntimeToolCallId, SessionOptions};
use redb::backends::FileBackend;
use redb::{DatabaseError, StorageBackend};

use super::questions::Waiting;
use super::record::{Loaded, Record, Restored, Step};
use super::store::{SessionRow, SharedStore, Store, guarded};
use super::writer::{Progress, Writer};
use super::{JournalError, JournalOptions, JournaledSession};

/// The most characters of a session's name.
const LONGEST_NAME: usize = 200;

/// An open journal.
pub(crate) struct Inner {
    pub(super) path: PathBuf,
    options: JournalOptions,
    pub(super) store: SharedStore,
    /// The numbers of the sessions that are open.
    open: Mutex<HashSet<u64>>,
    pub(super) waiting: Waiting,
    writer: Writer,
    /// Removed when the journal is closed.
    _holder: Holder,
}

/// A session that was opened, as its journal has it.
pub(crate) struct Opened {
    pub(crate) session: OpenSession,
    pub(crate) restored: Restored,
    pub(crate) row: SessionRow,
}

/// A session that is open: nobody else can open it until this is released.
pub(crate) struct OpenSession {
    /// `None` after the release, which lets the file be closed.
    journal: Mutex<Option<Arc<Inner>>>,
    progress: Progress,
    name: String,
    id: u64,
}

/// The file beside a journal that names the process which has it open.
struct Holder(PathBuf);

impl Holder {
    fn path_of(journal: &Path) -> PathBuf {
        let mut path = journal.as_os_str().to_owned();
        path.push(".pid");
        PathBuf::from(path)
    }

    /// Leaves this process's number. A journal is as good without it.
    fn of(journal: &Path) -> Self {
        let path = Self::path_of(journal);
        if let Ok(mut file) = private_file(&path, true) {
            let _ = write!(file, "{}", std::process::id());
        }
        Self(path)
    }

    fn process(journal: &Path) -> Option<u32> {
        let text = std::fs::read_to_string(Self::path_of(journal)).ok()?;
        text.trim().parse().ok()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A file for this user alone.
fn private_file(path: &Path, truncate: bool) -> io::Result<File> {
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(truncate);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// The milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// The backend of a file, locked for this process.
fn backend(path: &Path) -> Result<FileBackend, JournalError> {
    let failed = |error| JournalError::Open {
        path: path.to_owned(),
        error,
    };
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        let mut make = std::fs::DirBuilder::new();
        make.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut make, 0o700);
        make.create(folder).map_err(failed)?;
    }
    let is_odd = std::fs::metadata(path).is_ok_and(|found| !found.is_file());
    if is_odd {
        let why = "not a file".to_owned();
        return Err(JournalError::Damaged {
            path: path.to_owned(),
            why,
        });
    }
    let file = private_file(path, false).map_err(failed)?;
    FileBackend::new(file).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => JournalError::InUse {
            path: path.to_owned(),
            process: Holder::process(path),
        },
        error => JournalError::Damaged {
            path: path.to_owned(),
            why: error.to_string(),
        },
    })
}

/// How long an opener waits for another process. A command that looks at a journal has it for a moment; and a process
/// that was killed while it started another one leaves the lock to that one, until it becomes its own program.
const A_MOMENT: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(10);

impl Inner {
    pub(super) fn open(path: PathBuf, options: JournalOptions) -> Result<Self, JournalError> {
        let until = Instant::now() + A_MOMENT;
        loop {
            let opened = backend(&path);
            let opened = opened
                .and_then(|backend| Self::with_backend(path.clone(), options.clone(), backend));
            match opened {
                Err(JournalError::InUse { .. }) if Instant::now() < until => {
                    std::thread::sleep(LOOK_EVERY);
                }
                opened => return opened,
            }
        }
    }

    pub(super) fn with_backend(
        path: PathBuf,
        options: JournalOptions,
        backend: impl StorageBackend,
    ) -> Result<Self, JournalError> {
        let store = Store::open(&path, backend).map_err(|error| in_use(&path, error))?;
        let store: SharedStore = Arc::new(store);
        let keep_ms = u64::try_from(options.keep_for.as_millis()).unwrap_or(u64::MAX);
        let oldest = now_ms().saturating_sub(keep_ms);
        for (name, row) in store.rows()? {
            if row.opened_ms < oldest && !store.has_running(row.id)? {
                store.remove(&name, row.id)?;
            }
        }
        let (file, most) = (path.clone(), options.max_bytes);
        let is_full = move || {
            let bytes = std::fs::metadata(&file).map_or(0, |file| file.len());
            match bytes > most {
                true => Err(JournalError::Full { bytes, most }),
                false => Ok(()),
            }
        };
        let writer = Writer::start(store.clone(), is_full);
        let writer = writer.map_err(|error| JournalError::Open {
            path: path.clone(),
            error,
        })?;
        Ok(Self {
            _holder: Holder::of(&path),
            path,
            options,
            store,
            open: Mutex::default(),
            waiting: Waiting::default(),
            writer,
        })
    }

    /// Does work that blocks, on a thread that may.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let journal = self.clone();
        let work = move || guarded(&journal.path, || work(&journal));
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| Err(JournalError::Storage(error.to_string())))
    }

    pub(super) fn check(path: PathBuf) -> Result<Vec<JournaledSession>, JournalError> {
        if !path.exists() {
            let error = io::ErrorKind::NotFound.into();
            return Err(JournalError::Open { path, error });
        }
        let backend = backend(&path)?;
        let mut store = Store::open(&path, backend).map_err(|error| in_use(&path, error))?;
        store.check()?;
        shown(&store)
    }

    pub(super) fn sessions(&self) -> Result<Vec<JournaledSession>, JournalError> {
        shown(&self.store)
    }

    /// The number of a session and all that is known of it.
    pub(super) fn row(&self, name: &str) -> Result<SessionRow, JournalError> {
        let row = self.store.row(name)?;
        row.ok_or_else(|| JournalError::NoSession(name.to_owned()))
    }

    pub(super) fn session(&self, name: &str) -> Result<JournaledSession, JournalError> {
        self.store.shown(name.to_owned(), self.row(name)?)
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), JournalError> {
        let row = self.row(name)?;
        // Locked until it is gone, so that nobody opens it meanwhile.
        let open = self.opened();
        match open.contains(&row.id) {
            true => Err(JournalError::SessionIsOpen(name.to_owned())),
            false => self.store.remove(name, row.id),
        }
    }

    fn opened(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn options(&self) -> &JournalOptions {
        &self.options
    }

    /// Opens a session, which is made with these options where it does not exist and there are some.
    pub(crate) fn open_session(
        self: &Arc<Self>,
        name: &str,
        options: Option<(&SessionOptions, Limits)>,
    ) -> Result<Opened, JournalError> {
        let length = name.chars().count();
        if !(1..=LONGEST_NAME).contains(&length) || name.contains(char::is_control) {
            return Err(JournalError::Name);
        }
        let mut open = self.opened();
        let now = now_ms();
        let new = |id| {
            let (options, limits) = options?;
            let row = SessionRow {
                id,
                created_ms: now,
                opened_ms: now,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                guided: options.guided,
                check_inputs: options.check_inputs,
                require_readable_schemas: options.require_readable_schemas,
                limits,
            };
            let stored: Vec<(String, Json)> = options.stored.clone();
            Some((row, stored))
        };
        let row = guarded(&self.path, || self.store.session(name, new, now))?;
        if !open.insert(row.id) {
            return Err(JournalError::SessionIsOpen(name.to_owned()));
        }
        let session = OpenSession {
            journal: Mutex::new(Some(self.clone())),
            progress: self.writer.progress(),
            name: name.to_owned(),
            id: row.id,
        };
        drop(open);
        let restored = guarded(&self.path, || self.store.restore(name, row.id))?;
        Ok(Opened {
            session,
            restored,
            row,
        })
    }
}

fn shown(store: &Store) -> Result<Vec<JournaledSession>, JournalError> {
    let rows = store.rows()?.into_iter();
    rows.map(|(name, row)| store.shown(name, row)).collect()
}

/// The error of a file that another process has open, where it comes late.
fn in_use(path: &Path, error: JournalError) -> JournalError {
    match error {
        JournalError::Damaged { why, .. } if why.contains("already open") => JournalError::InUse {
            path: path.to_owned(),
            process: Holder::process(path),
        },
        error => error,
    }
}

impl OpenSession {
    /// Records something. After the release it is lost: another may have the session.
    pub(crate) fn append(&self, mut record: Record) {
        if let Record::Step {
            step: Step::Paused { at_ms, .. } | Step::Cut { at_ms },
            ..
        } = &mut record
        {
            *at_ms = now_ms() as f64;
        }
        if let Some(journal) = &*self.journal() {
            journal.writer.append(self.id, record);
        }
    }

    fn journal(&self) -> MutexGuard<'_, Option<Arc<Inner>>> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_journal(&self) -> Result<Arc<Inner>, JournalError> {
        self.journal().clone().ok_or(JournalError::Closed)
    }

    /// Waits until everything that was recorded before is on disk.
    ///
    /// # Errors
    /// Why it never will be.
    pub(crate) async fn flushed(&self) -> Result<(), Arc<JournalError>> {
        let last = self
            .journal()
            .as_ref()
            .map(|journal| journal.writer.wanted());
        match last {
            Some(last) => self.progress.reaches(last).await,
            None => Err(Arc::new(JournalError::Closed)),
        }
    }

    /// Completes where nothing can be recorded any more. It does not keep the session open.
    pub(crate) fn failing(&self) -> impl Future<Output = Arc<JournalError>> + Send + use<> {
        self.progress.failing()
    }

    /// The program and the log of a cell.
    pub(crate) async fn load(&self, cell: u64) -> Result<Loaded, JournalError> {
        let (name, id) = (self.name.clone(), self.id);
        let load = move |journal: &Arc<Inner>| {
            let now_ms = now_ms() as f64;
            journal.store.load(&name, id, cell, now_ms)
        };
        self.open_journal()?.blocking(load).await
    }

    /// Whether a call has asked a person, and has no answer that lets it run.
    pub(crate) async fn waits_for_person(
        &self,
        cell: u64,
        call: RuntimeToolCallId,
    ) -> Result<bool, JournalError> {
        let asker = (self.id, cell, call.0);
        let look = move |journal: &Arc<Inner>| journal.store.question_of(asker);
        let row = self.open_journal()?.blocking(look).await?;
        Ok(row.is_some_and(|row| row.has_not_run()))
    }

    /// Lets others open the session.
    pub(crate) fn release(&self) {
        let journal = self.journal().take();
        if let Some(journal) = journal {
            journal.opened().remove(&self.id);
        }
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.release();
    }
}
