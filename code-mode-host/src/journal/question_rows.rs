//! The table of questions: reading and writing it.

use std::time::Duration;

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::JournalError;
use super::questions::{Answer, Decision, Question};
use super::store::{META, Store, decoded, encoded, entry, storage};

/// By number.
const QUESTIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("questions");
/// By session, cell and call: the number of the call's question.
const OF_CALLS: TableDefinition<'_, (u64, u64, u32), u64> =
    TableDefinition::new("questions of calls");

/// A call that asks: session, cell, and place in the cell.
pub(super) type Asker = (u64, u64, u32);

/// A question on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct QuestionRow {
    pub(super) asker: Asker,
    pub(super) question: Question,
    pub(super) asked_ms: u64,
    pub(super) expires_ms: Option<u64>,
    pub(super) decision: Option<Decision>,
    /// The asker has the decision: its call may have run.
    pub(super) is_taken: bool,
}

impl QuestionRow {
    /// Whether its call cannot have run.
    pub(super) fn has_not_run(&self) -> bool {
        let is_denied = |decision: &Decision| decision.answer == Answer::Deny;
        !self.is_taken || self.decision.as_ref().is_some_and(is_denied)
    }

    /// The call comes to the same question again: other people may answer it now, or until another time.
    fn asked_again(&mut self, now: Self) {
        if self.decision.is_none() {
            self.expires_ms = match (self.expires_ms, now.question.expires_after) {
                (Some(before), Some(wait)) => Some(before.min(until(self.asked_ms, wait))),
                (None, _) => now.expires_ms,
                (Some(_), None) => None,
            };
        }
        self.question = now.question;
    }

    /// The decision at a time: an expired question is denied.
    pub(super) fn decision_at(&self, now_ms: u64) -> Option<Decision> {
        let expired = self.expires_ms.filter(|at| *at <= now_ms);
        let decision = self.decision.clone();
        decision.or_else(|| expired.map(Decision::expired))
    }
}

/// The end of the time of a question that has waited since `asked_ms`.
pub(super) fn until(asked_ms: u64, wait: Duration) -> u64 {
    let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    asked_ms.saturating_add(wait)
}

/// Makes the tables where they do not exist.
pub(super) fn open_tables(write: &WriteTransaction) -> Result<(), JournalError> {
    write.open_table(QUESTIONS).map_err(storage)?;
    write.open_table(OF_CALLS).map_err(storage)?;
    Ok(())
}

/// Removes the questions of a cell, or of all cells of a session.
pub(super) fn remove_of(
    write: &WriteTransaction,
    session: u64,
    cell: Option<u64>,
) -> Result<(), JournalError> {
    let mut of_calls = write.open_table(OF_CALLS).map_err(storage)?;
    let range = match cell {
        Some(cell) => (session, cell, 0)..(session, cell + 1, 0),
        None => (session, 0, 0)..(session + 1, 0, 0),
    };
    let mut questions = write.open_table(QUESTIONS).map_err(storage)?;
    for removed in of_calls
        .extract_from_if(range, |_, _| true)
        .map_err(storage)?
    {
        let (_, number) = removed.map_err(storage)?;
        questions.remove(number.value()).map_err(storage)?;
    }
    Ok(())
}

