//! Cells that V8 cannot interrupt: each is answered for, and its process is ended.
#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::time::Duration;

use code_mode_host::{CellResponse, Limits, Provider};

use crate::support::{Agent, Session, error_text, exec, options, request, run, session_of, texts};

/// Built-in functions whose loops never look whether they must stop.
const UNINTERRUPTIBLE: &str =
    "notify('up'); Array.prototype.indexOf.call({length: 2 ** 53 - 1}, 1)";

/// A provider that ends a worker soon after a cell of it does not stop.
fn impatient() -> Provider {
    Provider::new(options().stop_grace(Duration::from_millis(200))).expect("the program is there")
}

async fn up(agent: &Agent, cells: usize) {
    agent
        .until(|agent| agent.notifications.lock().expect("not poisoned").len() == cells)
        .await;
}

async fn started(session: &Session, source: &str) -> code_mode_host::RunningCell {
    session.execute(request(source)).await.expect("admitted")
}

#[test]
fn a_limit_of_time_ends_what_v8_cannot_interrupt() {
    run(async {
        let provider = impatient();
        for (limits, expected) in [
            (
                Limits::default().max_cpu_time(Some(Duration::from_millis(100))),
                "CPU time limit of 100 ms exceeded",
            ),
            (
                Limits::default().max_wall_time(Some(Duration::from_millis(100))),
                "wall time limit of 100 ms exceeded",
            ),
        ] {
            let agent = Arc::new(Agent::default());
            let session = session_of(&provider, agent, limits).await;
            let response = exec(&session, UNINTERRUPTIBLE).await;
            assert_eq!(error_text(&response), Some(expected));
            assert_eq!(texts(&exec(&session, "text('on')").await), ["on"]);
        }
        provider.shutdown().await;
    });
}

#[test]
fn endless_loops_around_short_ones_are_stopped_in_their_cell() {
    run(async {
        let provider = Provider::new(options()).expect("the program is there");
        let limits = Limits::default().max_cpu_time(Some(Duration::from_millis(500)));
        let session = session_of(&provider, Arc::new(Agent::default()), limits).await;
        for source in [
            "for (;;) new Array(1000).fill({})",
            "const f = () => {}; for (;;) { new Array(1000).fill(1); f(); }",
            "for (let i = 0; ; i++) new Array(1000).fill(i)",
        ] {
            let other = crate::support::started(&session, "await tools.never()").await;
            let response = exec(&session, source).await;
            let limit = "CPU time limit of 500 ms exceeded";
            assert_eq!(error_text(&response), Some(limit));
            // It would be lost with the process.
            let other = session.terminate(other).await.expect("answered");
            assert!(
                matches!(other, CellResponse::Terminated { .. }),
                "{other:?}"
            );
        }
        provider.shutdown().await;
    });
}

#[test]
fn the_other_cells_of_the_session_are_told_which_cell_it_was() {
    run(async {
        let provider = impatient();
        let agent = Arc::new(Agent::default());
        let session = session_of(&provider, agent.clone(), Limits::default()).await;
        exec(&session, "store('kept', 1)").await;
        let culprit = started(&session, UNINTERRUPTIBLE).await;
        let innocent = started(&session, "await tools.never()").await;
        agent.called_once().await;
        up(&agent, 1).await;
        let outcome = session
            .terminate(culprit.id().clone())
            .await
            .expect("answered");
        assert!(matches!(outcome, CellResponse::Terminated { .. }));
        let response = innocent.outcome().await.expect("answered");
        let error = error_text(&response).expect("an error");
        assert!(
            error.contains("because exec cell 2 did not stop after it was terminated"),
            "{error}"
        );
        assert_eq!(texts(&exec(&session, "text(load('kept'))").await), ["1"]);
        provider.shutdown().await;
    });
}

