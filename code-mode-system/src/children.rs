//! Everything that runs below this program, found by its place in the tree of processes.
//!
//! On Linux a process whose parent has ended becomes a child of this program
//! (`PR_SET_CHILD_SUBREAPER`), so that nothing leaves the tree, whatever it did to its
//! environment and its group.

use std::time::Duration;

/// The processes below this program. While it lives, orphans become its children.
#[derive(Debug)]
pub struct Children(());

impl Children {
    /// From now on, orphans below this program become its children. Must be called within a tokio
    /// runtime. Elsewhere than on Linux it does nothing.
    pub fn adopt() -> Self {
        #[cfg(target_os = "linux")]
        if linux::adopt() {
            tokio::spawn(linux::reap_forgotten());
        }
        Self(())
    }

    /// Ends every process below this program, within `time` at most. Call it last: it ends
    /// whatever is there.
    pub async fn end(self, time: Duration) {
        #[cfg(target_os = "linux")]
        let _ = tokio::time::timeout(time, linux::end_all()).await;
        #[cfg(not(target_os = "linux"))]
        let _ = time;
    }
}

/// The memory of a process and of those below it, in bytes; what several of them share is counted in
/// each. `None` where the process has ended, and elsewhere than on Linux.
pub fn memory_below(process: u32) -> Option<u64> {
    #[cfg(target_os = "linux")]
    return linux::memory_below(process);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = process;
        None
    }
}

#[cfg(target_os = "linux")]
pub(crate) use linux::descendants;

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashSet;
    use std::time::Duration;

    use rustix::process::{
        Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal,
        set_child_subreaper, waitpid,
    };

    /// How often children that nobody waits for are looked for.
    const SWEEP: Duration = Duration::from_secs(60);
    const LOOK_EVERY: Duration = Duration::from_millis(10);

    pub(super) fn adopt() -> bool {
        set_child_subreaper(Some(getpid())).is_ok()
    }

    /// Takes away the names of adopted children that have ended. Whoever started a child waits
    /// for it and takes its name at once; one that still has a name a minute later has nobody.
    pub(super) async fn reap_forgotten() {
        let mut before = HashSet::new();
        loop {
            tokio::time::sleep(SWEEP).await;
            let ended: HashSet<Pid> = children(getpid())
                .into_iter()
                .filter(|child| has_ended(*child))
                .collect();
            for child in ended.intersection(&before) {
                let _ = waitpid(Some(*child), WaitOptions::NOHANG);
            }
            before = ended;
        }
    }

    pub(super) async fn end_all() {
        loop {
            let mut found = false;
            for child in descendants(getpid()) {
                let process = pidfd_open(child, PidfdFlags::empty());
                // One that has ended has a name until it is waited for.
                found |= !has_ended(child)
                    && process
                        .is_ok_and(|process| pidfd_send_signal(&process, Signal::KILL).is_ok());
            }
            if !found {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Every process below another one.
    pub(crate) fn descendants(of: Pid) -> Vec<Pid> {
        let mut found = Vec::new();
        let mut parents = vec![of];
        while let Some(parent) = parents.pop() {
            let children = children(parent);
            found.extend(&children);
            parents.extend(children);
        }
        found
    }

    pub(super) fn memory_below(process: u32) -> Option<u64> {
        let process = Pid::from_raw(process.cast_signed())?;
        let own = memory_of(process)?;
        let below = descendants(process).into_iter().filter_map(memory_of);
        Some(own + below.sum::<u64>())
    }

    fn memory_of(process: Pid) -> Option<u64> {
        let path = format!("/proc/{}/statm", process.as_raw_nonzero());
        // The second number: pages that are in memory.
        let pages = std::fs::read_to_string(path).ok()?;
        let pages: u64 = pages.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }

    fn children(of: Pid) -> Vec<Pid> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", of.as_raw_nonzero()));
        let tasks = tasks.into_iter().flatten().flatten();
        let lists =
            tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        lists
            .flat_map(|list| {
                let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
                pids.filter_map(Pid::from_raw).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Whether a process has ended, and nobody has waited for it.
    fn has_ended(process: Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
        // The state is after the name, which may have any character.
        let stat = stat.unwrap_or_default();
        let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
        state.is_none_or(|state| state.starts_with(['Z', 'X']))
    }
}
