//! Observers of a session.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{CellEnded, CellStarted, NestedToolCall, ToolCallFinished};

/// An observer of a session: the session reports its cells and their calls to it, beside the
/// delegate. A session may have several observers; see
/// [`SessionOptions::observer`](crate::SessionOptions::observer).
///
/// The session waits for each method before it continues with what the method reports: a call, an
/// answer, a closing. Everything else in the session continues. The session calls all observers at the
/// same time. An observer that panics has no effect. An observer that never returns delays the
/// reported call or cell until that is cancelled. The default methods do nothing.
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

    /// Whether the session has no observer.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observers").field(&self.0.len()).finish()
    }
}
