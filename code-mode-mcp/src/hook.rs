//! The hook of a policy: a program that decides about each call that no rule denies.

use std::sync::Arc;
use std::time::Duration;

use code_mode_protocol::text::line;
use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use tokio::process::Command;
use tokio::sync::Semaphore;

use crate::command::{CommandError, ask};
use crate::policy::Decision;

/// How long the program may take for one call.
const LIMIT: Duration = Duration::from_secs(10);
/// Programs at once. More calls wait for their turn.
const AT_ONCE: usize = 8;
/// How much of its reason is shown.
const SHOWN: usize = 300;

/// The program and its arguments.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub(crate) struct Hook {
    program: String,
    arguments: Vec<String>,
    room: Arc<Semaphore>,
}

impl TryFrom<Vec<String>> for Hook {
    type Error = &'static str;

    fn try_from(command: Vec<String>) -> Result<Self, Self::Error> {
        let mut words = command.into_iter();
        let program = words.next().filter(|program| !program.is_empty());
        Ok(Self {
            program: program.ok_or("hook is a program and its arguments")?,
            arguments: words.collect(),
            room: Arc::new(Semaphore::new(AT_ONCE)),
        })
    }
}

/// What the program reads about a call.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HookCall<'a> {
    pub(crate) server: &'a str,
    pub(crate) tool: &'a str,
    pub(crate) input: &'a Map<String, Value>,
    /// The decision of the rules, and the rule.
    pub(crate) decision: &'static str,
    pub(crate) rule: &'a str,
    /// Claims of the server.
    pub(crate) read_only: bool,
    pub(crate) destructive: bool,
    pub(crate) session: &'a str,
    pub(crate) cell: &'a str,
}

/// What it prints. Without a decision, that of the rules stands.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HookAnswer {
    #[serde(deserialize_with = "by_name")]
    pub(crate) decision: Option<Decision>,
    /// For the model, where the call is denied.
    pub(crate) reason: Option<String>,
    /// Sent in place of the call's input.
    pub(crate) input: Option<Map<String, Value>>,
}

/// A decision by its name and in no other form.
fn by_name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Decision>, D::Error> {
    let Some(name) = Option::<String>::deserialize(from)? else {
        return Ok(None);
    };
    Decision::deserialize(name.into_deserializer()).map(Some)
}

/// The reason for a hook that gave no answer: then the call does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(
        "its answer is not {{\"decision\": \"allow\", \"ask\" or \"deny\", \"reason\", \"input\"}}"
    )]
    NotAnAnswer,
}

impl Hook {
    pub(crate) async fn ask(&self, call: &HookCall<'_>) -> Result<HookAnswer, HookError> {
        // The semaphore is never closed.
        let _turn = self.room.acquire().await.ok();
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        let call = serde_json::to_vec(call).map_err(|_| HookError::NotAnAnswer)?;
        let printed = ask(command, &call, LIMIT).await?;
        let mut answer: HookAnswer = printed.to().ok_or(HookError::NotAnAnswer)?;
        answer.reason = answer.reason.map(|reason| line(&reason, SHOWN));
        Ok(answer)
    }
}
