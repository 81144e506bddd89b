//! A control group for each worker, below one that the agent was given.
//!
//! The kernel then bounds what a worker and nothing else may have of the machine, whatever
//! it does: the limits that the worker sets for itself do not count shared memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;

/// What a worker may have beyond its cells' heaps, in bytes: V8's own overshoot in one
/// operation, and the program.
const BEYOND_HEAP: u64 = 4 << 30;
/// Threads of one worker.
const MAX_THREADS: u32 = 1024;

/// One worker's group. Dropping it removes the group, which has no process any more.
#[derive(Debug)]
pub(super) struct Group(PathBuf);

impl Group {
    /// Puts a process into its own group below `parent`. What the parent's
    /// controllers cannot bound is logged, once.
    pub(super) fn hold(parent: &Path, pid: u32, heap_bytes: u64) -> io::Result<Self> {
        let group = Self(parent.join(format!("code-mode-worker-{pid}")));
        fs::create_dir(&group.0)?;
        let bounds = [
            ("memory.max", (heap_bytes + BEYOND_HEAP).to_string()),
            ("memory.swap.max", "0".to_owned()),
            ("memory.oom.group", "1".to_owned()),
            ("pids.max", MAX_THREADS.to_string()),
        ];
        for (file, value) in bounds {
            if let Err(error) = fs::write(group.0.join(file), value)
                && file != "memory.swap.max"
            {
                static SAID: Once = Once::new();
                SAID.call_once(|| {
                    tracing::warn!(
                        "workers' control groups do not bound {file}: {error}; enable the controllers memory and pids in the subtree_control of {}",
                        parent.display()
                    );
                });
            }
        }
        fs::write(group.0.join("cgroup.procs"), pid.to_string())?;
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
