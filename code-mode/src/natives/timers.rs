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
    /// By deadline, then by id: equal delays fire in order.
    order: BinaryHeap<Reverse<(Instant, u32)>>,
    callbacks: HashMap<u32, Callback>,
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
        while let Some(Reverse((deadline, id))) = self.order.peek() {
            if self.callbacks.contains_key(id) {
                return Some(*deadline);
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
            .map(|(id, callback)| Reverse((instant_of(callback.due_ms), *id)))
            .collect();
    }

    /// Takes the next one that is due by `now`, with its number.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<(u32, v8::Global<v8::Function>)> {
        if self.next_deadline()? > now {
            return None;
        }
        let Reverse((_, id)) = self.order.pop()?;
        match self.callbacks.get(&id)?.every {
            None => Some((id, self.callbacks.remove(&id)?.function)),
            Some(every) => {
                self.order.push(Reverse((now + every, id)));
                Some((id, self.callbacks.get(&id)?.function.clone()))
            }
        }
    }

    fn set(&mut self, callback: Callback, deadline: Instant) -> u32 {
        self.last_id += 1;
        self.callbacks.insert(self.last_id, callback);
        self.order.push(Reverse((deadline, self.last_id)));
        self.last_id
    }

    fn clear(&mut self, id: u32) {
        self.callbacks.remove(&id);
        // Cleared timers stay in the order until they are due; a cell that sets
        // and clears in a loop must not grow it without end.
        if self.order.len() > 2 * self.callbacks.len() + 64 {
            let callbacks = &self.callbacks;
            self.order
                .retain(|Reverse((_, id))| callbacks.contains_key(id));
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
