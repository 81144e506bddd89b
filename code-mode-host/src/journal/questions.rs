//! Questions to a person about the calls of durable cells.
//!
//! A question is on disk, so it outlives its process. Every process that has the journal open may decide
//! it, once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use code_mode_protocol::NestedToolCall;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::open::{Inner, now_ms};
use super::question_rows::{QuestionRow, until};
use super::store::guarded;
use super::{Journal, JournalError};

/// A question to a person whether a call may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Question {
    /// The subject of the decision, for example a digest of the tool's definition and the input. A decision
    /// does not hold for a call that has another subject after a restart.
    pub subject: String,
    /// The question for a person, in one line.
    pub text: String,
    /// The reason for it, in one line.
    pub reason: String,
    /// Its kind: [`Answer::Program`] also decides the waiting questions of the same cell that have this one.
    /// By default it has none.
    pub kind: Option<String>,
    /// Whether somebody at another terminal may decide it ([`Journal::decide`]). Default false.
    pub from_terminal: bool,
    /// How long it waits; then it is denied. Default for ever.
    pub expires_after: Option<Duration>,
}

impl Question {
    /// A question that its asker alone decides, and that waits for ever.
    pub fn new(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            text: text.into(),
            reason: String::new(),
            kind: None,
            from_terminal: false,
            expires_after: None,
        }
    }

    /// Sets the reason.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Sets its kind.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = Some(kind.into());
        self
    }

    /// Sets whether somebody at another terminal may decide it.
    #[must_use]
    pub fn from_terminal(mut self, may: bool) -> Self {
        self.from_terminal = may;
        self
    }

    /// Sets how long it waits.
    #[must_use]
    pub fn expires_after(mut self, time: Option<Duration>) -> Self {
        self.expires_after = time;
        self
    }
}

/// What a person answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The call may run.
    Allow,
    /// So may later calls of its program; of which kind, its asker knows.
    Program,
    /// So may later calls of its session; of which kind, its asker knows.
    Session,
    /// The call must not run.
    Deny,
}

/// A decided question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Decision {
    /// The answer.
    pub answer: Answer,
    /// Who gave it: `time` where nobody did.
    pub by: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Decision {
    /// Who decides a question that nobody has answered in time.
    const TIME: &str = "time";

    /// Whether nobody answered in time.
    pub fn by_time(&self) -> bool {
        self.by == Self::TIME
    }

    /// The denial of a question that waited until then.
    pub(super) fn expired(at_ms: u64) -> Self {
        Self {
            answer: Answer::Deny,
            by: Self::TIME.to_owned(),
            at_ms,
        }
    }
}

/// A question as its journal has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JournaledQuestion {
    /// Its number in the journal.
    pub number: u64,
    /// The name of its session.
    pub session: String,
    /// The number of its cell.
    pub cell: u64,
    /// The place of its call in the cell.
    pub call: u32,
    /// The question.
    pub question: Question,
    /// When, in milliseconds since 1970.
    pub asked_ms: u64,
    /// Until when it waits.
    pub expires_ms: Option<u64>,
    /// The decision; `None` while it waits.
    pub decision: Option<Decision>,
}

/// How often an asker looks whether its question has expired.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The askers of this process that wait for decisions, by the numbers of their questions.
#[derive(Default)]
pub(super) struct Waiting(Mutex<HashMap<u64, watch::Sender<bool>>>);

impl Waiting {
    fn all(&self) -> MutexGuard<'_, HashMap<u64, watch::Sender<bool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question on its way to a decision.
pub struct AskedQuestion {
    journal: Arc<Inner>,
    number: u64,
    row: QuestionRow,
    decided: watch::Receiver<bool>,
}

impl std::fmt::Debug for AskedQuestion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AskedQuestion")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl AskedQuestion {
    /// Its number in the journal.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether it has a decision from before.
    pub fn is_decided(&self) -> bool {
        self.row.decision_at(now_ms()).is_some()
    }

    /// Waits until somebody has decided, or the time is over. The decision is this call's from then on: after a
    /// crash nobody knows whether the call has run.
    ///
    /// # Errors
    /// [`JournalError`] where the question is not there any more, or the file cannot be used.
    pub async fn decision(&mut self) -> Result<Decision, JournalError> {
        loop {
            let left = self.row.expires_ms.map(|at| at.saturating_sub(now_ms()));
            let expires = async {
                match left {
                    // The calendar may be set, and a machine may sleep.
                    Some(left) => {
                        let left = Duration::from_millis(left).min(LOOK_EVERY);
                        tokio::time::sleep(left).await;
                    }
                    None => std::future::pending().await,
                }
            };
            if self.row.decision.is_none() {
                tokio::select! {
                    _ = self.decided.wait_for(|is_decided| *is_decided) => {}
                    () = expires => {}
                }
            }
            if let Some(decision) = self.taken(None).await? {
                return Ok(decision);
            }
        }
    }

