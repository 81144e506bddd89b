//! Random sequences of events, lies and deaths, against the invariants of the core.
//!
//! A short run with every change; `PROPTEST_CASES=100000 cargo test --release -p
//! code-mode-host model` for a long one. The fuzz target `session` drives the same
//! model by coverage.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use code_mode_protocol::wire::native::{CellEnd, FromWorker, JsonText, ToWorker, Used};
use code_mode_protocol::{
    CellId, CellResponse, ContentItem, ExecuteRequest, Json, Limit, Limits, RuntimeToolCallId,
    SessionError, ToolDefinition, ToolError, ToolSet,
};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::core::{Answer, Attached, Core, Effect, Execute, NotAdmitted, Ports, Reply, Settings};
use super::held::Held;
use super::messages::Received;
use super::number::CellNumber;
use super::spans::Exec;

const LIVE_CELLS: usize = 6;
const PENDING_CALLS: usize = 4;
const ENDED_CELLS: usize = 3;

/// The ends of a core in this test.
struct Model;

impl Ports for Model {
    /// The number that this test gave the worker.
    type Worker = u64;
    type Reply = Asker;
}

/// Who asked for something.
struct Asker {
    number: usize,
    asked: Rc<RefCell<Vec<Asked>>>,
}

#[derive(Debug)]
struct Asked {
    cell: Option<CellId>,
    observer: Option<u64>,
    is_waiting: bool,
    answers: Vec<Answer>,
}

impl Reply for Asker {
    fn answer(self, answer: Answer) -> Result<(), Answer> {
        let mut asked = self.asked.borrow_mut();
        let asked = &mut asked[self.number];
        if asked.is_waiting {
            asked.answers.push(answer);
            Ok(())
        } else {
            Err(answer)
        }
    }
}

/// One thing that happens. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Happens {
    Execute {
        yield_ms: u64,
        to_pending: bool,
    },
    Observe {
        cell: u8,
        yield_ms: u64,
        to_pending: bool,
    },
    YieldNow {
        asked: u8,
    },
    Leaves {
        asked: u8,
    },
    DropsAnswer {
        asked: u8,
    },
    Terminate {
        cell: u8,
        with_reply: bool,
    },
    Says {
        worker: u8,
        cell: u8,
        what: Says,
    },
    CallFinishes {
        which: u8,
        fails: bool,
    },
    IsNotified {
        which: u8,
    },
    WorkerDies {
        is_gone_already: bool,
    },
    Time {
        ms: u64,
    },
    ShutsDown,
}

/// What a worker says of a cell.
#[derive(Clone, Debug)]
enum Says {
    Calls {
        skip: u32,
        tool: u32,
        input: Option<String>,
    },
    Notifies(String),
    Output(usize),
    Observed {
        later: u64,
        frozen: bool,
    },
    Stores(String),
    Ends(u8),
    Stuck,
    ShutDown,
}

fn says() -> impl Strategy<Value = Says> {
    prop_oneof![
        4 => (0u32..12, 0u32..3, prop::option::of(prop_oneof![Just("1"), Just("{"), Just("\"xxxxxxxxxx\"")]))
            .prop_map(|(skip, tool, input)| Says::Calls {
                skip: u32::from(skip > 10),
                tool,
                input: input.map(str::to_owned),
            }),
        3 => "[a-z]{0,9}".prop_map(Says::Notifies),
        2 => (0usize..50).prop_map(Says::Output),
        4 => (0u64..12, any::<bool>()).prop_map(|(later, frozen)| Says::Observed {
            later: later.saturating_sub(10),
            frozen,
        }),
        1 => "[a-z]{0,9}".prop_map(Says::Stores),
        4 => (0u8..6).prop_map(Says::Ends),
        1 => Just(Says::Stuck),
        1 => Just(Says::ShutDown),
    ]
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => (prop_oneof![Just(0u64), 1u64..200], any::<bool>())
            .prop_map(|(yield_ms, to_pending)| Happens::Execute { yield_ms, to_pending }),
        4 => (any::<u8>(), prop_oneof![Just(0u64), 1u64..200], any::<bool>())
            .prop_map(|(cell, yield_ms, to_pending)| Happens::Observe { cell, yield_ms, to_pending }),
        1 => any::<u8>().prop_map(|asked| Happens::YieldNow { asked }),
        2 => any::<u8>().prop_map(|asked| Happens::Leaves { asked }),
        1 => any::<u8>().prop_map(|asked| Happens::DropsAnswer { asked }),
        2 => (any::<u8>(), any::<bool>())
            .prop_map(|(cell, with_reply)| Happens::Terminate { cell, with_reply }),
        14 => (any::<u8>(), any::<u8>(), says())
            .prop_map(|(worker, cell, what)| Happens::Says { worker, cell, what }),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(which, fails)| Happens::CallFinishes { which, fails }),
        4 => any::<u8>().prop_map(|which| Happens::IsNotified { which }),
        2 => any::<bool>().prop_map(|is_gone_already| Happens::WorkerDies { is_gone_already }),
        3 => (0u64..400).prop_map(|ms| Happens::Time { ms }),
        1 => (0u8..20).prop_map(|n| if n == 0 { Happens::ShutsDown } else { Happens::Time { ms: 1 } }),
    ]
}

