//! `code-mode approvals`: the questions of durable programs, answered from a terminal.

#[cfg(unix)]
mod door;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use code_mode_host::{Answer, Journal, JournalError, JournalOptions, JournaledQuestion};
use code_mode_mcp::DurableFolder;
use code_mode_protocol::text::{line, visible};
use code_mode_system::{say, show};
use serde::{Deserialize, Serialize};

#[cfg(unix)]
pub(crate) use door::Door;

use crate::journal::{JournalFile, NoFolder, ago, in_words};

/// The bytes of a question that a line of the list has.
const SHOWN: usize = 300;

/// The options of `code-mode approvals`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Programs of `code-mode mcp --durable DIR` and `code-mode run --durable NAME` whose policy says
\"terminal_may_answer\": true. A question waits for its answer whether its process runs or not; a call that was allowed
while none runs is made by the next one. Numbers are of one journal. A second answer changes nothing, and the
first one is shown. `code-mode mcp approvals` is for gateways without --durable.

Exit status: 0 done, 1 there is no such question, or another answer stands, 2 wrong usage,
3 the journal cannot be used.

Examples: code-mode approvals --durable ~/.code-mode list
          code-mode approvals --durable ~/.code-mode allow 12 13")]
pub(crate) struct Args {
    #[command(flatten)]
    file: JournalFile,
    /// The folder of `code-mode mcp --durable DIR`
    #[arg(long, value_name = "DIR", global = true, conflicts_with = "journal")]
    durable: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// List the questions that wait
    List {
        /// Those that are decided, too, as long as their programs run
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a question with its rule, its cell and its times
    Show {
        /// Its number
        number: u64,
    },
    /// Let calls run
    Allow {
        /// The numbers of the questions
        #[arg(required = true)]
        numbers: Vec<u64>,
        /// And all calls of the same program to that server about which the same rule asks
        #[arg(long, conflicts_with = "session")]
        program: bool,
        /// And all later calls of the same tool in the session
        #[arg(long)]
        session: bool,
    },
    /// Let calls fail
    Deny {
        /// The numbers of the questions
        #[arg(required = true)]
        numbers: Vec<u64>,
    },
}

/// Why questions cannot be shown or answered.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Folder(#[from] NoFolder),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the process that has the journal open does not answer: {0}")]
    #[cfg(unix)]
    Door(#[from] std::io::Error),
    #[error("no question {0} waits, or is decided in a program that runs")]
    Unknown(u64),
    #[error("the journal {} does not exist", .0.display())]
    Missing(PathBuf),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Folder(_) => crate::WRONG_USAGE,
            Self::Unknown(_) => 1,
            Self::Journal(_) | Self::Missing(_) => crate::RUNTIME_FAILED,
            #[cfg(unix)]
            Self::Door(_) => crate::RUNTIME_FAILED,
        })
    }
}

/// What became of an answer.
#[derive(Debug, Serialize, Deserialize)]
enum Answered {
    /// This is decided now.
    Stands(Box<JournaledQuestion>),
    /// It cannot be answered.
    Refused(String),
}

/// The holder of the journal.
enum Holder {
    /// This process.
    Here(Journal),
    /// Another one.
    #[cfg(unix)]
    Elsewhere(door::Client),
    /// The journal does not exist.
    Nobody,
}

