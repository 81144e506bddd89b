//! Random crashes, deaths, parkings and restarts of a durable session, whose worker is honest: every
//! cell ends as without them.
//!
//! A cell of this test puts an item out, makes some calls at once, lets their answers in one by one, and
//! does so again; in the end it stores something. At a crash the disk has all that somebody waited for, and a
//! beginning of the rest.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use code_mode_protocol::wire::native::{CellEnd, FromWorker, JsonText, ToWorker, Used};
use code_mode_protocol::{
    CellId, CellOutcome, CellResponse, ContentItem, ExecuteRequest, Json, Limits,
    RuntimeToolCallId, ToolDefinition, ToolError, ToolSet, Turn, TurnCause, truncate,
};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::core::{Answer, Core, Effect, Execute, NotAdmitted, Ports, Reply, Settings};
use super::number::CellNumber;
use super::spans::Exec;
use crate::JournalOptions;
use crate::journal::{EndRecord, Loaded, Program, Record, Restored, RestoredCell, Step};

/// The calls that a cell makes at once, each time.
const GROUPS: [u32; 3] = [2, 1, 3];
const CALLS: u32 = 6;
/// Its items: one before each group, and one at the end.
const ITEMS: usize = GROUPS.len() + 1;
const MAX_CELLS: usize = 3;

struct Model;

impl Ports for Model {
    type Worker = u64;
    type Reply = Asker;
}

/// Who observes a cell; its answer is not looked at yet.
struct Asker(Rc<RefCell<Vec<Answer>>>);

impl Reply for Asker {
    fn answer(self, answer: Answer) -> Result<(), Answer> {
        self.0.borrow_mut().push(answer);
        Ok(())
    }
}

/// One thing that happens. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Happens {
    Execute,
    Observe {
        cell: u8,
    },
    /// Callers look at the answers that are there.
    Look,
    Works {
        cell: u8,
    },
    Idles {
        cell: u8,
    },
    /// The delegate sees a call.
    Sees {
        which: u8,
    },
    /// A call is answered. Where the process dies then, the cell does not get the answer.
    Answers {
        which: u8,
        then_dies: bool,
    },
    Resumes,
    /// The worker reads so many messages.
    Reads {
        count: u8,
    },
    WorkerDies,
    Dies {
        writes: u8,
    },
    ShutsDown,
    Time {
        ms: u64,
    },
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        2 => Just(Happens::Execute),
        3 => any::<u8>().prop_map(|cell| Happens::Observe { cell }),
        3 => Just(Happens::Look),
        10 => any::<u8>().prop_map(|cell| Happens::Works { cell }),
        3 => any::<u8>().prop_map(|cell| Happens::Idles { cell }),
        6 => any::<u8>().prop_map(|which| Happens::Sees { which }),
        6 => (any::<u8>(), prop::bool::weighted(0.1))
            .prop_map(|(which, then_dies)| Happens::Answers { which, then_dies }),
        4 => Just(Happens::Resumes),
        12 => any::<u8>().prop_map(|count| Happens::Reads { count: count % 4 }),
        1 => Just(Happens::WorkerDies),
        2 => any::<u8>().prop_map(|writes| Happens::Dies { writes }),
        1 => (0u8..4).prop_map(|n| if n == 0 { Happens::ShutsDown } else { Happens::Look }),
        1 => (0u64..40_000).prop_map(|ms| Happens::Time { ms }),
    ]
}

/// What the disk has of a cell.
struct Kept {
    program: Program,
    steps: Vec<Step>,
    taken: u64,
    end: Option<EndRecord>,
}

/// What the disk has.
#[derive(Default)]
struct Disk {
    cells: BTreeMap<u64, Kept>,
    values: Vec<(u64, String, Json)>,
    version: u64,
    last_cell: u64,
    /// On their way there.
    queue: Vec<Record>,
}

impl Disk {
    fn write(&mut self, count: usize) {
        let count = count.min(self.queue.len());
        let written: Vec<Record> = self.queue.drain(..count).collect();
        written.into_iter().for_each(|record| self.put(record));
    }

    fn flush(&mut self) {
        self.write(self.queue.len());
    }