impl Store {
    /// The question of a call, which is made where it does not exist, or is another.
    pub(super) fn ask(&self, row: QuestionRow) -> Result<(u64, QuestionRow), JournalError> {
        let write = self.begin()?;
        let asked = {
            let mut of_calls = write.open_table(OF_CALLS).map_err(storage)?;
            let mut questions = write.open_table(QUESTIONS).map_err(storage)?;
            let known = of_calls.get(row.asker).map_err(storage)?;
            let known = known.map(|number| number.value());
            let found = match known {
                Some(number) => read(&questions, number)?.map(|row| (number, row)),
                None => None,
            };
            match found {
                Some((number, mut found)) if found.question.subject == row.question.subject => {
                    found.asked_again(row);
                    questions
                        .insert(number, encoded(&found)?.as_slice())
                        .map_err(storage)?;
                    (number, found)
                }
                _ => {
                    if let Some(number) = known {
                        questions.remove(number).map_err(storage)?;
                    }
                    let mut meta = write.open_table(META).map_err(storage)?;
                    let last = meta.get("last question").map_err(storage)?;
                    let number = last.map_or(0, |last| last.value()) + 1;
                    meta.insert("last question", number).map_err(storage)?;
                    of_calls.insert(row.asker, number).map_err(storage)?;
                    questions
                        .insert(number, encoded(&row)?.as_slice())
                        .map_err(storage)?;
                    (number, row)
                }
            }
        };
        write.commit().map_err(storage)?;
        Ok(asked)
    }

    /// Changes questions, in one transaction: each that exists, and that `change` agrees to.
    pub(super) fn change_questions(
        &self,
        numbers: &[u64],
        mut change: impl FnMut(&mut QuestionRow) -> Result<(), JournalError>,
    ) -> Result<Vec<Result<QuestionRow, JournalError>>, JournalError> {
        let write = self.begin()?;
        let mut changed = Vec::new();
        {
            let mut questions = write.open_table(QUESTIONS).map_err(storage)?;
            for number in numbers {
                let Some(mut row) = read(&questions, *number)? else {
                    changed.push(Err(JournalError::NoQuestion(*number)));
                    continue;
                };
                if let Err(refused) = change(&mut row) {
                    changed.push(Err(refused));
                    continue;
                }
                questions
                    .insert(number, encoded(&row)?.as_slice())
                    .map_err(storage)?;
                changed.push(Ok(row));
            }
        }
        write.commit().map_err(storage)?;
        Ok(changed)
    }

    /// Removes the question of a call that nobody has decided.
    pub(super) fn withdraw(&self, asker: Asker) -> Result<(), JournalError> {
        let write = self.begin()?;
        {
            let mut of_calls = write.open_table(OF_CALLS).map_err(storage)?;
            let number = of_calls.get(asker).map_err(storage)?;
            let Some(number) = number.map(|number| number.value()) else {
                return Ok(());
            };
            let mut questions = write.open_table(QUESTIONS).map_err(storage)?;
            if read(&questions, number)?.is_some_and(|row| row.decision.is_some()) {
                return Ok(());
            }
            questions.remove(number).map_err(storage)?;
            of_calls.remove(asker).map_err(storage)?;
        }
        write.commit().map_err(storage)
    }

    /// The question of a call.
    pub(super) fn question_of(&self, asker: Asker) -> Result<Option<QuestionRow>, JournalError> {
        let begun = self.database.begin_read().map_err(storage)?;
        let of_calls = begun.open_table(OF_CALLS).map_err(storage)?;
        let Some(number) = of_calls.get(asker).map_err(storage)? else {
            return Ok(None);
        };
        read(
            &begun.open_table(QUESTIONS).map_err(storage)?,
            number.value(),
        )
    }

    /// All questions, in order of their numbers.
    pub(super) fn questions(&self) -> Result<Vec<(u64, QuestionRow)>, JournalError> {
        let begun = self.database.begin_read().map_err(storage)?;
        let questions = begun.open_table(QUESTIONS).map_err(storage)?;
        let mut rows = Vec::new();
        for found in questions.iter().map_err(storage)? {
            let (number, row) = found.map_err(storage)?;
            rows.push((number.value(), decoded_row(row.value())?));
        }
        Ok(rows)
    }
}

fn read(
    questions: &impl ReadableTable<u64, &'static [u8]>,
    number: u64,
) -> Result<Option<QuestionRow>, JournalError> {
    let row = questions.get(number).map_err(storage)?;
    row.map(|row| decoded_row(row.value())).transpose()
}

fn decoded_row(bytes: &[u8]) -> Result<QuestionRow, JournalError> {
    decoded(bytes).map_err(|why| entry("questions", why))
}
