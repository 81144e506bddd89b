//! Mixed cells at full load for a long time: no answer is lost or wrong, and
//! memory stays flat.
//!
//! Not part of the ordinary run:
//! `CODE_MODE_SOAK_MINUTES=60 cargo test --release --workspace soak -- --ignored --nocapture`
#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use code_mode_host::Provider;
use code_mode_protocol::{
    CellId, CellResponse, CodeModeSessionDelegate, Json, Limits, NestedToolCall, ToolError,
    WaitRequest,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;

use crate::faults::{count, from_environment};
use crate::processes::{descendants, pss_kib};
use crate::support::{error_text, options, request, texts};

/// Sessions that are open at a time, and cells of one that run at a time.
const SESSIONS: u64 = 3;
const CELLS: usize = 4;
/// No request takes as long, however busy the machine; one that does is lost.
const LOST: Duration = Duration::from_secs(120);
const HEAP_BYTES: usize = 64 << 20;
/// What memory may gain from the second quarter of the run to the last.
const GROWTH: f64 = 1.1;
const SLACK_KIB: f64 = 4096.0;

/// Echoes, and counts the cells that were closed.
#[derive(Default)]
struct Echo {
    closed: AtomicUsize,
}

#[async_trait]
impl CodeModeSessionDelegate for Echo {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        if call.tool_name.name == "never" {
            cancelled.cancelled().await;
        }
        Ok(call.input.unwrap_or_else(Json::null))
    }

    async fn cell_closed(&self, _: CellId) {
        self.closed.fetch_add(1, Ordering::SeqCst);
    }
}