    fn put(&mut self, record: Record) {
        match record {
            Record::Began { cell, program } => {
                self.last_cell = cell;
                let kept = Kept {
                    program: *program,
                    steps: Vec::new(),
                    taken: 0,
                    end: None,
                };
                self.cells.insert(cell, kept);
            }
            Record::Step { cell, step } => {
                let kept = self
                    .cells
                    .get_mut(&cell)
                    .expect("a step of a cell that began");
                assert!(kept.end.is_none(), "a step after the end");
                kept.steps.push(step);
            }
            Record::Taken { cell, items } => {
                if let Some(kept) = self.cells.get_mut(&cell) {
                    assert!(items >= kept.taken, "items are not taken back");
                    kept.taken = items;
                }
            }
            Record::Notified { .. } => panic!("no cell notifies"),
            Record::Ended {
                cell,
                end,
                writes,
                version,
            } => {
                let kept = self
                    .cells
                    .get_mut(&cell)
                    .expect("the end of a cell that began");
                assert!(kept.end.replace(*end).is_none(), "two ends");
                kept.steps.clear();
                self.version = version;
                let written = writes.into_iter().map(|(key, json)| (version, key, json));
                self.values.extend(written);
            }
            Record::Closed { cell } => {
                self.cells.remove(&cell);
            }
        }
    }

    /// The values at a version.
    fn values_at(&self, version: u64) -> Vec<(String, Json)> {
        let known = self.values.iter().filter(|(at, ..)| *at <= version);
        let latest: BTreeMap<String, Json> = known
            .map(|(_, key, json)| (key.clone(), json.clone()))
            .collect();
        latest.into_iter().collect()
    }

    fn restored(&self) -> Restored {
        let cells = self.cells.iter().map(|(cell, kept)| RestoredCell {
            cell: *cell,
            tool_call_id: kept.program.tool_call_id.clone(),
            tools: kept.program.tools.clone(),
            to_pending: false,
            taken: kept.taken,
            notified: 0,
            log_bytes: 0,
            end: kept.end.clone(),
        });
        Restored {
            stored: self.values_at(u64::MAX),
            version: self.version,
            last_cell: self.last_cell,
            cells: cells.collect(),
        }
    }

    fn loaded(&self, cell: CellNumber) -> Loaded {
        let kept = &self.cells[&cell.get()];
        Loaded {
            view: self.values_at(kept.program.view),
            program: kept.program.clone(),
            steps: kept.steps.clone(),
            wall: Duration::ZERO,
        }
    }
}

/// A cell in its worker.
struct Runs {
    turns: VecDeque<Turn>,
    is_live: bool,
    has_begun: bool,
    made: u32,
    let_in: BTreeSet<u32>,
    mailbox: VecDeque<u32>,
    /// Items that the host has.
    known_items: u64,
    items: Vec<ContentItem>,
    put_out: usize,
    observation: Option<u64>,
}

/// A worker with its cells.
struct Worker {
    name: u64,
    number: u64,
    cells: BTreeMap<u64, Runs>,
}

struct World {
    core: Core<Model>,
    disk: Disk,
    now: Instant,
    worker: Option<Worker>,
    last_worker: u64,
    answers: Rc<RefCell<Vec<Answer>>>,
    /// On their way to the worker.
    messages: VecDeque<(u64, ToWorker)>,
    to_resume: VecDeque<CellNumber>,
    /// Calls on their way to the delegate: cell, call, and whether it may have run.
    unseen: Vec<(CellId, u32, u32)>,
    /// Calls that the delegate has.
    seen: Vec<(CellId, u32)>,
    /// How often the delegate saw each call.
    invoked: BTreeMap<(u64, u32), u32>,
    /// How often each was unknown.
    unknown: BTreeMap<(u64, u32), u32>,
    /// Calls whose answers are on disk.
    answered: BTreeSet<(u64, u32)>,
    /// Items that the disk knew as taken when the process died.
    taken: BTreeMap<u64, u64>,
    /// What callers have of each cell.
    items: BTreeMap<u64, Vec<String>>,
    ends: BTreeMap<u64, CellOutcome>,
    admitted: BTreeSet<u64>,
    has_crashed: bool,
}

fn core() -> Core<Model> {
    let settings = Settings {
        stop_grace: Duration::from_secs(3600),
        callback_grace: Duration::from_millis(50),
        collect_grace: Duration::from_secs(10),
        idle: Duration::from_secs(30),
    };
    let limits = Limits::default().max_wall_time(None);
    let core = Core::new(limits, settings, CancellationToken::new());
    core.durable(&JournalOptions::default())
}