/// A core, and the expectations of it from outside.
struct World {
    core: Core<Model>,
    now: Instant,
    asked: Rc<RefCell<Vec<Asked>>>,
    /// The worker that this test has attached, by its name and the core's number.
    worker: Option<(u64, u64)>,
    last_worker: u64,
    admitted: BTreeSet<CellId>,
    closed: BTreeSet<CellId>,
    started: BTreeSet<CellId>,
    ended: BTreeSet<CellId>,
    /// Cells with a request to terminate, or with a reported end.
    silent: BTreeSet<CellId>,
    calls: Vec<(CellId, RuntimeToolCallId, CancellationToken)>,
    notifications: Vec<(CellId, CancellationToken)>,
    next_call: BTreeMap<u64, u32>,
    observation: BTreeMap<u64, u64>,
    shut_down: bool,
}

impl World {
    fn new() -> Self {
        let limits = Limits::default()
            .max_live_cells(LIVE_CELLS)
            .max_pending_tool_calls(PENDING_CALLS)
            .max_ended_cells(ENDED_CELLS)
            .max_output_bytes(2000)
            .max_stored_bytes(4 * Limits::STORED_VALUE_OVERHEAD)
            .max_wall_time(Some(Duration::from_secs(2)));
        let settings = Settings {
            stop_grace: Duration::from_millis(100),
            callback_grace: Duration::from_millis(50),
            collect_grace: Duration::from_millis(100),
            idle: Duration::from_millis(300),
        };
        Self {
            core: Core::new(limits, settings, CancellationToken::new()),
            now: Instant::now(),
            asked: Rc::default(),
            worker: None,
            last_worker: 0,
            admitted: BTreeSet::new(),
            closed: BTreeSet::new(),
            started: BTreeSet::new(),
            ended: BTreeSet::new(),
            silent: BTreeSet::new(),
            calls: Vec::new(),
            notifications: Vec::new(),
            next_call: BTreeMap::new(),
            observation: BTreeMap::new(),
            shut_down: false,
        }
    }

    fn ask(&self, cell: Option<CellId>) -> (usize, Asker) {
        let mut asked = self.asked.borrow_mut();
        asked.push(Asked {
            cell,
            observer: None,
            is_waiting: true,
            answers: Vec::new(),
        });
        let number = asked.len() - 1;
        let asker = Asker {
            number,
            asked: self.asked.clone(),
        };
        (number, asker)
    }

    fn cell(&self, choice: u8) -> CellId {
        // One more than there are: some requests are about no cell.
        CellId::nth(1 + u64::from(choice) % (self.admitted.len() as u64 + 1))
    }

    fn chosen<T>(list: &[T], choice: u8) -> Option<usize> {
        (!list.is_empty()).then(|| usize::from(choice) % list.len())
    }

    fn attach(&mut self) {
        self.last_worker += 1;
        let name = self.last_worker;
        if let Some(Attached { number, .. }) = self.core.attach(name, self.now) {
            self.worker = Some((name, number));
        }
        self.run_effects();
    }