/// A cell, and what must come of it.
enum Expected {
    Text(String),
    Error(&'static str),
    /// It runs until it is stopped.
    Endless,
}

fn cell(random: &mut StdRng) -> (String, Expected) {
    let n = random.random_range(1..1000_u32);
    let text =
        |source: &str, text: String| (source.replace('N', &n.to_string()), Expected::Text(text));
    match random.random_range(0..100) {
        0..30 => text("text(N)", n.to_string()),
        30..50 => text(
            "let s = 0; for (let i = 0; i < 20; i++) s += await tools.echo(N); text(s)",
            (20 * n).to_string(),
        ),
        50..60 => text(
            "const all = await Promise.all(Array.from({length: N}, (_, i) => tools.echo(i)));
             text(all.length)",
            n.to_string(),
        ),
        60..70 => text(
            "store('k' + N % 50, 'x'.repeat(N)); text(load('k' + N % 50).length)",
            n.to_string(),
        ),
        70..80 => text(
            "await new Promise(r => setTimeout(r, N % 20)); notify('n'); yield_control(); text(N)",
            n.to_string(),
        ),
        80..85 => text(
            "const s = await tools.echo('é'.repeat(N * 1000)); text(s.length)",
            (n * 1000).to_string(),
        ),
        85..90 => text("text('y'.repeat(N * 5000))", "y".repeat(n as usize * 5000)),
        90..95 => (
            "throw new Error('as it should')".to_owned(),
            Expected::Error("as it should"),
        ),
        95..97 => ("for (;;) {}".to_owned(), Expected::Endless),
        97..99 => ("await tools.never()".to_owned(), Expected::Endless),
        _ => (
            "const a = []; for (;;) a.push(new Array(1000).fill(1.5))".to_owned(),
            Expected::Error("heap"),
        ),
    }
}

/// Waits for a cell's end.
async fn end_of(
    session: &code_mode_host::Session,
    mut response: CellResponse,
) -> Vec<CellResponse> {
    let mut responses = Vec::new();
    while !response.is_final() {
        let mut wait = WaitRequest::new(response.cell_id().clone());
        wait.yield_time = Some(Duration::from_secs(60));
        responses.push(response);
        let outcome = tokio::time::timeout(LOST, session.wait(wait)).await;
        response = outcome.expect("an answer was lost").expect("observed");
    }
    responses.push(response);
    responses
}

async fn one_cell(session: &code_mode_host::Session, (source, expected): (String, Expected)) {
    let mut request = request(&source);
    request.yield_time = Some(match expected {
        Expected::Endless => Duration::from_millis(20),
        _ => Duration::from_secs(60),
    });
    let started = session.execute(request).await.expect("admitted");
    let cell_id = started.id().clone();
    let first = tokio::time::timeout(LOST, started.outcome())
        .await
        .expect("an answer was lost")
        .expect("observed");
    match expected {
        Expected::Endless => {
            assert!(!first.is_final(), "{source} ended by itself: {first:?}");
            let stopped = tokio::time::timeout(LOST, session.terminate(cell_id.clone()));
            let stopped = stopped.await.expect("an answer was lost").expect("stopped");
            assert!(stopped.is_final());
        }
        Expected::Text(expected) => {
            let responses = end_of(session, first).await;
            let last = responses.last().expect("the end");
            assert_eq!(error_text(last), None, "{source}");
            let output: String = responses.iter().flat_map(texts).collect();
            assert_eq!(output, expected, "{source}");
        }
        Expected::Error(part) => {
            let responses = end_of(session, first).await;
            let error = error_text(responses.last().expect("the end")).unwrap_or_default();
            assert!(error.contains(part), "{source}: {error}");
        }
    }
}

async fn one_session(provider: &Provider, random: &mut StdRng, cells: &AtomicU64, until: Instant) {
    let limits = Limits::default().max_heap_bytes(HEAP_BYTES);
    let echo = Arc::new(Echo::default());
    let session = crate::support::session_of(provider, echo.clone(), limits).await;
    let mut admitted = 0;
    for _ in 0..random.random_range(1..100) {
        if Instant::now() > until {
            break;
        }
        let together = random.random_range(1..=CELLS);
        let runs = (0..together).map(|_| one_cell(&session, cell(random)));
        futures::future::join_all(runs.collect::<Vec<_>>()).await;
        admitted += together;
        cells.fetch_add(together as u64, Ordering::Relaxed);
    }
    tokio::time::timeout(LOST, session.shutdown())
        .await
        .expect("the session shuts down");
    assert_eq!(
        echo.closed.load(Ordering::SeqCst),
        admitted,
        "each cell closed once"
    );
}

/// What the run uses at one moment.
#[derive(Clone, Copy, Default)]
struct Usage {
    host_kib: f64,
    workers_kib: f64,
    descriptors: usize,
    threads: usize,
}

fn usage() -> Usage {
    let this = std::process::id();
    Usage {
        host_kib: pss_kib(this) as f64,
        workers_kib: descendants(this).into_iter().map(pss_kib).sum::<u64>() as f64,
        descriptors: count("/proc/self/fd"),
        threads: count("/proc/self/task"),
    }
}

fn mean(samples: &[Usage], of: impl Fn(&Usage) -> f64) -> f64 {
    samples.iter().map(of).sum::<f64>() / samples.len() as f64
}

#[test]
#[ignore = "takes as long as its variable says"]
fn an_hour_of_mixed_cells_loses_no_answer_and_leaves_memory_flat() {
    let minutes = from_environment("CODE_MODE_SOAK_MINUTES", 60);
    let seed = from_environment("CODE_MODE_FAULT_SEED", 20_261_121);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let samples = runtime.block_on(async {
        let started = Instant::now();
        let until = started + Duration::from_secs(minutes * 60);
        let provider = Arc::new(Provider::new(options()).expect("the program is there"));
        let (cells, sessions) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let load: Vec<_> = (0..SESSIONS)
            .map(|n| {
                let (provider, cells) = (provider.clone(), cells.clone());
                let (sessions, mut random) = (sessions.clone(), StdRng::seed_from_u64(seed + n));
                tokio::spawn(async move {
                    while Instant::now() < until {
                        one_session(&provider, &mut random, &cells, until).await;
                        sessions.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut samples = Vec::new();
        let mut every = tokio::time::interval(Duration::from_secs(2));
        println!("  minute      cells   sessions   host MiB   workers MiB   descriptors   threads");
        while Instant::now() < until && !load.iter().any(|load| load.is_finished()) {
            every.tick().await;
            samples.push(usage());
            if samples.len() % 30 == 0 {
                let minute = &samples[samples.len() - 30..];
                println!(
                    "{:8.1} {:10} {:10} {:10.1} {:13.1} {:13} {:9}",
                    started.elapsed().as_secs_f64() / 60.0,
                    cells.load(Ordering::Relaxed),
                    sessions.load(Ordering::Relaxed),
                    mean(minute, |usage| usage.host_kib) / 1024.0,
                    mean(minute, |usage| usage.workers_kib) / 1024.0,
                    minute
                        .iter()
                        .map(|usage| usage.descriptors)
                        .max()
                        .unwrap_or(0),
                    minute.iter().map(|usage| usage.threads).max().unwrap_or(0),
                );
            }
        }
        for load in load {
            load.await.expect("every answer came, and was right");
        }
        provider.shutdown().await;
        drop(provider);
        tokio::time::timeout(LOST, async {
            while !descendants(std::process::id()).is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("no process is left");
        samples
    });
    let quarter = samples.len() / 4;
    let (early, late) = (&samples[quarter..2 * quarter], &samples[3 * quarter..]);
    for (what, of) in [
        ("host", (|usage| usage.host_kib) as fn(&Usage) -> f64),
        ("workers", |usage| usage.workers_kib),
    ] {
        let (early, late) = (mean(early, of), mean(late, of));
        println!("{what}: {early:.0} KiB in the second quarter, {late:.0} KiB in the last");
        assert!(late <= early * GROWTH + SLACK_KIB, "{what} grows");
    }
    assert!(
        descendants(std::process::id()).is_empty(),
        "a process is left"
    );
}
