//! What a server asks of this program, held within a budget until the answers are written.
//!
//! A server may send requests and never read their answers. Each would be kept in memory: the
//! question for as long as it is open, and its answer until the server reads it.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rmcp::RoleClient;
use rmcp::model::{JsonRpcMessage, RequestId};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use serde::Serialize;
use tokio::time::Instant;

/// The bytes of requests that one server may have open. Each counts as [`LEAST`] bytes more
/// than its JSON has.
const BUDGET: usize = 64 << 20;
/// What a request without contents costs, about.
const LEAST: usize = 1024;

/// Requests of a server that are read in a second, and its notifications: reading more must wait.
/// Each costs our threads something, and a server can send without end.
const REQUESTS_A_SECOND: u32 = 100;
const NOTIFICATIONS_A_SECOND: u32 = 2000;

/// What a server has sent by itself in the present second.
struct Pace {
    until: Instant,
    requests: u32,
    notifications: u32,
}

impl Pace {
    fn new() -> Self {
        Self {
            until: Instant::now(),
            requests: 0,
            notifications: 0,
        }
    }

    /// Waits until more may be read.
    async fn comes(&self) {
        if self.requests >= REQUESTS_A_SECOND || self.notifications >= NOTIFICATIONS_A_SECOND {
            tokio::time::sleep_until(self.until).await;
        }
    }

    fn count(&mut self, message: &RxJsonRpcMessage<RoleClient>) {
        if Instant::now() >= self.until {
            *self = Self {
                until: Instant::now() + Duration::from_secs(1),
                ..Self::new()
            };
        }
        match message {
            JsonRpcMessage::Request(_) => self.requests += 1,
            JsonRpcMessage::Notification(_) => self.notifications += 1,
            JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => {}
        }
    }
}

/// A transport that ends when its server has more open requests than fit the budget.
pub(crate) struct Bounded<T> {
    inner: T,
    open: Arc<Open>,
    budget: usize,
    pace: Pace,
}

/// Requests of the server whose answers are not written yet.
#[derive(Default)]
struct Open(Mutex<Weights>);

#[derive(Default)]
struct Weights {
    by_id: HashMap<RequestId, usize>,
    all: usize,
}

impl Open {
    fn weights(&self) -> MutexGuard<'_, Weights> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request came. False where its id is that of an open one, which nobody could tell apart.
    fn add(&self, id: &RequestId, weight: usize) -> bool {
        let mut weights = self.weights();
        if weights.by_id.contains_key(id) {
            return false;
        }
        weights.by_id.insert(id.clone(), weight);
        weights.all += weight;
        true
    }

    /// The answer to a request was written.
    fn remove(&self, id: &RequestId) {
        let mut weights = self.weights();
        if let Some(weight) = weights.by_id.remove(id) {
            weights.all -= weight;
        }
    }
}

impl<T> Bounded<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self {
            inner,
            open: Arc::default(),
            budget: BUDGET,
            pace: Pace::new(),
        }
    }
}

/// The request that a message answers.
pub(crate) fn answered<Req, Resp, Noti>(
    message: &JsonRpcMessage<Req, Resp, Noti>,
) -> Option<RequestId> {
    match message {
        JsonRpcMessage::Response(answer) => Some(answer.id.clone()),
        JsonRpcMessage::Error(error) => error.id.clone(),
        JsonRpcMessage::Request(_) | JsonRpcMessage::Notification(_) => None,
    }
}

/// Counts the bytes of a value's JSON.
pub(crate) fn json_bytes(value: &impl Serialize) -> usize {
    struct Count(usize);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

impl<T: Transport<RoleClient>> Transport<RoleClient> for Bounded<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), T::Error>> + Send + 'static {
        let answered = answered(&item);
        let open = self.open.clone();
        let sending = self.inner.send(item);
        async move {
            let sent = sending.await;
            if let Some(id) = answered {
                open.remove(&id);
            }
            sent
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            // This future may be dropped while it waits: nothing has been read then.
            self.pace.comes().await;
            let message = self.inner.receive().await?;
            self.pace.count(&message);
            let JsonRpcMessage::Request(request) = &message else {
                return Some(message);
            };
            if !self.open.add(&request.id, json_bytes(request) + LEAST) {
                continue;
            }
            if self.open.weights().all > self.budget {
                tracing::warn!("a server asks more than it reads answers: its connection is ended");
                return None;
            }
            return Some(message);
        }
    }

    fn close(&mut self) -> impl Future<Output = Result<(), T::Error>> + Send {
        self.inner.close()
    }
}

#[cfg(test)]
mod tests {
    use rmcp::model::{ClientResult, EmptyResult};
    use serde_json::json;

    use super::*;

    /// A server that pings with these ids, and reads nothing where `is_deaf`.
    struct Pings {
        next: u64,
        is_deaf: bool,
    }

    impl Transport<RoleClient> for Pings {
        type Error = std::io::Error;

        fn send(
            &mut self,
            _: TxJsonRpcMessage<RoleClient>,
        ) -> impl Future<Output = Result<(), std::io::Error>> + Send + 'static {
            let is_deaf = self.is_deaf;
            async move {
                match is_deaf {
                    true => std::future::pending().await,
                    false => Ok(()),
                }
            }
        }

        async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
            self.next += 1;
            let ping = json!({"jsonrpc": "2.0", "id": self.next, "method": "ping"});
            serde_json::from_value(ping).ok()
        }

        async fn close(&mut self) -> Result<(), std::io::Error> {
            Ok(())
        }
    }

    /// How many of 10,000 pings are passed on.
    async fn passed(is_deaf: bool) -> u64 {
        let mut bounded = Bounded::new(Pings { next: 0, is_deaf });
        bounded.budget = 1 << 20;
        let mut passed = 0;
        while passed < 10_000 {
            let Some(JsonRpcMessage::Request(ping)) = bounded.receive().await else {
                break;
            };
            passed += 1;
            let result = ClientResult::EmptyResult(EmptyResult {});
            let answer = bounded.send(JsonRpcMessage::response(result, ping.id));
            match is_deaf {
                true => drop(tokio::spawn(answer)),
                false => answer.await.expect("sent"),
            }
        }
        passed
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_server_asks_is_read_at_a_pace() {
        let began = Instant::now();
        assert_eq!(passed(false).await, 10_000);
        let least = Duration::from_secs(u64::from(10_000 / REQUESTS_A_SECOND) - 1);
        assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_reads_no_answers_is_left_at_its_budget() {
        assert!(passed(true).await < (1 << 20) / LEAST as u64);
        assert_eq!(passed(false).await, 10_000);
    }
}
