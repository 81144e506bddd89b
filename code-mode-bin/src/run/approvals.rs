//! Asks a person at the terminal whether a call may run.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;

use async_trait::async_trait;
use code_mode_host::NestedToolCall;
use code_mode_mcp::{Approval, ApprovalRequest, Approvals, CallContext, CallIds, NotAsked};

use super::output::Output;

/// The terminal, where somebody may be.
pub(crate) struct AtTerminal {
    is_there: bool,
    approvals: Approvals,
    output: Arc<Output>,
}

impl AtTerminal {
    pub(crate) fn new(output: Arc<Output>) -> Arc<Self> {
        Arc::new(Self {
            is_there: std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
            approvals: Approvals::default(),
            output,
        })
    }
}

/// A call of the script to a tool of an MCP server.
pub(crate) struct ScriptCall {
    call: NestedToolCall,
    terminal: Arc<AtTerminal>,
}

impl ScriptCall {
    pub(crate) fn new(call: NestedToolCall, terminal: Arc<AtTerminal>) -> Self {
        Self { call, terminal }
    }
}

#[async_trait]
impl CallContext for ScriptCall {
    fn ids(&self) -> CallIds {
        CallIds {
            session: "run".to_owned(),
            cell: self.call.cell_id.to_string(),
            call: self.call.runtime_tool_call_id.to_string(),
        }
    }

    fn approvals(&self) -> &Approvals {
        &self.terminal.approvals
    }

    async fn approve(&self, request: &ApprovalRequest) -> Result<Approval, NotAsked> {
        if !self.terminal.is_there {
            return Err(NotAsked::CannotAsk);
        }
        let _pause = self.call.pause();
        let _asking = self.terminal.output.ask().await;
        let question = format!(
            "code-mode: the script wants to call {}. May it? [y/N] ",
            request.words()
        );
        let answer = tokio::task::spawn_blocking(move || ask(&question)).await;
        match answer {
            Ok(true) => Ok(Approval::Once),
            _ => Ok(Approval::No),
        }
    }
}

fn ask(question: &str) -> bool {
    // Earlier keystrokes belong to something else, perhaps to a question that the script forged.
    #[cfg(unix)]
    let _ = rustix::termios::tcflush(std::io::stdin(), rustix::termios::QueueSelector::IFlush);
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "{question}");
    let _ = stderr.flush();
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.is_ok() && matches!(line.trim(), "y" | "Y" | "yes")
}
