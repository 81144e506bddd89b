//! The worker's one session: its cells and their stored values.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use code_mode_protocol::wire::native::{CellEnd, FromWorker, JsonText, Resumed};
use code_mode_protocol::wire::outbound::Outbound;
use code_mode_protocol::{Determinism, Limit, Limits};
use tokio::sync::Notify;

use super::Clock;
use crate::cell::{CellShared, EndOfJob, Job, ScriptError, Stop, in_parts};
use crate::error_text::bounded;
use crate::shapes::Shapes;
use crate::tools::ToolTable;
use crate::{Engine, StoredValues};

/// A cell's source, and its surroundings.
pub(crate) struct Program {
    pub(crate) source: String,
    pub(crate) tools: Arc<ToolTable>,
    pub(crate) constants: Vec<(String, String)>,
    pub(crate) determinism: Option<Determinism>,
    pub(crate) to_pending: bool,
    /// It ran before.
    pub(crate) resumed: Option<Resumed>,
    /// It says that it is idle after so long.
    pub(crate) idle_after: Option<Duration>,
    /// The agent's span, for the log.
    pub(crate) traceparent: Option<String>,
}

/// The cells of a session, and the values they start from.
///
/// What a session may do is the host's to decide. This registry only finds a cell's
/// thread, and merges what cells stored, in the same order in which it reports their
/// ends.
pub(crate) struct Session {
    engine: Engine,
    limits: Arc<Limits>,
    outbound: Outbound,
    clock: Arc<Clock>,
    cells: Mutex<HashMap<u64, Arc<CellShared>>>,
    stored: Mutex<StoredValues>,
    /// What the next cell finds stored, where that is something else.
    view: Mutex<StoredValues>,
    /// Bytes of values that the host gave.
    given: AtomicUsize,
    /// Rung when a cell's thread is done with it.
    changed: Notify,
    /// In a guided session: what its tools' results looked like.
    guided: Option<Arc<Mutex<Shapes>>>,
    span: tracing::Span,
}

impl Session {
    pub(crate) fn new(engine: Engine, limits: Limits, outbound: Outbound) -> Self {
        Self {
            engine,
            limits: Arc::new(limits),
            outbound,
            clock: Arc::default(),
            cells: Mutex::default(),
            stored: Mutex::default(),
            view: Mutex::default(),
            given: AtomicUsize::new(0),
            changed: Notify::new(),
            guided: None,
            span: tracing::info_span!("session"),
        }
    }

    /// The same session, guided or not.
    pub(crate) fn guided(mut self, guided: bool) -> Self {
        self.guided = guided.then(Arc::default);
        self
    }

    /// Handles the deadlines of the session's cells, for ever.
    pub(crate) async fn run_clock(&self) {
        self.clock.run().await;
    }

    fn cells(&self) -> MutexGuard<'_, HashMap<u64, Arc<CellShared>>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stored(&self) -> MutexGuard<'_, StoredValues> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes values that the session has stored already. Whether all that came so are
    /// within the limit.
    pub(crate) fn store(&self, values: Vec<(String, String)>) -> bool {
        let bytes = values
            .iter()
            .map(|(key, json)| Limits::stored_value_bytes(key, json))
            .sum();
        let before = self.given.fetch_add(bytes, Ordering::Relaxed);
        let mut stored = self.stored();
        for (key, json) in values {
            stored.set(&key.into(), json.into());
        }
        before.saturating_add(bytes) <= self.limits.max_stored_bytes
    }

