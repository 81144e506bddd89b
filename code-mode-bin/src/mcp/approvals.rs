//! `code-mode mcp approvals`.

use std::process::ExitCode;

use code_mode_mcp::TerminalAnswer;
use code_mode_mcp::shim::{GatewayName, Place, answer_approvals, ask_approvals};
use code_mode_system::{say, show};

use super::Failure;

#[derive(clap::Args, Debug)]
pub(super) struct ApprovalsArgs {
    /// The answer to calls; without one, they are shown
    #[arg(value_enum, requires = "calls")]
    answer: Option<Answer>,
    /// The calls, as they are shown, or `all`
    #[arg(value_name = "CALL")]
    calls: Vec<String>,
    /// Print JSON
    #[arg(long, conflicts_with = "answer")]
    json: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Answer {
    /// They may run.
    Allow,
    /// So may all calls of their programs to the same server about which the same rule asks.
    Program,
    /// So may every later call of these tools in their sessions.
    Session,
    /// They must not run.
    Deny,
}

impl From<Answer> for TerminalAnswer {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Allow => Self::Allow,
            Answer::Program => Self::Program,
            Answer::Session => Self::Session,
            Answer::Deny => Self::Deny,
        }
    }
}

pub(super) async fn approvals(args: &ApprovalsArgs) -> Result<ExitCode, Failure> {
    let place = Place::of_user()?;
    let mut shown = Vec::new();
    let mut named = args.calls.clone();
    let mut is_well = true;
    let mut is_complete = true;
    for name in place.gateways() {
        let (process, waiting) = match ask_approvals(&place, &name).await {
            Ok(Some(answer)) => answer,
            Ok(None) => continue,
            Err(error) => {
                is_well = false;
                say!("code-mode mcp: {error}");
                continue;
            }
        };
        let id = |number: u64| format!("{process}.{number}");
        if let Some(answer) = args.answer {
            let is_all = args.calls.iter().any(|call| call == "all");
            let is_meant = |number: &u64| is_all || args.calls.contains(&id(*number));
            let numbers = waiting.iter().map(|one| one.number).filter(is_meant);
            let numbers: Vec<u64> = numbers.collect();
            named
                .retain(|call| call != "all" && !numbers.iter().any(|number| *call == id(*number)));
            match give(&place, &name, numbers, answer.into()).await {
                Some(all) => is_complete &= all,
                None => is_well = false,
            }
        }
        for one in waiting {
            let mut call = serde_json::to_value(&one).unwrap_or_default();
            call["id"] = id(one.number).into();
            shown.push((id(one.number), one, call));
        }
    }
    if args.answer.is_some() {
        named.retain(|call| call != "all");
        for call in &named {
            say!("code-mode mcp approvals: {call} does not wait for an answer");
        }
        return Ok(match (is_well, named.is_empty() && is_complete) {
            (false, _) => ExitCode::from(crate::RUNTIME_FAILED),
            (true, false) => ExitCode::FAILURE,
            (true, true) => ExitCode::SUCCESS,
        });
    }
    if args.json {
        let all: Vec<_> = shown.into_iter().map(|(_, _, call)| call).collect();
        show!("{:#}", serde_json::Value::from(all));
    } else if shown.is_empty() {
        // A gateway that does not answer may have some.
        if is_well {
            show!("no call waits for an answer");
        }
    } else {
        for (id, one, _) in shown {
            show!("{id}  for {} s  {}  ({})", one.seconds, one.call, one.rule);
        }
    }
    Ok(super::shared::all_answered(is_well))
}

/// Answers calls of a gateway: whether all of them still waited. `None` where it could not be reached.
async fn give(
    place: &Place,
    name: &GatewayName,
    numbers: Vec<u64>,
    answer: TerminalAnswer,
) -> Option<bool> {
    let wanted = numbers.len();
    if wanted == 0 {
        return Some(true);
    }
    let answered = match answer_approvals(place, name, numbers, answer).await {
        Ok(answered) => answered.unwrap_or(0),
        Err(error) => {
            say!("code-mode mcp: {error}");
            return None;
        }
    };
    show!("{answered} calls were answered");
    if answered < wanted {
        say!(
            "code-mode mcp approvals: {} calls no longer waited",
            wanted - answered
        );
    }
    Some(answered >= wanted)
}
