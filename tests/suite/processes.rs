//! Processes as Linux shows them; the bench measures with this too.

/// The processes that a process started, and theirs, which still run.
pub fn descendants(of: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut todo = vec![of];
    while let Some(process) = todo.pop() {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{process}/task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let children = std::fs::read_to_string(task.path().join("children"));
            let children: Vec<u32> = children
                .unwrap_or_default()
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect();
            found.extend(&children);
            todo.extend(children);
        }
    }
    found
}

/// Memory of one process in KiB, pages that it shares in part.
pub fn pss_kib(process: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"));
    kib(&rollup.unwrap_or_default(), "Pss:").unwrap_or(0)
}

/// The number after a name, in a file of a line for each.
pub fn kib(file: &str, name: &str) -> Option<u64> {
    file.lines().find_map(|line| {
        line.strip_prefix(name)?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    })
}
