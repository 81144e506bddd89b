//! A cell's calls: decided by the policy, put to a person where it says so, sent, and
//! entered in the ledger.

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use code_mode_host::{CellId, CellNotification, CodeModeSessionDelegate, Json, NestedToolCall};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::catalogue::Entry as Tool;
use super::cell::{CellRecord, Said, said};
use super::gateway::Gateway;
use super::ledger::{Entry, Outcome};
use super::policy::Decision;
use super::session::{Allowed, FrontSession};
use super::texts::line;
use super::upstream::{Answers, CallError, error_json, nobody};
use crate::turn::CANCELLED;

/// How long a call waits for a person who can be asked.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How much of a call's arguments a person is shown.
const SHOWN: usize = 1000;

pub(super) struct CellDelegate {
    gateway: Arc<Gateway>,
    session: OnceLock<Weak<FrontSession>>,
    allowed: Allowed,
}

/// What became of a call: what the cell gets, and what the ledger is told.
struct Done {
    answer: Result<Json, String>,
    outcome: Outcome,
}

impl CellDelegate {
    pub(super) fn new(gateway: Arc<Gateway>) -> Self {
        Self {
            gateway,
            session: OnceLock::new(),
            allowed: Allowed::default(),
        }
    }

    pub(super) fn belongs_to(&self, session: &Arc<FrontSession>) {
        let _ = self.session.set(Arc::downgrade(session));
    }

    fn session(&self) -> Option<Arc<FrontSession>> {
        self.session.get()?.upgrade()
    }

    /// The cell that an execute started.
    fn cell(&self, tool_call_id: &str) -> Option<Arc<CellRecord>> {
        self.session()?.cell(tool_call_id)
    }

    /// Whether the call may run, and the decision in words.
    async fn decide(
        &self,
        cell: &CellRecord,
        tool: &Tool,
        input: &str,
    ) -> (Result<(), String>, String) {
        let (server, name) = (&tool.upstream.config.name, &tool.tool.name);
        let shown = format!("{}/{}", line(server, 100), line(name, 100));
        let policy = &self.gateway.settings.policy;
        let (decision, rule) = policy.decide(server, name, tool.tool.claims);
        let place = policy.place();
        match decision {
            Decision::Allow => (Ok(()), rule),
            Decision::Deny => (
                Err(format!("{shown} is denied by the rule {rule} of {place}")),
                rule,
            ),
            Decision::Ask => {
                let definition = digest(&tool.tool.definition);
                if self.allowed.has(server, name, &definition) {
                    return (Ok(()), format!("{rule}, allowed for the session"));
                }
                match self.ask(cell, tool, input).await {
                    Ok(Said::Once) => (Ok(()), format!("{rule}, allowed once")),
                    Ok(Said::ForSession) => {
                        self.allowed.add(server, name, &definition);
                        (Ok(()), format!("{rule}, allowed for the session"))
                    }
                    Ok(Said::No) => (
                        Err(format!("not approved: {shown} was refused")),
                        format!("{rule}, refused"),
                    ),
                    Err(why) => (
                        Err(format!(
                            "not approved: {shown} needs a person's approval (rule {rule} of {place}), and {why}"
                        )),
                        format!("{rule}, {why}"),
                    ),
                }
            }
        }
    }

    /// Asks the person. The cell's deadlines stand still meanwhile.
    async fn ask(&self, cell: &CellRecord, tool: &Tool, input: &str) -> Result<Said, &'static str> {
        let may_model = self.gateway.settings.policy.model_may_answer;
        if !cell.can_ask() && !may_model {
            return Err("this client cannot ask one; allow it in a policy file (--policy)");
        }
        let _pause = cell.pause();
        // Hidden before it is cut.
        let shown = super::texts::line(&self.gateway.secrets.hide(input), SHOWN);
        let answered = cell
            .ask(&tool.upstream.config.name, &tool.tool.name, &shown)
            .ok_or("too many calls wait for one")?;
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(result)) => Ok(said(&result)),
            Ok(Err(_)) => Err("the cell ended before one answered"),
            Err(_) => Err("nobody answered in time"),
        }
    }

    async fn send(&self, cell: &Arc<CellRecord>, tool: &Tool, input: Option<&Json>) -> Done {
        let (server, name) = (&tool.upstream.config.name, &tool.tool.name);
        let failed = |text: String| Done {
            answer: Err(self.gateway.secrets.hide(&text)),
            outcome: Outcome::Failed,
        };
        let arguments = match arguments(input) {
            Ok(arguments) => arguments,
            Err(what) => return failed(format!("{server}/{name} takes an object, not {what}")),
        };
        let _calling = self.gateway.asking().calls(server, cell);
        let own = OwnCell(cell.clone());
        let may_repeat = self.gateway.settings.policy.retry_read_only && tool.tool.claims.read_only;
        let mut result = tool.upstream.call(name, arguments.clone(), &own).await;
        if may_repeat && matches!(result, Err(CallError::MayHaveRun(_))) {
            result = tool.upstream.call(name, arguments, &own).await;
        }
        match result {
            Ok(value) => {
                let is_error = value.get("isError") == Some(&Value::Bool(true));
                let outcome = match is_error {
                    true => Outcome::Failed,
                    false => Outcome::Ran,
                };
                let mut value = value;
                if is_error {
                    // An error goes further than a value: into what the model reads.
                    self.gateway.secrets.hide_json(&mut value);
                }
                match Json::from_value(&value) {
                    Ok(json) => Done {
                        answer: Ok(json),
                        outcome,
                    },
                    Err(error) => failed(format!(
                        "the result of {server}/{name} cannot be passed on: {error}"
                    )),
                }
            }
            Err(CallError::Rpc(error)) => {
                let json = error_json(&format!("{server}/{name}"), &error, &self.gateway.secrets);
                Done {
                    answer: Json::from_value(&json).map_err(|error| error.to_string()),
                    outcome: Outcome::Failed,
                }
            }
            Err(CallError::NotSent(why)) => failed(why),
            Err(CallError::MayHaveRun(why)) => Done {
                answer: Err(self.gateway.secrets.hide(&why)),
                outcome: Outcome::Unknown,
            },
        }
    }

    /// Runs a call to its end and enters it. `direct` names one that is no cell's.
    pub(super) async fn run(
        &self,
        cell: &Arc<CellRecord>,
        (cell_id, call): (&CellId, String),
        tool: &Tool,
        input: Option<&Json>,
    ) -> Result<Json, String> {
        let began = Instant::now();
        let text = input.map_or("{}", Json::as_str);
        let (server, name) = (&tool.upstream.config.name, &tool.tool.name);
        let ids = (cell.session.clone(), cell_id.to_string(), call);
        let mut entering = Entering {
            delegate: self,
            cell,
            name: format!("{server}/{name}"),
            entry: Some(Entry::new(ids, (server, name), text)),
            began,
            decision: String::new(),
            outcome: Outcome::Cancelled,
        };
        cell.call_began(&entering.name);
        let (allowed, decision) = self.decide(cell, tool, text).await;
        entering.decision = decision;
        if let Err(why) = allowed {
            entering.outcome = Outcome::Denied;
            return Err(why);
        }
        let done = self.send(cell, tool, input).await;
        entering.outcome = done.outcome;
        done.answer
    }
}