impl World {
    fn new() -> Self {
        Self {
            core: core(),
            disk: Disk::default(),
            now: Instant::now(),
            worker: None,
            last_worker: 0,
            answers: Rc::default(),
            messages: VecDeque::new(),
            to_resume: VecDeque::new(),
            unseen: Vec::new(),
            seen: Vec::new(),
            invoked: BTreeMap::new(),
            unknown: BTreeMap::new(),
            answered: BTreeSet::new(),
            taken: BTreeMap::new(),
            items: BTreeMap::new(),
            ends: BTreeMap::new(),
            admitted: BTreeSet::new(),
            has_crashed: false,
        }
    }

    fn chosen<T>(list: &[T], choice: u8) -> Option<usize> {
        (!list.is_empty()).then(|| usize::from(choice) % list.len())
    }

    fn cell(&self, choice: u8) -> Option<u64> {
        let all: Vec<u64> = self.admitted.iter().copied().collect();
        Self::chosen(&all, choice).map(|at| all[at])
    }

    fn attach(&mut self) {
        self.last_worker += 1;
        let name = self.last_worker;
        let attached = self.core.attach(name, self.now);
        let number = attached.expect("a worker is wanted").number;
        self.worker = Some(Worker {
            name,
            number,
            cells: BTreeMap::new(),
        });
        self.run_effects();
    }

    fn happens(&mut self, event: Happens) {
        self.now += Duration::from_millis(1);
        match event {
            Happens::Execute => self.execute(),
            Happens::Observe { cell } => {
                if let Some(cell) = self.cell(cell) {
                    self.observe(cell);
                }
            }
            Happens::Look => self.look(),
            Happens::Works { cell } => {
                if let Some(cell) = self.cell(cell) {
                    self.works(cell);
                }
            }
            Happens::Idles { cell } => {
                if let Some(cell) = self.cell(cell) {
                    self.idles(cell);
                }
            }
            Happens::Sees { which } => self.sees(which),
            Happens::Answers { which, then_dies } => self.answers(which, then_dies),
            Happens::Resumes => self.resumes(),
            Happens::Reads { count } => self.reads(usize::from(count)),
            Happens::WorkerDies => {
                // Not three times a minute, which ends a cell.
                self.now += Duration::from_secs(61);
                if let Some(worker) = self.worker.take() {
                    let why = Some("it died".to_owned());
                    self.core.worker_lost(worker.number, why, self.now);
                }
            }
            Happens::Dies { writes } => self.dies(usize::from(writes) % 8),
            Happens::ShutsDown => {
                self.look();
                self.core.shut_down(self.now);
                self.run_effects();
                self.core.confirm_all();
                self.disk.queue.append(&mut self.core.take_records());
                self.disk.flush();
                self.dies(0);
            }
            Happens::Time { ms } => {
                self.now += Duration::from_millis(ms);
                self.core.tick(self.now);
            }
        }
        self.run_effects();
    }

    fn execute(&mut self) {
        if self.admitted.len() >= MAX_CELLS {
            return;
        }
        let request = ExecuteRequest::new("call", "source")
            .yield_time(Duration::from_millis(20))
            .tools(ToolSet::from([ToolDefinition::function("tool", "")]))
            .determinism(code_mode_protocol::Determinism {
                seed: 1,
                start_ms: 0.0,
                turns: None,
            });
        let mut execute = Execute {
            request,
            to_pending: false,
            reply: Asker(self.answers.clone()),
            exec: Exec::of_another_process(),
        };
        loop {
            match self.core.execute(execute, self.now) {
                Ok(admitted) => {
                    self.run_effects();
                    // The caller has the id once the admission is on disk.
                    self.disk.flush();
                    let cell = admitted.cell_id.number().expect("a number");
                    assert!(self.admitted.insert(cell), "a name twice");
                    return;
                }
                Err(NotAdmitted::NeedsWorker(again)) => {
                    execute = *again;
                    self.attach();
                }
                Err(NotAdmitted::Refused(error)) => panic!("{error}"),
            }
        }
    }

    fn observe(&mut self, cell: u64) {
        // At once, or when the time is over.
        let ms = 5 * (self.last_worker + cell) % 2;
        let how = (Some(Duration::from_millis(ms)), false);
        let reply = Asker(self.answers.clone());
        self.core.observe(&CellId::nth(cell), how, reply, self.now);
    }