    /// Decides it, unless it has a decision; returns the one that stands, which is this call's from then on.
    ///
    /// # Errors
    /// [`JournalError`] where the question is not there any more, or the file cannot be used.
    pub async fn decide(self, answer: Answer, by: &str) -> Result<Decision, JournalError> {
        let decided = self.taken(Some((answer, by.to_owned()))).await?;
        decided.ok_or(JournalError::NoQuestion(self.number))
    }

    /// Removes it: nobody decides it any more, because its call is over.
    ///
    /// # Errors
    /// [`JournalError`] where the file cannot be used.
    pub async fn withdraw(self) -> Result<(), JournalError> {
        let asker = self.row.asker;
        let withdraw = move |journal: &Arc<Inner>| journal.store.withdraw(asker);
        self.journal.blocking(withdraw).await
    }

    /// Takes the decision; this one, where it has none yet.
    async fn taken(
        &self,
        answer: Option<(Answer, String)>,
    ) -> Result<Option<Decision>, JournalError> {
        let number = self.number;
        let take = move |journal: &Arc<Inner>| {
            let now = now_ms();
            let changed = journal.store.change_questions(&[number], |row| {
                let own = answer.clone().map(|(answer, by)| Decision {
                    answer,
                    by,
                    at_ms: now,
                });
                row.decision = row.decision_at(now).or(own);
                row.is_taken = row.decision.is_some();
                Ok(())
            })?;
            let row = changed.into_iter().next();
            let row = row.unwrap_or(Err(JournalError::NoQuestion(number)))?;
            Ok(row.decision)
        };
        self.journal.blocking(take).await
    }
}

impl Drop for AskedQuestion {
    fn drop(&mut self) {
        let mut waiting = self.journal.waiting.all();
        let askers = waiting.get(&self.number).map(watch::Sender::receiver_count);
        if askers == Some(1) {
            waiting.remove(&self.number);
        }
    }
}

/// The cell of a call, and its place there.
fn place_of(call: &NestedToolCall) -> (u64, u32) {
    let cell = call.cell_id.number().unwrap_or(0);
    (cell, call.runtime_tool_call_id.0)
}

impl Journal {
    /// Asks a question about a call of a cell of this session, or finds the one that the call asked before a
    /// restart. A call that asks, and has no decision yet, has not run: after a restart it is made again,
    /// whatever its tool is.
    ///
    /// # Errors
    /// [`JournalError::NoSession`] and [`JournalError::Storage`].
    pub async fn ask(
        &self,
        session: &str,
        call: &NestedToolCall,
        question: Question,
    ) -> Result<AskedQuestion, JournalError> {
        let (name, (cell, call)) = (session.to_owned(), place_of(call));
        let ask = move |journal: &Arc<Inner>| journal.ask(&name, (cell, call), question);
        self.0.blocking(ask).await
    }

    /// The questions of all sessions, in order of their numbers: those that wait, and those that were decided
    /// while their cells run. It blocks while they are read.
    ///
    /// # Errors
    /// [`JournalError::Storage`] and [`JournalError::Entry`].
    pub fn questions(&self) -> Result<Vec<JournaledQuestion>, JournalError> {
        guarded(&self.0.path, || self.0.questions())
    }

    /// Removes the question about a call of a cell of this session, unless it was decided: the call is over.
    ///
    /// # Errors
    /// [`JournalError::NoSession`] and [`JournalError::Storage`].
    pub async fn withdraw(&self, session: &str, call: &NestedToolCall) -> Result<(), JournalError> {
        let (name, (cell, call)) = (session.to_owned(), place_of(call));
        let withdraw = move |journal: &Arc<Inner>| {
            let id = journal.row(&name)?.id;
            journal.store.withdraw((id, cell, call))
        };
        self.0.blocking(withdraw).await
    }

    /// Decides a question from elsewhere, unless it has a decision, and returns it with the one that stands. It
    /// blocks until that is on disk.
    ///
    /// # Errors
    /// [`JournalError::NoQuestion`], [`JournalError::NotFromTerminal`] and [`JournalError::Storage`].
    pub fn decide(
        &self,
        number: u64,
        answer: Answer,
        by: &str,
    ) -> Result<JournaledQuestion, JournalError> {
        let all = self.decide_all(&[number], answer, by)?;
        let one = all.into_iter().next();
        one.unwrap_or(Err(JournalError::NoQuestion(number)))
    }

