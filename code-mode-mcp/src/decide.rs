//! Whether a call may run: by the policy, and by a person where the policy says so.

use code_mode_protocol::text::line;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::caller::{Approval, ApprovalRequest, ApprovedTool, CallContext};
use crate::policy::{Claims, Decision, Policy};
use crate::secrets::Secrets;
use crate::shown::{arguments_shown, name_shown};

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
}

/// The decision of the policy, and of a person, about a call.
pub(crate) struct Decided {
    pub(crate) in_words: String,
    /// Why the call must not run.
    pub(crate) refusal: Option<String>,
}

impl Decided {
    fn may_run(in_words: String) -> Self {
        Self {
            in_words,
            refusal: None,
        }
    }

    fn refused(in_words: String, why: String) -> Self {
        Self {
            in_words,
            refusal: Some(why),
        }
    }
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
    let (decision, rule) = policy.decide(
        subject.server,
        subject.name,
        subject.claims,
        Some(subject.arguments),
    );
    let place = policy.place();
    match decision {
        Decision::Allow => return Decided::may_run(rule),
        Decision::Deny => {
            let why = format!("{shown} is denied by the rule {rule} of {place}");
            return Decided::refused(rule, why);
        }
        Decision::Ask => {}
    }
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
    let names = name_shown(subject.server, secrets).zip(name_shown(subject.name, secrets));
    let arguments = arguments_shown(subject.arguments, subject.input_schema, secrets);
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
    };
    match context.approve(&request).await {
        Ok(Approval::Once) => Decided::may_run(format!("{rule}, allowed once")),
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