    fn happens(&mut self, event: Happens) {
        match event {
            Happens::Execute {
                yield_ms,
                to_pending,
            } => self.execute(yield_ms, to_pending),
            Happens::Observe {
                cell,
                yield_ms,
                to_pending,
            } => {
                let cell = self.cell(cell);
                let (number, asker) = self.ask(Some(cell.clone()));
                let how = (Some(Duration::from_millis(yield_ms)), to_pending);
                let observer = self.core.observe(&cell, how, asker, self.now);
                self.asked.borrow_mut()[number].observer = observer;
            }
            Happens::YieldNow { asked } => {
                if let Some((cell, observer)) = self.observer(asked) {
                    self.core.yield_now(&cell, observer, self.now);
                }
            }
            Happens::Leaves { asked } => self.leaves(asked),
            Happens::DropsAnswer { asked } => self.drops_answer(asked),
            Happens::Terminate { cell, with_reply } => {
                let cell = self.cell(cell);
                let reply = with_reply.then(|| self.ask(Some(cell.clone())).1);
                if self.admitted.contains(&cell) {
                    self.silent.insert(cell.clone());
                }
                self.core.terminate(&cell, reply, self.now);
            }
            Happens::Says { worker, cell, what } => self.says(worker, cell, what),
            Happens::CallFinishes { which, fails } => {
                if let Some(place) = Self::chosen(&self.calls, which) {
                    let (cell, call, _) = self.calls.swap_remove(place);
                    let result = match fails {
                        true => Err(ToolError::new("no")),
                        false => Ok(Json::null()),
                    };
                    let has_failed = result.is_err();
                    self.core
                        .call_finished(&cell, call, (result, has_failed), self.now);
                }
            }
            Happens::IsNotified { which } => {
                if let Some(place) = Self::chosen(&self.notifications, which) {
                    let (cell, _) = self.notifications.swap_remove(place);
                    self.core.notified(&cell, self.now);
                }
            }
            Happens::WorkerDies {
                is_gone_already: true,
            } => {
                // The end of an earlier worker is noticed late.
                let earlier = self.worker.map_or(0, |(_, number)| number - 1);
                let before = self.core.live_cells();
                let why = Some("it died".to_owned());
                self.core.worker_lost(earlier, why, self.now);
                assert_eq!(before, self.core.live_cells(), "a dead worker ended a cell");
            }
            Happens::WorkerDies {
                is_gone_already: false,
            } => {
                if let Some((_, number)) = self.worker.take() {
                    let why = Some("it died".to_owned());
                    self.core.worker_lost(number, why, self.now);
                }
            }
            Happens::Time { ms } => {
                self.now += Duration::from_millis(ms);
                self.core.tick(self.now);
            }
            Happens::ShutsDown => {
                self.shut_down = true;
                self.silent.extend(self.admitted.iter().cloned());
                self.core.shut_down(self.now);
            }
        }
        self.run_effects();
        self.check();
    }

    fn execute(&mut self, yield_ms: u64, to_pending: bool) {
        let (number, asker) = self.ask(None);
        let tools = ["echo", "never"].map(|name| ToolDefinition::function(name, ""));
        let request = ExecuteRequest::new("call", "source")
            .yield_time(Duration::from_millis(yield_ms))
            .tools(ToolSet::from(tools));
        let mut execute = Execute {
            request,
            to_pending,
            reply: asker,
            exec: Exec::of_another_process(),
        };
        loop {
            match self.core.execute(execute, self.now) {
                Ok(admitted) => {
                    assert!(!self.shut_down, "a cell was admitted after shutdown");
                    let cell = admitted.cell_id.number().expect("a number");
                    assert!(
                        self.admitted.insert(admitted.cell_id.clone()),
                        "a name twice"
                    );
                    self.next_call.insert(cell, 1);
                    self.observation.insert(cell, 1);
                    let mut asked = self.asked.borrow_mut();
                    asked[number].cell = Some(admitted.cell_id);
                    asked[number].observer = Some(admitted.observer);
                    return;
                }
                Err(NotAdmitted::Refused(error)) => {
                    let mut asked = self.asked.borrow_mut();
                    asked[number].answers.push(Err(error));
                    return;
                }
                Err(NotAdmitted::NeedsWorker(again)) => {
                    execute = *again;
                    self.attach();
                }
            }
        }
    }

    fn observer(&self, choice: u8) -> Option<(CellId, u64)> {
        let asked = self.asked.borrow();
        let asked = &asked[Self::chosen(&asked, choice)?];
        Some((asked.cell.clone()?, asked.observer?))
    }

    fn leaves(&mut self, choice: u8) {
        let left = {
            let mut asked = self.asked.borrow_mut();
            let Some(place) = Self::chosen(&asked, choice) else {
                return;
            };
            let asked = &mut asked[place];
            if !asked.is_waiting || !asked.answers.is_empty() {
                return;
            }
            asked.is_waiting = false;
            asked.cell.clone().zip(asked.observer)
        };
        if let Some((cell, observer)) = left {
            self.core.observer_gone(&cell, observer);
        }
    }

