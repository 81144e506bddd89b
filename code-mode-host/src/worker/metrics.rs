//! How many workers there are, and what became of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Figures of a provider's workers, as [`Provider::workers`](crate::Provider::workers)
/// gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Workers that are ready and serve no session.
    pub spare: u64,
    /// Workers that serve a session.
    pub serving: u64,
    /// Workers that were ever ready.
    pub started: u64,
    /// Those of `started` that took the place of one that a session had lost.
    pub restarted: u64,
    /// Workers that ended while they served a session, otherwise than in order.
    pub lost: u64,
}

/// Keeps the figures.
#[derive(Debug, Default)]
pub(crate) struct WorkerMetrics(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    stats: WorkerStats,
    /// By number, with the process of each.
    live: HashMap<u64, Option<u32>>,
}

impl WorkerMetrics {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a ready worker for as long as the returned value lives.
    pub(crate) fn started(self: &Arc<Self>, process: Option<u32>) -> Counted {
        let mut counts = self.counts();
        counts.stats.started += 1;
        let number = counts.stats.started;
        counts.live.insert(number, process);
        drop(counts);
        Counted {
            metrics: self.clone(),
            number,
            serves: false,
        }
    }

    /// The figures now.
    pub(crate) fn stats(&self) -> WorkerStats {
        let counts = self.counts();
        let mut stats = counts.stats;
        stats.spare = counts.live.len() as u64 - stats.serving;
        stats
    }

    /// Processor time that the workers that are there have used.
    pub(crate) fn processor_time(&self) -> Duration {
        let live: Vec<_> = self.counts().live.values().copied().collect();
        live.into_iter().flatten().filter_map(processor_time).sum()
    }

    /// Memory of the workers that are there.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let live: Vec<_> = self.counts().live.values().copied().collect();
        live.into_iter().flatten().filter_map(resident_bytes).sum()
    }
}

/// One worker, counted.
#[derive(Debug)]
pub(crate) struct Counted {
    metrics: Arc<WorkerMetrics>,
    number: u64,
    serves: bool,
}

impl Counted {
    /// It serves a session from now on; `is_restart`: in the place of one that was lost.
    pub(crate) fn serves(&mut self, is_restart: bool) {
        self.serves = true;
        let mut counts = self.metrics.counts();
        counts.stats.serving += 1;
        counts.stats.restarted += u64::from(is_restart);
    }

    /// It ended otherwise than in order.
    pub(crate) fn lost(&self) {
        self.metrics.counts().stats.lost += 1;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.metrics.counts();
        counts.live.remove(&self.number);
        counts.stats.serving -= u64::from(self.serves);
    }
}

#[cfg(target_os = "linux")]
fn resident_bytes(process: u32) -> Option<u64> {
    let figures = std::fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
    let pages: u64 = figures.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(not(target_os = "linux"))]
fn resident_bytes(_: u32) -> Option<u64> {
    None
}

#[cfg(target_os = "linux")]
fn processor_time(process: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // What stands behind the name, which may have spaces.
    let mut fields = stat.rsplit(')').next()?.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    Some(Duration::from_secs_f64(
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
    ))
}

#[cfg(not(target_os = "linux"))]
fn processor_time(_: u32) -> Option<Duration> {
    None
}
