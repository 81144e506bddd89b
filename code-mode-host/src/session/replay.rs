//! How a cell of a durable session runs again.
//!
//! A cell that lost its worker, or its process, runs again from its first line. Its worker repeats the
//! recorded turns; the calls that the cell makes meanwhile are compared with the recorded ones and get
//! the recorded answers. From the last recorded turn on the cell is live.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

use code_mode_protocol::wire::native::{Resumed, ToWorker};
use code_mode_protocol::{Determinism, Json, RuntimeToolCallId, ToolError, Turn, TurnCause};

use super::cell::{Cell, End, StopReason, WorkerObservation};
use super::core::{Core, Due, Effect, Ports};
use super::number::CellNumber;
use crate::journal::{Loaded, Step};

/// A cell that runs again, until all that was recorded has happened again.
pub(super) struct Replay {
    intents: VecDeque<Intent>,
    answers: HashMap<RuntimeToolCallId, Result<Json, ToolError>>,
    /// Calls whose answer a recorded turn lets in.
    seen: HashSet<RuntimeToolCallId>,
    /// Its last recorded turn has begun.
    pub(super) is_live: bool,
}

/// A recorded call.
struct Intent {
    call: RuntimeToolCallId,
    tool: u32,
    input: Option<Json>,
    attempt: u32,
}

/// What a call of a cell is.
pub(super) enum Called {
    /// It was never made before.
    New,
    /// It was made before, and needs nothing.
    Before,
    /// It was made before, in so many attempts, and nobody knows what became of it.
    Unknown { attempt: u32 },
}

impl<P: Ports> Core<P> {
    /// A cell without a worker keeps the answer until it has one; `None` where the cell is as any
    /// other.
    pub(super) fn keep_answer_of(
        &mut self,
        number: CellNumber,
        call: RuntimeToolCallId,
        result: Result<Json, ToolError>,
    ) -> Option<Result<Json, ToolError>> {
        let current = self.worker.as_ref().map(|worker| worker.number);
        let Some(cell) = self.cells.get_mut(&number) else {
            return Some(result);
        };
        let is_leaving = cell
            .stopping
            .is_some_and(|it| it.reason == StopReason::Parked);
        let has_worker = current == Some(cell.worker) && !is_leaving;
        let last_call = cell.last_call;
        let Some(durable) = &mut cell.durable else {
            return Some(result);
        };
        if durable.delivered.remove(&call) {
            return None;
        }
        match &mut durable.replay {
            _ if !has_worker => {
                durable.late.insert(call, result);
                self.answer_came(number);
                None
            }
            // The cell has not come to the call again.
            Some(replay) if call.0 > last_call => {
                replay.answers.insert(call, result);
                None
            }
            _ => {
                durable.unseen.insert(call);
                Some(result)
            }
        }
    }

    /// A cell makes a call. One that was made before gets its recorded answer.
    pub(super) fn called(
        &mut self,
        number: CellNumber,
        call: RuntimeToolCallId,
        tool: u32,
        input: Option<&Json>,
        now: Instant,
    ) -> Called {
        let Some(cell) = self.cells.get_mut(&number) else {
            return Called::Before;
        };
        let is_in_flight = cell.callbacks.has_call(call);
        let name = |tool: u32| cell.tools.get(tool as usize).map_or("", |tool| &tool.name);
        let Some(durable) = &mut cell.durable else {
            return Called::New;
        };
        let Some(replay) = &mut durable.replay else {
            let input = input.cloned();
            self.step(number, Step::Intent { call, tool, input }, now);
            return Called::New;
        };
        let text = |input: Option<&Json>| shown(input.map_or("nothing", Json::as_str));
        let is_same = |known: &Intent| {
            let same_input = known.input.as_ref().map(Json::as_str) == input.map(Json::as_str);
            known.call == call && known.tool == tool && same_input
        };
        let difference = match replay.intents.front() {
            Some(known) if is_same(known) => None,
            Some(known) => Some(format!(
                "its log has {} {} with {}, and now it calls {} with {}",
                known.call,
                name(known.tool),
                text(known.input.as_ref()),
                name(tool),
                text(input)
            )),
            None if replay.is_live => {
                durable.replay = None;
                let input = input.cloned();
                self.step(number, Step::Intent { call, tool, input }, now);
                return Called::New;
            }
            None => Some(format!(
                "its log has no call after that, and now it calls {} with {}",
                name(tool),
                text(input)
            )),
        };
        if let Some(difference) = difference {
            self.diverge(number, difference, now);
            return Called::Before;
        }
        let attempt = replay.intents.pop_front().map_or(1, |known| known.attempt);
        let Some(result) = replay.answers.remove(&call) else {
            return match is_in_flight {
                true => Called::Before,
                false => Called::Unknown { attempt },
            };
        };
        if is_in_flight {
            durable.delivered.insert(call);
        }
        if !replay.seen.contains(&call) {
            durable.unseen.insert(call);
        }
        self.send_answer(number, call, result);
        Called::Before
    }

