//! `code-mode replay`: a recorded cell again, with its answers, time and randomness as
//! they were.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{
    CellEnded, CellResponse, CodeModeSessionDelegate, ContentItem, ExecuteRequest, Json,
    NestedToolCall, Provider, SessionError, SessionOptions, ToolError, ToolName, TraceEvent,
    TraceLine, TracedProgram, Turn, WaitRequest,
};
use code_mode_protocol::text::visible;
use code_mode_system::{say, show};
use tokio_util::sync::CancellationToken;

use crate::args::RuntimeArgs;
use crate::trace_file::{self, TraceError};

/// The options of `code-mode replay`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exit status: 0 the cells ran as before, 1 they did not, 2 no trace with contents, 3 the runtime failed.

Example: code-mode run --trace t.jsonl --trace-contents main.js && code-mode replay t.jsonl
Example: code-mode replay t.jsonl --source edited.js")]
pub(crate) struct Args {
    /// A trace of `code-mode run --trace FILE --trace-contents`
    #[arg(value_name = "FILE")]
    trace: PathBuf,
    /// Run this script with the answers of the trace instead of the recorded one, to the first
    /// difference
    #[arg(long, value_name = "FILE")]
    source: Option<PathBuf>,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// Why nothing was replayed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("the trace has no contents: record it with --trace-contents")]
    NoContents,
    #[error("the trace has {0} cells: --source needs a trace of one")]
    SeveralCells(usize),
    #[error("cannot read {}: {error}", path.display())]
    Source {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("{0}")]
    Runtime(String),
}

fn failed(error: impl ToString) -> Failure {
    Failure::Runtime(error.to_string())
}

/// Runs every cell of a trace again.
pub(crate) fn main(args: Args) -> ExitCode {
    match replay_all(&args) {
        Ok(replayed) if replayed.differences.is_empty() => {
            let Replayed {
                cells,
                calls,
                items,
                ..
            } = replayed;
            let plural = |count: usize, what: &str| match count {
                1 => format!("1 {what}"),
                count => format!("{count} {what}s"),
            };
            show!(
                "no difference in {}: {}, {} of output, and each end are as recorded",
                plural(cells, "cell"),
                plural(calls, "call"),
                plural(items, "item"),
            );
            ExitCode::SUCCESS
        }
        Ok(replayed) => {
            for difference in replayed.differences {
                // A trace is a stranger's text: it must not add lines.
                let shown = difference.to_string();
                show!("{}", visible(&shown).replace('\n', "\\n"));
            }
            ExitCode::FAILURE
        }
        Err(failure) => {
            say!("code-mode replay: {failure}");
            match failure {
                Failure::Trace(error) => error.exit_code(),
                Failure::NoContents | Failure::SeveralCells(_) | Failure::Source { .. } => {
                    ExitCode::from(crate::WRONG_USAGE)
                }
                Failure::Runtime(_) => ExitCode::from(3),
            }
        }
    }
}

/// Counts of the compared parts, and the differences.
#[derive(Default)]
struct Replayed {
    cells: usize,
    calls: usize,
    items: usize,
    differences: Vec<String>,
}

