//! `code-mode run`: one script as a cell, for a person at a shell.

mod approvals;
mod command_tool;
mod durable;
mod output;
mod store;
pub mod tools_file;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{
    CellId, CellNotification, CellOutcome, CellResponse, CodeModeSessionDelegate, ExecuteRequest,
    Json, Limit, Limits, NestedToolCall, Provider, ProviderError, Recorder, Session, SessionError,
    SessionOptions, ToolCallFinished, ToolDefinition, ToolError, ToolName, WaitRequest, describe,
    pragma, truncate,
};
use code_mode_mcp::{Broker, BrokerError, BrokerOptions};
use code_mode_system::{Interrupt, Interrupts, say, show};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::args::{RuntimeArgs, option_of};
use crate::telemetry::{TelemetryArgs, watched};
use crate::units::Time;
use approvals::{AtTerminal, ScriptCall};
use durable::DurableArgs;
use output::Output;
use tools_file::Tools;

/// The options of `code-mode run`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Standard output has what the script puts out; standard error has its console,
notifications and warnings.

Exit status: 0 the script completed, 1 it failed or left something unfinished,
2 wrong usage, 3 the runtime failed, N after exit(N), 130 interrupted (129 and
143: by SIGHUP and SIGTERM).

Example: code-mode run main.ts -- first second < input.txt
Example: code-mode run --tools examples/git-history/tools.toml examples/git-history/main.js")]
pub(crate) struct Args {
    /// The script; `-` reads it from standard input
    #[arg(value_name = "FILE", required_unless_present = "list_tools")]
    script: Option<PathBuf>,
    /// What the script finds in `args`, as texts
    #[arg(value_name = "ARGUMENT", last = true)]
    arguments: Vec<String>,
    /// Tools the script may call, as commands of this machine (TOML)
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,
    /// Print the texts that a model gets of the runtime and the tools, and end
    #[arg(long)]
    list_tools: bool,
    /// The script may call the tools of these MCP servers too (a file as clients have it)
    #[arg(long, value_name = "FILE")]
    mcp_config: Vec<PathBuf>,
    /// What of the MCP servers may be called (JSON)
    #[arg(long, value_name = "FILE", requires = "mcp_config")]
    policy: Option<PathBuf>,
    /// Count calls on the status line; only where standard error is a terminal
    #[arg(long)]
    progress: bool,
    /// Keep stored values in this JSON file from one run to the next
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    /// Write images and audio to files in this folder
    #[arg(long, value_name = "DIR")]
    media_dir: Option<PathBuf>,
    /// Print one JSON object a line instead of text
    #[arg(long)]
    json: bool,
    /// Write what happens to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write sources, inputs, answers and output too, as `code-mode replay` needs them
    #[arg(long, requires = "trace")]
    trace_contents: bool,
    /// How often output is shown while the script runs (the script's own
    /// `// @exec:` line wins)
    #[arg(long, alias = "yield-time-ms", value_name = "TIME", default_value_t = Time(Duration::from_millis(500)))]
    yield_time: Time,
    /// Cut the output to about this many tokens
    #[arg(long, value_name = "N")]
    max_output_tokens: Option<u64>,
    #[command(flatten)]
    durable: DurableArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArgs,
}

/// Why a run does not complete.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The script failed; its error was shown already.
    #[error("the script failed")]
    Script,
    /// Its worker, or the worker's host, was lost.
    #[error("the process that ran the script was lost")]
    Lost,
    /// It called `exit` with this status.
    #[error("the script called exit({0})")]
    Exited(u8),
    /// It completed, and left something behind that a warning has named.
    #[error("the script left something unfinished")]
    Unfinished,
    /// The command line, or a file it names.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Servers(#[from] BrokerError),
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("{0}")]
    Runtime(String),
    #[error("interrupted")]
    Interrupted(Interrupt),
}

impl Failure {
    /// Whether the user has read it already, or has written it.
    fn was_shown(&self) -> bool {
        matches!(
            self,
            Self::Script | Self::Lost | Self::Exited(_) | Self::Unfinished
        )
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Script | Self::Unfinished => 1,
            Self::Exited(status) => *status,
            Self::Usage(_) | Self::Servers(_) => crate::WRONG_USAGE,
            Self::Lost | Self::Provider(_) | Self::Session(_) | Self::Runtime(_) => {
                crate::RUNTIME_FAILED
            }
            Self::Interrupted(interrupt) => interrupt.exit_status(),
        })
    }
}

