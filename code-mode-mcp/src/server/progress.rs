//! Progress of a request, for a client that asked for it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rmcp::model::ProgressNotificationParam;

use super::cell::Cell;
use super::client::Client;

/// A client that shows progress gets a message at least so often.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(25);

/// What a request's client was shown last.
#[derive(Default)]
pub(super) struct Progress(Mutex<Shown>);

#[derive(Default)]
struct Shown {
    progress: f64,
    words: String,
}

impl Client<'_> {
    /// Shows how far a cell is from time to time, without end.
    pub(super) async fn stay_alive(&self, cell: &Cell) {
        loop {
            tokio::time::sleep(KEEP_ALIVE).await;
            self.show_progress(cell, None, true).await;
        }
    }

    /// Shows how far a cell is: `text`, or its calls. Nothing is sent where nothing changed, but
    /// `always`.
    pub(super) async fn show_progress(&self, cell: &Cell, text: Option<String>, always: bool) {
        let Some(token) = self.context.meta.get_progress_token() else {
            return;
        };
        let (progress, words) = cell.progress();
        let params = {
            let mut shown = self
                .progress
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if words == shown.words && !always {
                return;
            }
            let progress = progress as f64;
            // It must grow with every message: without calls, by a little.
            shown.progress = match progress > shown.progress {
                true => progress,
                false => shown.progress + 0.001,
            };
            shown.words.clone_from(&words);
            ProgressNotificationParam::new(token, shown.progress)
        };
        let params = params.with_message(text.unwrap_or(words));
        let _ = self.context.peer.notify_progress(params).await;
    }
}