    /// An asker has its answer and goes away without looking at it.
    fn drops_answer(&mut self, choice: u8) {
        let dropped = {
            let mut asked = self.asked.borrow_mut();
            let Some(place) = Self::chosen(&asked, choice) else {
                return;
            };
            let asked = &mut asked[place];
            if !std::mem::replace(&mut asked.is_waiting, false) {
                return;
            }
            match asked.answers.first() {
                Some(Ok(outcome)) => outcome.clone(),
                _ => {
                    asked.is_waiting = true;
                    return;
                }
            }
        };
        self.core.unclaimed(dropped, self.now);
    }

    fn says(&mut self, worker: u8, cell: u8, what: Says) {
        // Now and then one that is gone.
        let number = match (self.worker, worker) {
            (Some((_, number)), 10..) => number,
            (Some((_, number)), lie) => number.saturating_sub(1 + u64::from(lie)),
            (None, _) => return,
        };
        let id = self.cell(cell);
        let cell = id.number().expect("a number");
        let items = |count: usize| vec![ContentItem::text("x"); count];
        let message = match what {
            Says::Calls { skip, tool, input } => {
                let next = self.next_call.entry(cell).or_insert(1);
                let call = RuntimeToolCallId(*next + skip);
                *next += 1;
                FromWorker::ToolCall {
                    cell,
                    call,
                    tool,
                    input: input.map(JsonText::Unchecked),
                    site: None,
                }
            }
            Says::Notifies(text) => FromWorker::Notify { cell, text },
            Says::Output(count) => FromWorker::Output {
                cell,
                items: items(count).into(),
            },
            Says::Observed { later, frozen } => FromWorker::Observed {
                cell,
                observation: self.observation.get(&cell).copied().unwrap_or(0) + later,
                items: items(2).into(),
                frozen: frozen.then(|| vec![RuntimeToolCallId(1)].into()),
            },
            Says::Stores(key) => FromWorker::Stored {
                cell,
                writes: vec![(key, JsonText::Unchecked("1".to_owned()))].into(),
            },
            Says::Ends(how) => {
                let end = match how {
                    0 => CellEnd::Completed,
                    1 => CellEnd::Exited { status: 0 },
                    2 => CellEnd::Limit {
                        limit: Limit::Heap.exceeded(1),
                        position: None,
                    },
                    3 => CellEnd::Terminated,
                    _ => CellEnd::Failed {
                        text: "boom".to_owned(),
                        position: None,
                    },
                };
                FromWorker::Ended {
                    cell,
                    items: items(1).into(),
                    end,
                    used: Used::default(),
                }
            }
            Says::Stuck => FromWorker::Stuck {
                cell,
                limit: Limit::CpuTime.exceeded(1),
            },
            Says::ShutDown => FromWorker::ShutDown,
        };
        let ends = matches!(message, FromWorker::Ended { .. } | FromWorker::Stuck { .. });
        let was_current = self.worker.is_some_and(|(_, current)| current == number);
        let before = self.core.live_cells();
        match self.core.received(number, message, self.now) {
            Ok(Received::Message) => {
                if ends && was_current {
                    self.silent.insert(id);
                }
                if !was_current {
                    assert_eq!(
                        before,
                        self.core.live_cells(),
                        "a dead worker changed a cell"
                    );
                }
            }
            Ok(Received::ShutDown) => {
                if was_current {
                    self.worker = None;
                    self.core.worker_lost(number, None, self.now);
                }
            }
            Err(_) => {
                self.worker = None;
                let why = Some("it lied".to_owned());
                self.core.worker_lost(number, why, self.now);
            }
        }
    }