    /// Takes values that the next cell finds stored instead.
    pub(crate) fn view(&self, values: Vec<(String, String)>) {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, json) in values {
            view.set(&key.into(), json.into());
        }
    }

    /// Whether one more cell with this source is within the limits. A cell whose end was
    /// told may not be gone yet, so there may be twice as many as live.
    pub(crate) fn may_execute(&self, source: &str) -> bool {
        let most = self.limits.max_live_cells.saturating_mul(2);
        source.len() <= self.limits.max_frame_bytes && self.cells().len() < most
    }

    /// Runs a cell.
    pub(crate) fn execute(self: &Arc<Self>, number: u64, program: Program) {
        let (commands, mailbox) = mpsc::channel();
        let shared = CellShared::new(
            number,
            self.limits.clone(),
            self.outbound.clone(),
            self.clock.clone(),
            commands,
            self.guided.is_some(),
            program.resumed,
        );
        self.cells().insert(number, shared.clone());
        let stored = match program.resumed {
            Some(_) => {
                std::mem::take(&mut *self.view.lock().unwrap_or_else(PoisonError::into_inner))
            }
            None => self.stored().clone(),
        };
        // What other cells saw of tools must not show in a cell that can run again.
        let guided = match &program.determinism {
            Some(_) => self.guided.as_ref().map(|_| Arc::default()),
            None => self.guided.clone(),
        };
        let job = Job {
            source: program.source,
            tools: program.tools,
            constants: program.constants,
            determinism: program.determinism,
            resumes: program.resumed.is_some(),
            thaws: program.resumed.is_some_and(|resumed| resumed.thaws),
            idle_after: program.idle_after,
            guided,
            stored,
            commands: mailbox,
            to_pending: program.to_pending,
            span: tracing::info_span!(
                parent: &self.span,
                "cell",
                cell = number,
                traceparent = program.traceparent,
            ),
            end: EndOfJob::new(self.clone(), shared.clone()),
            shared,
        };
        self.engine.pool.run(job);
    }

    /// The cell of this number, while it runs.
    pub(crate) fn cell(&self, number: u64) -> Option<Arc<CellShared>> {
        self.cells().get(&number).cloned()
    }

    /// Stops every cell and waits until no JavaScript of the session runs.
    pub(crate) async fn stop(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let running: Vec<_> = self.cells().values().cloned().collect();
            if running.is_empty() {
                return;
            }
            for cell in running {
                cell.stop(Stop::Terminated);
            }
            changed.await;
        }
    }

    /// A cell's JavaScript has ended: merges what it stored and reports its end.
    pub(crate) fn ended(&self, cell: &CellShared, end: CellEnd, writes: Vec<(Arc<str>, Arc<str>)>) {
        let end = match end {
            CellEnd::Failed { text, position } => CellEnd::Failed {
                text: bounded(text),
                position,
            },
            end => end,
        };
        if writes.is_empty() || matches!(end, CellEnd::Terminated | CellEnd::Diverged { .. }) {
            return cell.end(Vec::new(), end);
        }
        // Locked until the end is sent: the host merges in the order of the ends.
        let mut stored = self.stored();
        let mut merged = stored.clone();
        for (key, json) in &writes {
            merged.set(key, json.clone());
        }
        let limit = self.limits.max_stored_bytes;
        if merged.bytes() > limit {
            // Others have stored since this cell looked.
            let exceeded = Limit::StoredBytes.exceeded(limit as u64);
            let end = match end {
                CellEnd::Completed | CellEnd::Exited { .. } => CellEnd::Limit {
                    limit: exceeded,
                    position: None,
                },
                end => end,
            };
            return cell.end(Vec::new(), end);
        }
        *stored = merged;
        let writes = writes
            .into_iter()
            .map(|(key, json)| (key.to_string(), JsonText::Unchecked(json.to_string())))
            .collect();
        let number = cell.number;
        let mut frames = Vec::new();
        let mut send = |writes| {
            let message = FromWorker::Stored {
                cell: number,
                writes,
            };
            frames.extend(message.encode().ok());
        };
        let last = in_parts(
            writes,
            |(key, json): &(String, JsonText)| key.len() + json.len() + 16,
            &mut send,
        );
        send(last);
        cell.end(frames, end);
    }

    /// A cell's thread is done with it.
    pub(crate) fn gone(&self, number: u64) {
        self.cells().remove(&number);
        self.changed.notify_waiters();
    }
}

impl From<ScriptError> for CellEnd {
    fn from(error: ScriptError) -> Self {
        Self::Failed {
            text: error.text,
            position: error.position,
        }
    }
}