    /// Decides several questions as [`decide`](Self::decide) does, in one transaction; with
    /// [`Answer::Program`] also those of their kinds, which come after them in the list.
    ///
    /// # Errors
    /// [`JournalError::Storage`]; those of single questions are in the list.
    pub fn decide_all(
        &self,
        numbers: &[u64],
        answer: Answer,
        by: &str,
    ) -> Result<Vec<Result<JournaledQuestion, JournalError>>, JournalError> {
        guarded(&self.0.path, || self.0.decide(numbers, answer, by))
    }
}

impl Inner {
    fn ask(
        self: &Arc<Self>,
        session: &str,
        (cell, call): (u64, u32),
        question: Question,
    ) -> Result<AskedQuestion, JournalError> {
        let id = self.row(session)?.id;
        let asked_ms = now_ms();
        let wait = question.expires_after;
        let row = QuestionRow {
            asker: (id, cell, call),
            question,
            asked_ms,
            expires_ms: wait.map(|wait| until(asked_ms, wait)),
            decision: None,
            is_taken: false,
        };
        // Locked until it is registered: a decision that comes now finds it.
        let mut waiting = self.waiting.all();
        let (number, row) = self.store.ask(row)?;
        let decided = (waiting.entry(number))
            .or_insert_with(|| watch::Sender::new(false))
            .subscribe();
        drop(waiting);
        Ok(AskedQuestion {
            journal: self.clone(),
            number,
            row,
            decided,
        })
    }

    fn questions(&self) -> Result<Vec<JournaledQuestion>, JournalError> {
        let names = self.names()?;
        let rows = self.store.questions()?.into_iter();
        Ok(rows
            .map(|(number, row)| shown_of(number, row, &names))
            .collect())
    }

    fn decide(
        &self,
        numbers: &[u64],
        answer: Answer,
        by: &str,
    ) -> Result<Vec<Result<JournaledQuestion, JournalError>>, JournalError> {
        let now = now_ms();
        let mut waiting = self.waiting.all();
        let numbers = &*match answer {
            Answer::Program => self.with_their_kinds(numbers)?,
            _ => numbers.to_vec(),
        };
        let changed = self.store.change_questions(numbers, |row| {
            if row.decision_at(now).is_none() && !row.question.from_terminal {
                return Err(JournalError::NotFromTerminal);
            }
            let own = Decision {
                answer,
                by: by.to_owned(),
                at_ms: now,
            };
            row.decision = row.decision_at(now).or(Some(own));
            Ok(())
        })?;
        for (number, changed) in numbers.iter().zip(&changed) {
            if changed.is_ok()
                && let Some(asker) = waiting.remove(number)
            {
                asker.send_replace(true);
            }
        }
        drop(waiting);
        let names = self.names()?;
        let shown = numbers.iter().zip(changed);
        Ok(shown
            .map(|(number, row)| Ok(shown_of(*number, row?, &names)))
            .collect())
    }

    /// These questions, and those that wait of the same kinds in the same cells.
    fn with_their_kinds(&self, numbers: &[u64]) -> Result<Vec<u64>, JournalError> {
        let all = self.store.questions()?;
        let of = |row: &QuestionRow| {
            let (session, cell, _) = row.asker;
            Some((session, cell, row.question.kind.clone()?))
        };
        let named = all.iter().filter(|(number, _)| numbers.contains(number));
        let kinds: Vec<_> = named.filter_map(|(_, row)| of(row)).collect();
        let is_meant = |number: &u64, row: &QuestionRow| {
            let is_of_kind = of(row).is_some_and(|kind| kinds.contains(&kind));
            is_of_kind && row.decision.is_none() && !numbers.contains(number)
        };
        let others = all.iter().filter(|(number, row)| is_meant(number, row));
        let others = others.map(|(number, _)| *number);
        Ok(numbers.iter().copied().chain(others).collect())
    }

    /// The names of the sessions, by their numbers.
    fn names(&self) -> Result<HashMap<u64, String>, JournalError> {
        let rows = self.store.rows()?.into_iter();
        Ok(rows.map(|(name, row)| (row.id, name)).collect())
    }
}

fn shown_of(number: u64, row: QuestionRow, names: &HashMap<u64, String>) -> JournaledQuestion {
    let (session, cell, call) = row.asker;
    let decision = row.decision_at(now_ms());
    JournaledQuestion {
        number,
        session: names.get(&session).cloned().unwrap_or_default(),
        cell,
        call,
        question: row.question,
        asked_ms: row.asked_ms,
        expires_ms: row.expires_ms,
        decision,
    }
}
