//! A durable session continues after any of its processes has died.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{
    CellId, CellNotification, CellResponse, CodeModeSessionDelegate, ExecuteRequest, Journal,
    JournalOptions, Json, NestedToolCall, Provider, RunningCell, Session, SessionOptions,
    ToolDefinition, ToolError, UnknownCall, WaitRequest,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::support::{error_text, provider_in_process, run, texts};

/// A delegate whose tool `add` answers, and whose other tools answer once a test says so.
pub struct Agent {
    /// Tool, input and attempt of each call.
    calls: Mutex<Vec<(String, String, u32)>>,
    told: Mutex<Vec<(u64, String)>>,
    /// One more with each call and notification.
    changed: watch::Sender<u64>,
    answers: watch::Sender<HashMap<&'static str, &'static str>>,
    unknown: Mutex<UnknownCall>,
}

impl Agent {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            calls: Mutex::default(),
            told: Mutex::default(),
            changed: watch::channel(0).0,
            answers: watch::channel(HashMap::new()).0,
            unknown: Mutex::default(),
        })
    }

    pub fn answer(&self, tool: &'static str, json: &'static str) {
        self.answers.send_modify(|known| {
            known.insert(tool, json);
        });
    }

    pub fn calls(&self) -> Vec<(String, String, u32)> {
        self.calls.lock().expect("not poisoned").clone()
    }

    pub async fn until(&self, reached: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        while !reached(self) {
            changed.changed().await.expect("the agent lives");
        }
    }

    /// Waits until the tool was called.
    pub async fn until_called(&self, tool: &str) {
        self.until(|agent| agent.calls().iter().any(|(name, ..)| name == tool))
            .await;
    }
}

#[async_trait]
impl CodeModeSessionDelegate for Agent {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        let name = call.tool_name.name;
        let input = call.input.unwrap_or_else(Json::null).into_string();
        let attempt = call.attempt;
        self.calls
            .lock()
            .expect("not poisoned")
            .push((name.clone(), input.clone(), attempt));
        self.changed.send_modify(|changes| *changes += 1);
        if name == "add" {
            return Json::parse(input).map_err(|error| error.to_string().into());
        }
        let mut answers = self.answers.subscribe();
        let answered = answers.wait_for(|known| known.contains_key(name.as_str()));
        tokio::select! {
            answers = answered => {
                let answers = answers.map_err(|error| error.to_string())?;
                Json::parse(answers[name.as_str()].to_owned()).map_err(|e| e.to_string().into())
            }
            () = cancelled.cancelled() => Err(ToolError::cancelled()),
        }
    }

    async fn resolve_unknown(&self, _: &NestedToolCall) -> UnknownCall {
        self.unknown.lock().expect("not poisoned").clone()
    }

    async fn notify(&self, notification: CellNotification, _: CancellationToken) {
        let (number, text) = (notification.number, notification.text);
        self.told.lock().expect("not poisoned").push((number, text));
        self.changed.send_modify(|changes| *changes += 1);
    }
}

fn definitions() -> Vec<ToolDefinition> {
    let safe = ToolDefinition::function("read", "").idempotent(true);
    let others = ["add", "ask", "send"].map(|name| ToolDefinition::function(name, ""));
    others.into_iter().chain([safe]).collect()
}

pub fn request(source: &str) -> ExecuteRequest {
    ExecuteRequest::new("call-1", source)
        .tools(definitions())
        .yield_time(Duration::from_millis(1))
}

/// A place for a journal.
pub struct Place {
    _folder: tempfile::TempDir,
    pub file: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sessions.journal");
        Self {
            _folder: folder,
            file,
        }
    }

    pub fn journal(&self) -> Journal {
        Journal::open(&self.file, JournalOptions::default()).expect("a journal")
    }
}

/// One life of an agent's process: the provider and the session end with it, and nothing of the
/// session is shut down before.
pub struct Life {
    pub provider: Provider,
    pub journal: Journal,
    pub session: Session,
}

impl Life {
    pub async fn of(provider: Provider, place: &Place, agent: &Arc<Agent>) -> Self {
        Self::with(provider, place.journal(), agent).await
    }

    pub async fn with(provider: Provider, journal: Journal, agent: &Arc<Agent>) -> Self {
        let options = SessionOptions::default();
        let session = provider
            .open_durable(&journal, "work", agent.clone(), options)
            .await
            .expect("a session");
        Self {
            provider,
            journal,
            session,
        }
    }

    pub async fn start(place: &Place, agent: &Arc<Agent>) -> Self {
        Self::of(provider_in_process(), place, agent).await
    }

    pub async fn admit(&self, source: &str) -> RunningCell {
        let running = self.session.execute(request(source)).await;
        running.expect("admitted")
    }