/// Runs the script.
pub(crate) fn main(args: Args) -> ExitCode {
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.was_shown() {
                say!("code-mode run: {failure}");
            }
            failure.exit_code()
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    code_mode_system::close_inherited_on_exec();
    let tools = match &args.tools {
        Some(path) => Tools::read(path).map_err(|e| Failure::Usage(e.to_string()))?,
        None => Tools::default(),
    };
    for warning in tools.warnings() {
        say!("warning: {warning}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Runtime(e.to_string()))?;
    if args.list_tools {
        let mut definitions = tools.definitions();
        if !args.mcp_config.is_empty() {
            let listing = crate::with_children(listed_by_servers(args));
            definitions.extend(runtime.block_on(listing)?);
        }
        let groups = describe::ToolGroup::by_namespace(&definitions);
        show!(
            "# exec\n\n{}",
            describe::guided_exec_tool(describe::ToolsFrom::Agent, &groups, usize::MAX)
        );
        show!("\n# wait\n\n{}", describe::guided_wait_tool());
        runtime.shutdown_background();
        return Ok(());
    }
    let path = args.script.as_deref().unwrap_or(Path::new("-"));
    let source = read_source(path)?;
    let asked = pragma::parse(&source).map_err(|e| Failure::Usage(e.to_string()))?;
    let stored = match &args.store {
        Some(path) => store::read(path).map_err(|e| Failure::Usage(e.to_string()))?,
        None => Vec::new(),
    };
    let script = Script {
        name: match path.to_str() {
            Some("-") | None => "<stdin>".to_owned(),
            Some(name) => name.to_owned(),
        },
        source,
        yield_time: asked.yield_time.unwrap_or(args.yield_time.0),
        max_output_tokens: asked.max_output_tokens.or(args.max_output_tokens),
    };
    let ended = runtime.block_on(crate::with_children(in_session(
        args, tools, stored, script,
    )));
    runtime.shutdown_background();
    ended
}

/// No cell takes a longer source or answer.
const LONGEST: u64 = 256 << 20;

fn read_source(path: &Path) -> Result<String, Failure> {
    let read = |file: &mut dyn Read| {
        let mut source = String::new();
        let read = file.take(LONGEST + 1).read_to_string(&mut source)?;
        match read as u64 > LONGEST {
            true => Err(std::io::Error::other("it is larger than 256 MiB")),
            false => Ok(source),
        }
    };
    let read = match path == Path::new("-") {
        true => read(&mut std::io::stdin()),
        false => std::fs::File::open(path).and_then(|mut file| read(&mut file)),
    };
    read.map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))
}

struct Script {
    name: String,
    source: String,
    yield_time: Duration,
    max_output_tokens: Option<u64>,
}