    fn run_effects(&mut self) {
        while let Some(effect) = self.core.next_effect() {
            match effect {
                Effect::Send(worker, message) => {
                    assert_eq!(
                        worker, self.last_worker,
                        "a message for a worker that is gone"
                    );
                    match message {
                        ToWorker::Observe {
                            cell, observation, ..
                        } => {
                            let known = self.observation.insert(cell, observation);
                            assert!(known < Some(observation), "observations count up");
                        }
                        ToWorker::Collect {
                            cell, observation, ..
                        } => {
                            assert_eq!(self.observation.get(&cell), Some(&observation));
                        }
                        _ => {}
                    }
                }
                Effect::Kill(worker) | Effect::Retire(worker) => {
                    assert_eq!(worker, self.last_worker);
                    if !self.shut_down {
                        self.worker = None;
                    }
                }
                Effect::Cancel(token) => token.cancel(),
                Effect::Invoke(invocation) => {
                    assert_eq!(invocation.worker, self.last_worker);
                    let call = invocation.call;
                    self.may_be_called_back(&call.cell_id);
                    let id = call.runtime_tool_call_id;
                    self.calls.push((call.cell_id, id, invocation.cancelled));
                }
                Effect::Notify(notification, token) => {
                    self.may_be_called_back(&notification.cell_id);
                    self.notifications.push((notification.cell_id, token));
                }
                Effect::Started(started, _) => {
                    let is_new = self.started.insert(started.cell_id);
                    assert!(is_new, "a cell started twice");
                }
                Effect::Turn(..) => panic!("no cell requested its turns"),
                Effect::Resume(_) => panic!("the session is not durable"),
                Effect::Ended(ended) => {
                    let cell = ended.cell_id;
                    assert!(self.started.contains(&cell));
                    assert!(
                        !self.closed.contains(&cell),
                        "{cell} ended after its closing"
                    );
                    assert!(self.ended.insert(cell.clone()), "{cell} ended twice");
                }
                Effect::Close(cell) => {
                    assert!(
                        self.ended.contains(&cell),
                        "{cell} was closed before its end"
                    );
                    assert!(self.admitted.contains(&cell));
                    assert!(self.closed.insert(cell.clone()), "{cell} was closed twice");
                    // Its remaining callbacks were cancelled.
                    for (_, token) in self.callbacks_of(&cell) {
                        assert!(token.is_cancelled(), "a callback of {cell} still runs");
                    }
                }
            }
        }
    }

