//! `setTimeout` and `clearTimeout`.
//!
//! Timers live in their cell's own loop, as a deadline on its command channel.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use code_mode_protocol::Limit;

use super::{Answer, CellState, Refusal};
use crate::determinism::Source;

/// Timers of one cell that have not run.
#[derive(Default)]
pub(crate) struct Timers {
    last_id: u32,
    order: BinaryHeap<Reverse<Place>>,
    callbacks: HashMap<u32, Callback>,
}

/// A timer's place: by deadline, then by the time that it is due by the cell's own clock, because a cell
/// that was away finds several overdue; then by id, so that equal delays fire in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    deadline: Instant,
    /// The bits of a time that is not negative, which are in its order.
    due: u64,
    id: u32,
}

impl Place {
    fn new(deadline: Instant, due_ms: f64, id: u32) -> Self {
        Self {
            deadline,
            due: due_ms.max(0.0).to_bits(),
            id,
        }
    }
}

struct Callback {
    function: v8::Global<v8::Function>,
    /// Of one that runs again and again.
    every: Option<Duration>,
    /// When it is due by the cell's own clock, in milliseconds; 0 where that is the machine's.
    due_ms: f64,
}

impl Timers {
    /// When the next one is due.
    pub(crate) fn next_deadline(&mut self) -> Option<Instant> {
        while let Some(Reverse(place)) = self.order.peek() {
            if self.callbacks.contains_key(&place.id) {
                return Some(place.deadline);
            }
            self.order.pop();
        }
        None
    }

    /// How many were set and have neither run nor been cleared.
    pub(crate) fn len(&self) -> usize {
        self.callbacks.len()
    }

    /// Takes the timer of this number, whenever it is due, at a time of the cell's clock.
    pub(crate) fn take(&mut self, id: u32, now_ms: f64) -> Option<v8::Global<v8::Function>> {
        let callback = self.callbacks.get_mut(&id)?;
        match callback.every {
            None => Some(self.callbacks.remove(&id)?.function),
            Some(every) => {
                callback.due_ms = now_ms + every.as_secs_f64() * 1000.0;
                Some(callback.function.clone())
            }
        }
    }

    /// Makes the deadlines anew, of a cell whose clock has jumped: `instant_of` says when it is that
    /// time there.
    pub(crate) fn set_clock(&mut self, instant_of: impl Fn(f64) -> Instant) {
        let deadlines = self.callbacks.iter();
        self.order = deadlines
            .map(|(id, callback)| {
                let due_ms = callback.due_ms;
                Reverse(Place::new(instant_of(due_ms), due_ms, *id))
            })
            .collect();
    }

    /// Takes the next one that is due by `now`, with its number.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<(u32, v8::Global<v8::Function>)> {
        if self.next_deadline()? > now {
            return None;
        }
        let Reverse(Place { id, .. }) = self.order.pop()?;
        let Callback {
            function,
            every,
            due_ms,
        } = self.callbacks.get(&id)?;
        match every {
            None => Some((id, self.callbacks.remove(&id)?.function)),
            Some(every) => {
                let again = Place::new(now + *every, *due_ms, id);
                self.order.push(Reverse(again));
                Some((id, function.clone()))
            }
        }
    }

    fn set(&mut self, callback: Callback, deadline: Instant) -> u32 {
        self.last_id += 1;
        let place = Place::new(deadline, callback.due_ms, self.last_id);
        self.callbacks.insert(self.last_id, callback);
        self.order.push(Reverse(place));
        self.last_id
    }

    fn clear(&mut self, id: u32) {
        self.callbacks.remove(&id);
        // Cleared timers stay in the order until they are due; a cell that sets
        // and clears in a loop must not grow it without end.
        if self.order.len() > 2 * self.callbacks.len() + 64 {
            let callbacks = &self.callbacks;
            self.order
                .retain(|Reverse(place)| callbacks.contains_key(&place.id));
        }
    }
}

/// `setTimeout(callback, ms?)`
pub(super) fn set_timeout<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<v8::Local<'s, v8::Value>> {
    set(scope, state, args, "setTimeout", |_| None)
}

/// `setInterval(callback, ms?)`
pub(super) fn set_repeating<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
) -> Answer<v8::Local<'s, v8::Value>> {
    set(scope, state, args, "setInterval", |delay| {
        Some(delay.max(SHORTEST_INTERVAL))
    })
}

/// An interval of nothing would leave its cell no time for anything else.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

fn set<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &CellState,
    args: &v8::FunctionCallbackArguments<'s>,
    name: &str,
    every: impl FnOnce(Duration) -> Option<Duration>,
) -> Answer<v8::Local<'s, v8::Value>> {
    let callback = v8::Local::<v8::Function>::try_from(args.get(0))
        .map_err(|_| Refusal::Error(format!("{name} expects a function callback")))?;
    let delay = super::thrown(args.get(1).number_value(scope))?;
    let max = state.shared.limits.max_pending_timers;
    let mut timers = state.timers.borrow_mut();
    if timers.callbacks.len() >= max {
        return Err(Limit::PendingTimers.exceeded(max as u64).into());
    }
    let delay = duration(delay);
    let source = state.source.as_ref();
    let due_ms = source.map_or(0.0, Source::time) + delay.as_secs_f64() * 1000.0;
    let deadline = source.and_then(|source| source.is_due_at(due_ms));
    let callback = Callback {
        function: v8::Global::new(scope, callback),
        every: every(delay),
        due_ms,
    };
    let id = timers.set(callback, deadline.unwrap_or_else(|| Instant::now() + delay));
    Ok(v8::Integer::new_from_unsigned(scope, id).into())
}

/// `clearTimeout(id?)`
pub(super) fn clear_timeout(state: &CellState, args: &v8::FunctionCallbackArguments) {
    if let Ok(id) = v8::Local::<v8::Number>::try_from(args.get(0))
        && id.value() >= 1.0
        && id.value() <= f64::from(u32::MAX)
    {
        state.timers.borrow_mut().clear(id.value() as u32);
    }
}

/// A delay in milliseconds; an invalid delay counts as 0, and one too long to
/// count is a year.
fn duration(ms: f64) -> Duration {
    const YEAR_MS: f64 = 365.0 * 86_400_000.0;
    if ms > 0.0 {
        Duration::from_secs_f64(ms.min(YEAR_MS) / 1000.0)
    } else {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_delays_are_zero_or_a_year() {
        for ms in [0.0, -0.0, -5.0, f64::NAN, f64::NEG_INFINITY] {
            assert_eq!(duration(ms), Duration::ZERO);
        }
        assert_eq!(duration(1.5), Duration::from_micros(1500));
        assert_eq!(duration(f64::INFINITY), Duration::from_secs(365 * 86_400));
    }
}
