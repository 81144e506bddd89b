//! One cell as its client sees it: its calls, its questions, its news.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use code_mode_host::{CellId, CodeModeSession, Pause};
use rmcp::model::{ElicitRequestParams, ElicitResult, ElicitationAction};
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use super::ledger::{self, Entry};
use super::texts::line;

/// Notifications kept for a client that does not look.
const MAX_NEWS: usize = 256;
/// Entries kept for the end of a cell.
const MAX_ENTRIES: usize = 10_000;
/// What a form that asks for a secret says.
const SECRET_WORDS: [&str; 9] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "api key",
    "apikey",
    "api_key",
    "access token",
    "credential",
];
/// Questions of one cell at the same time.
const MAX_QUESTIONS: usize = 64;

/// A cell.
pub(super) struct CellRecord {
    /// Its handle: random, so that nobody finds it by guessing.
    pub(super) key: String,
    /// The handle of its session.
    pub(super) session: String,
    /// Its id in its session, once it was admitted.
    pub(super) id: OnceLock<CellId>,
    /// What whoever observes it can ask the person: forms, and to open pages.
    can_ask: AtomicBool,
    can_ask_url: AtomicBool,
    /// Its session, whose deadlines stand still while somebody is asked.
    pub(super) session_ref: OnceLock<Weak<dyn CodeModeSession>>,
    state: Mutex<State>,
    /// Counts up with every change.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    running: Vec<String>,
    done: u64,
    questions: Vec<Question>,
    next_question: u64,
    news: VecDeque<String>,
    has_ended: bool,
    /// The last that was said of it, for who asks too late.
    last_words: Option<String>,
}

/// Something a person must answer.
struct Question {
    key: String,
    params: ElicitRequestParams,
    /// What the model is told where the person cannot be asked.
    words: String,
    /// It was put to the client, and the answer is on its way.
    asked: bool,
    /// Whether it is about a call, which a policy may let the model decide.
    is_about_call: bool,
    /// The model was told of it.
    was_told: bool,
    answer: Option<oneshot::Sender<ElicitResult>>,
}

/// What a person said of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Once,
    ForSession,
    No,
}