fn replay_all(args: &Args) -> Result<Replayed, Failure> {
    let mut recorded = recorded(trace_file::read(&args.trace)?);
    if recorded.is_empty() {
        return Err(Failure::NoContents);
    }
    if let Some(path) = &args.source {
        let source = std::fs::read_to_string(path).map_err(|error| Failure::Source {
            path: path.clone(),
            error,
        })?;
        let cells = recorded.len();
        match recorded.values_mut().next() {
            Some(cell) if cells == 1 => cell.program.source = source,
            _ => return Err(Failure::SeveralCells(cells)),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let replayed = runtime.block_on(async {
        let provider =
            Provider::new(args.runtime.provider_options().prewarmed(0)).map_err(failed)?;
        let mut replayed = Replayed::default();
        for (name, cell) in recorded {
            replayed.cells += 1;
            replayed.calls += cell.calls.len();
            replayed.items += cell.output.len();
            let mut found = replay(&provider, cell, args.source.is_some()).await?;
            if args.source.is_some() {
                found.truncate(1);
            }
            let named = found
                .into_iter()
                .map(|found| format!("cell {name}: {found}"));
            replayed.differences.extend(named);
        }
        provider.shutdown().await;
        Ok(replayed)
    });
    runtime.shutdown_background();
    replayed
}

/// A cell as a trace has it.
struct Recorded {
    program: TracedProgram,
    turns: Vec<Turn>,
    calls: BTreeMap<String, Call>,
    output: Vec<ContentItem>,
    error: Option<String>,
    outcome: Option<String>,
}

/// A call as a trace has it.
struct Call {
    tool: ToolName,
    input: Option<Json>,
    answer: Option<Result<Json, ToolError>>,
}

fn recorded(lines: Vec<TraceLine>) -> BTreeMap<String, Recorded> {
    let mut cells: BTreeMap<String, Recorded> = BTreeMap::new();
    // A cell's first calls may come before its execute has returned.
    let (programs, rest): (Vec<_>, Vec<_>) = lines
        .into_iter()
        .partition(|line| matches!(line.event, TraceEvent::Executed { .. }));
    for line in programs {
        if let TraceEvent::Executed {
            cell,
            program: Some(program),
            ..
        } = line.event
        {
            let new = Recorded {
                program,
                turns: Vec::new(),
                calls: BTreeMap::new(),
                output: Vec::new(),
                error: None,
                outcome: None,
            };
            cells.insert(cell, new);
        }
    }
    for line in rest {
        match line.event {
            TraceEvent::Turn { cell, turn } => {
                if let Some(cell) = cells.get_mut(&cell) {
                    cell.turns.push(turn);
                }
            }
            TraceEvent::CallStarted {
                cell,
                call,
                tool,
                input,
                ..
            } => {
                if let Some(cell) = cells.get_mut(&cell) {
                    let answer = None;
                    cell.calls.insert(
                        call,
                        Call {
                            tool,
                            input,
                            answer,
                        },
                    );
                }
            }
            TraceEvent::CallAnswered { cell, call, answer } => {
                let cell = cells.get_mut(&cell);
                if let Some(call) = cell.and_then(|cell| cell.calls.get_mut(&call)) {
                    call.answer = Some(answer);
                }
            }
            TraceEvent::Observed {
                cell, items, error, ..
            } => {
                if let Some(cell) = cells.get_mut(&cell) {
                    cell.output.extend(items.unwrap_or_default());
                    cell.error = error.or(cell.error.take());
                }
            }
            TraceEvent::CellEnded { cell, outcome, .. } => {
                if let Some(cell) = cells.get_mut(&cell) {
                    cell.outcome = Some(outcome);
                }
            }
            _ => {}
        }
    }
    cells
}

/// Answers calls from a trace, and notes what differs.
struct Answers {
    calls: BTreeMap<String, Call>,
    seen: Mutex<Seen>,
    /// Cancelled by the first difference, where the rest is of no interest.
    stop: Option<CancellationToken>,
}

#[derive(Default)]
struct Seen {
    made: Vec<String>,
    differences: Vec<String>,
    outcome: Option<String>,
}

impl Answers {
    fn differs(&self, difference: String) {
        self.seen().differences.push(difference);
        if let Some(stop) = &self.stop {
            stop.cancel();
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CodeModeSessionDelegate for Answers {
    /// Compares a call with the recorded one. Calls that are cancelled before they reach their tool
    /// count too: a program may end at once after them.
    fn tool_call_started(&self, call: &NestedToolCall) {
        let id = call.runtime_tool_call_id.to_string();
        let input = |json: &Option<Json>| json.as_ref().map_or("no input", Json::as_str).to_owned();
        self.seen().made.push(id.clone());
        match self.calls.get(&id) {
            None => self.differs(format!(
                "another call: {id} {} with {}",
                call.tool_name.name,
                input(&call.input)
            )),
            Some(known) if known.tool != call.tool_name => self.differs(format!(
                "another tool: {id} was {}, is {}",
                known.tool.name, call.tool_name.name
            )),
            Some(known) if input(&known.input) != input(&call.input) => {
                self.differs(format!(
                    "another input: {id} {} was {}, is {}",
                    call.tool_name.name,
                    input(&known.input),
                    input(&call.input)
                ));
            }
            Some(_) => {}
        }
    }

    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        let known = self.calls.get(&call.runtime_tool_call_id.to_string());
        match known.map(|known| known.answer.clone()) {
            Some(Some(answer)) => answer,
            Some(None) => {
                // It was never answered: its cell ended before.
                if self.stop.is_some() {
                    let id = call.runtime_tool_call_id;
                    self.differs(format!(
                        "{id} {} has no recorded answer",
                        call.tool_name.name
                    ));
                }
                cancelled.cancelled().await;
                Err(ToolError::cancelled())
            }
            None => Err("this call is not in the trace".into()),
        }
    }

    fn cell_ended(&self, cell: &CellEnded) {
        self.seen().outcome = Some(cell.outcome.as_str().to_owned());
    }
}

/// Runs a cell again; what differs.
async fn replay(
    provider: &Provider,
    cell: Recorded,
    to_first: bool,
) -> Result<Vec<String>, Failure> {
    let stop = CancellationToken::new();
    let answers = Arc::new(Answers {
        calls: cell.calls,
        seen: Mutex::default(),
        stop: to_first.then(|| stop.clone()),
    });
    let tools = cell.program.definitions();
    let options = SessionOptions::default()
        .guided(cell.program.guided)
        .check_inputs(cell.program.guided)
        .stored(cell.program.stored);
    let session = provider
        .open_session(answers.clone(), options)
        .await
        .map_err(failed)?;
    let mut request = ExecuteRequest::new("replay", cell.program.source)
        .tools(tools)
        .constants(cell.program.constants)
        .yield_time(Duration::from_secs(3600));
    if let Some(mut determinism) = cell.program.determinism {
        determinism.turns = Some(cell.turns);
        request = request.determinism(determinism);
    }
    let started = session.execute(request).await.map_err(failed)?;
    let cell_id = started.id().clone();
    let mut output: Vec<ContentItem> = Vec::new();
    let observing = async {
        let mut response = started.outcome().await?;
        loop {
            output.append(response.content_items_mut());
            if response.is_final() {
                return Ok(response);
            }
            let wait = WaitRequest::new(cell_id.clone());
            response = session.wait(wait).await?;
        }
    };
    let response: Result<CellResponse, SessionError> = tokio::select! {
        response = observing => response,
        () = stop.cancelled() => {
            session.shutdown().await;
            return Ok(std::mem::take(&mut answers.seen().differences));
        }
    };
    let response = response.map_err(failed)?;
    session.shutdown().await;
    let error = match response {
        CellResponse::Result { error_text, .. } => error_text,
        _ => None,
    };
    let mut seen = answers.seen();
    let mut differences = std::mem::take(&mut seen.differences);
    for id in answers.calls.keys() {
        if !seen.made.contains(id) {
            differences.push(format!("a call is missing: {id}"));
        }
    }
    if seen.outcome != cell.outcome {
        differences.push(format!(
            "another end: was {}, is {}",
            cell.outcome.as_deref().unwrap_or("none"),
            seen.outcome.as_deref().unwrap_or("none")
        ));
    }
    if error != cell.error {
        differences.push(format!("another error: was {:?}, is {error:?}", cell.error));
    }
    if let Some(at) = first_difference(&cell.output, &output) {
        differences.push(format!(
            "another output: item {at} was {:?}, is {:?}",
            cell.output.get(at),
            output.get(at)
        ));
    }
    Ok(differences)
}

fn first_difference(a: &[ContentItem], b: &[ContentItem]) -> Option<usize> {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    (same < a.len().max(b.len())).then_some(same)
}
