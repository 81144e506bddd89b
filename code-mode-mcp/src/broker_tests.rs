//! Calls through a broker to scripted servers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{CellId, Json, NestedToolCall, RuntimeToolCallId, ToolError, ToolName};
use serde_json::{Value, json};

use crate::audit::{AuditRecord, CallIds, Outcome};
use crate::broker::Broker;
use crate::caller::{Approval, ApprovalRequest, Approvals, CallContext, NotAsked};
use crate::secrets::Secrets;
use crate::upstream::scripted::{Reply, Script, broker, text};

/// A caller whose person always says the same.
pub(crate) struct Person {
    answer: Result<Approval, NotAsked>,
    approvals: Approvals,
    asked: Mutex<Vec<String>>,
    outcomes: Mutex<Vec<Outcome>>,
}

impl Person {
    pub(crate) fn who_says(answer: Result<Approval, NotAsked>) -> Arc<Self> {
        Arc::new(Self {
            answer,
            approvals: Approvals::default(),
            asked: Mutex::default(),
            outcomes: Mutex::default(),
        })
    }

    pub(crate) fn nobody() -> Arc<Self> {
        Self::who_says(Err(NotAsked::CannotAsk))
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        self.outcomes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[async_trait]
impl CallContext for Person {
    fn ids(&self) -> CallIds {
        CallIds {
            session: "s".to_owned(),
            cell: "1".to_owned(),
            call: "tool-1".to_owned(),
        }
    }

    fn approvals(&self) -> &Approvals {
        &self.approvals
    }

    async fn approve(&self, request: &ApprovalRequest) -> Result<Approval, NotAsked> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(request.words());
        self.answer
    }

    fn ended(&self, _: &str, record: &AuditRecord) {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.push(record.outcome);
    }
}

async fn call(
    broker: &Broker,
    tool: &str,
    input: &str,
    person: &Arc<Person>,
) -> Result<Value, ToolError> {
    let name = ToolName::namespaced("s", tool);
    let input = Json::parse(input.to_owned()).expect("JSON");
    let call = NestedToolCall::new(CellId::nth(1), "call", RuntimeToolCallId(1), name);
    let answer = broker
        .call(&call.input(Some(input)), person.clone())
        .await?;
    Ok(answer.to().expect("JSON"))
}

#[tokio::test]
async fn an_allowed_call_runs_and_its_result_comes_as_it_was() {
    let odd = json!({"content": [], "zeta": 1, "alpha": {"x": [1.5]}});
    let result = odd.clone();
    let script = Script::new(json!([{"name": "odd"}]), move |_, _| {
        Reply::Result(result.clone())
    });
    let (broker, person) = (
        broker(vec![script.server("s")], "{}", None).await,
        Person::nobody(),
    );
    assert_eq!(call(&broker, "odd", r#"{"a": 1}"#, &person).await, Ok(odd));
    let sent = &script.received("tools/call")[0]["params"];
    assert_eq!(sent["arguments"], json!({"a": 1}));
    assert_eq!(person.outcomes(), [Outcome::Ran]);
    broker.end().await;
}

#[tokio::test]
async fn a_denied_call_never_reaches_its_server() {
    let script = Script::echo(&["rm"]);
    let policy = r#"{"deny": ["s/rm"]}"#;
    let broker = broker(vec![script.server("s")], policy, None).await;
    let person = Person::who_says(Ok(Approval::Once));
    let error = call(&broker, "rm", "{}", &person)
        .await
        .expect_err("denied");
    assert!(
        error.message.contains("denied by the rule deny \"s/rm\""),
        "{error}"
    );
    assert!(script.received("tools/call").is_empty());
    assert_eq!(
        (person.asked(), person.outcomes()),
        (0, vec![Outcome::Denied])
    );
    broker.end().await;
}

#[tokio::test]
async fn a_person_is_asked_once_for_a_session_and_each_time_otherwise() {
    for (answer, asked) in [(Approval::ForSession, 1), (Approval::Once, 2)] {
        let script = Script::echo(&["rm"]);
        let policy = r#"{"ask": ["s/*"]}"#;
        let broker = broker(vec![script.server("s")], policy, None).await;
        let person = Person::who_says(Ok(answer));
        for _ in 0..2 {
            call(&broker, "rm", "{}", &person).await.expect("approved");
        }
        assert_eq!(person.asked(), asked, "{answer:?}");
        assert_eq!(script.received("tools/call").len(), 2);
        broker.end().await;
    }
}

#[tokio::test]
async fn a_call_that_nobody_approved_does_not_run() {
    for answer in [Ok(Approval::No), Err(NotAsked::CannotAsk)] {
        let script = Script::echo(&["rm"]);
        let broker = broker(vec![script.server("s")], r#"{"ask": ["s/*"]}"#, None).await;
        let person = Person::who_says(answer);
        let error = call(&broker, "rm", "{}", &person)
            .await
            .expect_err("refused");
        assert!(error.message.starts_with("not approved: s/rm"), "{error}");
        assert!(script.received("tools/call").is_empty());
        broker.end().await;
    }
}

#[tokio::test]
async fn an_error_of_a_server_keeps_its_code_and_data() {
    let script = Script::new(json!([{"name": "no"}]), |_, _| {
        Reply::Error(json!({"code": -32000, "message": "no", "data": {"why": 1}}))
    });
    let (broker, person) = (
        broker(vec![script.server("s")], "{}", None).await,
        Person::nobody(),
    );
    let error = call(&broker, "no", "{}", &person)
        .await
        .expect_err("an error");
    assert_eq!(
        (error.message.as_str(), error.code),
        ("s/no: no", Some(-32000))
    );
    assert_eq!(error.data.expect("data").as_str(), r#"{"why":1}"#);
    assert_eq!(person.outcomes(), [Outcome::Failed]);
    broker.end().await;
}

#[tokio::test]
async fn a_server_that_dies_in_a_call_is_started_again_for_the_next() {
    let script = Script::new(
        json!([{"name": "die"}, {"name": "live"}]),
        |tool, _| match tool {
            "die" => Reply::Close,
            other => text(other),
        },
    );
    let (broker, person) = (
        broker(vec![script.server("s")], "{}", None).await,
        Person::nobody(),
    );
    let error = call(&broker, "die", "{}", &person).await.expect_err("lost");
    assert!(error.message.contains("went away during die"), "{error}");
    assert!(error.message.ends_with("it may have run"), "{error}");
    call(&broker, "live", "{}", &person)
        .await
        .expect("it is there again");
    assert_eq!(person.outcomes(), [Outcome::Unknown, Outcome::Ran]);
    assert_eq!(script.received("initialize").len(), 2);
    broker.end().await;
}

#[tokio::test]
async fn a_read_only_call_is_repeated_only_where_the_policy_says_so() {
    for (policy, calls) in [("{}", 1), (r#"{"retry_read_only": true}"#, 2)] {
        let tools = json!([{"name": "get", "annotations": {"readOnlyHint": true}}]);
        let script = Script::new(tools, |_, _| Reply::Close);
        let broker = broker(vec![script.server("s")], policy, None).await;
        let person = Person::nobody();
        call(&broker, "get", "{}", &person).await.expect_err("lost");
        assert_eq!(script.received("tools/call").len(), calls, "{policy}");
        broker.end().await;
    }
}

#[tokio::test]
async fn a_call_without_an_answer_may_have_run() {
    let script = Script::new(json!([{"name": "mute"}]), |_, _| Reply::Silence);
    let server = script.server_with_timeout("s", Duration::from_millis(10));
    let (broker, person) = (broker(vec![server], "{}", None).await, Person::nobody());
    let error = call(&broker, "mute", "{}", &person)
        .await
        .expect_err("no answer");
    assert!(error.message.contains("it may have run"), "{error}");
    assert_eq!(person.outcomes(), [Outcome::Unknown]);
    broker.end().await;
}

#[tokio::test]
async fn a_call_that_is_dropped_is_cancelled_at_its_server_and_recorded() {
    let script = Script::new(json!([{"name": "mute"}]), |_, _| Reply::Silence);
    let (broker, person) = (
        broker(vec![script.server("s")], "{}", None).await,
        Person::nobody(),
    );
    let mut dropped = Box::pin(call(&broker, "mute", "{}", &person));
    while script.received("tools/call").is_empty() {
        assert!(futures::poll!(&mut dropped).is_pending());
        tokio::task::yield_now().await;
    }
    drop(dropped);
    assert_eq!(person.outcomes(), [Outcome::Unknown]);
    while script.received("notifications/cancelled").is_empty() {
        tokio::task::yield_now().await;
    }
    broker.end().await;
}

#[tokio::test]
async fn a_tool_that_is_gone_is_named_with_those_that_are_near() {
    let script = Script::echo(&["read_file", "write_file"]);
    let (broker, person) = (
        broker(vec![script.server("s")], "{}", None).await,
        Person::nobody(),
    );
    let error = call(&broker, "read_fil", "{}", &person)
        .await
        .expect_err("gone");
    assert!(error.message.contains("no longer offered by s"), "{error}");
    assert!(!broker.has(&ToolName::namespaced("s", "read_fil")));
    assert!(broker.has(&ToolName::namespaced("s", "read_file")));
    broker.end().await;
}

#[tokio::test]
async fn arguments_that_are_no_object_are_refused_before_they_are_sent() {
    let script = Script::echo(&["take"]);
    let (broker, person) = (
        broker(vec![script.server("s")], "{}", None).await,
        Person::nobody(),
    );
    for (input, what) in [
        ("[1]", "an array"),
        ("\"x\"", "a string"),
        ("5", "a number"),
    ] {
        let error = call(&broker, "take", input, &person)
            .await
            .expect_err("refused");
        assert!(error.message.contains(what), "{error}");
    }
    call(&broker, "take", "null", &person)
        .await
        .expect("no argument is an empty object");
    assert_eq!(script.received("tools/call").len(), 1);
    broker.end().await;
}

#[tokio::test]
async fn a_refused_tool_that_turns_read_only_is_still_asked_for() {
    let rm = |hint: &str| json!({"name": "rm", "annotations": {hint: true}});
    let script = Script::new(
        json!([{"name": "die"}, rm("destructiveHint")]),
        |tool, _| match tool {
            "die" => Reply::Close,
            _ => text("ran"),
        },
    );
    let broker = broker(vec![script.server("s")], "{}", None).await;
    let person = Person::who_says(Ok(Approval::No));
    call(&broker, "rm", "{}", &person)
        .await
        .expect_err("refused");
    script.set_tools(json!([rm("readOnlyHint")]));
    let mut tools = broker.tools_changes();
    call(&broker, "die", "{}", &person)
        .await
        .expect_err("it died");
    // Its next life lists the tool as harmless.
    tools
        .wait_for(|tools| tools.entries.len() == 1)
        .await
        .expect("listed");
    call(&broker, "rm", "{}", &person)
        .await
        .expect_err("refused");
    assert_eq!(person.asked(), 2);
    assert_eq!(script.received("tools/call").len(), 1);
    broker.end().await;
}

#[tokio::test]
async fn a_call_whose_arguments_cannot_be_shown_is_refused_unasked() {
    let script = Script::echo(&["rm"]);
    let broker = broker(vec![script.server("s")], r#"{"ask": ["s/*"]}"#, None).await;
    let person = Person::who_says(Ok(Approval::Once));
    let many: serde_json::Map<_, _> = (0..5000).map(|n| (format!("k{n}"), json!(n))).collect();
    let error = call(&broker, "rm", &Value::Object(many).to_string(), &person).await;
    let error = error.expect_err("refused");
    assert!(error.message.contains("to be shown to one"), "{error}");
    assert_eq!(
        (person.asked(), person.outcomes()),
        (0, vec![Outcome::Denied])
    );
    broker.end().await;
}

#[tokio::test]
async fn a_program_never_gets_tools_that_are_older_than_their_servers() {
    let script = Script::echo(&["a"]);
    let policy = serde_json::from_str("{}").expect("a policy");
    let servers = vec![script.server("s")];
    let broker = Broker::of(servers, policy, Secrets::default(), 4000, None);
    let before = broker.tools();
    assert!(before.are_of(&broker.upstreams), "nothing has happened yet");
    let limit = Duration::from_secs(60);
    let missing = broker.ready_for("tools.s__a({})", limit).await;
    assert_eq!(missing, [""; 0]);
    assert!(!before.are_of(&broker.upstreams));
    assert!(broker.tools().are_of(&broker.upstreams));
    assert_eq!(broker.tools().entries.len(), 1);
    broker.end().await;
}

/// A state of the task `t`, in either form.
fn state(status: &str, more: Value) -> Value {
    let times = "2026-11-24T00:00:00Z";
    let mut state = json!({"taskId": "t", "status": status, "createdAt": times, "lastUpdatedAt": times, "ttlMs": null, "ttl": null, "pollIntervalMs": 1, "pollInterval": 1});
    let more = more.as_object().expect("an object").clone();
    state.as_object_mut().expect("an object").extend(more);
    state
}

fn task_that_the_server_chose() -> Reply {
    Reply::Result(state("working", json!({"resultType": "task"})))
}

#[tokio::test]
async fn a_call_that_becomes_a_task_gives_the_result_of_the_task() {
    let result = json!({"content": [{"type": "text", "text": "late"}]});
    let script = Script::new(json!([{"name": "t"}]), |_, _| task_that_the_server_chose())
        .answers_in_turn(
            "tasks/get",
            [
                state("working", json!({})),
                state("completed", json!({"result": result})),
            ],
        );
    let broker = broker(vec![script.server("s")], "{}", None).await;
    let person = Person::nobody();
    assert_eq!(
        call(&broker, "t", "{}", &person).await.expect("a result"),
        result
    );
    assert_eq!(person.outcomes(), [Outcome::Ran]);
    assert_eq!(script.received("tasks/get").len(), 2);
    assert!(script.received("tasks/cancel").is_empty());
    broker.end().await;
}

#[tokio::test]
async fn a_task_that_fails_or_is_cancelled_by_its_server_is_an_error_of_the_tool() {
    for (ended, expected, outcome) in [
        (
            state(
                "failed",
                json!({"error": {"code": -32000, "message": "no luck"}}),
            ),
            "s/t: no luck",
            Outcome::Failed,
        ),
        (
            state("cancelled", json!({"statusMessage": "shut"})),
            "s/t was cancelled by its server: shut; it may have run",
            Outcome::Unknown,
        ),
        (
            state("dreaming", json!({})),
            "the task of s/t has an unknown state",
            Outcome::Unknown,
        ),
    ] {
        let script = Script::new(json!([{"name": "t"}]), |_, _| task_that_the_server_chose())
            .answers("tasks/get", ended);
        let broker = broker(vec![script.server("s")], "{}", None).await;
        let person = Person::nobody();
        let error = call(&broker, "t", "{}", &person)
            .await
            .expect_err("no result");
        assert!(error.message.contains(expected), "{}", error.message);
        assert_eq!(person.outcomes(), [outcome]);
        broker.end().await;
    }
}

#[tokio::test]
async fn a_tool_that_runs_as_a_task_only_is_called_as_one() {
    let result = json!({"content": [{"type": "text", "text": "done"}]});
    let tools = json!([{"name": "t", "execution": {"taskSupport": "required"}}]);
    let script = Script::new(tools, |_, _| {
        Reply::Result(json!({"task": state("working", json!({}))}))
    })
    .answers_in_turn(
        "tasks/get",
        [state("working", json!({})), state("completed", json!({}))],
    )
    .answers("tasks/result", result.clone());
    let broker = broker(vec![script.server("s")], "{}", None).await;
    let answer = call(&broker, "t", r#"{"a": 1}"#, &Person::nobody()).await;
    assert_eq!(answer.expect("a result"), result);
    let sent = script.received("tools/call");
    assert_eq!(sent[0]["params"]["arguments"], json!({"a": 1}));
    assert!(sent[0]["params"]["task"]["ttl"].is_u64(), "{sent:?}");
    assert_eq!(script.received("tasks/result")[0]["params"]["taskId"], "t");
    broker.end().await;
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_cancels_its_task() {
    let script = Script::new(json!([{"name": "t"}]), |_, _| task_that_the_server_chose())
        .answers("tasks/get", state("working", json!({})));
    let broker = broker(vec![script.server("s")], "{}", None).await;
    let person = Person::nobody();
    let waiting = call(&broker, "t", "{}", &person);
    let asked = async {
        while script.received("tasks/get").is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = waiting => panic!("a task that still works gave {answer:?}"),
        () = asked => {}
    }
    while script.received("tasks/cancel").is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(script.received("tasks/cancel")[0]["params"]["taskId"], "t");
    broker.end().await;
}

#[tokio::test]
async fn a_block_of_an_unknown_kind_passes_whole() {
    let result =
        json!({"content": [{"type": "hologram", "depth": 3}, {"type": "text", "text": "x"}]});
    let answer = result.clone();
    let script = Script::new(json!([{"name": "t"}]), move |_, _| {
        Reply::Result(answer.clone())
    });
    let broker = broker(vec![script.server("s")], "{}", None).await;
    let passed = call(&broker, "t", "{}", &Person::nobody()).await;
    assert_eq!(passed.expect("a result"), result);
    broker.end().await;
}
