//! One cell as its client sees it: its calls, its questions, its news.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use code_mode_host::{CellId, ContentItem};
use rmcp::model::{ElicitRequestParams, ElicitResult};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::kept::{Kept, LeftOut, Part};
use super::questions::Questions;
use crate::audit::{self, AuditRecord};
use crate::caller::{Approval, ApprovalRequest, Elicitation, ProgramApprovals};

/// Notifications kept for a client that does not look, their bytes, and the bytes of one.
const MAX_NEWS: usize = 256;
const MAX_NEWS_BYTES: usize = 1 << 20;
const MAX_NEWS_TEXT: usize = 256 << 10;
/// Records kept for the end of a cell.
const MAX_RECORDS: usize = 10_000;

/// The handle of a cell: random, so that nobody finds a cell by guessing. It is the
/// `tool_call_id` of the cell's execute.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CellKey(String);

impl CellKey {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for CellKey {
    fn from(key: &str) -> Self {
        Self(key.to_owned())
    }
}

/// What whoever observes a cell can ask the person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CanAsk {
    /// To fill in a form.
    pub(crate) forms: bool,
    /// To open a page.
    pub(crate) pages: bool,
}

/// A cell.
pub(crate) struct Cell {
    pub(crate) key: CellKey,
    /// Its id in its session, once it was admitted.
    id: OnceLock<CellId>,
    state: Mutex<State>,
    approvals: ProgramApprovals,
    /// Counts up with every change.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    can_ask: CanAsk,
    records: Vec<AuditRecord>,
    running: Vec<String>,
    done: u64,
    questions: Questions,
    news: VecDeque<String>,
    /// Its program has ended, and its end was not reported yet.
    is_over: bool,
    has_ended: bool,
    /// The client answers questions without asking anybody.
    is_nobody_there: bool,
    /// The last answer about it, for a request that comes too late.
    last_words: Option<String>,
    /// The program, until it begins.
    program: Option<Held>,
    /// The text that it has put out.
    output: Kept,
}

/// A program that has not begun, and its place among those of all clients.
struct Held {
    program: Arc<str>,
    _room: OwnedSemaphorePermit,
}

impl Cell {
    pub(crate) fn new(can_ask: CanAsk) -> Self {
        let cell = Self {
            key: CellKey(uuid::Uuid::new_v4().simple().to_string()),
            id: OnceLock::new(),
            state: Mutex::default(),
            approvals: ProgramApprovals::default(),
            changed: watch::Sender::new(0),
        };
        cell.state().can_ask = can_ask;
        cell
    }

    /// A cell that began in an earlier process of a durable gateway. It may ask whoever observes it.
    pub(crate) fn of_another_process(key: &str) -> Self {
        let cell = Self {
            key: CellKey::from(key),
            ..Self::new(CanAsk::default())
        };
        cell.state().can_ask.forms = true;
        cell
    }

    /// A cell whose program has not begun.
    pub(crate) fn of_program(can_ask: CanAsk, program: String, room: OwnedSemaphorePermit) -> Self {
        let cell = Self::new(can_ask);
        cell.state().program = Some(Held {
            program: program.into(),
            _room: room,
        });
        cell
    }

    /// The program, where it has not begun.
    pub(crate) fn program(&self) -> Option<Arc<str>> {
        let state = self.state();
        state.program.as_ref().map(|held| held.program.clone())
    }

    /// Takes the program out, to begin or to drop it. Only the first caller gets it.
    pub(crate) fn take_program(&self) -> Option<Arc<str>> {
        self.state().program.take().map(|held| held.program)
    }

    /// The cell was admitted.
    pub(crate) fn admitted(&self, id: CellId) {
        self.change(|_| {
            let _ = self.id.set(id);
        });
    }

    /// Waits until the cell was admitted or has ended.
    pub(crate) async fn has_begun(&self) {
        let mut changes = self.changes();
        let is_it = |_: &u64| self.id().is_some() || self.has_ended();
        let _ = changes.wait_for(is_it).await;
    }

