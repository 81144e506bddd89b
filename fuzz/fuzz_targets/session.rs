//! A session whose worker lies: whatever the worker says, and whenever it dies, every
//! request is answered, every cell is closed once after its calls, and the shutdown
//! ends.
#![no_main]

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use code_mode_host::*;
use code_mode_protocol::wire::native::{
    CellEnd, FromWorker, JsonText, ToWorker, VERSION, WorkerInfo,
};
use code_mode_protocol::wire::reader::{MaxMessage, MessageReader};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio_util::sync::CancellationToken;

/// What the worker and its users do, in turn.
#[derive(Arbitrary, Debug)]
enum Step {
    Execute {
        at_once: bool,
        to_pending: bool,
    },
    Wait {
        cell: u8,
    },
    Terminate {
        cell: u8,
    },
    Calls {
        cell: u8,
        call: u8,
        tool: u8,
        json: bool,
    },
    Notifies {
        cell: u8,
    },
    Output {
        cell: u8,
        items: u8,
    },
    Observed {
        cell: u8,
        observation: u8,
        frozen: bool,
    },
    Stored {
        cell: u8,
    },
    Ended {
        cell: u8,
        how: u8,
    },
    Stuck {
        cell: u8,
    },
    Bytes(Vec<u8>),
    HangsUp,
}

impl Step {
    /// What the worker says, if it is the worker's step.
    fn message(&self) -> Option<FromWorker> {
        let items = |count: u8| vec![ContentItem::text("x"); usize::from(count)].into();
        Some(match *self {
            Self::Calls {
                cell,
                call,
                tool,
                json,
            } => FromWorker::ToolCall {
                cell: u64::from(cell % 4),
                call: RuntimeToolCallId(u32::from(call % 8)),
                tool: u32::from(tool % 3),
                input: Some(JsonText::Unchecked(
                    if json { "1" } else { "\"\\ud800\"" }.into(),
                )),
                site: None,
            },
            Self::Notifies { cell } => FromWorker::Notify {
                cell: u64::from(cell % 4),
                text: "n".into(),
            },
            Self::Output { cell, items: count } => FromWorker::Output {
                cell: u64::from(cell % 4),
                items: items(count),
            },
            Self::Observed {
                cell,
                observation,
                frozen,
            } => FromWorker::Observed {
                cell: u64::from(cell % 4),
                observation: u64::from(observation % 4),
                items: items(1),
                frozen: frozen.then(|| vec![RuntimeToolCallId(1)].into()),
            },
            Self::Stored { cell } => FromWorker::Stored {
                cell: u64::from(cell % 4),
                writes: vec![("k".into(), JsonText::Unchecked("1".into()))].into(),
            },
            Self::Ended { cell, how } => FromWorker::Ended {
                cell: u64::from(cell % 4),
                items: items(1),
                end: match how % 3 {
                    0 => CellEnd::Completed,
                    1 => CellEnd::Terminated,
                    _ => CellEnd::Failed {
                        text: "boom".into(),
                        position: None,
                    },
                },
                used: Default::default(),
            },
            Self::Stuck { cell } => FromWorker::Stuck {
                cell: u64::from(cell % 4),
                limit: Limit::CpuTime.exceeded(1),
            },
            _ => return None,
        })
    }
}

#[derive(Default)]
struct Agent {
    closed: Mutex<Vec<CellId>>,
    called: AtomicUsize,
}

#[async_trait::async_trait]
impl CodeModeSessionDelegate for Agent {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        let is_closed = {
            let closed = self.closed.lock().expect("not poisoned");
            closed.contains(&call.cell_id)
        };
        assert!(!is_closed, "a call after its cell was closed");
        if self.called.fetch_add(1, Ordering::Relaxed) % 2 == 0 {
            cancelled.cancelled().await;
        }
        Ok(Json::null())
    }

    async fn cell_closed(&self, cell_id: CellId) {
        self.closed.lock().expect("not poisoned").push(cell_id);
    }
}

