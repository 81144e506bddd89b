//! Questions about calls that are kept in a journal, so that they outlive the process that asks.

use std::borrow::Cow;
use std::path::Path;

use code_mode_host::{
    Answer, AskedQuestion, Decision, Journal, JournalError, NestedToolCall, Question,
};

use crate::broker::Broker;
use crate::caller::{Approval, ApprovalRequest, NotAsked};

/// The command that answers the questions in a journal, which this option names.
pub fn approvals_command(option: &str, path: &Path) -> String {
    let path = path.to_string_lossy();
    let quoted = shlex::try_quote(&path).unwrap_or(Cow::Borrowed(&*path));
    format!("code-mode approvals {option} {quoted}")
}

/// Keeps the questions of a durable session.
#[derive(Clone, Debug)]
pub struct QuestionKeeper {
    journal: Journal,
    session: String,
}

/// A question that is kept.
#[derive(Debug)]
pub struct KeptQuestion(AskedQuestion);

/// What the keys of kept questions begin with.
const KEPT: char = 'k';

/// What the keys of questions begin with that list several kept ones.
const KEPT_TOGETHER: char = 'j';

/// Whether it is the key of a kept question, which it has in the next process too.
pub(crate) fn is_kept(key: &str) -> bool {
    key.starts_with(KEPT)
}

/// The key of a question that lists these, made of a new one.
pub(crate) fn key_of_several(new: String, listed: &[String]) -> String {
    match listed.iter().any(|key| is_kept(key)) {
        true => format!("{KEPT_TOGETHER}{new}"),
        false => new,
    }
}

/// Whether a question with this key waits on where a request about it has ended without an answer.
pub(crate) fn waits_on(key: &str) -> bool {
    key.starts_with([KEPT, KEPT_TOGETHER])
}

impl QuestionKeeper {
    /// Keeps the questions of the session with this name.
    pub fn new(journal: Journal, session: impl Into<String>) -> Self {
        let session = session.into();
        Self { journal, session }
    }

    /// Removes the question about a call that is over, unless it was decided.
    pub(crate) async fn withdraw(&self, call: &NestedToolCall) {
        if let Err(error) = self.journal.withdraw(&self.session, call).await {
            tracing::warn!(%error, "a question cannot be removed");
        }
    }

    /// Puts the question about a call into the journal, or finds it there. `is_asked_here` where the person is at
    /// this process's terminal: then nobody answers from another one, and the question does not expire.
    ///
    /// # Errors
    /// [`NotAsked::NotKept`].
    pub async fn ask(
        &self,
        broker: &Broker,
        call: &NestedToolCall,
        request: &ApprovalRequest,
        is_asked_here: bool,
    ) -> Result<KeptQuestion, NotAsked> {
        let question = Question::new(&request.subject, request.words())
            .reason(&request.rule)
            .kind(format!("{} {}", request.server, request.rule))
            .from_terminal(broker.terminal_may_answer() && !is_asked_here)
            .expires_after((!is_asked_here).then(|| broker.policy.kept_answer_time()));
        let asked = self.journal.ask(&self.session, call, question).await;
        asked.map(KeptQuestion).map_err(not_kept)
    }
}

impl KeptQuestion {
    /// Its number in the journal, by which `code-mode approvals` answers it.
    pub fn number(&self) -> u64 {
        self.0.number()
    }

    /// Whether it has a decision from before.
    pub fn is_decided(&self) -> bool {
        self.0.is_decided()
    }

    /// Its key for clients: the same in the next process.
    pub(crate) fn key(&self) -> String {
        format!("{KEPT}{}", self.number())
    }

    /// The decision: of another process, or of `here`, which names its author.
    ///
    /// # Errors
    /// Those of `here`, [`NotAsked::TimedOut`], and [`NotAsked::NotKept`].
    pub async fn decided(
        mut self,
        here: impl Future<Output = Result<(Approval, &'static str), NotAsked>>,
    ) -> Result<Approval, NotAsked> {
        let own = tokio::select! {
            biased;
            decision = self.0.decision() => return approval(&decision.map_err(not_kept)?),
            own = here => own,
        };
        let (own, by) = match own {
            Ok(own) => own,
            // The cell, or this process, has ended: the question waits on.
            Err(NotAsked::Ended) => return Err(NotAsked::Ended),
            Err(why) => {
                self.0.withdraw().await.map_err(not_kept)?;
                return Err(why);
            }
        };
        let answer = match own {
            Approval::Once => Answer::Allow,
            Approval::ForProgram => Answer::Program,
            Approval::ForSession => Answer::Session,
            Approval::No => Answer::Deny,
        };
        let decision = self.0.decide(answer, by).await;
        approval(&decision.map_err(not_kept)?)
    }
}

fn not_kept(error: JournalError) -> NotAsked {
    tracing::warn!(%error, "a question cannot be kept");
    NotAsked::NotKept
}

fn approval(decision: &Decision) -> Result<Approval, NotAsked> {
    match decision.answer {
        Answer::Allow => Ok(Approval::Once),
        Answer::Program => Ok(Approval::ForProgram),
        Answer::Session => Ok(Approval::ForSession),
        Answer::Deny if decision.by_time() => Err(NotAsked::TimedOut),
        Answer::Deny => Ok(Approval::No),
    }
}