    pub async fn begin(&self, source: &str) -> CellId {
        let running = self.admit(source).await;
        let cell = running.id().clone();
        let response = running.outcome().await.expect("observed");
        assert!(!response.is_final(), "{response:?}");
        cell
    }

    /// Runs a cell, observed once, to its end.
    async fn run(&self, source: &str) -> (CellId, CellResponse) {
        let request = request(source).yield_time(Duration::from_secs(60));
        let running = self.session.execute(request).await.expect("admitted");
        let cell = running.id().clone();
        (cell, running.outcome().await.expect("observed"))
    }

    pub async fn end_of(&self, cell: &CellId) -> (Vec<String>, CellResponse) {
        let mut shown = Vec::new();
        loop {
            let wait = WaitRequest::new(cell.clone()).yield_time(Duration::from_secs(60));
            let response = self.session.wait(wait).await.expect("observed");
            shown.extend(texts(&response).into_iter().map(str::to_owned));
            if response.is_final() {
                return (shown, response);
            }
        }
    }

    /// Ends without a shutdown of the session's cells.
    pub async fn dies(self) {
        self.provider.shutdown().await;
        drop(self.session);
        drop(self.journal);
    }
}

#[test]
fn a_cell_continues_with_the_next_process_and_no_tool_is_called_twice() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let first = Life::start(&place, &agent).await;
        let source = "
            const begun = [Math.random(), Date.now(), String(Temporal.Now.instant())];
            const one = await tools.add(1);
            await new Promise((resolve) => setTimeout(resolve, 5));
            const two = await tools.add(2);
            store('begun', begun);
            const answer = await tools.ask('who?');
            text([one, two, answer]);
            text(JSON.stringify(begun) === JSON.stringify(load('begun')));
            await tools.add(3);
        ";
        let cell = first.begin(source).await;
        agent.until_called("ask").await;
        *agent.unknown.lock().expect("not poisoned") = UnknownCall::Repeat;
        first.dies().await;

        let second = Life::start(&place, &agent).await;
        assert_eq!(second.session.live_cells(), std::slice::from_ref(&cell));
        agent.answer("ask", "\"me\"");
        let (shown, response) = second.end_of(&cell).await;
        assert_eq!(error_text(&response), None);
        assert_eq!(shown, ["[1,2,\"me\"]", "true"]);
        let added = agent.calls().into_iter().filter(|(name, ..)| name == "add");
        let added: Vec<String> = added.map(|(_, input, _)| input).collect();
        assert_eq!(added, ["1", "2", "3"]);
        let asked = agent.calls().into_iter().filter(|(name, ..)| name == "ask");
        let attempts: Vec<u32> = asked.map(|(.., attempt)| attempt).collect();
        assert_eq!(attempts, [1, 2]);
        second.dies().await;
    });
}

/// The text of the one error that a cell caught, after a restart in which nobody knew what became
/// of its call of this tool.
async fn after_an_unknown(tool: &str, decision: UnknownCall) -> (String, Vec<u32>) {
    let (place, agent) = (Place::new(), Agent::new());
    let first = Life::start(&place, &agent).await;
    let source = format!("try {{ text(await tools.{tool}('x')) }} catch (e) {{ text(e.message) }}");
    let cell = first.begin(&source).await;
    agent.until_called(tool).await;
    first.dies().await;

    *agent.unknown.lock().expect("not poisoned") = decision;
    for tool in ["read", "send"] {
        agent.answer(tool, "\"again\"");
    }
    let second = Life::start(&place, &agent).await;
    let (shown, response) = second.end_of(&cell).await;
    assert_eq!(error_text(&response), None);
    second.dies().await;
    let attempts = agent.calls().into_iter().map(|(.., attempt)| attempt);
    (shown.concat(), attempts.collect())
}

#[test]
fn a_call_that_may_have_run_fails_where_nobody_decides() {
    run(async {
        let (text, attempts) = after_an_unknown("send", UnknownCall::Fail).await;
        assert!(
            text.contains("it may have run before the restart"),
            "{text}"
        );
        assert_eq!(attempts, [1]);
    });
}

#[test]
fn a_call_of_an_idempotent_tool_that_may_have_run_is_made_again() {
    run(async {
        let (text, attempts) = after_an_unknown("read", UnknownCall::Fail).await;
        assert_eq!((text.as_str(), attempts), ("again", vec![1, 2]));
    });
}

#[test]
fn the_delegate_may_know_what_became_of_a_call() {
    run(async {
        let answer = Json::string("it was sent");
        let (text, attempts) = after_an_unknown("send", UnknownCall::Answer(Ok(answer))).await;
        assert_eq!((text.as_str(), attempts), ("it was sent", vec![1]));
    });
}

