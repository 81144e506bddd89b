//! Sessions of an SDK that are kept in the program's journal, and the questions to its user.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use code_mode_host::{
    Answer, AskedQuestion, CellId, CodeModeSessionDelegate, Journal, JournalError, NestedToolCall,
    Provider, Question, RuntimeToolCallId, Session, SessionError, SessionOptions, ToolName,
};

/// A question's cell, and the place of its call.
type Asker = (CellId, RuntimeToolCallId);

/// A session in the journal.
pub(super) struct Durable {
    journal: Journal,
    name: String,
    /// Questions that the client puts to its user.
    asked: Mutex<HashMap<Asker, AskedQuestion>>,
}

/// A question cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("the session is not durable")]
    NotDurable,
    #[error("the call {0} waits for no decision")]
    NotAsked(RuntimeToolCallId),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Durable {
    pub(super) fn new(journal: Journal, name: String) -> Arc<Self> {
        Arc::new(Self {
            journal,
            name,
            asked: Mutex::default(),
        })
    }

    pub(super) async fn open(
        &self,
        provider: &Provider,
        delegate: Arc<dyn CodeModeSessionDelegate>,
        options: SessionOptions,
    ) -> Result<Session, SessionError> {
        let opened = provider.open_durable(&self.journal, &self.name, delegate, options);
        opened.await
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<Asker, AskedQuestion>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client asks its user about a call. Whether the call may run, where that is decided already.
    pub(super) async fn ask(
        &self,
        (cell, place): Asker,
        question: Question,
    ) -> Result<Option<bool>, AskError> {
        let name = ToolName::plain("");
        let call = NestedToolCall::new(cell.clone(), String::new(), place, name);
        let asked = self.journal.ask(&self.name, &call, question).await?;
        if asked.is_decided() {
            let mut asked = asked;
            let decision = asked.decision().await?;
            return Ok(Some(decision.answer != Answer::Deny));
        }
        self.asked().insert((cell, place), asked);
        Ok(None)
    }

    /// The user has decided; what stands.
    pub(super) async fn decide(&self, asker: Asker, allowed: bool) -> Result<bool, AskError> {
        let place = asker.1;
        let asked = self.asked().remove(&asker);
        let asked = asked.ok_or(AskError::NotAsked(place))?;
        let answer = match allowed {
            true => Answer::Allow,
            false => Answer::Deny,
        };
        let decision = asked.decide(answer, "client").await?;
        Ok(decision.answer != Answer::Deny)
    }

    /// The calls of a cell wait for no decision any more.
    pub(super) fn closed(&self, cell: &CellId) {
        self.asked().retain(|(asker, _), _| asker != cell);
    }
}
