//! Those who look on while a session works.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{CellEnded, CellStarted, NestedToolCall, ToolCallFinished};

/// Someone who looks on: told of a session, its cells and their calls, beside its delegate, which
/// does not know of it. A session may have several; see
/// [`SessionOptions::observer`](crate::SessionOptions::observer).
///
/// What a method tells of waits for it, and nothing else does: the call, the answer, the closing. All
/// observers are told at the same time. One that panics costs nothing; one that never returns holds
/// what it was told of until that is cancelled. By default no method does anything.
#[async_trait]
pub trait SessionObserver: Send + Sync {
    /// The session was opened; its opener waits.
    async fn session_opened(&self) {}

    /// The session has shut down: nothing of it runs.
    async fn session_closed(&self) {}

    /// A cell was admitted. Its program may run already; its `execute` waits.
    async fn cell_started(&self, cell: &CellStarted) {
        let _ = cell;
    }

    /// A cell's program will not run again. Its observers have the outcome; its closing
    /// ([`CodeModeSessionDelegate::cell_closed`](crate::CodeModeSessionDelegate::cell_closed)) waits.
    async fn cell_ended(&self, cell: &CellEnded) {
        let _ = cell;
    }

    /// A tool call is about to be handed to the delegate, or to be refused: it waits.
    async fn call_started(&self, call: &NestedToolCall) {
        let _ = call;
    }

    /// A tool call has ended; its cell waits for the answer. Not told of calls whose cell ended
    /// before they did.
    async fn call_finished(&self, call: &ToolCallFinished) {
        let _ = call;
    }
}

/// The observers of a session.
#[derive(Clone, Default)]
pub struct Observers(Vec<Arc<dyn SessionObserver>>);

impl Observers {
    /// Adds one.
    pub fn add(&mut self, observer: Arc<dyn SessionObserver>) {
        self.0.push(observer);
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn SessionObserver>> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observers").field(&self.0.len()).finish()
    }
}