async fn in_session(
    args: &Args,
    tools: Tools,
    stored: Vec<(String, Json)>,
    script: Script,
) -> Result<(), Failure> {
    let mut interrupts = Interrupts::new().map_err(|e| Failure::Runtime(e.to_string()))?;
    let output = Arc::new(Output::new(
        script.name.clone(),
        (args.json, args.progress),
        args.media_dir.clone(),
    ));
    // One session, so no spare worker.
    let provider = watched(Provider::new(args.runtime.provider_options().prewarmed(0))?);
    let tools = Arc::new(tools);
    let servers = match args.mcp_config.is_empty() {
        true => None,
        false => Some(started_servers(args, &mut interrupts).await?),
    };
    let at_terminal = AtTerminal::new(output.clone(), args.durable.journal());
    let delegate = Arc::new(RunDelegate {
        tools: tools.clone(),
        servers: servers.clone(),
        at_terminal: at_terminal.clone(),
        at_once: Semaphore::new(COMMANDS_AT_ONCE),
        output: output.clone(),
    });
    let recorder = match &args.trace {
        Some(path) => {
            let file = std::fs::File::create(path).map_err(|error| {
                Failure::Usage(format!("cannot write {}: {error}", path.display()))
            })?;
            let inner: Arc<dyn CodeModeSessionDelegate> = delegate.clone();
            Some(Arc::new(Recorder::new(
                inner,
                Box::new(file),
                args.trace_contents,
            )))
        }
        None => None,
    };
    let delegate: Arc<dyn CodeModeSessionDelegate> = match &recorder {
        Some(recorder) => recorder.clone(),
        None => delegate,
    };
    let options = SessionOptions::default().stored(stored);
    let options = options.guided(true).check_inputs(true);
    let opened = match &args.durable.durable {
        None => None,
        Some(name) => {
            let asks = (delegate.clone(), &*at_terminal);
            let may_answer = servers.as_ref().is_some_and(|it| it.terminal_may_answer());
            let options = (options.clone(), may_answer);
            let opened = durable::open(args, name, &script.source, &provider, asks, options);
            Some(opened.await?)
        }
    };
    let (session, continues) = match &opened {
        None => (provider.open_session(delegate, options).await?, None),
        Some(opened) => (opened.session.clone(), opened.continues.clone()),
    };
    let limits = args.runtime.limits.limits();
    let observing = Observing {
        session: &session,
        output: &output,
        recorder: recorder.as_deref(),
        script: &script,
        servers: servers.as_deref(),
        limits: &limits,
        is_durable: args.durable.durable.is_some(),
    };
    let offered = offered(args, &tools, servers.as_deref());
    let observed = match continues {
        None => observing.run(&offered, &mut interrupts).await,
        Some(cell) => observing.again(cell, &mut interrupts).await,
    };
    output.finish();
    match &observed {
        Err(Failure::Interrupted(_)) => {
            output.result("interrupted");
            if args.durable.durable.is_some() {
                say!("code-mode run: the script is in the journal; the same command continues it");
            }
        }
        Err(failure) if !failure.was_shown() => output.result("lost"),
        Err(Failure::Lost) if args.durable.durable.is_some() => {
            say!("code-mode run: the script has left the journal; the same command begins it anew");
        }
        // It has said so itself.
        _ => {}
    }
    let saved = match &args.store {
        Some(path) => {
            let values = session.stored_values();
            store::write(path, &values).map_err(|error| {
                Failure::Runtime(format!("cannot write {}: {error}", path.display()))
            })
        }
        None => Ok(()),
    };
    if opened.is_some() {
        // What it has shown is not shown again.
        session.shutdown().await;
    }
    provider.shutdown().await;
    if let Some(servers) = servers {
        let _ = tokio::time::timeout(crate::mcp::END, servers.end()).await;
    }
    observed.and(saved).and(
        output
            .written()
            .map_err(|error| Failure::Runtime(format!("cannot write the output: {error}"))),
    )
}

/// The MCP servers, each of which has started or failed.
async fn started_servers(args: &Args, interrupts: &mut Interrupts) -> Result<Arc<Broker>, Failure> {
    let mut options = BrokerOptions::default();
    options.config = args.mcp_config.clone();
    options.policy = args.policy.clone();
    let broker = crate::mcp::broker(options)?;
    tokio::select! {
        () = broker.all_started() => Ok(broker),
        by = interrupts.next() => {
            let _ = tokio::time::timeout(crate::mcp::END, broker.end()).await;
            Err(Failure::Interrupted(by))
        }
    }
}

/// The tools that the MCP servers list.
async fn listed_by_servers(args: &Args) -> Result<Vec<ToolDefinition>, Failure> {
    let mut interrupts = Interrupts::new().map_err(|e| Failure::Runtime(e.to_string()))?;
    let servers = started_servers(args, &mut interrupts).await?;
    let definitions = servers.definitions().to_vec();
    let _ = tokio::time::timeout(crate::mcp::END, servers.end()).await;
    Ok(definitions)
}

/// What a script may use besides the globals.
struct Offered {
    tools: Vec<ToolDefinition>,
    constants: Vec<(String, Json)>,
}

fn offered(args: &Args, tools: &Tools, servers: Option<&Broker>) -> Offered {
    let mut offered = Offered {
        tools: tools.definitions(),
        constants: servers.map(Broker::constants).unwrap_or_default(),
    };
    if args.script.as_deref() != Some(Path::new("-")) {
        offered.tools.insert(0, stdin_tool());
    }
    if let Some(servers) = servers {
        offered.tools.extend(servers.definitions());
    }
    offered
        .constants
        .push((ARGUMENTS.to_owned(), arguments(args)));
    offered
}

