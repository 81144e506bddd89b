//! Questions of servers on their way to a person.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use code_mode_protocol::text::{clean, line};
use rmcp::model::{ElicitRequestParams, ElicitResult, ElicitationAction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::caller::{CallContext, Elicitation};
use crate::policy::Policy;

/// How much of a server's message is shown.
const SHOWN: usize = 1000;
/// The largest form, in bytes of JSON: nobody fills in more.
const MAX_FORM: usize = 64 << 10;

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

/// A call that runs at a server, or that its maker has given up and the server may not.
struct NumberedCall {
    number: u64,
    context: Arc<dyn CallContext>,
    is_given_up: bool,
}

/// How long a server may work on a call that was given up.
const GIVEN_UP: Duration = Duration::from_secs(60);

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
        running.push(NumberedCall {
            number,
            context,
            is_given_up: false,
        });
        RunningCall {
            router: self.clone(),
            server: server.to_owned(),
            number,
            is_over: false,
        }
    }

    /// How many calls run at a server.
    #[cfg(unix)]
    pub(crate) fn calls_at(&self, server: &str) -> usize {
        let calls = self.calls();
        let running = calls.running.get(server).into_iter().flatten();
        running.filter(|call| !call.is_given_up).count()
    }

    fn forget(&self, server: &str, number: u64) {
        let mut calls = self.calls();
        if let Some(running) = calls.running.get_mut(server) {
            running.retain(|call| call.number != number);
            if running.is_empty() {
                calls.running.remove(server);
            }
        }
    }

    /// A server asks outside of a call: the question goes to the session that has a call there.
    /// Where several sessions have one, nobody can say whose question it is.
    pub(crate) async fn elicit(&self, server: &str, params: ElicitRequestParams) -> ElicitResult {
        let context = {
            let calls = self.calls();
            let running = calls.running.get(server).map(Vec::as_slice);
            let running = running.unwrap_or_default();
            let mut alive = running.iter().filter(|call| !call.is_given_up);
            let last = alive.next_back().map(|call| call.context.clone());
            last.filter(|last| {
                let session = last.ids().session;
                let is_only = running
                    .iter()
                    .all(|call| call.context.ids().session == session);
                if !is_only {
                    tracing::warn!(
                        server,
                        "a question is cancelled: several clients have calls there, and nobody can say whose it is; \"shared\": false in the server's entry gives each client its own"
                    );
                }
                is_only
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
                // Cleaned first: an invisible character must not hide a word from the filter.
                let form = serde_json::to_string(requested_schema).unwrap_or_default();
                if form.len() > MAX_FORM {
                    return Checked::Answer(nobody());
                }
                let text = clean(&format!("{message} {form}"));
                if self.policy.asks_for_secret(&text) {
                    return Checked::Answer(ElicitResult::new(ElicitationAction::Decline));
                }
                let Some(form) = shown(requested_schema) else {
                    return Checked::Answer(nobody());
                };
                *requested_schema = form;
                *message = format!("The server {server:?} asks: {}", line(message, SHOWN));
            }
            ElicitRequestParams::UrlElicitationParams { message, url, .. } => {
                let page = url::Url::parse(url).ok();
                // Other schemes run programs or read files of the person.
                let page = page.filter(|page| matches!(page.scheme(), "http" | "https"));
                let Some(page) = page.filter(url::Url::has_host) else {
                    return Checked::Answer(nobody());
                };
                let host = page.host_str().unwrap_or_default();
                *url = page.to_string();
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

/// The form as a person may see it: its titles and descriptions are clean. Names and choices go
/// back to the server as they are, so a form is refused where a terminal would obey one.
fn shown<T: Serialize + DeserializeOwned>(form: &T) -> Option<T> {
    fn clean_shown(value: &mut Value) -> Option<()> {
        match value {
            Value::String(text) if text.chars().any(char::is_control) => return None,
            Value::Array(items) => items.iter_mut().try_for_each(clean_shown)?,
            Value::Object(members) => {
                for (name, value) in members {
                    match (name.as_str(), value) {
                        ("title" | "description", Value::String(text)) => *text = clean(text),
                        ("enumNames", Value::Array(names)) => {
                            for name in names {
                                if let Value::String(text) = name {
                                    *text = clean(text);
                                }
                            }
                        }
                        (name, _) if name.chars().any(char::is_control) => return None,
                        (_, value) => clean_shown(value)?,
                    }
                }
            }
            _ => {}
        }
        Some(())
    }
    let mut form = serde_json::to_value(form).ok()?;
    clean_shown(&mut form)?;
    serde_json::from_value(form).ok()
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
    is_over: bool,
}

impl RunningCall {
    /// The server has answered, or is lost.
    pub(crate) fn over(mut self) {
        self.is_over = true;
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        if self.is_over {
            self.router.forget(&self.server, self.number);
            return;
        }
        // The server may still work on it, and ask.
        let mut calls = self.router.calls();
        let running = calls.running.get_mut(&self.server).into_iter().flatten();
        for call in running.filter(|call| call.number == self.number) {
            call.is_given_up = true;
        }
        drop(calls);
        let (router, number) = (self.router.clone(), self.number);
        let server = std::mem::take(&mut self.server);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(GIVEN_UP).await;
                router.forget(&server, number);
            });
        } else {
            router.forget(&server, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::audit::CallIds;
    use crate::caller::{Approval, ApprovalRequest, Approvals, NotAsked};

    fn answer(question: Value) -> Option<ElicitationAction> {
        let router = ElicitationRouter::new(Arc::new(Policy::default()));
        let params = serde_json::from_value(question).expect("a question");
        match router.checked("server", params) {
            Checked::Ask(_) => None,
            Checked::Answer(answer) => Some(answer.action),
        }
    }

    fn form(message: &str, name: &str) -> Value {
        json!({"mode": "form", "message": message, "requestedSchema":
            {"type": "object", "properties": {name: {"type": "string", "title": "A\u{1b}[2Jname"}}}})
    }

    /// A caller of a session, who answers every question.
    struct Caller {
        session: &'static str,
        approvals: Approvals,
    }

    #[async_trait::async_trait]
    impl CallContext for Caller {
        fn ids(&self) -> CallIds {
            CallIds {
                session: self.session.to_owned(),
                cell: "1".to_owned(),
                call: "1".to_owned(),
            }
        }

        fn approvals(&self) -> &Approvals {
            &self.approvals
        }

        async fn approve(&self, _: &ApprovalRequest) -> Result<Approval, NotAsked> {
            Ok(Approval::No)
        }

        async fn elicit(&self, _: Elicitation) -> Option<ElicitResult> {
            Some(ElicitResult::new(ElicitationAction::Accept))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_of_a_call_that_was_given_up_reaches_nobody_else() {
        let router = Arc::new(ElicitationRouter::new(Arc::new(Policy::default())));
        let call_of = |session| {
            let approvals = Approvals::default();
            router.call_runs("server", Arc::new(Caller { session, approvals }))
        };
        let asked = async || {
            let question = serde_json::from_value(form("your name?", "name"));
            let question = question.expect("a question");
            router.elicit("server", question).await.action
        };
        let given_up = call_of("one");
        assert_eq!(asked().await, ElicitationAction::Accept);
        drop(given_up);
        assert_eq!(asked().await, ElicitationAction::Cancel);
        let other = call_of("two");
        assert_eq!(asked().await, ElicitationAction::Cancel);
        // The server has had its time.
        tokio::time::sleep(GIVEN_UP * 2).await;
        assert_eq!(asked().await, ElicitationAction::Accept);
        other.over();
        assert_eq!(asked().await, ElicitationAction::Cancel);
    }

    #[test]
    fn an_invisible_character_hides_no_word_from_the_filter() {
        assert_eq!(answer(form("your name?", "name")), None);
        for (message, name) in [
            ("your pass\u{200b}word?", "name"),
            ("name?", "pass\u{2060}word"),
        ] {
            let declined = Some(ElicitationAction::Decline);
            assert_eq!(answer(form(message, name)), declined, "{message} {name}");
        }
    }

    #[test]
    fn a_form_reaches_the_person_without_control_characters() {
        let router = ElicitationRouter::new(Arc::new(Policy::default()));
        let params = serde_json::from_value(form("your name?", "name")).expect("a question");
        let Checked::Ask(question) = router.checked("server", params) else {
            panic!("answered");
        };
        let shown = serde_json::to_value(&question.params)
            .expect("JSON")
            .to_string();
        assert!(shown.contains("A [2Jname"), "{shown}");
    }

    #[test]
    fn a_form_that_nobody_could_fill_in_is_kept_from_people() {
        let huge = form("your name?", &"n".repeat(MAX_FORM));
        assert_eq!(answer(huge), Some(ElicitationAction::Cancel));
    }

    #[test]
    fn only_pages_of_the_web_are_opened() {
        let page = |url: &str| {
            answer(json!({"mode": "url", "message": "look", "url": url, "elicitationId": "1"}))
        };
        assert_eq!(page("https://example.org/login"), None);
        for odd in [
            "javascript:alert(1)",
            "file://host/etc/passwd",
            "vscode://x/y",
            "nothing",
        ] {
            assert_eq!(page(odd), Some(ElicitationAction::Cancel), "{odd}");
        }
    }
}
