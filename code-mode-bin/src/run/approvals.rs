//! Asks a person at the terminal whether a call may run.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use code_mode_host::NestedToolCall;
use code_mode_mcp::{
    Approval, ApprovalRequest, Approvals, Broker, CallContext, CallIds, NotAsked, QuestionKeeper,
    approvals_command,
};

use code_mode_system::say;

use super::output::Output;

/// The terminal, where somebody may be.
pub(crate) struct AtTerminal {
    is_there: bool,
    approvals: Approvals,
    output: Arc<Output>,
    /// Where the questions of a durable script are kept.
    keeper: OnceLock<QuestionKeeper>,
    /// The command that answers its questions.
    approvals_command: String,
}

impl AtTerminal {
    pub(crate) fn new(output: Arc<Output>, journal: Option<&Path>) -> Arc<Self> {
        let command = |path| approvals_command("--journal", path);
        let approvals_command = journal.map_or_else(|| "code-mode approvals".to_owned(), command);
        Arc::new(Self {
            is_there: std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
            approvals: Approvals::default(),
            output,
            keeper: OnceLock::new(),
            approvals_command,
        })
    }

    /// The script's questions are kept here from now on.
    pub(super) fn keep_in(&self, keeper: QuestionKeeper) {
        let _ = self.keeper.set(keeper);
    }

    /// Asks the person at the terminal.
    async fn ask(&self, request: &ApprovalRequest) -> Approval {
        let _asking = self.output.ask().await;
        let question = format!(
            "code-mode: the script wants to call {}. May it? [y/N] ",
            request.words()
        );
        let answer = tokio::task::spawn_blocking(move || ask(&question)).await;
        match answer {
            Ok(true) => Approval::Once,
            _ => Approval::No,
        }
    }
}

/// A call of the script to a tool of an MCP server.
pub(crate) struct ScriptCall {
    call: NestedToolCall,
    servers: Arc<Broker>,
    terminal: Arc<AtTerminal>,
}

impl ScriptCall {
    pub(crate) fn new(
        call: NestedToolCall,
        servers: Arc<Broker>,
        terminal: Arc<AtTerminal>,
    ) -> Self {
        Self {
            call,
            servers,
            terminal,
        }
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
        let (terminal, servers) = (&self.terminal, &self.servers);
        let keeper = terminal.keeper.get();
        let from_elsewhere = keeper.is_some() && servers.terminal_may_answer();
        if !terminal.is_there && !from_elsewhere {
            return Err(NotAsked::CannotAsk);
        }
        // The output is shown while somebody elsewhere thinks.
        let _pause = terminal.is_there.then(|| self.call.pause());
        let here = async {
            match terminal.is_there {
                true => Ok((terminal.ask(request).await, "terminal")),
                false => std::future::pending().await,
            }
        };
        match keeper {
            Some(keeper) => {
                let kept = keeper.ask(servers, &self.call, request, terminal.is_there);
                let kept = kept.await?;
                if !terminal.is_there && !kept.is_decided() {
                    let number = kept.number();
                    say!(
                        "code-mode run: waits for an answer to {}: {} allow {number}, or deny {number}",
                        request.words(),
                        terminal.approvals_command
                    );
                }
                kept.decided(here).await
            }
            None => here.await.map(|(answer, _)| answer),
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