/// The name by which a script finds its arguments.
const ARGUMENTS: &str = "args";

fn arguments(args: &Args) -> Json {
    Json::from_value(&args.arguments).unwrap_or_else(|_| Json::null())
}

/// The tool by which a script reads its standard input. A tool of the user's with this name
/// takes its place.
const STDIN: &str = "stdin";

fn stdin_tool() -> ToolDefinition {
    let schema =
        serde_json::json!({"type": "object", "properties": {}, "additionalProperties": false});
    ToolDefinition::function(STDIN, "The whole standard input of the program, as a text.")
        .input_schema(Json::from_value(&schema).ok())
}

/// Reads standard input to its end, in a separate thread: an interrupt does not wait for it.
async fn read_stdin() -> Result<Json, ToolError> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = std::io::stdin().take(LONGEST + 1).read_to_string(&mut text);
        let _ = answer.send(match read {
            Ok(bytes) if bytes as u64 > LONGEST => Err("it is larger than 256 MiB".to_owned()),
            Ok(_) => Ok(Json::string(&text)),
            Err(error) => Err(error.to_string()),
        });
    });
    let read = answered
        .await
        .unwrap_or_else(|_| Err("its reader is gone".to_owned()));
    read.map_err(|why| format!("cannot read standard input: {why}").into())
}

/// A script whose output is shown as it comes.
struct Observing<'a> {
    session: &'a Session,
    output: &'a Output,
    recorder: Option<&'a Recorder>,
    script: &'a Script,
    servers: Option<&'a Broker>,
    limits: &'a Limits,
    /// An interrupt leaves the cell to the next process.
    is_durable: bool,
}

impl Observing<'_> {
    /// Runs the cell to its end.
    async fn run(&self, offered: &Offered, interrupts: &mut Interrupts) -> Result<(), Failure> {
        let mut request = ExecuteRequest::new("run", self.script.source.clone())
            .tools(offered.tools.clone())
            .constants(offered.constants.clone())
            .yield_time(self.script.yield_time);
        let stored = self.session.stored_values();
        if self.recorder.is_some_and(Recorder::has_contents) {
            request = request.determinism(Recorder::determinism());
        }
        let traced = self.recorder.map(|recorder| (recorder, request.clone()));
        let running = self.session.execute(request).await?;
        let cell_id = running.id().clone();
        if let Some((recorder, request)) = traced {
            recorder.executed(&cell_id, &request, stored);
        }
        let first = tokio::select! {
            response = running.outcome() => response?,
            by = interrupts.next() => return self.interrupted(cell_id, by).await,
        };
        self.follow(cell_id, first, interrupts).await
    }

    /// Runs a cell of an earlier process to its end.
    async fn again(&self, cell_id: CellId, interrupts: &mut Interrupts) -> Result<(), Failure> {
        let wait = WaitRequest::new(cell_id.clone()).yield_time(self.script.yield_time);
        let first = tokio::select! {
            response = self.session.wait(wait) => response?,
            by = interrupts.next() => return self.interrupted(cell_id, by).await,
        };
        self.follow(cell_id, first, interrupts).await
    }

    /// Shows the output of a cell until it ends.
    async fn follow(
        &self,
        cell_id: CellId,
        first: CellResponse,
        interrupts: &mut Interrupts,
    ) -> Result<(), Failure> {
        let mut budget = self.script.max_output_tokens;
        let mut response = first;
        loop {
            if let Some(recorder) = self.recorder {
                recorder.observed(&response);
            }
            if let Some(budget) = &mut budget {
                let shown: usize = response.content_items().iter().map(|i| i.bytes()).sum();
                truncate::truncate(response.content_items_mut(), *budget);
                *budget = budget.saturating_sub(shown.div_ceil(4) as u64);
            }
            let quiet = self.output.quiet().await;
            self.output
                .items(response.content_items())
                .map_err(Failure::Runtime)?;
            drop(quiet);
            match response {
                CellResponse::Yielded { .. } | CellResponse::Pending { .. } => {}
                CellResponse::Terminated { .. } => {
                    return Err(Failure::Runtime("the cell was terminated".to_owned()));
                }
                CellResponse::Result {
                    outcome: CellOutcome::ExitedWith(status),
                    ..
                } => {
                    self.output.exited(status);
                    return Err(Failure::Exited(status));
                }
                CellResponse::Result {
                    error_text,
                    error_position,
                    outcome,
                    ..
                } => {
                    let Some(mut text) = error_text else {
                        self.output.result("completed");
                        return match self.output.has_unfinished() {
                            true => Err(Failure::Unfinished),
                            false => Ok(()),
                        };
                    };
                    // Reading TypeScript has a limit that no option sets.
                    if let CellOutcome::Limit(exceeded) = outcome
                        && (exceeded.limit.of(self.limits) == Some(exceeded.value)
                            || exceeded.limit == Limit::Journal)
                    {
                        let message = text.find('\n').unwrap_or(text.len());
                        let hint = format!(" ({} sets it)", option_of(exceeded.limit));
                        text.insert_str(message, &hint);
                    }
                    if let Some(servers) = self.servers {
                        text.push_str(&servers.servers_missed(&text));
                    }
                    self.output.script_error(&text, error_position);
                    return Err(match outcome {
                        CellOutcome::Lost(_) => Failure::Lost,
                        _ => Failure::Script,
                    });
                }
            }
            let wait = WaitRequest::new(cell_id.clone()).yield_time(self.script.yield_time);
            response = tokio::select! {
                response = self.session.wait(wait) => response?,
                by = interrupts.next() => return self.interrupted(cell_id, by).await,
            };
        }
    }

    async fn interrupted(&self, cell_id: CellId, interrupt: Interrupt) -> Result<(), Failure> {
        if self.is_durable {
            return Err(Failure::Interrupted(interrupt));
        }
        let last = self.session.terminate(cell_id).await?;
        self.output
            .items(last.content_items())
            .map_err(Failure::Runtime)?;
        Err(Failure::Interrupted(interrupt))
    }
}

