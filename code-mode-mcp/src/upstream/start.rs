//! The progress of a server's start.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use code_mode_protocol::text::line;

use super::transport::LastWords;

/// How much of a server's standard error is shown.
const SHOWN: usize = 100;

/// A start, as its supervisor and its observers share it.
#[derive(Clone, Debug)]
pub(crate) struct Start(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    began: Instant,
    /// The standard error of the server's process.
    words: Option<LastWords>,
}

impl Default for Start {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            began: Instant::now(),
            words: None,
        })))
    }
}

/// One start is like another: its words are read when they are shown.
impl PartialEq for Start {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Start {}

impl Start {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A start begins.
    pub(super) fn begin(&self) {
        *self.state() = State {
            began: Instant::now(),
            words: None,
        };
    }

    /// The server has a process, whose standard error this is.
    pub(super) fn hears(&self, words: LastWords) {
        self.state().words = Some(words);
    }

    /// The state in words.
    pub(crate) fn words(&self) -> String {
        let state = self.state();
        let mut words = format!("starting since {} s", state.began.elapsed().as_secs());
        let said = state
            .words
            .as_ref()
            .map(LastWords::text)
            .unwrap_or_default();
        if let Some(last) = said.rsplit(" | ").next().filter(|last| !last.is_empty()) {
            words.push_str(": ");
            words.push_str(&line(last, SHOWN));
        }
        words
    }
}
