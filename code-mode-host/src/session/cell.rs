//! What a session knows of one cell that has not ended.

use std::time::{Duration, Instant};

use code_mode_protocol::{
    CellId, CellOutcome, CellResponse, CellStats, ContentItem, Json, LimitExceeded,
    RuntimeToolCallId, SourcePosition, ToolSet,
};
use tokio_util::sync::CancellationToken;

use super::core::Reply;
use super::durable::DurableCell;
use super::ended::ITEM_OVERHEAD;
use super::held::Callbacks;
use super::order::CallOrder;

/// One cell.
pub(super) struct Cell<R> {
    pub(super) id: CellId,
    pub(super) tool_call_id: String,
    pub(super) tools: ToolSet,
    /// The worker that runs it.
    pub(super) worker: u64,
    pub(super) phase: Phase,
    /// Parent of its calls' tokens; cancelled when its callbacks are.
    pub(super) token: CancellationToken,
    /// Its callbacks were cancelled: nothing of it reaches the delegate any more.
    pub(super) cancelled: bool,
    pub(super) observer: Option<Observer<R>>,
    /// Requests to terminate it.
    pub(super) terminators: Vec<R>,
    pub(super) observation: WorkerObservation,
    /// After a request to stop: the deadline, and the reason.
    pub(super) stopping: Option<Stopping>,
    /// When it was admitted.
    pub(super) admitted: Instant,
    /// What it has used; what its worker says comes with its end.
    pub(super) stats: CellStats,
    /// Whether its turns are reported.
    pub(super) tells_turns: bool,
    /// Pauses of this cell that are held.
    pub(super) pauses: u32,
    /// Since when its deadlines stand still.
    pub(super) paused_at: Option<Instant>,
    /// When its wall time is over by the host's clock.
    pub(super) wall_by: Option<Instant>,
    pub(super) callbacks: Callbacks,
    pub(super) order: CallOrder,
    /// The place of the last tool call.
    pub(super) last_call: u32,
    /// Output that no observer has had.
    pub(super) output: Vec<ContentItem>,
    pub(super) output_bytes: usize,
    /// Output that the worker has said since it last ended an observation.
    pub(super) said_bytes: usize,
    /// What it stored so far.
    pub(super) writes: Vec<(String, Json)>,
    pub(super) writes_bytes: usize,
    /// What the session took of that at its end.
    pub(super) committed: Vec<(String, Json)>,
    /// Notifications that the delegate has finished.
    pub(super) notified: u64,
    /// In a durable session.
    pub(super) durable: Option<DurableCell>,
}

/// What items count against the limits on output.
pub(super) fn bytes_of(items: &[ContentItem]) -> usize {
    items.iter().map(|item| item.bytes() + ITEM_OVERHEAD).sum()
}

/// How far a cell is.
pub(super) enum Phase {
    /// Its JavaScript runs, or waits for an isolate.
    Running,
    /// Its JavaScript has ended; its callbacks are settled.
    Settling {
        end: Final,
        /// When its end is reported even if callbacks still run. Set once they are
        /// cancelled.
        by: Option<Instant>,
    },
}

/// How a cell's end is reported.
#[derive(Clone, Debug)]
pub(super) struct Final {
    pub(super) end: End,
    pub(super) at: Instant,
}

/// How a cell ended, as a type and in words.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) outcome: CellOutcome,
    pub(super) error: Option<(String, Option<SourcePosition>)>,
}

impl End {
    /// Without an error: completed, exited or terminated.
    pub(super) fn of(outcome: CellOutcome) -> Self {
        Self {
            outcome,
            error: None,
        }
    }

    /// It called `exit`; a status that is not 0 is a failure.
    pub(super) fn exited(status: u8) -> Self {
        match status {
            0 => Self::of(CellOutcome::Exited),
            status => Self {
                outcome: CellOutcome::ExitedWith(status),
                error: Some((format!("the program called exit({status})"), None)),
            },
        }
    }

