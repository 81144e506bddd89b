//! The questions of one cell to a person: may a call run, and what a server asks.
//!
//! Calls that wait at the same moment are put into one question, which lists them all.

use std::cell::OnceCell;
use std::collections::{HashSet, VecDeque};

use code_mode_protocol::text::line;
use rmcp::model::{ElicitRequestParams, ElicitResult, ElicitationAction};
use serde_json::json;
use tokio::sync::oneshot;

use crate::caller::{Approval, ApprovalRequest, Elicitation};
use crate::kept_question::key_of_several;

/// Questions of one cell at the same time.
const MAX_QUESTIONS: usize = 256;
/// The bytes of the calls that one question lists. A person reads all that they allow.
const MAX_LISTED: usize = 6_000;
/// Questions about several calls that can still be answered.
const MAX_JOINTS: usize = 64;

/// The open questions, the oldest first.
#[derive(Default)]
pub(super) struct Questions {
    open: Vec<Question>,
    joints: VecDeque<Joint>,
    last: u64,
    /// What its own keys begin with: no other cell has them, and none of another process.
    prefix: OnceCell<String>,
    /// The keys of kept questions of this process.
    kept: HashSet<String>,
}

/// Something a person must answer.
struct Question {
    key: String,
    about: About,
    /// For the model, and for the list of a question about several calls.
    words: String,
    /// It was put to the client, and the answer is on its way.
    asked: bool,
    /// The model has seen it.
    was_told: bool,
    answer: oneshot::Sender<ElicitResult>,
}

enum About {
    /// Whether a call may run.
    Call {
        kind: Kind,
        /// The person wants to answer for this call alone.
        is_alone: bool,
    },
    /// A server's question.
    Server(ElicitRequestParams),
}

/// The calls to a server about which a rule asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    server: String,
    rule: String,
}

/// One question about several calls.
struct Joint {
    key: String,
    calls: Vec<String>,
}

/// The program that asks, by the name of its cell; `None` for a call that a client makes directly.
pub(super) type Asker<'a> = Option<&'a str>;

impl Questions {
    /// Asks whether a call may run. `None` where there are too many questions. One with a key has it in the next
    /// process as well.
    pub(super) fn about_call(
        &mut self,
        request: &ApprovalRequest,
        key: Option<String>,
    ) -> Option<oneshot::Receiver<ElicitResult>> {
        let kind = Kind {
            server: request.server.clone(),
            rule: request.rule.clone(),
        };
        let is_alone = false;
        self.push(About::Call { kind, is_alone }, request.words(), key)
    }

    /// Passes a server's question on. `None` where there are too many.
    pub(super) fn of_server(
        &mut self,
        question: Elicitation,
    ) -> Option<oneshot::Receiver<ElicitResult>> {
        let words = format!("an answer to a question of {}", line(&question.server, 100));
        self.push(About::Server(question.params), words, None)
    }