/// The worker's end: greets, and then says what it is given.
async fn worker(stream: DuplexStream, mut says: tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>) {
    let (receive, mut send) = tokio::io::split(stream);
    let max = MaxMessage {
        frame: 1 << 20,
        texts: 1 << 20,
    };
    let mut reader = MessageReader::<_, ToWorker>::new(receive, max);
    let Ok(Some(_)) = reader.next().await else {
        return;
    };
    let info = WorkerInfo {
        version: VERSION,
        capabilities: vec![],
        v8_version: String::new(),
        v8_heap_sandbox: false,
        sandbox: vec![],
    };
    let _ = send.write_all(&bytes(FromWorker::Ready(info))).await;
    loop {
        tokio::select! {
            said = says.recv() => match said {
                Some(said) if !said.is_empty() => drop(send.write_all(&said).await),
                _ => return,
            },
            // It hangs up when it must shut down: waiting for it would be most of a run.
            heard = reader.next() => match heard {
                Ok(Some(ToWorker::Shutdown)) | Ok(None) | Err(_) => return,
                Ok(Some(_)) => {}
            },
        }
    }
}

fn bytes(message: FromWorker) -> Vec<u8> {
    let parts = message.encode().expect("encodes").into_parts();
    parts.flat_map(|part| part.to_vec()).collect()
}

async fn session(steps: Vec<Step>) {
    let (say, says) = tokio::sync::mpsc::unbounded_channel();
    let says = Mutex::new(Some(says));
    let source = WorkerSource::in_memory(move || {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        // One worker: its successor is a worker that hangs up.
        if let Some(says) = says.lock().expect("not poisoned").take() {
            tokio::spawn(worker(theirs, says));
        }
        ours
    });
    let options = ProviderOptions::default()
        .worker(source)
        .prewarmed(0)
        .stop_grace(Duration::from_millis(1));
    let provider = Provider::new(options).expect("nothing to find");
    let agent = Arc::new(Agent::default());
    let session = provider
        .create_session(agent.clone())
        .await
        .expect("opened");
    let mut admitted = HashSet::new();
    let mut answers = tokio::task::JoinSet::new();
    for step in steps {
        match &step {
            Step::Execute {
                at_once,
                to_pending,
            } => {
                let tools = ["a", "b"].map(|name| ToolDefinition::function(name, ""));
                let time = Duration::from_millis(if *at_once { 0 } else { 10_000 });
                let request = ExecuteRequest::new("c", "").tools(tools).yield_time(time);
                if *to_pending {
                    if let Ok(started) = session.execute_to_pending(request).await {
                        admitted.insert(started.id().clone());
                        answers.spawn(async { drop(started.outcome().await) });
                    }
                } else if let Ok(started) = session.execute(request).await {
                    admitted.insert(started.id().clone());
                    answers.spawn(async { drop(started.outcome().await) });
                }
            }
            Step::Wait { cell } => {
                let (session, cell) = (session.clone(), CellId::nth(u64::from(cell % 4)));
                answers.spawn(async move { drop(session.wait(WaitRequest::new(cell)).await) });
            }
            Step::Terminate { cell } => {
                let (session, cell) = (session.clone(), CellId::nth(u64::from(cell % 4)));
                answers.spawn(async move { drop(session.terminate(cell).await) });
            }
            Step::Bytes(bytes) => drop(say.send(bytes.clone())),
            Step::HangsUp => drop(say.send(Vec::new())),
            other => drop(say.send(bytes(other.message().expect("the worker's")))),
        }
        tokio::task::yield_now().await;
    }
    let end = async {
        session.shutdown().await;
        while answers.join_next().await.is_some() {}
        provider.shutdown().await;
    };
    tokio::time::timeout(Duration::from_secs(20), end)
        .await
        .expect("the shutdown ends and every request is answered");
    let closed = agent.closed.lock().expect("not poisoned");
    assert_eq!(closed.len(), admitted.len(), "each cell is closed once");
    assert_eq!(closed.iter().cloned().collect::<HashSet<_>>(), admitted);
}

fuzz_target!(|data: &[u8]| {
    let mut data = Unstructured::new(data);
    let Ok(steps) = Vec::<Step>::arbitrary(&mut data) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(session(steps));
});