    /// Callers look at their answers, all that led to which is on disk.
    fn look(&mut self) {
        let answers: Vec<Answer> = self.answers.borrow_mut().drain(..).collect();
        for answer in answers {
            self.disk.flush();
            let Ok(response) = answer else {
                continue;
            };
            if response.is_missing() {
                continue;
            }
            let cell = response.cell_id().clone();
            let (items, is_final) = (response.content_items(), response.is_final());
            let number = cell.number().expect("a number");
            let texts = items.iter().filter_map(truncate::text_of);
            let got = self.items.entry(number).or_default();
            for text in texts {
                let item: u64 = text.parse().expect("a number");
                let taken = self.taken.get(&number).copied().unwrap_or(0);
                assert!(item > taken, "item {item} of {number} was taken before");
                got.push(text.to_owned());
            }
            self.core.handed_over(&cell, items.len(), is_final);
            if let CellResponse::Result { outcome, .. } = response {
                self.ends.insert(number, outcome);
            }
        }
        self.run_effects();
    }

    fn says(&mut self, message: FromWorker) {
        let Some(number) = self.worker.as_ref().map(|worker| worker.number) else {
            return;
        };
        let received = self.core.received(number, message, self.now);
        received.expect("an honest worker");
        self.run_effects();
    }

    fn runs(&mut self, cell: u64) -> Option<&mut Runs> {
        self.worker.as_mut()?.cells.get_mut(&cell)
    }

    /// A cell does the next thing that it can.
    fn works(&mut self, cell: u64) {
        let Some(runs) = self.runs(cell) else {
            return;
        };
        if !runs.has_begun {
            runs.has_begun = true;
            let goes_live = !runs.is_live && runs.turns.is_empty();
            if goes_live {
                runs.is_live = true;
                self.says(FromWorker::Live { cell });
            }
            return self.next_group(cell);
        }
        if runs.is_live {
            let Some(call) = runs.mailbox.pop_front() else {
                return;
            };
            let cause = TurnCause::Answer(RuntimeToolCallId(call));
            let turn = Turn { at_ms: 1.0, cause };
            self.says(FromWorker::Turn { cell, turn });
            return self.let_in(cell, call);
        }
        let Some(TurnCause::Answer(call)) = runs.turns.front().map(|turn| turn.cause) else {
            return;
        };
        let Some(at) = runs.mailbox.iter().position(|known| *known == call.0) else {
            return;
        };
        runs.mailbox.remove(at);
        runs.turns.pop_front();
        if runs.turns.is_empty() {
            runs.is_live = true;
            self.says(FromWorker::Live { cell });
        }
        self.let_in(cell, call.0);
    }

    fn let_in(&mut self, cell: u64, call: u32) {
        let Some(runs) = self.runs(cell) else {
            return;
        };
        assert!(runs.let_in.insert(call), "an answer twice");
        if runs.let_in.len() as u32 == runs.made {
            self.next_group(cell);
        }
    }

    fn next_group(&mut self, cell: u64) {
        let Some(runs) = self.runs(cell) else {
            return;
        };
        let mut before = 0;
        let group = GROUPS.iter().find(|size| {
            before += **size;
            before > runs.made
        });
        runs.put_out += 1;
        let item = ContentItem::text(runs.put_out.to_string());
        match runs.known_items.checked_sub(1) {
            Some(left) => runs.known_items = left,
            None => runs.items.push(item),
        }
        let Some(group) = group else {
            let items = std::mem::take(&mut runs.items);
            let (end, used) = (CellEnd::Completed, Used::default());
            let write = (cell.to_string(), JsonText::Unchecked("1".to_owned()));
            let writes = vec![write].into();
            self.says(FromWorker::Stored { cell, writes });
            let items = items.into();
            self.says(FromWorker::Ended {
                cell,
                items,
                end,
                used,
            });
            if let Some(worker) = &mut self.worker {
                worker.cells.remove(&cell);
            }
            return;
        };
        for _ in 0..*group {
            let Some(runs) = self.runs(cell) else {
                return;
            };
            runs.made += 1;
            let call = RuntimeToolCallId(runs.made);
            self.says(FromWorker::ToolCall {
                cell,
                call,
                tool: 0,
                input: Some(JsonText::Unchecked(call.0.to_string())),
                site: None,
            });
        }
    }

