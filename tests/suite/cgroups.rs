//! A worker's own control group.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use code_mode_host::Provider;

use crate::support::{Agent, options, request, run};

/// Where the second version of control groups is, if it can be written to here.
fn writable() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let path = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    })?;
    let group = mount.join(format!("code-mode-test-{}", std::process::id()));
    std::fs::create_dir(&group).ok()?;
    Some(group)
}

fn workers_in(group: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(group).expect("a group");
    let folders = entries.flatten().map(|entry| entry.path());
    folders.filter(|path| path.is_dir()).collect()
}

#[test]
fn a_worker_runs_in_a_group_of_its_own_which_goes_with_it() {
    // Nobody delegated one here: there is nothing to be shown.
    let Some(group) = writable() else {
        return;
    };
    run(async {
        let provider = Provider::new(options().prewarmed(0).cgroup(Some(group.clone())));
        let provider = provider.expect("the program is there");
        let session = provider
            .create_session(Arc::new(Agent::default()))
            .await
            .expect("a session");
        let started = session.execute(request("text(1)")).await.expect("admitted");
        started.outcome().await.expect("observed");
        let workers = workers_in(&group);
        assert_eq!(workers.len(), 1);
        let processes = std::fs::read_to_string(workers[0].join("cgroup.procs")).expect("a list");
        let name = workers[0]
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        assert_eq!(name, format!("code-mode-worker-{}", processes.trim()));
        provider.shutdown().await;
        // It is removed by the thread that reaps.
        while !workers_in(&group).is_empty() {
            tokio::task::yield_now().await;
        }
    });
    std::fs::remove_dir(&group).expect("empty");
}

#[test]
fn a_group_that_cannot_be_had_is_an_error_that_says_so() {
    run(async {
        let nowhere = PathBuf::from("/nonexistent/group");
        let provider = Provider::new(options().prewarmed(0).cgroup(Some(nowhere)));
        let provider = provider.expect("nothing was tried yet");
        let opened = provider.create_session(Arc::new(Agent::default())).await;
        assert!(opened.is_err());
        provider.shutdown().await;
    });
}
