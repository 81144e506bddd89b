//! The delegate of a session: the calls and notifications of its cells.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use code_mode_host::{
    CellEnded, CellId, CellNotification, CellStarted, CodeModeSessionDelegate, Json,
    NestedToolCall, ToolError,
};
use rmcp::model::{ElicitResult, ElicitationAction};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::cell::{Cell, CellKey};
use super::questions::approval;
use super::session::KnownCells;
use crate::audit::{AuditRecord, CallIds};
use crate::broker::Broker;
use crate::caller::{
    Approval, ApprovalRequest, Approvals, CallContext, Elicitation, NotAsked, ProgramApprovals,
};
use crate::kept_question::{KeptQuestion, QuestionKeeper};

/// A question that is declined sooner was declined by a program: clients without a person at hand
/// answer at once.
const NO_PERSON: Duration = Duration::from_millis(400);

/// How long a call of a durable program waits for its server to start.
const SERVERS_START: Duration = Duration::from_secs(300);

pub(crate) struct SessionDelegate {
    pub(crate) broker: Arc<Broker>,
    /// The session's name in records.
    pub(crate) session: String,
    pub(crate) known: Arc<KnownCells>,
    /// Rung when a cell was closed, and may have stored something.
    pub(crate) closed: Arc<Notify>,
    /// Where the questions of a durable session are kept.
    pub(crate) keeper: Option<QuestionKeeper>,
}

#[async_trait]
impl CodeModeSessionDelegate for SessionDelegate {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        let key = CellKey::from(call.tool_call_id.as_str());
        let cell = self.known.by_key(&key).ok_or("the cell is not known")?;
        let context = Arc::new(CellCall {
            session: self.session.clone(),
            known: self.known.clone(),
            broker: self.broker.clone(),
            cell,
            call: Maker::Cell(call.clone()),
            keeper: self.keeper.clone(),
        });
        let answer = async {
            let Some(keeper) = &self.keeper else {
                return self.broker.call(&call, context).await;
            };
            // A program of an earlier process may be faster than the servers of this one.
            self.broker
                .started_for(&call.tool_name, SERVERS_START)
                .await;
            let answer = self.broker.call(&call, context).await;
            if call.attempt > 1 {
                // The policy may have changed: nobody has decided about the call, and it is over.
                keeper.withdraw(&call).await;
            }
            answer
        };
        tokio::select! {
            answer = answer => answer,
            // Dropping the future cancels the call at its server.
            () = cancelled.cancelled() => Err(ToolError::cancelled()),
        }
    }

    async fn notify(&self, notification: CellNotification, _: CancellationToken) {
        let key = CellKey::from(notification.tool_call_id.as_str());
        if let Some(cell) = self.known.by_key(&key) {
            cell.add_news(notification.text);
        }
    }

    fn cell_started(&self, cell: &CellStarted) {
        let key = CellKey::from(cell.tool_call_id.as_str());
        self.known.admitted(&key, cell.cell_id.clone());
    }

    fn cell_ended(&self, ended: &CellEnded) {
        if let Some(cell) = self.known.by_id(&ended.cell_id) {
            cell.set_over();
        }
    }

    async fn cell_closed(&self, cell_id: CellId) {
        if let Some(cell) = self.known.by_id(&cell_id) {
            cell.end();
        }
        self.closed.notify_one();
    }
}

/// A call of a cell, or of a tool that is offered directly.
pub(crate) struct CellCall {
    pub(crate) session: String,
    pub(crate) known: Arc<KnownCells>,
    pub(crate) broker: Arc<Broker>,
    pub(crate) cell: Arc<Cell>,
    pub(crate) call: Maker,
    /// Where its questions are kept.
    pub(crate) keeper: Option<QuestionKeeper>,
}

/// The maker of a call.
pub(crate) enum Maker {
    /// A program.
    Cell(NestedToolCall),
    /// A client, of a tool that is offered directly.
    Direct,
    /// A client that reads a resource or gets a prompt.
    Read,
}

impl CellCall {
    /// Whether the model may pass on what its user decides. It makes no readings.
    fn may_model_answer(&self) -> bool {
        self.broker.policy.model_may_answer && !matches!(self.call, Maker::Read)
    }

    /// The answer to the question whether a call may run.
    async fn answer(
        &self,
        request: &ApprovalRequest,
        key: Option<&str>,
    ) -> Result<ElicitResult, NotAsked> {
        let answered = self.cell.ask(request, key.map(str::to_owned));
        let answered = answered.ok_or(NotAsked::TooMany)?;
        answered.await.map_err(|_| NotAsked::Ended)
    }