    /// It threw, or did not compile.
    pub(super) fn script_error(text: String, position: Option<SourcePosition>) -> Self {
        Self {
            outcome: CellOutcome::ScriptError,
            error: Some((text, position)),
        }
    }

    /// A limit was hit.
    pub(super) fn limit(limit: LimitExceeded) -> Self {
        Self {
            error: Some((limit.to_string(), None)),
            outcome: CellOutcome::Limit(limit),
        }
    }

    /// A limit was hit, as the worker says; it may know at which place.
    pub(super) fn limit_at(limit: LimitExceeded, position: Option<SourcePosition>) -> Self {
        let mut end = Self::limit(limit);
        if let (Some(SourcePosition { line, column }), Some((text, at))) =
            (position, &mut end.error)
        {
            text.push_str(&format!("\n    at exec_main.mjs:{line}:{column}"));
            *at = position;
        }
        end
    }

    /// Its process was lost.
    pub(super) fn lost(why: String) -> Self {
        Self {
            error: Some((why.clone(), None)),
            outcome: CellOutcome::Lost(why),
        }
    }

    pub(super) fn is_terminated(&self) -> bool {
        matches!(
            self.outcome,
            CellOutcome::Terminated | CellOutcome::ShutDown
        )
    }
}

/// The observer of the cell's present observation.
pub(super) struct Observer<R> {
    pub(super) number: u64,
    pub(super) reply: R,
    pub(super) to_pending: bool,
    pub(super) yield_time: Duration,
    pub(super) since: Instant,
    pub(super) deadline: Option<Instant>,
    /// The core requested a yield from the worker.
    pub(super) collecting: bool,
}

/// The observation at the worker. Its number counts up, so that an answer to an earlier one
/// can be distinguished.
pub(super) struct WorkerObservation {
    number: u64,
    /// The worker has not ended it.
    armed: bool,
    /// The core requested a yield, and the worker is about to answer.
    collected: bool,
    to_pending: bool,
    /// The last that the worker ended.
    last_ended: u64,
}

/// The worker ended an observation that the host never began, or that had ended before.
#[derive(Debug)]
pub(super) struct UnknownObservation;

impl WorkerObservation {
    /// The observation that comes with an execute.
    pub(super) fn first(to_pending: bool) -> Self {
        Self {
            number: 1,
            armed: true,
            collected: false,
            to_pending,
            last_ended: 0,
        }
    }

    /// Sees to it that an observation for a new observer is at the worker; `Some` with its
    /// number where the worker needs a message. One that is being collected is another
    /// observer's.
    pub(super) fn arm(&mut self, to_pending: bool) -> Option<u64> {
        if self.armed && !self.collected && self.to_pending == to_pending {
            return None;
        }
        *self = Self {
            number: self.number + 1,
            armed: true,
            collected: false,
            to_pending,
            last_ended: self.last_ended,
        };
        Some(self.number)
    }

    /// Requests a yield from the worker; `None` where it has ended the observation.
    pub(super) fn collect(&mut self) -> Option<u64> {
        if !self.armed {
            return None;
        }
        self.collected = true;
        Some(self.number)
    }

    /// The worker says nothing more of the cell.
    pub(super) fn disarm(&mut self) {
        self.armed = false;
    }

    /// The worker ended an observation. Whether it is the present one: an earlier one crossed
    /// the message that put another in its place, and its output comes with that.
    pub(super) fn ended(&mut self, number: u64) -> Result<bool, UnknownObservation> {
        if number > self.number || number <= self.last_ended {
            return Err(UnknownObservation);
        }
        self.last_ended = number;
        let is_present = number == self.number;
        if is_present {
            self.armed = false;
        }
        Ok(is_present)
    }
}

