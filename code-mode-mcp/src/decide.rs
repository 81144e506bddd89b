//! Whether a call may run: by the policy, and by a person where the policy says so.

use code_mode_host::{Json, input_fits};
use code_mode_protocol::text::line;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::audit::CallIds;
use crate::caller::{Approval, ApprovalRequest, ApprovedTool, CallContext};
use crate::hook::HookCall;
use crate::policy::{Claims, Decision, Policy};
use crate::secrets::Secrets;
use crate::shown::{arguments_shown, name_shown};
use crate::texts::hex;

/// How much of a name is shown.
const SHOWN: usize = 100;

/// The subject of a decision: a call of a tool, the reading of a resource or of a prompt.
pub(crate) struct Subject<'a> {
    pub(crate) server: &'a str,
    /// The tool's own name; `resource:ADDRESS` or `prompt:NAME` for the others.
    pub(crate) name: &'a str,
    pub(crate) claims: Claims,
    /// A person's approval for the session holds as long as this stays the same.
    pub(crate) definition: &'a Value,
    pub(crate) input_schema: Option<&'a Value>,
    pub(crate) arguments: &'a Map<String, Value>,
    /// Whether it is the reading of a resource or of a prompt.
    pub(crate) is_read: bool,
}

/// The decision of the policy, and of a person, about a call.
pub(crate) struct Decided {
    pub(crate) in_words: String,
    /// Why the call must not run.
    pub(crate) refusal: Option<String>,
    /// What the hook wants to be sent in place of the input.
    pub(crate) rewritten: Option<Map<String, Value>>,
}

impl Decided {
    fn may_run(in_words: String) -> Self {
        Self {
            in_words,
            refusal: None,
            rewritten: None,
        }
    }

    fn refused(in_words: String, why: String) -> Self {
        Self {
            in_words,
            refusal: Some(why),
            rewritten: None,
        }
    }
}

/// The decision of the policy alone.
pub(crate) struct Ruling {
    pub(crate) decision: Decision,
    /// The rule, the default or the hook that decides.
    pub(crate) rule: String,
    /// Why the hook denies the call.
    pub(crate) reason: Option<String>,
    pub(crate) rewritten: Option<Map<String, Value>>,
}

/// What the rules say of a call, and then the hook.
pub(crate) async fn rule(policy: &Policy, subject: &Subject<'_>, ids: &CallIds) -> Ruling {
    let by_rules = |input| policy.decide(subject.server, subject.name, subject.claims, Some(input));
    let (decision, rule) = by_rules(subject.arguments);
    let ruling = Ruling {
        decision,
        rule,
        reason: None,
        rewritten: None,
    };
    let Some(hook) = policy.hook().filter(|_| decision != Decision::Deny) else {
        return ruling;
    };
    let call = HookCall {
        server: subject.server,
        tool: subject.name,
        input: subject.arguments,
        decision: decision.word(),
        rule: &ruling.rule,
        read_only: subject.claims.read_only,
        destructive: subject.claims.destructive,
        session: &ids.session,
        cell: &ids.cell,
    };
    let denied = |reason: Option<String>, rule: &str| Ruling {
        decision: Decision::Deny,
        rule: rule.to_owned(),
        reason,
        rewritten: None,
    };
    let answer = match hook.ask(&call).await {
        Ok(answer) => answer,
        Err(error) => return denied(Some(line(&error.to_string(), 300)), "hook: failed"),
    };
    let (by_rules, rule) = match &answer.input {
        Some(_) if subject.is_read => {
            let reason = "a reading cannot be rewritten".to_owned();
            return denied(Some(reason), "hook: failed");
        }
        Some(input) if !fits(subject, input) => {
            let reason = "its input does not fit the tool's schema".to_owned();
            return denied(Some(reason), "hook: failed");
        }
        // The rules apply to the input that is sent.
        Some(input) => by_rules(input),
        None => (decision, ruling.rule),
    };
    if by_rules == Decision::Deny {
        return denied(None, &rule);
    }
    match answer.decision {
        Some(Decision::Deny) => denied(answer.reason, "hook: deny"),
        Some(decision) => Ruling {
            decision,
            rule: format!("hook: {}", decision.word()),
            reason: None,
            rewritten: answer.input,
        },
        None => Ruling {
            decision: by_rules,
            rule,
            reason: None,
            rewritten: answer.input,
        },
    }
}