    fn idles(&mut self, cell: u64) {
        let is_idle = |runs: &&mut Runs| runs.has_begun && runs.is_live && runs.mailbox.is_empty();
        if self.runs(cell).as_ref().is_some_and(is_idle) {
            let wakes_in = None;
            self.says(FromWorker::Idle { cell, wakes_in });
        }
    }

    /// The delegate sees a call, whose intent is on disk.
    fn sees(&mut self, which: u8) {
        let Some(at) = Self::chosen(&self.unseen, which) else {
            return;
        };
        let (id, call, unknown_after) = self.unseen.swap_remove(at);
        self.disk.flush();
        let cell = id.number().expect("a number");
        if unknown_after > 0 {
            let now = self.now;
            let place = RuntimeToolCallId(call);
            self.core.call_repeated(&id, place, unknown_after + 1, now);
            self.run_effects();
            self.disk.flush();
        }
        let is_answered = self.answered.contains(&(cell, call));
        assert!(!is_answered, "an answered call is made again");
        let count = self.invoked.entry((cell, call)).or_default();
        *count += 1;
        let unknown = self.unknown.get(&(cell, call)).copied().unwrap_or(0);
        assert!(*count <= 1 + unknown, "{cell}/{call} ran {count} times");
        self.seen.push((id, call));
    }

    fn answers(&mut self, which: u8, then_dies: bool) {
        let Some(at) = Self::chosen(&self.seen, which) else {
            return;
        };
        let (id, call) = self.seen.swap_remove(at);
        let place = RuntimeToolCallId(call);
        let result: Result<Json, ToolError> = Ok(Json::null());
        let may = self
            .core
            .call_answered(&id, place, (&result, false), self.now);
        self.run_effects();
        if then_dies {
            return self.dies(usize::from(which));
        }
        assert!(may);
        self.disk.flush();
        self.answered.insert((id.number().expect("a number"), call));
        self.core
            .call_finished(&id, place, (result, false), self.now);
    }

    fn resumes(&mut self) {
        let Some(number) = self.to_resume.pop_front() else {
            return;
        };
        self.disk.flush();
        let mut loaded = Box::new(self.disk.loaded(number));
        loop {
            match self.core.resumed(number, loaded, self.now) {
                Ok(()) => return,
                Err(again) => {
                    loaded = again;
                    self.attach();
                }
            }
        }
    }

    /// The process dies, with so many records written of those that nobody has waited for; the next one
    /// opens the session.
    fn dies(&mut self, writes: usize) {
        self.has_crashed = true;
        self.disk.write(writes);
        self.disk.queue.clear();
        let taken = (self.disk.cells.iter()).map(|(cell, kept)| (*cell, kept.taken));
        self.taken = taken.collect();
        self.answers = Rc::default();
        self.worker = None;
        self.to_resume.clear();
        self.unseen.clear();
        self.seen.clear();
        self.core = core();
        let mut restored = self.disk.restored();
        self.core.restore_values(&mut restored);
        self.core.restore(restored, self.now);
        self.run_effects();
    }

    fn run_effects(&mut self) {
        loop {
            self.disk.queue.append(&mut self.core.take_records());
            let Some(effect) = self.core.next_effect() else {
                return;
            };
            match effect {
                Effect::Send(way, message) => self.messages.push_back((way, message)),
                Effect::Kill(way) | Effect::Retire(way) => {
                    let is_it = |worker: &&mut Worker| worker.name == way;
                    if self.worker.as_mut().filter(is_it).is_some() {
                        self.worker = None;
                    }
                }
                Effect::Invoke(invocation) => {
                    let call = invocation.call;
                    let cell = call.cell_id.number().expect("a number");
                    let place = call.runtime_tool_call_id.0;
                    let unknown_after = invocation.unknown_after;
                    if unknown_after > 0 {
                        *self.unknown.entry((cell, place)).or_default() += 1;
                    }
                    self.unseen.push((call.cell_id, place, unknown_after));
                }
                Effect::Resume(number) => self.to_resume.push_back(number),
                Effect::Notify(..) => panic!("no cell notifies"),
                Effect::Cancel(_)
                | Effect::Started(..)
                | Effect::Turn(..)
                | Effect::Ended(_)
                | Effect::Close(_) => {}
            }
        }
    }

