//! The corpus of cells, each cut after every turn: all end as they do without a cut.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use code_mode_host::{
    CellId, CellResponse, CodeModeSessionDelegate, ExecuteRequest, Journal, JournalOptions, Json,
    NestedToolCall, SessionOptions, ToolError, Turn, UnknownCall, WaitRequest,
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::durable::Place;
use crate::support::provider_in_process;

/// As long as a test may take: no observation ends before its cell.
const LONG: Duration = Duration::from_secs(60);

/// Processes that answer one call each; a cell that has not ended then is not cut any more.
const LIVES: usize = 20;

/// A delegate that says when a cell begins a turn that is new, and answers one call for each process.
struct Cutting {
    inner: Arc<dyn CodeModeSessionDelegate>,
    /// Answers that this process gives.
    answers: Mutex<Arc<Semaphore>>,
    turns: watch::Sender<u64>,
    /// How often each call was made for the first time.
    first: Mutex<BTreeMap<(CellId, u32), u32>>,
}

#[async_trait]
impl CodeModeSessionDelegate for Cutting {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        let place = (call.cell_id.clone(), call.runtime_tool_call_id.0);
        let first = u32::from(call.attempt == 1);
        *self
            .first
            .lock()
            .expect("not poisoned")
            .entry(place)
            .or_default() += first;
        let answers = self.answers.lock().expect("not poisoned").clone();
        let answered = async {
            let answer = self.inner.invoke_tool(call, cancelled.clone()).await;
            let permit = answers.acquire().await.expect("not closed");
            permit.forget();
            answer
        };
        tokio::select! {
            answer = answered => answer,
            () = cancelled.cancelled() => Err(ToolError::cancelled()),
        }
    }

    /// The tools of the corpus do no harm twice.
    async fn resolve_unknown(&self, _: &NestedToolCall) -> UnknownCall {
        UnknownCall::Repeat
    }

    fn turn(&self, _: &CellId, _: Turn) {
        self.turns.send_modify(|turns| *turns += 1);
    }
}

/// What became of a cell that was cut.
pub struct Cut {
    /// Its observations.
    pub responses: Vec<CellResponse>,
    /// Its calls.
    pub calls: usize,
    /// How often it was cut.
    pub cuts: usize,
}

/// Runs a cell to its end, in a new process after each turn.
pub async fn cut_after_every_turn(
    delegate: Arc<dyn CodeModeSessionDelegate>,
    request: ExecuteRequest,
    options: SessionOptions,
) -> Cut {
    let place = Place::new();
    let cutting = Arc::new(Cutting {
        inner: delegate,
        answers: Mutex::new(Arc::new(Semaphore::new(0))),
        turns: watch::Sender::new(0),
        first: Mutex::default(),
    });
    let mut responses = Vec::new();
    let mut cell: Option<CellId> = None;
    let mut cuts = 0;
    loop {
        let answers = match cuts {
            0..LIVES => 1,
            _ => Semaphore::MAX_PERMITS,
        };
        *cutting.answers.lock().expect("not poisoned") = Arc::new(Semaphore::new(answers));
        let mut turns = cutting.turns.subscribe();
        let provider = provider_in_process();
        let journal = Journal::open(&place.file, JournalOptions::default()).expect("a journal");
        let session = provider.open_durable(&journal, "work", cutting.clone(), options.clone());
        let session = session.await.expect("a session");
        let is_over = loop {
            let observing = async {
                let Some(cell) = &cell else {
                    let request = request.clone().yield_time(LONG);
                    let running = session.execute(request).await.expect("admitted");
                    let id = running.id().clone();
                    return (id, None);
                };
                let wait = WaitRequest::new(cell.clone()).yield_time(LONG);
                let response = session.wait(wait).await.expect("observed");
                (cell.clone(), Some(response))
            };
            let (id, response) = tokio::select! {
                biased;
                _ = turns.changed(), if cell.is_some() && cuts <= LIVES => break false,
                observed = observing => observed,
            };
            cell = Some(id);
            if let Some(response) = response {
                let is_final = response.is_final();
                responses.push(response);
                if is_final {
                    break true;
                }
            }
        };
        provider.shutdown().await;
        drop((session, journal));
        if is_over {
            break;
        }
        cuts += 1;
    }
    let first = cutting.first.lock().expect("not poisoned");
    let twice: Vec<_> = first.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "made twice for the first time: {twice:?}");
    Cut {
        responses,
        calls: first.len(),
        cuts,
    }
}
