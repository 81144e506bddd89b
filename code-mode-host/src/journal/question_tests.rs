//! Questions that outlive their askers.

use std::path::Path;
use std::time::Duration;

use code_mode_protocol::{
    CellId, Limits, NestedToolCall, RuntimeToolCallId, SessionOptions, ToolName,
};

use super::{Answer, AskedQuestion, Journal, JournalError, JournalOptions, Question};

fn call(place: u32) -> NestedToolCall {
    let name = ToolName::plain("send");
    NestedToolCall::new(CellId::nth(1), "execute", RuntimeToolCallId(place), name)
}

/// A journal with the session "work", in which a call asks `about` something.
async fn asked(file: &Path, about: &str) -> (Journal, AskedQuestion) {
    let journal = Journal::open(file, JournalOptions::default()).expect("a journal");
    let options = (&SessionOptions::default(), Limits::default());
    let opened = journal.inner().open_session("work", Some(options));
    drop(opened.expect("a session"));
    let question = Question::new(about, "May it?").from_terminal(true);
    let asked = journal
        .ask("work", &call(2), question)
        .await
        .expect("asked");
    (journal, asked)
}

#[tokio::test]
async fn a_question_is_decided_once_and_outlives_its_asker() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("journal");
    let (journal, first) = asked(&file, "this").await;
    let number = first.number();
    drop((first, journal));
    let (journal, mut again) = asked(&file, "this").await;
    assert_eq!(again.number(), number);
    let waiting = journal.questions().expect("read");
    assert_eq!((waiting.len(), &waiting[0].decision), (1, &None));
    assert_eq!((waiting[0].cell, waiting[0].call), (1, 2));
    let by = journal.clone();
    let deciding =
        tokio::task::spawn_blocking(move || by.decide(number, Answer::Allow, "terminal"));
    let decision = again.decision().await.expect("decided");
    assert_eq!(
        (decision.answer, decision.by.as_str()),
        (Answer::Allow, "terminal")
    );
    deciding.await.expect("ended").expect("decided");
    // A second decision changes nothing, and returns the first.
    let stands = journal
        .decide(number, Answer::Deny, "another")
        .expect("harmless");
    assert_eq!(stands.decision, Some(decision));
    let unknown = journal.decide(number + 1, Answer::Deny, "another");
    assert!(matches!(unknown, Err(JournalError::NoQuestion(_))));
}

#[tokio::test]
async fn a_question_about_something_else_is_asked_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("journal");
    let (journal, first) = asked(&file, "this").await;
    let decided = first
        .decide(Answer::Allow, "client")
        .await
        .expect("decided");
    assert_eq!(decided.answer, Answer::Allow);
    drop(journal);
    let (journal, _second) = asked(&file, "that").await;
    let waiting = journal.questions().expect("read");
    assert_eq!((waiting.len(), &waiting[0].decision), (1, &None));
}

#[tokio::test]
async fn a_question_that_expires_is_a_denial() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("journal");
    let (journal, first) = asked(&file, "this").await;
    drop(first);
    let question = Question::new("it", "May it?").expires_after(Some(Duration::from_millis(5)));
    let mut asked = journal
        .ask("work", &call(3), question)
        .await
        .expect("asked");
    let decision = asked.decision().await.expect("decided");
    assert_eq!(
        (decision.answer, decision.by.as_str()),
        (Answer::Deny, "time")
    );
    let late = journal.decide(asked.number(), Answer::Allow, "terminal");
    assert_eq!(late.expect("harmless").decision, Some(decision));
}

#[tokio::test]
async fn another_terminal_decides_only_what_its_asker_lets_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (journal, _first) = asked(&folder.path().join("journal"), "this").await;
    let asked = journal
        .ask("work", &call(3), Question::new("it", "May it?"))
        .await;
    let asked = asked.expect("asked");
    let refused = journal.decide(asked.number(), Answer::Allow, "terminal");
    assert!(matches!(refused, Err(JournalError::NotFromTerminal)));
    journal.remove("work").expect("removed");
    assert_eq!(journal.questions().expect("read"), []);
    let gone = asked.decide(Answer::Allow, "client").await;
    assert!(matches!(gone, Err(JournalError::NoQuestion(_))));
}

#[tokio::test]
async fn an_answer_for_the_program_decides_what_waits_of_its_kind() {
    let folder = tempfile::tempdir().expect("a folder");
    let (journal, _other) = asked(&folder.path().join("journal"), "this").await;
    let ask = async |place, kind: &str| {
        let question = Question::new("it", "May it?")
            .from_terminal(true)
            .kind(kind);
        let asked = journal.ask("work", &call(place), question).await;
        asked.expect("asked")
    };
    let (first, mut same, other) = (ask(3, "a").await, ask(4, "a").await, ask(5, "b").await);
    let decided = journal.decide_all(&[first.number()], Answer::Program, "terminal");
    let decided = decided.expect("decided").into_iter();
    let numbers: Vec<u64> = decided.map(|one| one.expect("decided").number).collect();
    assert_eq!(numbers, [first.number(), same.number()]);
    assert_eq!(
        same.decision().await.expect("decided").answer,
        Answer::Program
    );
    let waiting = journal.questions().expect("read").into_iter();
    let waiting: Vec<u64> = waiting
        .filter(|one| one.decision.is_none())
        .map(|one| one.number)
        .collect();
    assert!(waiting.contains(&other.number()) && waiting.len() == 2);
}
