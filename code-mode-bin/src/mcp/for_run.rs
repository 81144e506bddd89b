//! The servers of a configuration for `code-mode run`: the same tools, policy and names.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use code_mode_host::{Json, NestedToolCall, ToolDefinition};
use rmcp::model::{ElicitRequestParams, ElicitResult, ElicitationAction};
use serde_json::json;

use super::calls::CellDelegate;
use super::cell::CellRecord;
use super::gateway::Gateway;
use super::texts::clean;
use super::{Failure, ServerArgs, plain};
use crate::args::RuntimeArgs;

/// The servers, started.
pub(crate) struct Servers {
    gateway: Arc<Gateway>,
    delegate: CellDelegate,
    record: Arc<CellRecord>,
}

impl Servers {
    /// Starts the servers of these files and waits for them. Where a person is at the
    /// terminal, calls that need one's approval are put to it.
    pub(crate) async fn start(
        config: Vec<PathBuf>,
        policy: Option<&Path>,
        runtime: &RuntimeArgs,
    ) -> Result<Self, Failure> {
        let servers = ServerArgs {
            config,
            server: Vec::new(),
            policy: policy.map(Path::to_owned),
        };
        let gateway = super::gateway(&servers, |policy| Ok(plain(policy)), runtime).await?;
        gateway.all_started().await;
        let is_there = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        let record = Arc::new(CellRecord::new("run", (is_there, false)));
        if is_there {
            tokio::spawn(ask_at_terminal(record.clone()));
        }
        Ok(Self {
            delegate: CellDelegate::new(gateway.clone()),
            gateway,
            record,
        })
    }

    /// The tools.
    pub(crate) fn definitions(&self) -> Vec<ToolDefinition> {
        self.gateway.catalogue().tools.to_vec()
    }

    /// Globals of the cell.
    pub(crate) fn constants(&self) -> Vec<(String, Json)> {
        vec![(
            "ALL_SERVERS".to_owned(),
            self.gateway.catalogue().servers.clone(),
        )]
    }

    /// Runs a call; `None` where it is of no server.
    pub(crate) async fn invoke(&self, call: &NestedToolCall) -> Option<Result<Json, String>> {
        let catalogue = self.gateway.catalogue();
        let tool = catalogue.entry(&call.tool_name)?;
        let id = call.runtime_tool_call_id.to_string();
        let run = self
            .delegate
            .run(&self.record, (&call.cell_id, id), tool, call.input.as_ref());
        Some(run.await)
    }

    /// Ends the servers.
    pub(crate) async fn end(&self) {
        let _ = tokio::time::timeout(super::END, self.gateway.end()).await;
    }
}

/// Puts questions to the person at the terminal, one after the other.
async fn ask_at_terminal(record: Arc<CellRecord>) {
    let mut changes = record.changes();
    while changes.changed().await.is_ok() {
        for (key, params) in record.take_unasked() {
            let answer = tokio::task::spawn_blocking(move || ask(&params)).await;
            let answer = answer.unwrap_or_else(|_| super::upstream::nobody());
            record.answer(&key, answer);
        }
    }
}

fn ask(params: &ElicitRequestParams) -> ElicitResult {
    let ElicitRequestParams::FormElicitationParams { message, .. } = params else {
        return super::upstream::nobody();
    };
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "{} [y/N] ", clean(message));
    let _ = stderr.flush();
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    let is_yes = read.is_ok() && matches!(line.trim(), "y" | "Y" | "yes");
    let mut answer = ElicitResult::new(match is_yes {
        true => ElicitationAction::Accept,
        false => ElicitationAction::Decline,
    });
    answer.content = is_yes.then(|| json!({"answer": "once"}));
    answer
}