    fn push(
        &mut self,
        about: About,
        words: String,
        key: Option<String>,
    ) -> Option<oneshot::Receiver<ElicitResult>> {
        if self.open.len() >= MAX_QUESTIONS {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        self.kept.extend(key.clone());
        let key = key.unwrap_or_else(|| self.new_key());
        self.open.push(Question {
            key,
            about,
            words,
            asked: false,
            was_told: false,
            answer,
        });
        Some(answered)
    }

    fn new_key(&mut self) -> String {
        self.last += 1;
        let prefix = self.prefix.get_or_init(|| {
            let random = uuid::Uuid::new_v4().simple().to_string();
            format!("q{random}")
        });
        format!("{prefix}-{}", self.last)
    }

    /// Whether this process has put a kept question.
    pub(super) fn was_asked(&self, key: &str) -> bool {
        self.kept.contains(key)
    }

    /// Nobody waits for the answers any more.
    pub(super) fn clear(&mut self) {
        self.open.clear();
        self.joints.clear();
    }

    /// Questions that were not put to the client yet; they are from now on.
    pub(super) fn take_unasked(&mut self, asker: Asker<'_>) -> Vec<(String, ElicitRequestParams)> {
        self.put(asker, |question| !question.asked)
    }

    /// Whether there are questions that were not put to the client yet.
    pub(super) fn has_unasked(&self) -> bool {
        let mut wanted = self.open.iter().filter(|one| is_wanted(one));
        wanted.any(|one| !one.asked)
    }

    /// Every open question, to be put to the client again.
    pub(super) fn all(&mut self, asker: Asker<'_>) -> Vec<(String, ElicitRequestParams)> {
        self.put(asker, |_| true)
    }

    /// The questions as the client gets them: calls together where there are several.
    fn put(
        &mut self,
        asker: Asker<'_>,
        is_meant: impl Fn(&Question) -> bool,
    ) -> Vec<(String, ElicitRequestParams)> {
        let mut put = Vec::new();
        let mut groups: Vec<Vec<&Question>> = Vec::new();
        let mut listed = MAX_LISTED;
        for question in self
            .open
            .iter()
            .filter(|one| is_wanted(one) && is_meant(one))
        {
            match &question.about {
                About::Server(params) => put.push((question.key.clone(), params.clone())),
                About::Call { is_alone: true, .. } => groups.insert(0, vec![question]),
                About::Call { .. } => {
                    listed += question.words.len();
                    match groups.last_mut().filter(|_| listed <= MAX_LISTED) {
                        Some(group) => group.push(question),
                        None => {
                            listed = question.words.len();
                            groups.push(vec![question]);
                        }
                    }
                }
            }
        }
        let mut joints = Vec::new();
        for group in groups {
            match group.as_slice() {
                [one] => put.extend(about_one(&one.words, asker).map(|it| (one.key.clone(), it))),
                several => {
                    let calls: Vec<String> = several
                        .iter()
                        .map(|question| question.key.clone())
                        .collect();
                    let words = several.iter().map(|question| question.words.as_str());
                    joints.push((calls, about_several(words, asker)));
                }
            }
        }
        for (calls, params) in joints {
            let key = key_of_several(self.new_key(), &calls);
            put.extend(params.map(|params| (key.clone(), params)));
            self.joints.push_back(Joint { key, calls });
            if self.joints.len() > MAX_JOINTS {
                self.joints.pop_front();
            }
        }
        self.open
            .iter_mut()
            .for_each(|question| question.asked = true);
        put
    }

    /// The open questions in words, for the model. They count as seen from now on.
    pub(super) fn waits_for(&mut self) -> Vec<String> {
        let open = self.open.iter_mut().filter(|one| is_wanted(one));
        open.map(|question| {
            question.was_told = true;
            match &question.about {
                About::Call { .. } => format!("a person's approval of {}", question.words),
                About::Server(_) => question.words.clone(),
            }
        })
        .collect()
    }

    /// Whether something waits for a person.
    pub(super) fn is_waiting(&self) -> bool {
        self.open.iter().any(is_wanted)
    }

    /// Questions that went to a lost client go to the next one.
    pub(super) fn ask_again(&mut self) {
        self.open
            .iter_mut()
            .for_each(|question| question.asked = false);
    }

    /// Takes the answer to a question; false where nobody waits for it any more.
    pub(super) fn answer(&mut self, key: &str, result: &ElicitResult) -> bool {
        let joint = self.joints.iter().position(|joint| joint.key == key);
        let Some(joint) = joint.and_then(|at| self.joints.remove(at)) else {
            return self.answer_all(&[key.to_owned()], result) > 0;
        };
        let wanted = match (&result.action, word_of(result)) {
            (ElicitationAction::Accept, Some("all")) => "once",
            (ElicitationAction::Accept, Some("program")) => "program",
            (ElicitationAction::Accept, Some("each")) => {
                for question in &mut self.open {
                    if let About::Call { is_alone, .. } = &mut question.about
                        && joint.calls.contains(&question.key)
                    {
                        *is_alone = true;
                        question.asked = false;
                    }
                }
                return true;
            }
            _ => return self.answer_all(&joint.calls, result) > 0,
        };
        self.answer_all(&joint.calls, &accepted(wanted)) > 0
    }

    /// Answers questions alike. An answer for the rest of the program is one to every open question
    /// about a call of the same kind too. Returns how many were waited for.
    fn answer_all(&mut self, keys: &[String], result: &ElicitResult) -> usize {
        let is_named = |question: &Question| keys.contains(&question.key);
        let kinds: HashSet<Kind> = match approval(result) {
            Approval::ForProgram => {
                let named = self.open.iter().filter(|one| is_named(one));
                named.filter_map(|one| one.kind().cloned()).collect()
            }
            _ => HashSet::new(),
        };
        let is_meant = |one: &mut Question| {
            is_named(one) || one.kind().is_some_and(|kind| kinds.contains(kind))
        };
        let answered = self.open.extract_if(.., is_meant);
        let waited_for = answered.filter_map(|one| one.answer.send(result.clone()).ok());
        waited_for.count()
    }

    /// Answers every question about a call that the model has seen. Returns how many.
    pub(super) fn answer_calls(&mut self, decision: Approval) -> usize {
        let word = match decision {
            Approval::Once => "once",
            Approval::ForProgram => "program",
            Approval::ForSession => "session",
            Approval::No => "no",
        };
        let seen = self
            .open
            .iter()
            .filter(|one| one.was_told && is_wanted(one));
        let seen = seen.filter(|one| one.kind().is_some());
        let keys: Vec<String> = seen.map(|one| one.key.clone()).collect();
        self.answer_all(&keys, &accepted(word))
    }
}

impl Question {
    fn kind(&self) -> Option<&Kind> {
        match &self.about {
            About::Call { kind, .. } => Some(kind),
            About::Server(_) => None,
        }
    }
}

/// Whether somebody still waits for the answer.
fn is_wanted(question: &Question) -> bool {
    !question.answer.is_closed()
}

fn accepted(word: &str) -> ElicitResult {
    let mut answer = ElicitResult::new(ElicitationAction::Accept);
    answer.content = Some(json!({"answer": word}));
    answer
}

/// The question about one call.
fn about_one(words: &str, asker: Asker<'_>) -> Option<ElicitRequestParams> {
    let message = format!("{} wants to call {words}. May it?", named(asker));
    let for_program = ("program", "Yes, and all such calls of this program");
    let mut answers = vec![
        ("once", "Yes, this once"),
        ("session", "Yes, for this session"),
    ];
    answers.extend(asker.map(|_| for_program));
    answers.push(("no", "No"));
    form(&message, &answers)
}

/// The question about several calls. Equal ones are counted.
fn about_several<'a>(
    calls: impl Iterator<Item = &'a str>,
    asker: Asker<'_>,
) -> Option<ElicitRequestParams> {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    let mut all = 0;
    for call in calls {
        all += 1;
        match counted.iter_mut().find(|(words, _)| *words == call) {
            Some((_, count)) => *count += 1,
            None => counted.push((call, 1)),
        }
    }
    let lines = counted.iter().map(|(words, count)| match count {
        1 => format!("\n- {words}"),
        _ => format!("\n- {count} times {words}"),
    });
    let list: String = lines.collect();
    let message = format!("{} wants to make {all} calls:{list}\nMay it?", named(asker));
    let mut answers = vec![("all", "Yes, all of these")];
    answers.extend(asker.map(|_| ("program", "Yes, and all such calls of this program")));
    answers.extend([("each", "Ask about each"), ("no", "No, none of these")]);
    form(&message, &answers)
}

