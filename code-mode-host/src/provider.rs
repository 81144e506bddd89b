//! The provider: sessions, and the workers they share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_protocol::{
    CodeModeSession, CodeModeSessionDelegate, CodeModeSessionProvider, SessionError, SessionOptions,
};
use tokio_util::sync::CancellationToken;

use crate::ProviderOptions;
use crate::error::ProviderError;
use crate::journal::{Journal, JournalOptions, OpenSession, Opened, Restored};
use crate::lend::LentWorker;
use crate::options::TraceFolder;
use crate::process::Purpose;
use crate::session::{Inputs, Opening, Session, Settings, Shared};
use crate::source::Source;
use crate::spares::Workers;
use crate::trace::Recorder;
use crate::worker::WorkerStats;

/// How long a callback that was cancelled may take to return before its cell's end is
/// reported without it.
const CALLBACK_GRACE: Duration = Duration::from_millis(500);

/// How long an observation may last beyond its time where a worker does not answer.
const COLLECT_GRACE: Duration = Duration::from_secs(10);

/// Makes sessions whose cells run in worker processes.
///
/// Its methods must be called within a tokio runtime with I/O and time. Dropping it
/// shuts every session down and ends every process it started.
pub struct Provider {
    workers: Arc<Workers>,
    token: CancellationToken,
    sessions: Mutex<Vec<Weak<Shared>>>,
}

impl Provider {
    /// A provider with these options; starts the spare workers that they ask for at once.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`SpawnError::NotFound`](crate::SpawnError::NotFound) where the worker program must be found and is not
    /// there.
    pub fn new(options: ProviderOptions) -> Result<Self, ProviderError> {
        let token = CancellationToken::new();
        let spares = options.prewarmed;
        let source = Source::new(options, Purpose::Serve)?;
        Ok(Self {
            workers: Workers::new(source, spares, token.clone()),
            token,
            sessions: Mutex::default(),
        })
    }

    /// Opens a session whose tool calls and notifications go to `delegate`.
    ///
    /// # Errors
    /// [`SessionError::Unavailable`] where no worker can be had, with a [`ProviderError`] as
    /// its source; [`SessionError::ShuttingDown`] once the provider was shut down;
    /// [`SessionError::Limit`] where the stored values are more than may be stored.
    pub async fn open_session(
        &self,
        delegate: Arc<dyn CodeModeSessionDelegate>,
        options: SessionOptions,
    ) -> Result<Session, SessionError> {
        self.open(delegate, options, None).await
    }

    async fn open(
        &self,
        delegate: Arc<dyn CodeModeSessionDelegate>,
        options: SessionOptions,
        durable: Option<(OpenSession, Restored, JournalOptions)>,
    ) -> Result<Session, SessionError> {
        if self.token.is_cancelled() {
            return Err(SessionError::ShuttingDown);
        }
        let inputs = Inputs::of(&options)?;
        let worker = self.workers.prove().await?;
        let own = self.workers.source().options();
        let limits = options.limits.clone();
        let delegate = own.observe(delegate);
        let traces = own.traces.as_ref();
        let recorder = traces.and_then(|folder| recorder(folder, &delegate, options.guided));
        let delegate = match &recorder {
            Some(recorder) => recorder.clone(),
            None => delegate,
        };
        let shared = Shared::open(Opening {
            workers: self.workers.clone(),
            delegate,
            recorder,
            limits: limits.unwrap_or_else(|| own.limits.clone()),
            settings: Settings {
                stop_grace: own.stop_grace,
                callback_grace: CALLBACK_GRACE,
                collect_grace: COLLECT_GRACE,
                idle: own.idle_timeout,
            },
            options,
            inputs,
            token: self.token.child_token(),
            propagation: own.propagates(),
            worker,
            durable,
        })?;
        {
            let mut sessions = self.sessions();
            if sessions.len() == sessions.capacity() {
                sessions.retain(|known| known.strong_count() > 0);
            }
            sessions.push(Arc::downgrade(&shared));
        }
        // Where the caller gives up meanwhile, the session ends.
        let session = Session::new(shared.clone());
        shared.tell_opened().await;
        Ok(session)
    }

    /// Opens a durable session: the one of this name in the journal, as it was when its last process ended,
    /// or a new one. Of a session that is there, the journal has the stored values, and, while cells run in
    /// it, the limits and whether it is guided and checks inputs; `options` are for a new session, and for one in
    /// which no cell runs.
    ///
    /// Cells that ran continue at once: they run again from their first line, with the recorded answers,
    /// times and randomness in the recorded order, until all that was recorded has happened again. A call
    /// with a recorded answer is never made again; one without may have run, and
    /// [`CodeModeSessionDelegate::resolve_unknown`] decides about it. A cell that does something else than
    /// before ends as [`CellOutcome::Lost`](crate::CellOutcome::Lost), with both in its error.
    ///
    /// A response counts as taken with the caller's next request for its cell, with the session's next
    /// [`execute`](Session::execute), and at the end of [`Session::shutdown`]: after a crash before
    /// that it is given again. A notification may come a second time too; its number tells.
    ///
    /// Shutting such a session down, or dropping its last handle, leaves its cells to whoever opens it
    /// next; [`Session::terminate`] ends one, and [`Journal::remove`] a session.
    ///
    /// ```no_run
    /// # use std::sync::Arc;
    /// # use code_mode_host::*;
    /// # async fn example(agent: Arc<dyn CodeModeSessionDelegate>) -> Result<(), Box<dyn std::error::Error>> {
    /// let journal = Journal::open("agent.journal", JournalOptions::default())?;
    /// let provider = Provider::new(ProviderOptions::default())?;
    /// let options = SessionOptions::default();
    /// let session = provider.open_durable(&journal, "monday", agent, options).await?;
    /// for cell in session.live_cells() {
    ///     println!("{cell} continues");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`open_session`](Self::open_session), and [`SessionError::Journal`] with a
    /// [`JournalError`](crate::JournalError) as its source.
    pub async fn open_durable(
        &self,
        journal: &Journal,
        name: &str,
        delegate: Arc<dyn CodeModeSessionDelegate>,
        options: SessionOptions,
    ) -> Result<Session, SessionError> {
        let limits = options.limits.clone();
        let limits = limits.unwrap_or_else(|| self.workers.source().options().limits.clone());
        let (name, new) = (name.to_owned(), options.clone());
        let opened = journal.inner().blocking(move |journal| {
            let new = Some((&new, limits));
            journal.open_session(&name, new)
        });
        self.durable(journal, opened.await?, delegate, options)
            .await
    }

