//! The caller of a tool, as the broker needs it.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use rmcp::model::{ElicitRequestParams, ElicitResult};

use crate::audit::{AuditRecord, CallIds};

/// One call of a tool, as its maker sees it. The broker asks it for approvals and reports to
/// it; it knows the session and the cell, which the broker does not.
#[async_trait]
pub trait CallContext: Send + Sync + 'static {
    /// The names of the call, for the audit log.
    fn ids(&self) -> CallIds;

    /// The approvals of the call's session.
    fn approvals(&self) -> &Approvals;

    /// The approvals for the rest of the call's program. By default the call is of none.
    fn approvals_of_program(&self) -> Option<&ProgramApprovals> {
        None
    }

    /// Asks a person whether the call may run. The deadlines of the cell should not run
    /// meanwhile.
    ///
    /// # Errors
    /// [`NotAsked`] where nobody decided.
    async fn approve(&self, request: &ApprovalRequest) -> Result<Approval, NotAsked>;

    /// Passes a server's question to a person; `None` where no client can ask, or
    /// the person does not answer. The default is `None`.
    async fn elicit(&self, question: Elicitation) -> Option<ElicitResult> {
        let _ = question;
        None
    }

    /// The call is about to be decided. `name` is `SERVER/TOOL`. By default nothing is done.
    fn began(&self, name: &str) {
        let _ = name;
    }

    /// The call is over; called once for each that began, also where its future was dropped.
    /// By default nothing is done.
    fn ended(&self, name: &str, record: &AuditRecord) {
        let _ = (name, record);
    }
}

/// The question to a person before a call runs. The texts are on one line each, without secrets;
/// characters that a terminal obeys or nobody sees are escapes, and names that are not plain words
/// stand between quotation marks.
#[derive(Clone, Debug)]
pub struct ApprovalRequest {
    /// The server.
    pub server: String,
    /// The tool.
    pub tool: String,
    /// The arguments: every key, and each value shortened by itself; at most 4,000 bytes.
    pub arguments: String,
    /// The rule of the policy that asks.
    pub rule: String,
    /// A digest of all that the decision is about: the tool and its definition, the input that is sent, and
    /// the rule.
    pub subject: String,
}

impl ApprovalRequest {
    /// The call in words.
    pub fn words(&self) -> String {
        format!("{}/{} with {}", self.server, self.tool, self.arguments)
    }
}

/// What a person decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    /// The call may run.
    Once,
    /// So may every call of its program to the server about which the same rule asks.
    ForProgram,
    /// So may every later call of the tool in the session.
    ForSession,
    /// The call must not run.
    No,
}

/// Why nobody decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotAsked {
    /// The client has no way to ask a person.
    #[error(
        "this client cannot ask one; a policy file (--policy) can allow it, or let a person at a terminal answer (\"terminal_may_answer\")"
    )]
    CannotAsk,
    /// The client declined at once, so that no person can have seen the question.
    #[error("this client declined without asking one; allow it in a policy file (--policy)")]
    NobodyThere,
    /// Too many calls wait for a person already.
    #[error("too many calls wait for one")]
    TooMany,
    /// The cell ended before a person answered.
    #[error("the cell ended before one answered")]
    Ended,
    /// The question could not be kept in the journal of its session.
    #[error("its question could not be kept")]
    NotKept,
    /// The person did not answer in time.
    #[error("nobody answered in time")]
    TimedOut,
}

/// A question of a server.
#[derive(Clone, Debug)]
pub struct Elicitation {
    /// The server.
    pub server: String,
    /// The question; its message says which server asks.
    pub params: ElicitRequestParams,
}

/// The tools that a person allowed for a session, as they were then.
#[derive(Debug, Default)]
pub struct Approvals(Mutex<HashSet<ApprovedTool>>);

/// The calls that a person allowed for the rest of a program: those to a server about which a rule asks.
#[derive(Debug, Default)]
pub struct ProgramApprovals(Mutex<HashSet<(String, String)>>);

impl ProgramApprovals {
    pub(crate) fn has(&self, server: &str, rule: &str) -> bool {
        let allowed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.contains(&(server.to_owned(), rule.to_owned()))
    }

    pub(crate) fn add(&self, server: &str, rule: &str) {
        let mut allowed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.insert((server.to_owned(), rule.to_owned()));
    }
}

/// A tool with the hash of its definition: a changed definition needs a new approval.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ApprovedTool {
    pub(crate) server: String,
    pub(crate) tool: String,
    pub(crate) definition: [u8; 32],
}

impl Approvals {
    pub(crate) fn has(&self, tool: &ApprovedTool) -> bool {
        let allowed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.contains(tool)
    }

    pub(crate) fn add(&self, tool: ApprovedTool) {
        let mut allowed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.insert(tool);
    }
}