fn named(asker: Asker<'_>) -> String {
    match asker {
        Some(cell) => format!("A program of the model (cell {cell})"),
        None => "The model".to_owned(),
    }
}

fn form(message: &str, answers: &[(&str, &str)]) -> Option<ElicitRequestParams> {
    let (words, names): (Vec<_>, Vec<_>) = answers.iter().copied().unzip();
    let params = json!({
        "mode": "form",
        "message": message,
        "requestedSchema": {
            "type": "object",
            "properties": {"answer": {
                "type": "string",
                "title": "Answer",
                "enum": words,
                "enumNames": names,
            }},
            "required": ["answer"],
        },
    });
    serde_json::from_value(params).ok()
}

fn word_of(result: &ElicitResult) -> Option<&str> {
    result.content.as_ref()?.get("answer")?.as_str()
}

/// What a person's answer about a call means.
pub(super) fn approval(result: &ElicitResult) -> Approval {
    match (&result.action, word_of(result)) {
        (ElicitationAction::Accept, Some("once")) => Approval::Once,
        (ElicitationAction::Accept, Some("program")) => Approval::ForProgram,
        (ElicitationAction::Accept, Some("session")) => Approval::ForSession,
        _ => Approval::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(tool: &str, rule: &str) -> ApprovalRequest {
        ApprovalRequest {
            server: "s".to_owned(),
            tool: tool.to_owned(),
            arguments: "{}".to_owned(),
            rule: rule.to_owned(),
            subject: String::new(),
        }
    }

    fn message(params: &ElicitRequestParams) -> String {
        let params = serde_json::to_value(params).expect("JSON");
        params["message"].as_str().expect("a message").to_owned()
    }

    fn given(answer: &mut oneshot::Receiver<ElicitResult>) -> Option<Approval> {
        answer.try_recv().ok().map(|answer| approval(&answer))
    }

    #[test]
    fn calls_that_wait_at_the_same_moment_are_one_question() {
        let mut questions = Questions::default();
        let mut answers = ["push", "push", "tag"].map(|tool| {
            questions
                .about_call(&request(tool, "ask"), None)
                .expect("room")
        });
        let put = questions.take_unasked(Some("7"));
        assert_eq!(put.len(), 1);
        assert_eq!(
            message(&put[0].1),
            "A program of the model (cell 7) wants to make 3 calls:\n- 2 times s/push with {}\n- s/tag with {}\nMay it?"
        );
        assert!(questions.take_unasked(Some("7")).is_empty());
        assert!(questions.answer(&put[0].0, &accepted("all")));
        for answer in &mut answers {
            assert_eq!(given(answer), Some(Approval::Once));
        }
        assert!(!questions.is_waiting());
        assert!(!questions.answer(&put[0].0, &accepted("all")));
    }

    #[test]
    fn a_person_who_wants_each_is_asked_about_each() {
        let mut questions = Questions::default();
        let mut one = questions
            .about_call(&request("one", "ask"), None)
            .expect("room");
        let mut two = questions
            .about_call(&request("two", "ask"), None)
            .expect("room");
        let put = questions.take_unasked(Some("7"));
        assert!(questions.answer(&put[0].0, &accepted("each")));
        let put = questions.take_unasked(Some("7"));
        assert_eq!(put.len(), 2);
        for (key, params) in &put {
            let word = match message(params).contains("s/one") {
                true => "once",
                false => "no",
            };
            questions.answer(key, &accepted(word));
        }
        assert_eq!(given(&mut one), Some(Approval::Once));
        assert_eq!(given(&mut two), Some(Approval::No));
    }

    #[test]
    fn an_answer_for_the_program_is_one_to_all_that_wait_of_its_kind_and_to_no_other() {
        let mut questions = Questions::default();
        let mut first = questions
            .about_call(&request("one", "ask a"), None)
            .expect("room");
        let put = questions.take_unasked(Some("7"));
        let mut same = questions
            .about_call(&request("two", "ask a"), None)
            .expect("room");
        let mut other = questions
            .about_call(&request("three", "ask b"), None)
            .expect("room");
        assert!(questions.answer(&put[0].0, &accepted("program")));
        assert_eq!(given(&mut first), Some(Approval::ForProgram));
        assert_eq!(given(&mut same), Some(Approval::ForProgram));
        assert_eq!(given(&mut other), None);
        assert_eq!(questions.take_unasked(Some("7")).len(), 1);
    }

    #[test]
    fn a_question_lists_no_more_than_a_person_reads() {
        let mut questions = Questions::default();
        let long = "x".repeat(MAX_LISTED / 2);
        let kept: Vec<_> = (0..4)
            .map(|_| questions.about_call(&request(&long, "ask"), None))
            .collect();
        let put = questions.take_unasked(None);
        assert!(put.len() > 1);
        assert!(
            put.iter()
                .all(|(_, params)| message(params).len() < 2 * MAX_LISTED)
        );
        assert_eq!(kept.iter().flatten().count(), 4);
    }

    #[test]
    fn a_refusal_of_several_calls_refuses_each() {
        let mut questions = Questions::default();
        let mut answers = ["one", "two"].map(|tool| {
            questions
                .about_call(&request(tool, "ask"), None)
                .expect("room")
        });
        let put = questions.all(Some("7"));
        let declined = ElicitResult::new(ElicitationAction::Decline);
        assert!(questions.answer(&put[0].0, &declined));
        for answer in &mut answers {
            assert_eq!(given(answer), Some(Approval::No));
        }
    }
}