    /// Opens a durable session that is in the journal; see [`open_durable`](Self::open_durable).
    ///
    /// # Errors
    /// Those of [`open_durable`](Self::open_durable), with
    /// [`JournalError::NoSession`](crate::JournalError::NoSession) as the source where it is not there.
    pub async fn resume(
        &self,
        journal: &Journal,
        name: &str,
        delegate: Arc<dyn CodeModeSessionDelegate>,
    ) -> Result<Session, SessionError> {
        let name = name.to_owned();
        let opened = journal
            .inner()
            .blocking(move |journal| journal.open_session(&name, None));
        let options = SessionOptions::default();
        self.durable(journal, opened.await?, delegate, options)
            .await
    }

    async fn durable(
        &self,
        journal: &Journal,
        opened: Opened,
        delegate: Arc<dyn CodeModeSessionDelegate>,
        options: SessionOptions,
    ) -> Result<Session, SessionError> {
        let Opened {
            session,
            restored,
            row,
        } = opened;
        let mut options = options.limits(row.limits).guided(row.guided);
        options = options.check_inputs(row.check_inputs);
        options = options.require_readable_schemas(row.require_readable_schemas);
        options.stored.clear();
        let kept = journal.inner().options().clone();
        self.open(delegate, options, Some((session, restored, kept)))
            .await
    }

    /// Opens a session with the default options.
    ///
    /// # Errors
    /// Those of [`open_session`](Self::open_session).
    pub async fn create_session(
        &self,
        delegate: Arc<dyn CodeModeSessionDelegate>,
    ) -> Result<Session, SessionError> {
        self.open_session(delegate, SessionOptions::default()).await
    }

    /// Shuts every session down; returns when their processes have ended. Responses of durable sessions that no
    /// request has confirmed are given again.
    pub async fn shutdown(&self) {
        self.token.cancel();
        let sessions: Vec<_> = self.sessions().drain(..).collect();
        let sessions: Vec<_> = sessions.iter().filter_map(Weak::upgrade).collect();
        self.workers.clear();
        let shutdowns = sessions.iter().map(|one| one.shut_down_and_wait(false));
        futures::future::join_all(shutdowns).await;
    }

    /// Starts a worker for a provider elsewhere, which reaches it by way of
    /// [`WorkerSource::Remote`](crate::WorkerSource::Remote). Its sessions' limits are at
    /// most [`ProviderOptions::limits`](field@ProviderOptions::limits) of this one.
    ///
    /// # Errors
    /// [`ProviderError::ShuttingDown`], [`ProviderError::Spawn`], and
    /// [`ProviderError::NothingToLend`] where workers are not processes.
    pub async fn lend(&self) -> Result<LentWorker, ProviderError> {
        match self.token.is_cancelled() {
            true => Err(ProviderError::ShuttingDown),
            false => self.workers.source().lend().await,
        }
    }

    /// Figures of the workers now.
    pub fn workers(&self) -> WorkerStats {
        self.workers.source().metrics().stats()
    }

    /// Memory of the workers that are there, in bytes: resident pages, those that several
    /// workers share counted for each. It reads a file for each worker. 0 where the system
    /// has no `/proc`, and for workers that are not processes of this program.
    pub fn worker_memory(&self) -> u64 {
        self.workers.source().metrics().resident_bytes()
    }

    /// Processor time that the workers of this machine which are there now have used; zero where
    /// the operating system does not say. The time of those that have ended is this process's
    /// children's.
    pub fn worker_processor_time(&self) -> Duration {
        self.workers.source().metrics().processor_time()
    }

    fn sessions(&self) -> MutexGuard<'_, Vec<Weak<Shared>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provider")
            .field("options", self.workers.source().options())
            .finish_non_exhaustive()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

#[async_trait]
impl CodeModeSessionProvider for Provider {
    async fn open_session(
        &self,
        delegate: Arc<dyn CodeModeSessionDelegate>,
        options: SessionOptions,
    ) -> Result<Arc<dyn CodeModeSession>, SessionError> {
        let session = Provider::open_session(self, delegate, options).await?;
        Ok(Arc::new(session))
    }
}

/// A recorder of a new session. A session that cannot be recorded runs all the same.
fn recorder(
    folder: &TraceFolder,
    delegate: &Arc<dyn CodeModeSessionDelegate>,
    guided: bool,
) -> Option<Arc<Recorder>> {
    match folder.file() {
        Ok(file) => {
            let recorder = Recorder::new(delegate.clone(), Box::new(file), folder.contents);
            Some(Arc::new(recorder.guided(guided)))
        }
        Err(error) => {
            let path = folder.path.display();
            tracing::warn!(%error, "a session cannot be recorded in {path}");
            None
        }
    }
}