#[test]
fn output_and_notifications_are_neither_lost_nor_given_twice() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let first = Life::start(&place, &agent).await;
        let source = "
            text('one'); notify('first');
            await tools.ask(1);
            text('two'); notify('second');
            await tools.read(2);
            text('three');
        ";
        let running = first.admit(source).await;
        let cell = running.id().clone();
        let response = running.outcome().await.expect("observed");
        let mut shown: Vec<String> = texts(&response).into_iter().map(str::to_owned).collect();
        while shown.is_empty() {
            let wait = WaitRequest::new(cell.clone()).yield_time(Duration::from_millis(1));
            let response = first.session.wait(wait).await.expect("observed");
            shown.extend(texts(&response).into_iter().map(str::to_owned));
        }
        agent.until_called("ask").await;
        agent.answer("ask", "null");
        agent.until_called("read").await;
        agent
            .until(|agent| agent.told.lock().expect("not poisoned").len() == 2)
            .await;
        first.session.shutdown().await;
        first.dies().await;

        agent.answer("read", "null");
        let second = Life::start(&place, &agent).await;
        let (rest, _) = second.end_of(&cell).await;
        shown.extend(rest);
        assert_eq!(shown, ["one", "two", "three"]);
        second.dies().await;
        // The last one may come twice, and says so by its number.
        let mut told = agent.told.lock().expect("not poisoned").clone();
        told.dedup();
        assert_eq!(told, [(1, "first".to_owned()), (2, "second".to_owned())]);
    });
}

#[test]
fn results_nobody_took_stored_values_and_ids_are_there_with_the_next_process() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let first = Life::start(&place, &agent).await;
        first
            .begin("store('a', {deep: [1]}); await tools.read(0)")
            .await;
        let ended = first
            .begin("await tools.ask(0); text('late'); store('b', 2)")
            .await;
        agent.until_called("ask").await;
        agent.answer("ask", "null");
        // Its end is in the journal once its values are those of the session.
        while !first
            .session
            .stored_values()
            .iter()
            .any(|(key, _)| key == "b")
        {
            tokio::task::yield_now().await;
        }
        first.dies().await;

        let second = Life::start(&place, &agent).await;
        let (shown, response) = second.end_of(&ended).await;
        assert_eq!(
            (error_text(&response), shown.concat()),
            (None, "late".to_owned())
        );
        let wait = WaitRequest::new(ended.clone());
        let again = second.session.wait(wait).await.expect("answered");
        assert!(again.is_missing(), "taken once: {again:?}");
        // The first cell still waits; what it stored is its own until it ends.
        agent.answer("read", "null");
        second.end_of(&CellId::nth(1)).await;
        let running = second.admit("text([load('a'), load('b')])").await;
        assert_eq!(running.id(), &CellId::nth(3));
        let third = running.id().clone();
        running.outcome().await.expect("observed");
        let _ = second.session.wait(WaitRequest::new(third)).await;
        second.dies().await;

        let third = Life::start(&place, &agent).await;
        assert!(third.session.live_cells().is_empty());
        let stored: Vec<_> = third.session.stored_values();
        let stored: Vec<_> = stored
            .iter()
            .map(|(key, json)| (key.as_str(), json.as_str()))
            .collect();
        assert_eq!(stored, [("a", "{\"deep\":[1]}"), ("b", "2")]);
        third.dies().await;
    });
}

#[test]
fn a_cell_finds_the_values_that_it_found_when_it_began() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let first = Life::start(&place, &agent).await;
        first.run("store('k', 'old')").await;
        let cell = first.begin("await tools.read(0); text(load('k'))").await;
        agent.until_called("read").await;
        first.run("store('k', 'new')").await;
        first.dies().await;

        agent.answer("read", "null");
        let second = Life::start(&place, &agent).await;
        let (shown, _) = second.end_of(&cell).await;
        assert_eq!(shown, ["old"]);
        assert_eq!(second.session.stored_values()[0].1.as_str(), "\"new\"");
        second.dies().await;
    });
}

#[test]
fn timers_run_on_and_races_end_as_they_ended() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let first = Life::start(&place, &agent).await;
        let source = "
            const after = (ms, value) => new Promise((resolve) => setTimeout(() => resolve(value), ms));
            const order = [];
            const each = [after(3, 'c'), after(1, 'a'), tools.add('d'), after(2, 'b')];
            await Promise.all(each.map((one) => one.then((value) => order.push(value))));
            const began = Date.now();
            const winner = await Promise.race([tools.ask(0), after(60_000, 'timer')]);
            await after(20);
            text(order.length + winner + (Date.now() - began >= 20));
            await tools.add(order.join(''));
        ";
        let cell = first.begin(source).await;
        agent.until_called("ask").await;
        first.dies().await;

        *agent.unknown.lock().expect("not poisoned") = UnknownCall::Repeat;
        agent.answer("ask", "\"answer\"");
        let second = Life::start(&place, &agent).await;
        let (shown, response) = second.end_of(&cell).await;
        assert_eq!(error_text(&response), None);
        assert_eq!(shown, ["4answertrue"]);
        second.dies().await;
    });
}