impl Holder {
    fn of(path: &Path) -> Result<Self, Failure> {
        if !path.exists() {
            return Ok(Self::Nobody);
        }
        // A process that has the journal open, and a door, answers for it.
        #[cfg(unix)]
        if let Some(client) = door::Client::of(path) {
            return Ok(Self::Elsewhere(client));
        }
        match Journal::open(path, JournalOptions::default()) {
            Ok(journal) => Ok(Self::Here(journal)),
            #[cfg(unix)]
            // The door is there a moment after the lock.
            Err(error @ JournalError::InUse { .. }) => match door::Client::of(path) {
                Some(client) => Ok(Self::Elsewhere(client)),
                None => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    fn questions(&self) -> Result<Vec<JournaledQuestion>, Failure> {
        match self {
            Self::Here(journal) => Ok(journal.questions()?),
            #[cfg(unix)]
            Self::Elsewhere(client) => Ok(client.questions()?),
            Self::Nobody => Ok(Vec::new()),
        }
    }

    fn answer(&self, numbers: &[u64], answer: Answer) -> Result<Vec<Answered>, Failure> {
        match self {
            Self::Here(journal) => Ok(answered(journal, numbers, answer)?),
            #[cfg(unix)]
            Self::Elsewhere(client) => Ok(client.answer(numbers, answer)?),
            Self::Nobody => {
                let unknown =
                    |number: &u64| Answered::Refused(Failure::Unknown(*number).to_string());
                Ok(numbers.iter().map(unknown).collect())
            }
        }
    }
}

/// Answers questions of a journal that this process has.
fn answered(
    journal: &Journal,
    numbers: &[u64],
    answer: Answer,
) -> Result<Vec<Answered>, JournalError> {
    let all = journal.decide_all(numbers, answer, "terminal")?;
    let one = |(number, answered): (&u64, Result<JournaledQuestion, JournalError>)| match answered {
        Ok(question) => Answered::Stands(Box::new(question)),
        Err(error) => Answered::Refused(format!("{number}: {error}")),
    };
    Ok(numbers.iter().zip(all).map(one).collect())
}

impl Args {
    /// Whether the user names the journal.
    fn is_named(&self) -> bool {
        self.durable.is_some() || self.file.named().is_some()
    }
}

/// Does what the arguments say.
pub(crate) fn main(args: Args) -> ExitCode {
    match done(&args) {
        Ok(code) => code,
        Err(failure) => {
            say!("code-mode approvals: {failure}");
            failure.exit_code()
        }
    }
}

fn done(args: &Args) -> Result<ExitCode, Failure> {
    let path = match &args.durable {
        Some(folder) => DurableFolder::journal_in(folder),
        None => args.file.path()?,
    };
    if args.is_named() && !path.exists() {
        return Err(Failure::Missing(path));
    }
    let holder = Holder::of(&path)?;
    match &args.action {
        Action::List { all, json } => list(holder, &path, (*all, *json)),
        Action::Show { number } => {
            let all = holder.questions()?.into_iter();
            // Another process can have the journal while a pager shows this.
            drop(holder);
            let found = all.into_iter().find(|one| one.number == *number);
            show_whole(&found.ok_or(Failure::Unknown(*number))?);
            Ok(ExitCode::SUCCESS)
        }
        Action::Allow {
            numbers,
            program,
            session,
        } => {
            let answer = match (program, session) {
                (true, _) => Answer::Program,
                (_, true) => Answer::Session,
                _ => Answer::Allow,
            };
            give(holder, numbers, answer)
        }
        Action::Deny { numbers } => give(holder, numbers, Answer::Deny),
    }
}

fn list(holder: Holder, path: &Path, (all, json): (bool, bool)) -> Result<ExitCode, Failure> {
    let mut questions = holder.questions()?;
    drop(holder);
    questions.retain(|question| all || question.decision.is_none());
    if json {
        let questions = serde_json::to_value(&questions).unwrap_or_default();
        show!("{questions:#}");
    } else if questions.is_empty() {
        show!("no question waits in {}", path.display());
    }
    if !json {
        for question in &questions {
            show!("{}", summary(question));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A question in one line.
fn summary(question: &JournaledQuestion) -> String {
    let state = match (&question.decision, question.expires_ms) {
        (Some(decision), _) => format!("{}, {}", word(decision.answer), ago(decision.at_ms)),
        (None, Some(at)) => format!("expires in {}", until(at)),
        (None, None) => "waits".to_owned(),
    };
    format!(
        "{}  asked {}, {state}  {}  ({})",
        question.number,
        ago(question.asked_ms),
        line(&question.question.text, SHOWN),
        line(&question.question.reason, SHOWN),
    )
}

fn show_whole(question: &JournaledQuestion) {
    show!("{}", visible(&question.question.text));
    show!("rule: {}", visible(&question.question.reason));
    show!(
        "call {} of cell {}, session {}",
        question.call,
        question.cell,
        visible(&question.session)
    );
    show!("asked {}", ago(question.asked_ms));
    if let Some(at) = question.expires_ms {
        show!("expires in {}", until(at));
    }
    if !question.question.from_terminal {
        show!(
            "no other terminal may answer it: the policy does not say \"terminal_may_answer\": true"
        );
    }
    if let Some(decision) = &question.decision {
        show!(
            "decided {}: {}, by {}",
            ago(decision.at_ms),
            word(decision.answer),
            visible(&decision.by)
        );
    }
}

/// Answers questions; says which other answer stands.
fn give(holder: Holder, numbers: &[u64], answer: Answer) -> Result<ExitCode, Failure> {
    let mut is_well = true;
    let all = holder.answer(numbers, answer)?;
    drop(holder);
    for answered in all {
        match answered {
            Answered::Stands(question) => {
                let Some(decision) = &question.decision else {
                    continue;
                };
                let is_so = decision.answer == answer;
                is_well &= is_so;
                show!(
                    "{}: {}{}, decided {} by {}",
                    question.number,
                    if is_so { "" } else { "stays " },
                    word(decision.answer),
                    ago(decision.at_ms),
                    visible(&decision.by)
                );
            }
            Answered::Refused(why) => {
                is_well = false;
                say!("code-mode approvals: {why}");
            }
        }
    }
    Ok(match is_well {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn word(answer: Answer) -> &'static str {
    match answer {
        Answer::Allow => "allowed",
        Answer::Program => "allowed for the program",
        Answer::Session => "allowed for the session",
        Answer::Deny => "denied",
    }
}

/// How long it is until a time in milliseconds since 1970.
fn until(ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
    in_words(ms.saturating_sub(now) / 1000)
}
