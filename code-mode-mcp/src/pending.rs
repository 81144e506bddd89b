//! The calls that wait for a person's answer, which `code-mode mcp approvals` gives from a terminal.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::audit::CallIds;
use crate::caller::{Approval, ApprovalRequest};

/// Calls that are listed, of all clients and of one session. More are answered by their clients only.
const MAX_WAITING: usize = 1024;
const MAX_OF_SESSION: usize = 256;

/// The calls of all clients of a gateway that wait for a person.
#[derive(Default)]
pub(crate) struct PendingApprovals {
    /// Somebody can answer here.
    is_open: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    waiting: BTreeMap<u64, Waiting>,
}

struct Waiting {
    session: String,
    cell: String,
    rule: String,
    /// Where a program makes the call.
    kind: Option<Kind>,
    words: String,
    since: Instant,
    answer: oneshot::Sender<Approval>,
}

/// Calls of one program to a server about which the same rule asks.
#[derive(Clone, PartialEq, Eq)]
struct Kind {
    /// The handle of its cell, which no other cell has.
    program: String,
    server: String,
    rule: String,
}

/// A call that waits for a person.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PendingApproval {
    /// Its number in its gateway.
    pub number: u64,
    /// The server, the tool and the arguments, in one line without secrets.
    pub call: String,
    /// The rule of the policy that asks.
    pub rule: String,
    /// The cell whose program makes the call.
    pub cell: String,
    /// For how many seconds it has waited.
    pub seconds: u64,
}

/// A person's answer from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TerminalAnswer {
    /// The call may run.
    Allow,
    /// So may all calls of its program to the server about which the same rule asks.
    Program,
    /// So may every later call of the tool in the session.
    Session,
    /// The call must not run.
    Deny,
}

impl From<TerminalAnswer> for Approval {
    fn from(answer: TerminalAnswer) -> Self {
        match answer {
            TerminalAnswer::Allow => Self::Once,
            TerminalAnswer::Program => Self::ForProgram,
            TerminalAnswer::Session => Self::ForSession,
            TerminalAnswer::Deny => Self::No,
        }
    }
}

impl PendingApprovals {
    /// From now on somebody can answer here.
    #[cfg(unix)]
    pub(crate) fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a call for a person at a terminal; `program` is the handle of the cell whose program makes
    /// it. `None` where nobody can answer here, or where too many calls wait.
    pub(crate) fn list(
        self: &Arc<Self>,
        request: &ApprovalRequest,
        ids: &CallIds,
        program: Option<&str>,
    ) -> Option<Listed> {
        let mut state = self.state();
        let is_of_session = |one: &&Waiting| one.session == ids.session;
        let of_session = state.waiting.values().filter(is_of_session).count();
        if !self.is_open() || state.waiting.len() >= MAX_WAITING || of_session >= MAX_OF_SESSION {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        state.last += 1;
        let number = state.last;
        let waiting = Waiting {
            session: ids.session.clone(),
            cell: ids.cell.clone(),
            rule: request.rule.clone(),
            kind: program.map(|program| Kind {
                program: program.to_owned(),
                server: request.server.clone(),
                rule: request.rule.clone(),
            }),
            words: request.words(),
            since: Instant::now(),
            answer,
        };
        state.waiting.insert(number, waiting);
        let pending = self.clone();
        Some(Listed {
            pending,
            number,
            answered,
        })
    }

    /// The calls that wait, the oldest first.
    #[cfg(unix)]
    pub(crate) fn all(&self) -> Vec<PendingApproval> {
        let state = self.state();
        let waiting = state.waiting.iter();
        waiting
            .map(|(number, one)| PendingApproval {
                number: *number,
                call: one.words.clone(),
                rule: one.rule.clone(),
                cell: one.cell.clone(),
                seconds: one.since.elapsed().as_secs(),
            })
            .collect()
    }

    /// Answers these calls; returns how many waited.
    #[cfg(unix)]
    pub(crate) fn answer(&self, numbers: &[u64], answer: TerminalAnswer) -> usize {
        let mut state = self.state();
        let named = numbers
            .iter()
            .filter_map(|number| state.waiting.get(number));
        let kinds: Vec<Kind> = match answer {
            TerminalAnswer::Program => named.filter_map(|one| one.kind.clone()).collect(),
            _ => Vec::new(),
        };
        let is_of_kind = |one: &Waiting| one.kind.as_ref().is_some_and(|kind| kinds.contains(kind));
        let is_meant =
            |number: &u64, one: &mut Waiting| numbers.contains(number) || is_of_kind(one);
        let answered = state.waiting.extract_if(.., is_meant);
        let waited = answered.filter_map(|(_, one)| one.answer.send(answer.into()).ok());
        waited.count()
    }
}

/// A call is listed until this is dropped.
pub(crate) struct Listed {
    pending: Arc<PendingApprovals>,
    number: u64,
    answered: oneshot::Receiver<Approval>,
}

impl Listed {
    /// Waits for the answer.
    pub(crate) async fn answer(mut self) -> Approval {
        match (&mut self.answered).await {
            Ok(answer) => answer,
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.pending.state().waiting.remove(&self.number);
    }
}