/// A cell has been sent a request to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopping {
    pub(super) by: Instant,
    pub(super) reason: StopReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopReason {
    Terminated,
    /// A limit that the host keeps.
    Limit(LimitExceeded),
    /// It ran again and did something else; its [`DurableCell`] knows what.
    Diverged,
    /// It waits, and needs no worker meanwhile.
    Parked,
}

/// What a new cell is admitted with.
pub(super) struct Admission {
    pub(super) id: CellId,
    pub(super) tool_call_id: String,
    pub(super) tools: ToolSet,
    pub(super) worker: u64,
    pub(super) token: CancellationToken,
    pub(super) to_pending: bool,
    pub(super) tells_turns: bool,
    pub(super) wall_by: Option<Instant>,
    pub(super) durable: Option<DurableCell>,
    pub(super) now: Instant,
}

impl<R> Cell<R> {
    pub(super) fn new(admission: Admission) -> Self {
        Self {
            id: admission.id,
            tool_call_id: admission.tool_call_id,
            tools: admission.tools,
            worker: admission.worker,
            phase: Phase::Running,
            token: admission.token,
            cancelled: false,
            observer: None,
            terminators: Vec::new(),
            observation: WorkerObservation::first(admission.to_pending),
            stopping: None,
            admitted: admission.now,
            stats: CellStats::default(),
            tells_turns: admission.tells_turns,
            pauses: 0,
            paused_at: None,
            wall_by: admission.wall_by,
            callbacks: Callbacks::default(),
            order: CallOrder::default(),
            last_call: 0,
            output: Vec::new(),
            output_bytes: 0,
            said_bytes: 0,
            writes: Vec::new(),
            writes_bytes: 0,
            committed: Vec::new(),
            notified: 0,
            durable: admission.durable,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// Adds output.
    pub(super) fn put_out(&mut self, items: Vec<ContentItem>) {
        self.output_bytes += bytes_of(&items);
        if self.output.is_empty() {
            self.output = items;
        } else {
            self.output.extend(items);
        }
    }

    /// Puts output that an observer did not take in front.
    pub(super) fn put_back(&mut self, items: Vec<ContentItem>) {
        if let Some(durable) = &mut self.durable {
            durable.not_taken(&items);
        }
        let later = self.take_output();
        self.put_out(items);
        self.put_out(later);
    }

    pub(super) fn take_output(&mut self) -> Vec<ContentItem> {
        self.output_bytes = 0;
        std::mem::take(&mut self.output)
    }

    /// Answers that the cell still runs, with the output that no observer has had. Where
    /// nobody takes it, it stays. `frozen` has the calls that a frozen cell waits for.
    pub(super) fn give_output(&mut self, reply: R, frozen: Option<Vec<RuntimeToolCallId>>)
    where
        R: Reply,
    {
        let cell_id = self.id.clone();
        let content_items = self.take_output();
        if let Some(durable) = &mut self.durable {
            durable.given.extend_from_slice(&content_items);
        }
        let outcome = match frozen {
            Some(pending_tool_call_ids) => CellResponse::Pending {
                cell_id,
                content_items,
                pending_tool_call_ids,
            },
            None => CellResponse::Yielded {
                cell_id,
                content_items,
            },
        };
        if let Err(Ok(mut outcome)) = reply.answer(Ok(outcome)) {
            self.put_back(std::mem::take(outcome.content_items_mut()));
        }
    }

    /// The observer's answer about the end, with the remaining output.
    pub(super) fn final_response(&mut self, end: Final, now: Instant) -> CellResponse {
        let cell_id = self.id.clone();
        let content_items = self.take_output();
        let Final { end, at } = end;
        if end.is_terminated() {
            return CellResponse::Terminated {
                cell_id,
                content_items,
            };
        }
        let (error_text, error_position) = end.error.unzip();
        CellResponse::Result {
            cell_id,
            content_items,
            error_text,
            error_position: error_position.flatten(),
            outcome: end.outcome,
            buffered_for: now.saturating_duration_since(at),
        }
    }
}