    /// A cell that runs again has begun its last recorded turn.
    pub(super) fn goes_live(&mut self, number: CellNumber) {
        let cell = self.cells.get_mut(&number);
        let durable = cell.and_then(|cell| cell.durable.as_mut());
        if let Some(replay) = durable.and_then(|durable| durable.replay.as_mut()) {
            replay.is_live = true;
        }
    }

    /// A cell begins a turn that was not recorded before.
    pub(super) fn record_turn(&mut self, number: CellNumber, turn: Turn, now: Instant) {
        let cell = self.cells.get_mut(&number);
        let durable = cell.and_then(|cell| cell.durable.as_mut());
        if let (TurnCause::Answer(call), Some(durable)) = (turn.cause, durable) {
            durable.unseen.remove(&call);
        }
        if self.replay_is_over(number, now) {
            self.step(number, Step::Turn(turn), now);
        }
    }

    /// Whether everything recorded has happened again: a cell that left something out ends.
    fn replay_is_over(&mut self, number: CellNumber, now: Instant) -> bool {
        match self.left_out(number) {
            None => {
                let cell = self.cells.get_mut(&number);
                if let Some(durable) = cell.and_then(|cell| cell.durable.as_mut()) {
                    durable.replay = None;
                }
                true
            }
            Some(difference) => {
                self.diverge(number, difference, now);
                false
            }
        }
    }

    /// What a cell that runs again has not done again; `None` where it has done all.
    pub(super) fn left_out(&self, number: CellNumber) -> Option<String> {
        let cell = self.cells.get(&number)?;
        let replay = cell.durable.as_ref()?.replay.as_ref()?;
        if let Some(known) = replay.intents.front() {
            let tool = cell.tools.get(known.tool as usize);
            let name = tool.map_or("", |tool| tool.name.as_str());
            return Some(format!(
                "its log has {} {name}, and now it does not make that call",
                known.call
            ));
        }
        let is_early = !replay.is_live;
        is_early.then(|| "it has ended before the end of its log".to_owned())
    }

    /// A cell that runs again did something else than before.
    pub(super) fn diverge(&mut self, number: CellNumber, difference: String, now: Instant) {
        let durable = self
            .cells
            .get_mut(&number)
            .and_then(|cell| cell.durable.as_mut());
        if let Some(durable) = durable {
            durable.diverged = Some(difference);
            self.stop(number, StopReason::Diverged, now);
        }
    }

    /// The end of a cell that did something else than before.
    pub(super) fn diverged(&self, number: CellNumber, difference: Option<String>) -> End {
        let cell = self.cells.get(&number);
        let known = cell.and_then(|cell| cell.durable.as_ref()?.diverged.clone());
        let difference = difference.or(known).unwrap_or_default();
        End::lost(format!(
            "exec cell {number} cannot continue after a restart, because it ran again and did something else: {difference}"
        ))
    }

    /// Whether a cell that has lost its worker runs again; then its log is loaded.
    pub(super) fn may_resume(&mut self, number: CellNumber, now: Instant) -> bool {
        let Some(cell) = self.cells.get_mut(&number) else {
            return false;
        };
        cell.stopping
            .take_if(|stopping| stopping.reason == StopReason::Parked);
        let may = cell.stopping.is_none() && !cell.cancelled;
        let Some(durable) = cell.durable.as_mut().filter(|_| may) else {
            return false;
        };
        durable.replay = None;
        durable.leaving = None;
        let may = durable.may_lose_another(now);
        if may {
            cell.worker = 0;
            self.push(Effect::Resume(number));
        }
        may
    }

    /// No worker could be had for a cell: whether another may be tried.
    pub(crate) fn may_try_again(&mut self, number: CellNumber, now: Instant) -> bool {
        let cell = self.cells.get_mut(&number);
        let durable = cell.and_then(|cell| cell.durable.as_mut());
        durable.is_some_and(|durable| durable.may_lose_another(now))
    }