impl CellRecord {
    pub(super) fn new(session: &str, (can_ask, can_ask_url): (bool, bool)) -> Self {
        Self {
            key: uuid::Uuid::new_v4().simple().to_string(),
            session: session.to_owned(),
            id: OnceLock::new(),
            can_ask: AtomicBool::new(can_ask),
            can_ask_url: AtomicBool::new(can_ask_url),
            session_ref: OnceLock::new(),
            state: Mutex::default(),
            changed: watch::Sender::new(0),
        }
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
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whoever observes the cell from now on can ask, or cannot.
    pub(super) fn set_can_ask(&self, (forms, pages): (bool, bool)) {
        self.can_ask.store(forms, Ordering::Relaxed);
        self.can_ask_url.store(pages, Ordering::Relaxed);
    }

    /// Stops the cell's clocks while what is returned is held.
    pub(super) fn pause(&self) -> Option<Pause> {
        let session = self.session_ref.get()?.upgrade()?;
        Pause::begin(session, Some(self.id.get()?.clone())).ok()
    }

    pub(super) fn can_ask(&self) -> bool {
        self.can_ask.load(Ordering::Relaxed)
    }

    // Calls.

    pub(super) fn call_began(&self, name: &str) {
        self.change(|state| state.running.push(name.to_owned()));
    }

    pub(super) fn call_ended(&self, name: &str, entry: Entry) {
        self.change(|state| {
            if let Some(at) = state.running.iter().position(|running| running == name) {
                state.running.swap_remove(at);
            }
            state.done += 1;
            if state.entries.len() < MAX_ENTRIES {
                state.entries.push(entry);
            }
        });
    }

    /// How far the cell is, in words: for a client that shows progress.
    pub(super) fn progress(&self) -> (u64, String) {
        let state = self.state();
        let begun = state.done + state.running.len() as u64;
        let mut words = format!("{} of {begun} calls done", state.done);
        if let Some(last) = state.running.last() {
            words.push_str(&format!(", {last} runs"));
        }
        // Each call counts twice: when it begins and when it ends.
        (begun + state.done, words)
    }

    /// The ledger, for the model.
    pub(super) fn ledger(&self) -> Option<String> {
        let state = self.state();
        ledger::told(&state.entries, state.running.len())
    }

    // News.

    /// The cell says something at once.
    pub(super) fn says(&self, text: String) {
        self.change(|state| {
            if state.news.len() >= MAX_NEWS {
                state.news.pop_front();
            }
            state.news.push_back(text);
        });
    }

    /// What the cell said since this was last asked.
    pub(super) fn take_news(&self) -> Vec<String> {
        self.state().news.drain(..).collect()
    }

    // Its end.

    pub(super) fn end(&self) {
        self.change(|state| {
            state.has_ended = true;
            // Nobody waits for their answers any more.
            state.questions.clear();
        });
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state().has_ended
    }

    /// Keeps what was said of its end.
    pub(super) fn set_last_words(&self, words: String) {
        self.state().last_words = Some(words);
    }

    pub(super) fn last_words(&self) -> Option<String> {
        self.state().last_words.clone()
    }

    // Questions.

    /// Asks whether a call may run. `None`: nobody answered, or there are too many
    /// questions.
    pub(super) fn ask(
        &self,
        server: &str,
        tool: &str,
        arguments: &str,
    ) -> Option<oneshot::Receiver<ElicitResult>> {
        let words = format!("{}/{} with {arguments}", line(server, 100), line(tool, 100));
        let message = format!(
            "A program of the model (cell {}) wants to call {words}. May it?",
            self.id.get().map(ToString::to_string).unwrap_or_default()
        );
        let params = serde_json::from_value(json!({
            "mode": "form",
            "message": message,
            "requestedSchema": {
                "type": "object",
                "properties": {"answer": {
                    "type": "string",
                    "title": "Answer",
                    "enum": ["once", "session", "no"],
                    "enumNames": ["Yes, this once", "Yes, for this session", "No"],
                }},
                "required": ["answer"],
            },
        }));
        self.put(params.ok()?, words, true)
    }

    /// Passes a server's question on. `None` where nobody could be asked, or answered.
    pub(super) async fn forward(
        &self,
        server: &str,
        mut params: ElicitRequestParams,
    ) -> Option<ElicitResult> {
        let can_ask = match &params {
            ElicitRequestParams::UrlElicitationParams { .. } => {
                self.can_ask_url.load(Ordering::Relaxed)
            }
            _ => self.can_ask(),
        };
        if !can_ask {
            return None;
        }
        match &mut params {
            ElicitRequestParams::FormElicitationParams {
                message,
                requested_schema,
                ..
            } => {
                // A form is no place for a password.
                let form = serde_json::to_string(requested_schema).unwrap_or_default();
                let said = format!("{message} {form}").to_ascii_lowercase();
                let asks_secret = SECRET_WORDS.iter().any(|word| said.contains(word));
                if asks_secret {
                    return Some(ElicitResult::new(ElicitationAction::Decline));
                }
                *message = format!("The server {server:?} asks: {}", line(message, 1000));
            }
            ElicitRequestParams::UrlElicitationParams { message, url, .. } => {
                let host = url::Url::parse(url).ok()?.host_str()?.to_owned();
                *message = format!(
                    "The server {server:?} asks to open a page at {host}: {}",
                    line(message, 1000)
                );
            }
            _ => return None,
        }
        let words = format!("an answer to a question of {}", line(server, 100));
        let _pause = self.pause();
        self.put(params, words, false)?.await.ok()
    }

    fn put(
        &self,
        params: ElicitRequestParams,
        words: String,
        is_about_call: bool,
    ) -> Option<oneshot::Receiver<ElicitResult>> {
        let (answer, answered) = oneshot::channel();
        self.change(|state| {
            if state.has_ended || state.questions.len() >= MAX_QUESTIONS {
                return None;
            }
            state.next_question += 1;
            state.questions.push(Question {
                key: format!("q{}", state.next_question),
                params,
                words,
                asked: false,
                was_told: false,
                is_about_call,
                answer: Some(answer),
            });
            Some(answered)
        })
    }

    /// Questions that were not put to the client yet; they are from now on.
    pub(super) fn take_unasked(&self) -> Vec<(String, ElicitRequestParams)> {
        let mut state = self.state();
        let unasked = state
            .questions
            .iter_mut()
            .filter(|question| !question.asked);
        unasked
            .map(|question| {
                question.asked = true;
                (question.key.clone(), question.params.clone())
            })
            .collect()
    }

    /// Every open question, to be put to the client again.
    pub(super) fn open_questions(&self) -> Vec<(String, ElicitRequestParams)> {
        let state = self.state();
        let open = state.questions.iter().filter(|q| is_wanted(q));
        open.map(|question| (question.key.clone(), question.params.clone()))
            .collect()
    }

    /// Calls that wait for a person, in words.
    pub(super) fn waits_for(&self) -> Vec<String> {
        let mut state = self.state();
        let open = state.questions.iter_mut().filter(|q| is_wanted(q));
        open.map(|question| {
            question.was_told = true;
            match question.is_about_call {
                true => format!("a person's approval of {}", question.words),
                false => question.words.clone(),
            }
        })
        .collect()
    }

    /// Whether something waits for a person.
    pub(super) fn is_waiting(&self) -> bool {
        self.state().questions.iter().any(is_wanted)
    }

    /// Questions that went to a client which has gone are asked of the next one.
    pub(super) fn ask_again(&self) {
        for question in &mut self.state().questions {
            question.asked = false;
        }
    }

    /// Answers a question; false where it is answered already, or is none.
    pub(super) fn answer(&self, key: &str, result: ElicitResult) -> bool {
        self.change(|state| {
            let Some(at) = state
                .questions
                .iter()
                .position(|question| question.key == key)
            else {
                return false;
            };
            let question = state.questions.swap_remove(at);
            question
                .answer
                .is_some_and(|answer| answer.send(result).is_ok())
        })
    }

    /// Answers every question about a call alike. Returns how many.
    pub(super) fn answer_calls(&self, said: Said) -> usize {
        let result = match said {
            Said::Once => "once",
            Said::ForSession => "session",
            Said::No => "no",
        };
        let keys: Vec<String> = self
            .state()
            .questions
            .iter()
            // A decision is about what its maker was told of.
            .filter(|question| question.is_about_call && question.was_told && is_wanted(question))
            .map(|question| question.key.clone())
            .collect();
        keys.iter()
            .filter(|key| {
                let mut answer = ElicitResult::new(ElicitationAction::Accept);
                answer.content = Some(json!({"answer": result}));
                self.answer(key, answer)
            })
            .count()
    }
}

/// Whether somebody still waits for the answer.
fn is_wanted(question: &Question) -> bool {
    question
        .answer
        .as_ref()
        .is_some_and(|answer| !answer.is_closed())
}

/// What a person's answer to [`CellRecord::ask`] says.
pub(super) fn said(result: &ElicitResult) -> Said {
    let answer = result
        .content
        .as_ref()
        .and_then(|content| content.get("answer"));
    match (&result.action, answer.and_then(Value::as_str)) {
        (ElicitationAction::Accept, Some("once")) => Said::Once,
        (ElicitationAction::Accept, Some("session")) => Said::ForSession,
        _ => Said::No,
    }
}