    /// The worker reads messages.
    fn reads(&mut self, count: usize) {
        for _ in 0..count {
            let Some((way, message)) = self.messages.pop_front() else {
                return;
            };
            self.reads_one(way, message);
            self.run_effects();
        }
    }

    fn reads_one(&mut self, way: u64, message: ToWorker) {
        let Some(worker) = self.worker.as_mut().filter(|worker| worker.name == way) else {
            return;
        };
        let (number, now) = (worker.number, self.now);
        match message {
            ToWorker::Execute {
                cell,
                determinism,
                resumed,
                ..
            } => {
                let turns = determinism.and_then(|it| it.turns);
                let runs = Runs {
                    is_live: turns.is_none(),
                    turns: turns.unwrap_or_default().into(),
                    has_begun: false,
                    made: 0,
                    let_in: BTreeSet::new(),
                    mailbox: VecDeque::new(),
                    known_items: resumed.map_or(0, |resumed| resumed.items),
                    items: Vec::new(),
                    put_out: 0,
                    observation: Some(1),
                };
                assert!(worker.cells.insert(cell, runs).is_none(), "it runs twice");
            }
            ToWorker::ToolResult { cell, call, .. } => {
                if let Some(runs) = worker.cells.get_mut(&cell) {
                    runs.mailbox.push_back(call.0);
                }
            }
            ToWorker::Observe {
                cell, observation, ..
            } => {
                if let Some(runs) = worker.cells.get_mut(&cell) {
                    runs.observation = Some(observation);
                }
            }
            ToWorker::Collect {
                cell, observation, ..
            } => {
                let Some(runs) = worker.cells.get_mut(&cell) else {
                    return;
                };
                if runs
                    .observation
                    .take_if(|known| *known == observation)
                    .is_some()
                {
                    let items = std::mem::take(&mut runs.items).into();
                    let observed = FromWorker::Observed {
                        cell,
                        observation,
                        items,
                        frozen: None,
                    };
                    self.core.received(number, observed, now).expect("honest");
                }
            }
            ToWorker::Terminate { cell } => {
                if let Some(runs) = worker.cells.remove(&cell) {
                    let ended = FromWorker::Ended {
                        cell,
                        items: runs.items.into(),
                        end: CellEnd::Terminated,
                        used: Used::default(),
                    };
                    self.core.received(number, ended, now).expect("honest");
                }
            }
            _ => {}
        }
    }

    /// Everything ends, and nothing was lost or happened twice.
    fn end(mut self) {
        for _ in 0..400 {
            self.happens(Happens::Resumes);
            self.happens(Happens::Sees { which: 0 });
            self.happens(Happens::Answers {
                which: 0,
                then_dies: false,
            });
            for cell in self.admitted.clone() {
                self.reads(usize::MAX);
                self.works(cell);
                self.run_effects();
                if !self.ends.contains_key(&cell) {
                    self.observe(cell);
                }
                self.run_effects();
            }
            self.happens(Happens::Time { ms: 30 });
            self.look();
        }
        assert_eq!(self.core.live_cells(), [], "a cell does not end");
        for cell in &self.admitted {
            assert_eq!(self.ends.get(cell), Some(&CellOutcome::Completed), "{cell}");
            let got = self.items.get(cell).cloned().unwrap_or_default();
            let mut next = 1;
            for item in &got {
                let item: usize = item.parse().expect("a number");
                assert!(item <= next, "an item of {cell} is lost: {got:?}");
                assert!(
                    item == next || self.has_crashed,
                    "an item of {cell} twice: {got:?}"
                );
                next = next.max(item + 1);
            }
            assert_eq!(next, ITEMS + 1, "items of {cell} are lost: {got:?}");
            for call in 1..=CALLS {
                let count = self.invoked.get(&(*cell, call));
                assert!(count.is_some(), "the call {call} of {cell} was never made");
            }
            let key = cell.to_string();
            let stored = self.core.stored_values();
            assert!(
                stored.iter().any(|(known, _)| *known == key),
                "{key} is lost"
            );
        }
    }
}

proptest! {
    #[test]
    fn whatever_dies_every_cell_ends_as_if_nothing_had(
        events in prop::collection::vec(happens(), 0..400)
    ) {
        let mut world = World::new();
        for event in events {
            world.happens(event);
        }
        world.end();
    }
}