    /// Runs a cell again. Gives its log back where the session has no worker.
    pub(crate) fn resumed(
        &mut self,
        number: CellNumber,
        loaded: Box<Loaded>,
        now: Instant,
    ) -> Result<(), Box<Loaded>> {
        let is_waiting = |cell: &&Cell<P::Reply>| cell.is_running() && cell.worker == 0;
        let Some(cell) = self.cells.get(&number).filter(is_waiting) else {
            return Ok(());
        };
        let tools = cell.tools.clone();
        let Some((worker, tools)) = self.tools_at_worker(&tools) else {
            return Err(loaded);
        };
        let Loaded {
            program,
            view,
            steps,
            wall,
        } = *loaded;
        let Some(cell) = self.cells.get_mut(&number) else {
            return Ok(());
        };
        let Some(durable) = &mut cell.durable else {
            return Ok(());
        };
        let is_cut = !durable.thaws;
        let (turns, mut replay) = replay_of(steps);
        replay.answers.extend(std::mem::take(&mut durable.late));
        durable.delivered.clear();
        durable.unseen.clear();
        durable.replay = Some(replay);
        let resumed = Resumed {
            items: durable.received,
            notifications: durable.notifications,
            wall,
            thaws: std::mem::take(&mut durable.thaws),
        };
        let to_pending = durable.to_pending;
        cell.worker = worker;
        cell.last_call = 0;
        cell.said_bytes = 0;
        cell.writes.clear();
        cell.writes_bytes = 0;
        cell.observation = WorkerObservation::first(to_pending);
        let collects = cell.observer.as_ref().is_some_and(|one| one.collecting);
        let is_paused = cell.paused_at.is_some();
        cell.wall_by = self.limits.max_wall_time.and_then(|limit| {
            now.checked_add(limit.saturating_sub(wall))?
                .checked_add(self.settings.collect_grace)
        });
        if let Some(at) = cell.wall_by {
            self.due_at(at, Due::Cell(number));
        }
        for values in super::stored::parts(view) {
            self.send(worker, ToWorker::View { values });
        }
        let constants = program.constants.into_iter();
        let message = ToWorker::Execute {
            cell: number.get(),
            tools,
            source: program.source,
            to_pending,
            constants: constants
                .map(|(name, json)| (name, json.into_string()))
                .collect(),
            determinism: Some(Determinism {
                seed: program.seed,
                start_ms: program.start_ms,
                turns: Some(turns),
            }),
            resumed: Some(resumed),
            idle_after: self.park_after(),
            traceparent: None,
        };
        self.send(worker, message);
        if is_cut {
            self.step(number, Step::Cut { at_ms: 0.0 }, now);
        }
        if is_paused {
            let cell = number.get();
            self.send(worker, ToWorker::Pause { cell, paused: true });
        } else {
            self.stop_clocks(number, now);
        }
        if collects {
            self.end_observation(number, true, now);
        }
        Ok(())
    }
}

/// The turns of a log, and what happens again in them.
fn replay_of(steps: Vec<Step>) -> (Vec<Turn>, Replay) {
    let mut turns = Vec::new();
    let mut replay = Replay {
        intents: VecDeque::new(),
        answers: HashMap::new(),
        seen: HashSet::new(),
        is_live: false,
    };
    for step in steps {
        match step {
            Step::Turn(turn) => {
                if let TurnCause::Answer(call) = turn.cause {
                    replay.seen.insert(call);
                }
                turns.push(turn);
            }
            Step::Intent { call, tool, input } => replay.intents.push_back(Intent {
                call,
                tool,
                input,
                attempt: 1,
            }),
            Step::Attempt { call, attempt } => {
                let known = replay.intents.iter_mut().find(|known| known.call == call);
                if let Some(known) = known {
                    known.attempt = attempt;
                }
            }
            Step::Answer { call, result } => {
                replay.answers.insert(call, result.map_err(Into::into));
            }
            Step::Mode { .. } | Step::Paused { .. } | Step::Cut { .. } => {}
        }
    }
    (turns, replay)
}

/// A text of a difference, at a bearable length.
fn shown(text: &str) -> String {
    const MAX: usize = 200;
    code_mode_protocol::text::line(text, MAX)
}