    /// Waits until the cell has ended, or asks for something.
    pub(crate) async fn has_news(&self) {
        let mut changes = self.changes();
        let is_it = |_: &u64| self.state().is_over || self.has_ended() || self.is_waiting();
        let _ = changes.wait_for(is_it).await;
    }

    /// Its id in its session, once it was admitted.
    pub(crate) fn id(&self) -> Option<&CellId> {
        self.id.get()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state());
        self.changed.send_modify(|count| *count += 1);
        changed
    }

    /// Tells of changes from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whoever observes the cell from now on can ask these things.
    pub(crate) fn set_can_ask(&self, can_ask: CanAsk) {
        self.state().can_ask = can_ask;
    }

    pub(crate) fn can_ask(&self) -> CanAsk {
        self.state().can_ask
    }

    /// The client answers questions without asking anybody.
    pub(crate) fn set_nobody_there(&self) {
        self.state().is_nobody_there = true;
    }

    pub(crate) fn is_nobody_there(&self) -> bool {
        self.state().is_nobody_there
    }

    // Calls.

    pub(crate) fn call_began(&self, name: &str) {
        self.change(|state| state.running.push(name.to_owned()));
    }

    pub(crate) fn call_ended(&self, name: &str, record: AuditRecord) {
        self.change(|state| {
            if let Some(at) = state.running.iter().position(|running| running == name) {
                state.running.swap_remove(at);
            }
            state.done += 1;
            if state.records.len() < MAX_RECORDS {
                state.records.push(record);
            }
        });
    }

    /// How far the cell is, in words: for a client that shows progress.
    pub(crate) fn progress(&self) -> (u64, String) {
        let state = self.state();
        let begun = state.done + state.running.len() as u64;
        let mut words = format!("{} of {begun} calls done", state.done);
        if let Some(last) = state.running.last() {
            words.push_str(&format!(", {last} runs"));
        }
        // Each call counts twice: when it begins and when it ends.
        (begun + state.done, words)
    }

    /// What became of its calls, for the model.
    pub(crate) fn calls_in_words(&self) -> Option<String> {
        let state = self.state();
        audit::in_words(&state.records, state.running.len())
    }

    // News.

    /// The cell notifies. The oldest notifications make room, and a long one is cut.
    pub(crate) fn add_news(&self, mut text: String) {
        let end = text.floor_char_boundary(MAX_NEWS_TEXT);
        let left_out = text.len() - end;
        if left_out > 0 {
            text.truncate(end);
            text.push_str(&format!(" ({left_out} bytes left out)"));
            text.shrink_to_fit();
        }
        self.change(|state| {
            state.news.push_back(text);
            let bytes = |news: &VecDeque<String>| news.iter().map(String::len).sum::<usize>();
            while state.news.len() > MAX_NEWS || bytes(&state.news) > MAX_NEWS_BYTES {
                state.news.pop_front();
            }
        });
    }

    /// The notifications since the last call of this.
    pub(crate) fn take_news(&self) -> Vec<String> {
        self.state().news.drain(..).collect()
    }

    // Its end.

    /// Its program has ended.
    pub(crate) fn set_over(&self) {
        self.change(|state| state.is_over = true);
    }

    pub(crate) fn end(&self) {
        self.change(|state| {
            state.has_ended = true;
            // Nobody waits for their answers any more.
            state.questions.clear();
        });
    }

    /// The cell ends without having begun; `words` are the answer about it.
    pub(crate) fn end_with(&self, words: String) {
        self.set_last_words(words);
        self.end();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.state().has_ended
    }

    /// Keeps the answer about its end.
    pub(crate) fn set_last_words(&self, words: String) {
        self.state().last_words = Some(words);
    }

    pub(crate) fn last_words(&self) -> Option<String> {
        self.state().last_words.clone()
    }

    // Its output.

    /// Keeps the text of these items, and fits the items into a budget.
    pub(crate) fn keep_output(&self, items: &mut Vec<ContentItem>, tokens: u64) -> Option<LeftOut> {
        self.state().output.keep(items, tokens)
    }

    /// All text that it has put out; `None` where that was forgotten.
    pub(crate) fn output(&self) -> Option<String> {
        self.state().output.text()
    }

    /// A part of that text.
    pub(crate) fn output_from(&self, from: usize, tokens: u64) -> Option<Part> {
        self.state().output.part(from, tokens)
    }

    /// How many bytes of text are kept of it.
    pub(crate) fn output_bytes(&self) -> usize {
        self.state().output.bytes()
    }

    /// Drops the text that is kept of it.
    pub(crate) fn forget_output(&self) {
        self.state().output.forget();
    }

    // Questions.

    /// Asks whether a call may run. `None` where there are too many questions, or the cell
    /// has ended.
    pub(crate) fn ask(
        &self,
        request: &ApprovalRequest,
        key: Option<String>,
    ) -> Option<oneshot::Receiver<ElicitResult>> {
        self.change(|state| match state.has_ended {
            true => None,
            false => state.questions.about_call(request, key),
        })
    }

    /// Waits until the cell has asked these questions in this process, or has ended.
    pub(crate) async fn asks_again(&self, keys: &[&str]) {
        let mut changes = self.changes();
        let is_it = |_: &u64| {
            let state = self.state();
            let asks_all = keys.iter().all(|key| state.questions.was_asked(key));
            asks_all || state.is_over || state.has_ended
        };
        let _ = changes.wait_for(is_it).await;
    }

    /// Passes a server's question on. `None` where no person was available or answered.
    pub(crate) async fn forward(&self, question: Elicitation) -> Option<ElicitResult> {
        let can_ask = self.can_ask();
        let is_possible = match &question.params {
            ElicitRequestParams::UrlElicitationParams { .. } => can_ask.pages,
            _ => can_ask.forms,
        };
        if !is_possible {
            return None;
        }
        let answered = self.change(|state| match state.has_ended {
            true => None,
            false => state.questions.of_server(question),
        });
        answered?.await.ok()
    }

    /// The approvals for the rest of its program.
    pub(crate) fn approvals(&self) -> &ProgramApprovals {
        &self.approvals
    }

    /// Its name, where it runs a program.
    fn asker(&self) -> Option<String> {
        self.id().map(ToString::to_string)
    }

    /// Questions that were not put to the client yet; they are from now on.
    pub(crate) fn take_unasked(&self) -> Vec<(String, ElicitRequestParams)> {
        let asker = self.asker();
        self.state().questions.take_unasked(asker.as_deref())
    }

    /// Whether there are questions that were not put to the client yet.
    pub(crate) fn has_unasked(&self) -> bool {
        self.state().questions.has_unasked()
    }

    /// Every open question, to be put to the client again.
    pub(crate) fn open_questions(&self) -> Vec<(String, ElicitRequestParams)> {
        let asker = self.asker();
        self.state().questions.all(asker.as_deref())
    }

    /// The open questions in words.
    pub(crate) fn waits_for(&self) -> Vec<String> {
        self.state().questions.waits_for()
    }

    /// Whether something waits for a person.
    pub(crate) fn is_waiting(&self) -> bool {
        self.state().questions.is_waiting()
    }

    /// Questions that went to a lost client go to the next one.
    pub(crate) fn ask_again(&self) {
        self.state().questions.ask_again();
    }

    /// Answers a question; false where it was answered already or never existed.
    pub(crate) fn answer(&self, key: &str, result: &ElicitResult) -> bool {
        self.change(|state| state.questions.answer(key, result))
    }

    /// Answers every question about a call alike. Returns how many.
    pub(crate) fn answer_calls(&self, decision: Approval) -> usize {
        self.change(|state| state.questions.answer_calls(decision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_that_nobody_reads_stay_within_their_bytes() {
        let cell = Cell::new(CanAsk::default());
        for number in 0..1000 {
            cell.add_news(format!("{number} {}", "x".repeat(16 << 10)));
        }
        cell.add_news("y".repeat(16 << 20));
        let news = cell.take_news();
        assert!(news.iter().map(String::len).sum::<usize>() <= MAX_NEWS_BYTES);
        let last = news.last().expect("the newest");
        assert!(last.ends_with("y (16515072 bytes left out)"));
        assert!(news[news.len() - 2].starts_with("999 "));
    }
}