#[test]
fn many_lives_end_with_each_tool_called_once() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        agent.answer("read", "null");
        *agent.unknown.lock().expect("not poisoned") = UnknownCall::Repeat;
        let source = "
            let sum = 0;
            for (let i = 0; i < 20; i++) {
                sum += (await Promise.all([tools.add(i), tools.add(-i - 1)])).length;
                await new Promise((resolve) => setTimeout(resolve, Math.random() * 3));
            }
            text(sum);
        ";
        let mut life = Life::start(&place, &agent).await;
        let cell = life.begin(source).await;
        for died_after in 1..12 {
            agent
                .until(|agent| agent.calls().len() >= 3 * died_after)
                .await;
            life.dies().await;
            life = Life::start(&place, &agent).await;
        }
        let (shown, response) = life.end_of(&cell).await;
        assert_eq!(
            (error_text(&response), shown.concat()),
            (None, "40".to_owned())
        );
        life.dies().await;
        let mut inputs: Vec<i64> = Vec::new();
        for (_, input, attempt) in agent.calls() {
            match attempt {
                1 => inputs.push(input.parse().expect("a number")),
                _ => assert!(inputs.contains(&input.parse().expect("a number"))),
            }
        }
        inputs.sort_unstable();
        assert_eq!(inputs, (-20..20).collect::<Vec<i64>>());
    });
}

#[test]
fn a_new_cell_of_a_session_that_was_opened_again_finds_the_stored_values() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        for expected in 1..=3 {
            let life = Life::start(&place, &agent).await;
            let source = "store('n', (load('n') ?? 0) + 1); text(load('n'))";
            let (_, response) = life.run(source).await;
            assert_eq!(texts(&response), [expected.to_string()]);
            life.dies().await;
        }
    });
}

/// The journal as a process that dies now leaves it.
fn as_it_is(place: &Place) -> Place {
    let copy = Place::new();
    std::fs::copy(&place.file, &copy.file).expect("copied");
    copy
}

#[test]
fn a_response_that_was_not_confirmed_comes_again_after_a_crash() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let life = Life::start(&place, &agent).await;
        let (cell, response) = life.run("await tools.add(1); text('done')").await;
        assert_eq!(texts(&response), ["done"]);
        // The process dies here, before it has used the response.
        let copy = as_it_is(&place);
        life.dies().await;

        let second = Life::start(&copy, &agent).await;
        let (shown, response) = second.end_of(&cell).await;
        assert_eq!(
            (error_text(&response), shown.concat()),
            (None, "done".to_owned())
        );
        // A shutdown of the session confirms.
        second.session.shutdown().await;
        second.dies().await;
        assert_eq!(agent.calls().len(), 1);
        let third = Life::start(&copy, &agent).await;
        let again = third.session.wait(WaitRequest::new(cell)).await;
        assert!(again.expect("answered").is_missing());
        third.dies().await;
    });
}

#[test]
fn output_that_was_confirmed_before_the_end_does_not_come_again() {
    run(async {
        let (place, agent) = (Place::new(), Agent::new());
        let life = Life::start(&place, &agent).await;
        let source =
            "text('one'); await tools.ask(0); text('two'); await tools.read(0); text('three')";
        let one = request(source).yield_time(Duration::from_millis(50));
        let running = life.session.execute(one).await.expect("admitted");
        let cell = running.id().clone();
        let mut shown = running.outcome().await.expect("observed");
        while shown.content_items().is_empty() {
            let wait = WaitRequest::new(cell.clone()).yield_time(Duration::from_millis(50));
            shown = life.session.wait(wait).await.expect("observed");
        }
        assert_eq!(texts(&shown), ["one"]);
        // This confirms the first item; the second one is handed over, and not confirmed.
        agent.answer("ask", "null");
        agent.until_called("read").await;
        let wait = WaitRequest::new(cell.clone()).yield_time(Duration::from_millis(1));
        let second = life.session.wait(wait).await.expect("observed");
        assert_eq!(texts(&second), ["two"]);
        agent.answer("read", "null");
        while !life.session.live_cells().is_empty() {
            tokio::task::yield_now().await;
        }
        let copy = as_it_is(&place);
        life.dies().await;
        let next = Life::start(&copy, &agent).await;
        let (rest, _) = next.end_of(&cell).await;
        assert_eq!(rest, ["two", "three"]);
        next.dies().await;
    });
}