    /// What the person at the client decides, or the model where the policy lets it.
    async fn by_client(
        &self,
        request: &ApprovalRequest,
        key: Option<&str>,
    ) -> Result<Approval, NotAsked> {
        let asked = Instant::now();
        let answer = self.answer(request, key).await?;
        if approval(&answer) != Approval::No || answer.action == ElicitationAction::Accept {
            return Ok(approval(&answer));
        }
        if asked.elapsed() >= NO_PERSON {
            return Ok(Approval::No);
        }
        if !self.may_model_answer() && !self.broker.pending.is_open() {
            return Err(NotAsked::NobodyThere);
        }
        // The model passes the user's decision on instead, or somebody answers elsewhere.
        self.cell.set_nobody_there();
        Ok(approval(&self.answer(request, key).await?))
    }
}

impl Maker {
    /// Stops the deadlines of the program, where there is one.
    fn pause(&self) -> Option<code_mode_host::Pause> {
        match self {
            Self::Cell(call) => call.pause().ok(),
            Self::Direct | Self::Read => None,
        }
    }
}

#[async_trait]
impl CallContext for CellCall {
    fn ids(&self) -> CallIds {
        let (cell, call) = match &self.call {
            Maker::Cell(call) => (
                call.cell_id.to_string(),
                call.runtime_tool_call_id.to_string(),
            ),
            Maker::Direct => ("0".to_owned(), "direct".to_owned()),
            Maker::Read => ("0".to_owned(), "read".to_owned()),
        };
        CallIds {
            session: self.session.clone(),
            cell,
            call,
        }
    }

    fn approvals(&self) -> &Approvals {
        &self.known.approvals
    }

    fn approvals_of_program(&self) -> Option<&ProgramApprovals> {
        let is_program = matches!(self.call, Maker::Cell(_));
        is_program.then(|| self.cell.approvals())
    }

    async fn approve(&self, request: &ApprovalRequest) -> Result<Approval, NotAsked> {
        let (policy, pending) = (&self.broker.policy, &self.broker.pending);
        let can_ask = self.cell.can_ask().forms;
        let keeper = match &self.call {
            Maker::Cell(call) => self.keeper.as_ref().map(|keeper| (keeper, call)),
            Maker::Direct | Maker::Read => None,
        };
        let from_terminal = keeper.is_some() && policy.terminal_may_answer;
        if !can_ask && !self.may_model_answer() && !pending.is_open() && !from_terminal {
            return Err(NotAsked::CannotAsk);
        }
        let kept = match keeper {
            Some((keeper, call)) => Some(keeper.ask(&self.broker, call, request, false).await?),
            None => None,
        };
        let is_program = matches!(self.call, Maker::Cell(_));
        let program = is_program.then(|| self.cell.key.as_str());
        let listed = pending.list(request, &self.ids(), program);
        if listed.is_none() && !can_ask && !self.may_model_answer() && !from_terminal {
            return Err(NotAsked::TooMany);
        }
        let _pause = self.call.pause();
        let elsewhere = async {
            match listed {
                Some(listed) => listed.answer().await,
                None => std::future::pending().await,
            }
        };
        let key = kept.as_ref().map(KeptQuestion::key);
        let by_client = async {
            match self.by_client(request, key.as_deref()).await {
                // Somebody answers from a terminal.
                Err(NotAsked::NobodyThere | NotAsked::TooMany) if from_terminal => {
                    std::future::pending().await
                }
                answer => answer,
            }
        };
        let here = async {
            tokio::select! {
                answer = by_client => answer.map(|answer| (answer, "client")),
                answer = elsewhere => Ok((answer, "terminal")),
            }
        };
        if let Some(kept) = kept {
            return kept.decided(here).await;
        }
        let in_time = tokio::time::timeout(policy.answer_time(), here).await;
        let answer = in_time.unwrap_or(Err(NotAsked::TimedOut));
        answer.map(|(answer, _)| answer)
    }

    async fn elicit(&self, question: Elicitation) -> Option<ElicitResult> {
        let _pause = self.call.pause();
        self.cell.forward(question).await
    }

    fn began(&self, name: &str) {
        self.cell.call_began(name);
    }

    fn ended(&self, name: &str, record: &AuditRecord) {
        self.cell.call_ended(name, record.clone());
    }
}