/// A question that a server asks within a call is of the calling cell.
struct OwnCell(Arc<CellRecord>);

impl Answers for OwnCell {
    fn elicit(
        &self,
        server: &str,
        params: rmcp::model::ElicitRequestParams,
    ) -> futures::future::BoxFuture<'static, rmcp::model::ElicitResult> {
        let (cell, server) = (self.0.clone(), server.to_owned());
        Box::pin(async move { cell.forward(&server, params).await.unwrap_or_else(nobody) })
    }
}

/// Enters a call in the ledger when it is over: also where its future was dropped,
/// because its cell has ended.
struct Entering<'a> {
    delegate: &'a CellDelegate,
    cell: &'a Arc<CellRecord>,
    name: String,
    entry: Option<Entry>,
    began: Instant,
    decision: String,
    outcome: Outcome,
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else {
            return;
        };
        let decision = std::mem::take(&mut self.decision);
        let entry = entry.ended(decision, self.outcome, self.began.elapsed());
        if let Some(file) = &self.delegate.gateway.settings.ledger {
            file.write(&entry);
        }
        self.cell.call_ended(&self.name, entry);
    }
}

fn arguments(input: Option<&Json>) -> Result<Map<String, Value>, &'static str> {
    match input.map(|json| json.to::<Value>()) {
        None | Some(Ok(Value::Null)) => Ok(Map::new()),
        Some(Ok(Value::Object(arguments))) => Ok(arguments),
        Some(Ok(Value::Array(_))) => Err("an array"),
        Some(Ok(Value::String(_))) => Err("a string"),
        Some(Ok(_)) => Err("a number or boolean"),
        Some(Err(_)) => Err("this"),
    }
}

/// A tool's definition in short, to see that it changed.
fn digest(definition: &Value) -> String {
    let digest = Sha256::digest(definition.to_string().as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[async_trait]
impl CodeModeSessionDelegate for CellDelegate {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, String> {
        let Some(cell) = self.cell(&call.tool_call_id) else {
            return Err("the cell is not known".to_owned());
        };
        let catalogue = self.gateway.catalogue();
        let Some(tool) = catalogue.entry(&call.tool_name) else {
            let server = call.tool_name.namespace.as_deref().unwrap_or_default();
            let gone = line(&call.tool_name.name, 100);
            let near: Vec<&str> = catalogue
                .entries
                .iter()
                .map(|entry| entry.identifier.as_str())
                .filter(|name| strsim::jaro_winkler(name, &gone) > 0.7)
                .take(4)
                .collect();
            let near = match near.is_empty() {
                true => String::new(),
                false => format!("; there are {}", near.join(", ")),
            };
            return Err(format!("{gone} is no longer offered by {server}{near}"));
        };
        let id = call.runtime_tool_call_id.to_string();
        tokio::select! {
            answer = self.run(&cell, (&call.cell_id, id), tool, call.input.as_ref()) => answer,
            // Dropping the future tells the server.
            () = cancelled.cancelled() => Err(CANCELLED.to_owned()),
        }
    }

    async fn notify(&self, notification: CellNotification, _: CancellationToken) {
        if let Some(cell) = self.cell(&notification.tool_call_id) {
            cell.says(notification.text);
        }
    }

    async fn cell_closed(&self, cell_id: CellId) {
        if let Some(session) = self.session()
            && let Some(cell) = session.cell(&cell_id.to_string())
        {
            cell.end();
        }
        if let (Some(store), Some(session)) = (&self.gateway.settings.store, self.session()) {
            session.save(store);
        }
    }
}
