//! Questions of servers on their way to a person.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rmcp::model::{ElicitRequestParams, ElicitResult, ElicitationAction};

use crate::caller::{CallContext, Elicitation};
use crate::policy::Policy;
use crate::texts::line;

/// How much of a server's message is shown.
const SHOWN: usize = 1000;

/// The answer where no person is available.
pub(crate) fn nobody() -> ElicitResult {
    ElicitResult::new(ElicitationAction::Cancel)
}

/// Which calls run at which server: a question that a server asks outside of a call is for
/// the session of one of them.
pub(crate) struct ElicitationRouter {
    policy: Arc<Policy>,
    calls: Mutex<Calls>,
}

#[derive(Default)]
struct Calls {
    last: u64,
    /// In the order in which the calls began.
    running: HashMap<String, Vec<NumberedCall>>,
}

/// A call with its number.
type NumberedCall = (u64, Arc<dyn CallContext>);

impl ElicitationRouter {
    pub(crate) fn new(policy: Arc<Policy>) -> Self {
        Self {
            policy,
            calls: Mutex::default(),
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call runs at a server, until the returned value is dropped.
    pub(crate) fn call_runs(
        self: &Arc<Self>,
        server: &str,
        context: Arc<dyn CallContext>,
    ) -> RunningCall {
        let mut calls = self.calls();
        calls.last += 1;
        let number = calls.last;
        let running = calls.running.entry(server.to_owned()).or_default();
        running.push((number, context));
        RunningCall {
            router: self.clone(),
            server: server.to_owned(),
            number,
        }
    }

    /// A server asks outside of a call: the question goes to the session that has a call there.
    /// Where several sessions have one, nobody can say whose question it is.
    pub(crate) async fn elicit(&self, server: &str, params: ElicitRequestParams) -> ElicitResult {
        let context = {
            let calls = self.calls();
            let running = calls.running.get(server).map(Vec::as_slice);
            let running = running.unwrap_or_default();
            let last = running.last().map(|(_, context)| context.clone());
            last.filter(|last| {
                let session = last.ids().session;
                running
                    .iter()
                    .all(|(_, call)| call.ids().session == session)
            })
        };
        match context {
            Some(context) => self.ask(&*context, server, params).await,
            None => nobody(),
        }
    }

    /// Puts a server's question to the maker of a call, where the policy allows it.
    pub(crate) async fn ask(
        &self,
        context: &dyn CallContext,
        server: &str,
        params: ElicitRequestParams,
    ) -> ElicitResult {
        match self.checked(server, params) {
            Checked::Ask(question) => context.elicit(*question).await.unwrap_or_else(nobody),
            Checked::Answer(answer) => answer,
        }
    }

    fn checked(&self, server: &str, mut params: ElicitRequestParams) -> Checked {
        match &mut params {
            ElicitRequestParams::FormElicitationParams {
                message,
                requested_schema,
                ..
            } => {
                let form = serde_json::to_string(requested_schema).unwrap_or_default();
                if self.policy.asks_for_secret(&format!("{message} {form}")) {
                    return Checked::Answer(ElicitResult::new(ElicitationAction::Decline));
                }
                *message = format!("The server {server:?} asks: {}", line(message, SHOWN));
            }
            ElicitRequestParams::UrlElicitationParams { message, url, .. } => {
                let url = url::Url::parse(url).ok();
                let Some(host) = url.as_ref().and_then(url::Url::host_str) else {
                    return Checked::Answer(nobody());
                };
                *message = format!(
                    "The server {server:?} asks to open a page at {host}: {}",
                    line(message, SHOWN)
                );
            }
            _ => return Checked::Answer(nobody()),
        }
        Checked::Ask(Box::new(Elicitation {
            server: server.to_owned(),
            params,
        }))
    }
}

/// What becomes of a server's question.
enum Checked {
    /// Asks the caller; the message names the server.
    Ask(Box<Elicitation>),
    /// The answer is known.
    Answer(ElicitResult),
}

/// A call that runs at a server.
pub(crate) struct RunningCall {
    router: Arc<ElicitationRouter>,
    server: String,
    number: u64,
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        let mut calls = self.router.calls();
        if let Some(running) = calls.running.get_mut(&self.server) {
            running.retain(|(number, _)| *number != self.number);
            if running.is_empty() {
                calls.running.remove(&self.server);
            }
        }
    }
}