/// Whether an input of the hook fits the tool's schema, as that of a program has to.
fn fits(subject: &Subject<'_>, input: &Map<String, Value>) -> bool {
    let schema = subject
        .input_schema
        .and_then(|schema| Json::from_value(schema).ok());
    let fits = schema.and_then(|schema| input_fits(&schema, &Value::from(input.clone())));
    fits.unwrap_or(true)
}

/// Whether a call may run.
pub(crate) async fn decide(
    policy: &Policy,
    secrets: &Secrets,
    subject: &Subject<'_>,
    context: &dyn CallContext,
) -> Decided {
    let (server, name) = (line(subject.server, SHOWN), line(subject.name, SHOWN));
    let shown = format!("{server}/{name}");
    let Ruling {
        decision,
        mut rule,
        reason,
        rewritten,
    } = rule(policy, subject, &context.ids()).await;
    let place = policy.place();
    if rewritten.is_some() {
        rule.push_str(", rewritten by the hook");
    }
    let mut decided = match decision {
        Decision::Allow => Decided::may_run(rule),
        Decision::Deny => {
            let why = reason.map_or_else(String::new, |reason| format!(": {reason}"));
            let why = secrets.hide(&why);
            let why = format!("{shown} is denied by the rule {rule} of {place}{why}");
            return Decided::refused(rule, why);
        }
        Decision::Ask => {
            let sent = rewritten.as_ref().unwrap_or(subject.arguments);
            approve(secrets, subject, sent, context, (&rule, &place)).await
        }
    };
    if decided.refusal.is_none() {
        decided.rewritten = rewritten;
    }
    decided
}

/// A digest of a tool with its definition and the rule that asks, and of the input that is sent.
fn subject_of(approved: &ApprovedTool, sent: &Map<String, Value>) -> String {
    let of_tool = (&approved.server, &approved.tool, &approved.definition);
    let all = serde_json::to_vec(&(of_tool, sent)).unwrap_or_default();
    hex(&Sha256::digest(all))
}

/// Asks a person whether the call may run with the input that is sent.
async fn approve(
    secrets: &Secrets,
    subject: &Subject<'_>,
    sent: &Map<String, Value>,
    context: &dyn CallContext,
    (rule, place): (&str, &str),
) -> Decided {
    let (server, name) = (line(subject.server, SHOWN), line(subject.name, SHOWN));
    let shown = format!("{server}/{name}");
    let approved = ApprovedTool {
        server: subject.server.to_owned(),
        tool: subject.name.to_owned(),
        // Whoever allows what one rule asks about has not seen what another does.
        definition: Sha256::digest(format!("{rule} {}", subject.definition).as_bytes()).into(),
    };
    let approvals = context.approvals();
    if approvals.has(&approved) {
        return Decided::may_run(format!("{rule}, allowed for the session"));
    }
    let of_program = context.approvals_of_program();
    if of_program.is_some_and(|approvals| approvals.has(subject.server, rule)) {
        return Decided::may_run(format!("{rule}, allowed for the program"));
    }
    let names = name_shown(subject.server, secrets).zip(name_shown(subject.name, secrets));
    let arguments = arguments_shown(sent, subject.input_schema, secrets);
    let Some(((server, tool), arguments)) = names.zip(arguments) else {
        return Decided::refused(
            format!("{rule}, it cannot be shown"),
            format!(
                "not approved: {shown} needs a person's approval (rule {rule} of {place}), and its name or the keys of its arguments are too long or too many to be shown to one"
            ),
        );
    };
    let request = ApprovalRequest {
        server,
        tool,
        arguments,
        rule: rule.to_owned(),
        subject: subject_of(&approved, sent),
    };
    match context.approve(&request).await {
        Ok(Approval::Once) => Decided::may_run(format!("{rule}, allowed once")),
        Ok(Approval::ForProgram) => {
            if let Some(approvals) = of_program {
                approvals.add(subject.server, rule);
            }
            Decided::may_run(format!("{rule}, allowed for the program"))
        }
        Ok(Approval::ForSession) => {
            approvals.add(approved);
            Decided::may_run(format!("{rule}, allowed for the session"))
        }
        Ok(Approval::No) => Decided::refused(
            format!("{rule}, refused"),
            format!("not approved: {shown} was refused"),
        ),
        Err(why) => Decided::refused(
            format!("{rule}, {why}"),
            format!(
                "not approved: {shown} needs a person's approval (rule {rule} of {place}), and {why}"
            ),
        ),
    }
}