/// How many commands of tools run at a time: each has processes and descriptors of its
/// own, and a script may call thousands.
const COMMANDS_AT_ONCE: usize = 64;

/// What a script's calls and notifications do.
struct RunDelegate {
    tools: Arc<Tools>,
    servers: Option<Arc<Broker>>,
    at_terminal: Arc<AtTerminal>,
    /// Commands that may run; more wait.
    at_once: Semaphore,
    output: Arc<Output>,
}

impl RunDelegate {
    async fn run(&self, call: &NestedToolCall) -> Result<Json, ToolError> {
        if let Some(tool) = self.tools.get(&call.tool_name) {
            let _pause = tool.asks_user.then(|| call.pause());
            let _terminal = match tool.asks_user {
                true => Some(self.output.ask().await),
                false => None,
            };
            // The semaphore is never closed.
            let _permit = self.at_once.acquire().await;
            let _running = self.output.tool_runs(&tool.name);
            let result = command_tool::run(tool, call.input.as_ref()).await;
            return result.map_err(|error| error.to_string().into());
        }
        match &self.servers {
            Some(servers) if servers.has(&call.tool_name) => {
                let _running = self.output.tool_runs(&call.tool_name.name);
                let context =
                    ScriptCall::new(call.clone(), servers.clone(), self.at_terminal.clone());
                servers.call(call, Arc::new(context)).await
            }
            _ if call.tool_name == ToolName::plain(STDIN) => read_stdin().await,
            _ => Err(format!("there is no tool {}", call.tool_name.name).into()),
        }
    }
}

#[async_trait]
impl CodeModeSessionDelegate for RunDelegate {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        tokio::select! {
            answer = self.run(&call) => answer,
            // Dropping the future kills the command, or cancels the call at its server.
            () = cancelled.cancelled() => Err(ToolError::cancelled()),
        }
    }

    async fn notify(&self, notification: CellNotification, _: CancellationToken) {
        let _quiet = self.output.quiet().await;
        self.output.notification(&notification.text);
    }

    fn tool_call_started(&self, call: &NestedToolCall) {
        self.output.call_started(call);
    }

    fn tool_call_finished(&self, call: &ToolCallFinished) {
        self.output.call_finished(call);
    }
}