#[test]
fn two_terminates_that_time_out_together_do_not_end_the_next_worker() {
    run(async {
        let provider = impatient();
        let agent = Arc::new(Agent::default());
        let session = session_of(&provider, agent.clone(), Limits::default()).await;
        let first = started(&session, UNINTERRUPTIBLE).await;
        let second = started(&session, UNINTERRUPTIBLE).await;
        up(&agent, 2).await;
        let (first, second) = tokio::join!(
            session.terminate(first.id().clone()),
            session.terminate(second.id().clone())
        );
        for outcome in [first, second] {
            let response = outcome.expect("answered");
            assert!(matches!(response, CellResponse::Terminated { .. }));
        }
        // The next worker runs its cell for longer than any grace.
        let source = "await new Promise(done => setTimeout(done, 500)); text('whole')";
        assert_eq!(texts(&exec(&session, source).await), ["whole"]);
        provider.shutdown().await;
    });
}

#[test]
fn a_shutdown_ends_what_v8_cannot_interrupt() {
    run(async {
        let provider = impatient();
        let agent = Arc::new(Agent::default());
        let session = session_of(&provider, agent.clone(), Limits::default()).await;
        started(&session, UNINTERRUPTIBLE).await;
        up(&agent, 1).await;
        session.shutdown().await;
        assert_eq!(agent.closed(), ["1"]);
        provider.shutdown().await;
    });
}

/// Every function of the language's own objects, called on an array-like or a text that
/// is as long as can be: whatever loops in native code must still end at the limit.
const EVERY_BUILTIN: &str = r#"
    const long = { length: 2 ** 53 - 1 };
    const receivers = [long, Object.assign([], { length: 2 ** 32 - 1 }), 'ab'.repeat(2 ** 24)];
    const seen = new Set();
    const found = [];
    const look = (object, path) => {
        if (object === null || (typeof object !== 'object' && typeof object !== 'function')) return;
        if (seen.has(object) || path.length > 3) return;
        seen.add(object);
        for (const key of Reflect.ownKeys(object)) {
            const { value, get } = Reflect.getOwnPropertyDescriptor(object, key);
            if (typeof value === 'function') found.push(value);
            look(value ?? get, [...path, key]);
        }
    };
    for (const name of ['Array', 'String', 'Object', 'Reflect', 'JSON', 'Map', 'Set', 'Promise',
        'RegExp', 'Uint8Array', 'Iterator', 'BigInt', 'Math', 'Intl', 'Symbol', 'Function'])
        look(globalThis[name], [name]);
"#;

#[test]
fn no_builtin_function_outlasts_its_limit() {
    run(async {
        let provider = impatient();
        let limits = || {
            Limits::default()
                .max_cpu_time(Some(Duration::from_millis(300)))
                .max_heap_bytes(64 << 20)
        };
        let session = || session_of(&provider, Arc::new(Agent::default()), limits());
        let counting = session().await;
        let counted = exec(&counting, &format!("{EVERY_BUILTIN} text(found.length)")).await;
        let count: usize = texts(&counted)[0].parse().expect("a number");
        assert!(count > 300, "{count}");
        // Each in a separate cell, a few sessions side by side.
        const TOGETHER: usize = 4;
        let mut ends = std::collections::BTreeMap::<String, usize>::new();
        let work = (0..TOGETHER).map(|lane| {
            let session = session();
            async move {
                let session = session.await;
                let mut ends = Vec::new();
                for n in (lane..count).step_by(TOGETHER) {
                    let source = format!(
                        "{EVERY_BUILTIN} for (const r of receivers) {{
                            try {{ found[{n}].call(r, r, 1) }} catch {{}}
                            try {{ found[{n}].call(r, () => true) }} catch {{}} }}"
                    );
                    let response = exec(&session, &source).await;
                    ends.push(error_text(&response).unwrap_or("no error").to_owned());
                }
                ends
            }
        });
        for end in futures::future::join_all(work).await.into_iter().flatten() {
            // A worker that V8 ended is an end too; it is counted to be seen.
            *ends.entry(end.chars().take(60).collect()).or_default() += 1;
        }
        println!("{ends:#?}");
        assert_eq!(ends.values().sum::<usize>(), count);
        provider.shutdown().await;
    });
}