    fn callbacks_of<'a>(
        &'a self,
        cell: &'a CellId,
    ) -> impl Iterator<Item = (&'a CellId, &'a CancellationToken)> {
        let calls = self.calls.iter().map(|(cell, _, token)| (cell, token));
        let notifications = self.notifications.iter().map(|(cell, token)| (cell, token));
        calls
            .chain(notifications)
            .filter(move |(of, _)| *of == cell)
    }

    fn may_be_called_back(&self, cell: &CellId) {
        assert!(
            !self.closed.contains(cell),
            "{cell} calls after its closing"
        );
        // Notifications that were sent before an end are delivered after it; nothing
        // is after a terminate.
        let ended = self.silent.contains(cell) && !self.core.live_cells().contains(cell);
        let is_settling = self
            .core
            .cells
            .contains_key(&CellNumber::of(cell).expect("a number"));
        assert!(!ended || is_settling, "{cell} calls after its end");
    }

    fn check(&self) {
        assert!(self.core.cells.len() <= LIVE_CELLS);
        let mut held = Held::default();
        for cell in self.core.cells.values() {
            held.add(cell.callbacks.held());
            assert!(cell.callbacks.held().calls <= PENDING_CALLS);
            assert!(
                !self.closed.contains(&cell.id),
                "{} was closed too early",
                cell.id
            );
        }
        assert_eq!(
            held, self.core.held,
            "the books of the session are those of its cells"
        );
        for asked in self.asked.borrow().iter() {
            assert!(asked.answers.len() <= 1, "two answers");
            if let (Some(cell), Some(Ok(outcome))) = (&asked.cell, asked.answers.first()) {
                assert_eq!(outcome.cell_id(), cell, "another cell's answer");
            }
        }
    }

    /// Shuts down, and sees that everything ends although nobody helps.
    fn end(mut self) {
        self.happens(Happens::ShutsDown);
        for _ in 0..20 {
            self.happens(Happens::Time { ms: 100 });
        }
        assert!(self.core.is_shut_down(), "the shutdown does not end");
        assert_eq!(self.closed, self.admitted, "not every cell was closed");
        assert_eq!(self.core.held, Held::default());
        for asked in self.asked.borrow().iter() {
            let answered = asked.answers.len() == 1;
            assert!(answered || !asked.is_waiting, "no answer: {asked:?}");
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_invariants_hold(events in prop::collection::vec(happens(), 0..120)) {
        let mut world = World::new();
        for event in events {
            world.happens(event);
        }
        world.end();
    }
}

/// The final response of an asker.
fn response(world: &World, asked: usize) -> CellResponse {
    match world.asked.borrow()[asked].answers.first() {
        Some(Ok(response)) if !response.is_missing() => response.clone(),
        other => panic!("no response: {other:?}"),
    }
}

#[test]
fn an_observer_that_left_leaves_output_and_end_to_the_next() {
    let mut world = World::new();
    world.happens(Happens::Execute {
        yield_ms: 100,
        to_pending: false,
    });
    world.happens(Happens::Leaves { asked: 0 });
    world.happens(Happens::Says {
        worker: 255,
        cell: 0,
        what: Says::Observed {
            later: 0,
            frozen: false,
        },
    });
    world.happens(Happens::Says {
        worker: 255,
        cell: 0,
        what: Says::Ends(0),
    });
    assert!(
        world.closed.is_empty(),
        "closed before its result was taken"
    );
    world.happens(Happens::Observe {
        cell: 0,
        yield_ms: 100,
        to_pending: false,
    });
    assert_eq!(response(&world, 1).content_items().len(), 3);
    assert_eq!(world.closed.len(), 1);
    world.end();
}

#[test]
fn an_answer_that_was_dropped_unread_is_the_next_observers() {
    let mut world = World::new();
    world.happens(Happens::Execute {
        yield_ms: 100,
        to_pending: false,
    });
    world.happens(Happens::Says {
        worker: 255,
        cell: 0,
        what: Says::Ends(0),
    });
    world.happens(Happens::DropsAnswer { asked: 0 });
    world.happens(Happens::Observe {
        cell: 0,
        yield_ms: 100,
        to_pending: false,
    });
    assert_eq!(response(&world, 1), response(&world, 0));
    assert_eq!(world.closed.len(), 1);
    world.end();
}

#[test]
fn an_answer_that_nobody_waits_for_is_the_next_observers() {
    let mut world = World::new();
    world.happens(Happens::Execute {
        yield_ms: 0,
        to_pending: false,
    });
    world.happens(Happens::Says {
        worker: 255,
        cell: 0,
        what: Says::Ends(0),
    });
    // Whoever terminates the cell has gone by the time of the answer.
    let (asked, asker) = world.ask(Some(CellId::nth(1)));
    world.asked.borrow_mut()[asked].is_waiting = false;
    world
        .core
        .terminate(&CellId::nth(1), Some(asker), world.now);
    world.happens(Happens::Observe {
        cell: 0,
        yield_ms: 100,
        to_pending: false,
    });
    assert!(response(&world, asked + 1).is_final());
    world.end();
}

#[test]
fn a_second_observer_is_refused_and_the_first_goes_on() {
    let mut world = World::new();
    world.happens(Happens::Execute {
        yield_ms: 100,
        to_pending: false,
    });
    world.happens(Happens::Observe {
        cell: 0,
        yield_ms: 100,
        to_pending: false,
    });
    assert!(matches!(
        world.asked.borrow()[1].answers[..],
        [Err(SessionError::ObserverBusy(_))]
    ));
    assert!(world.asked.borrow()[0].answers.is_empty());
    world.end();
}

#[test]
fn a_worker_that_does_not_stop_a_cell_is_killed_and_the_next_is_not() {
    let mut world = World::new();
    world.happens(Happens::Execute {
        yield_ms: 1000,
        to_pending: false,
    });
    world.happens(Happens::Execute {
        yield_ms: 1000,
        to_pending: false,
    });
    world.happens(Happens::Terminate {
        cell: 0,
        with_reply: true,
    });
    world.happens(Happens::Terminate {
        cell: 1,
        with_reply: true,
    });
    world.happens(Happens::Time { ms: 150 });
    assert!(world.worker.is_none(), "not killed");
    for asked in 0..4 {
        assert!(matches!(
            response(&world, asked),
            CellResponse::Terminated { .. }
        ));
    }
    world.happens(Happens::Execute {
        yield_ms: 1000,
        to_pending: false,
    });
    world.happens(Happens::Time { ms: 150 });
    assert!(world.worker.is_some(), "the next worker was killed too");
    world.end();
}

#[test]
fn a_worker_without_cells_is_given_back() {
    let mut world = World::new();
    world.happens(Happens::Execute {
        yield_ms: 100,
        to_pending: false,
    });
    world.happens(Happens::Time { ms: 1 });
    world.happens(Happens::Says {
        worker: 255,
        cell: 0,
        what: Says::Ends(0),
    });
    world.happens(Happens::Time { ms: 290 });
    assert!(world.worker.is_some());
    world.happens(Happens::Time { ms: 20 });
    assert!(world.worker.is_none());
    world.end();
}
