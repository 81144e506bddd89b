//! The front door at a socket of one user, where shims relay the messages of many clients.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use code_mode_system::{
    Connection, Incoming, Listener, StandardErrorFollower, keep_recent_standard_error, memory_below,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::sessions::Sessions;
use super::{Shared, stream};
use crate::broker::Broker;
use crate::shim::greeting::{Greeted, MAX_GREETING, Wants, read, write};
use crate::shim::{ClientStatus, GatewayStatus, ServerStatus, bound_log};
use crate::upstream::Upstream;

/// The most clients at once.
const MAX_CLIENTS: usize = 256;
/// How often a log that has become too long is begun anew.
const BOUND_LOG: Duration = Duration::from_secs(10);
/// How long a gateway waits for the client that started it.
const FIRST_CLIENT: Duration = Duration::from_secs(10);
/// How long the last answers may take at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Serves until nobody has been connected for `linger`, or the gateway shuts down.
pub(super) async fn serve(server: &Arc<Shared>, listener: Listener, linger: Duration) {
    keep_recent_standard_error();
    if server.broker.policy.terminal_may_answer {
        server.broker.pending.open();
    }
    let door = Arc::new(Door {
        server: server.clone(),
        began: Instant::now(),
        clients: watch::Sender::new(0),
        known: Mutex::default(),
    });
    let tasks = TaskTracker::new();
    let accepting = async {
        loop {
            let warn =
                |error: &std::io::Error| tracing::warn!("cannot accept a connection: {error}");
            let incoming = listener.accept(warn).await;
            tasks.spawn(door.clone().admit(incoming));
        }
    };
    let bounding = async {
        loop {
            tokio::time::sleep(BOUND_LOG).await;
            bound_log();
        }
    };
    tokio::select! {
        () = accepting => {}
        () = bounding => {}
        () = door.unused_for(linger) => {}
        () = server.broker.shutdown.cancelled() => {}
    }
    // From here on a shim starts another gateway.
    drop(listener);
    server.broker.shutdown.cancel();
    tasks.close();
    let _ = tokio::time::timeout(LAST_ANSWERS, tasks.wait()).await;
}

/// What all connections share.
struct Door {
    server: Arc<Shared>,
    began: Instant,
    /// How many clients are connected.
    clients: watch::Sender<usize>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    last: u64,
    /// Nobody is let in any more.
    is_ending: bool,
    /// In the order in which they came.
    clients: BTreeMap<u64, KnownClient>,
}

struct KnownClient {
    process: u32,
    since: Instant,
    /// What it calls itself.
    name: Option<String>,
    /// The broker of the client's own servers, where it has any.
    own: Option<Arc<Broker>>,
}

impl Door {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn unused_for(&self, linger: Duration) {
        let mut clients = self.clients.subscribe();
        let mut limit = linger.max(FIRST_CLIENT);
        loop {
            // The sender is in `self`, so waiting cannot fail.
            let _ = clients.wait_for(|clients| *clients == 0).await;
            let used = clients.wait_for(|clients| *clients > 0);
            if tokio::time::timeout(limit, used).await.is_err() {
                let mut known = self.known();
                if known.clients.is_empty() {
                    known.is_ending = true;
                    return;
                }
            }
            limit = linger;
        }
    }

    async fn admit(self: Arc<Self>, incoming: Incoming) {
        let Ok(connection) = incoming.connect().await else {
            return;
        };
        let place = connection.place().clone();
        let (from, mut to) = tokio::io::split(connection);
        let mut from = BufReader::new(from);
        let Ok(wants) = read::<Wants>(&mut from, MAX_GREETING).await else {
            return;
        };
        if !place.admit() {
            return;
        }
        // A client counts before it is greeted: a gateway that has greeted a client does not end.
        let entered = match wants {
            Wants::Serve { process } => Some(self.enter(process)),
            _ => None,
        };
        let greeted = Greeted {
            process: std::process::id(),
            is_full: matches!(entered, Some(Err(Refused::Full))),
        };
        let entered = match entered {
            // It is about to end: without a greeting the shim starts another.
            Some(Err(Refused::Ending)) => return,
            Some(Err(Refused::Full)) | None => None,
            Some(Ok(entered)) => Some(entered),
        };
        if write(&mut to, &greeted).await.is_err() {
            return;
        }
        match wants {
            Wants::Serve { .. } => {
                if let Some(entered) = entered {
                    self.serve(&entered, from, to).await;
                }
            }
            // Nobody waits for these two at the end.
            Wants::Log => {
                tokio::spawn(follow_log(from, to));
            }
            Wants::Status => {
                let _ = write(&mut to, &self.status()).await;
            }
            Wants::Approvals => {
                let _ = write(&mut to, &self.server.broker.pending.all()).await;
            }
            Wants::Answer { numbers, answer } => {
                let answered = self.server.broker.pending.answer(&numbers, answer);
                let _ = write(&mut to, &answered).await;
            }
            Wants::Stop => {
                self.server.broker.shutdown.cancel();
                // The connection is closed by the end of this process.
                tokio::spawn(until_closed(from, to));
            }
        }
    }

    async fn serve(
        &self,
        client: &Entered<'_>,
        from: BufReader<ReadHalf<Connection>>,
        to: WriteHalf<Connection>,
    ) {
        let own = self.server.broker.for_client();
        let server = match &own {
            None => self.server.clone(),
            Some(broker) => Arc::new(self.server.with_broker(broker.clone())),
        };
        client.change(|known| known.own = own.clone());
        let set_name = |said| client.change(|known| known.name = Some(said));
        stream::serve(server, from, to, set_name).await;
        if let Some(own) = own {
            own.end().await;
        }
    }

    /// Lets a client in.
    fn enter(&self, process: u32) -> Result<Entered<'_>, Refused> {
        let mut known = self.known();
        if known.is_ending {
            return Err(Refused::Ending);
        }
        if known.clients.len() >= MAX_CLIENTS {
            return Err(Refused::Full);
        }
        known.last += 1;
        let number = known.last;
        let client = KnownClient {
            process,
            since: Instant::now(),
            name: None,
            own: None,
        };
        known.clients.insert(number, client);
        self.clients.send_replace(known.clients.len());
        Ok(Entered { door: self, number })
    }

    fn status(&self) -> GatewayStatus {
        let shared = &self.server.broker.upstreams;
        let mut servers: Vec<_> = shared.iter().map(|one| status_of(one, None)).collect();
        let known = self.known();
        let clients = known.clients.values().map(|client| {
            let own = client.own.iter().flat_map(|own| &own.upstreams);
            let own = own.filter(|one| !shared.iter().any(|other| Arc::ptr_eq(one, other)));
            servers.extend(own.map(|one| status_of(one, Some(client.process))));
            ClientStatus {
                process: client.process,
                name: client.name.clone(),
                seconds: client.since.elapsed().as_secs(),
            }
        });
        let clients = clients.collect();
        let folder = std::env::current_dir().unwrap_or_default();
        GatewayStatus {
            process: std::process::id(),
            folder: folder.display().to_string(),
            seconds: self.began.elapsed().as_secs(),
            clients,
            servers,
        }
    }
}

fn status_of(upstream: &Upstream, client: Option<u32>) -> ServerStatus {
    let state = upstream.state();
    ServerStatus {
        name: upstream.name().to_owned(),
        status: state.status.words(),
        process: state.process,
        memory: state.process.and_then(memory_below),
        calls: upstream.events.elicitations.calls_at(upstream.name()),
        client,
    }
}

/// A client that is connected, until this is dropped.
struct Entered<'a> {
    door: &'a Door,
    number: u64,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut known = self.door.known();
        known.clients.remove(&self.number);
        self.door.clients.send_replace(known.clients.len());
    }
}

impl Entered<'_> {
    fn change(&self, change: impl FnOnce(&mut KnownClient)) {
        if let Some(client) = self.door.known().clients.get_mut(&self.number) {
            change(client);
        }
    }
}

/// Why a client is not let in.
#[derive(Clone, Copy, Debug)]
enum Refused {
    Ending,
    Full,
}

/// Writes what this process logs, until the follower has gone.
async fn follow_log(from: BufReader<ReadHalf<Connection>>, mut to: WriteHalf<Connection>) {
    let Some(mut log) = StandardErrorFollower::new() else {
        return;
    };
    let writing = async {
        while to.write_all(&log.next().await).await.is_ok() && to.flush().await.is_ok() {}
    };
    tokio::select! {
        () = writing => {}
        () = input_ended(from) => {}
    }
}

/// Holds a connection until its other side closes it.
async fn until_closed(from: BufReader<ReadHalf<Connection>>, to: WriteHalf<Connection>) {
    input_ended(from).await;
    drop(to);
}

async fn input_ended(mut from: impl AsyncRead + Unpin) {
    let mut rest = [0; 64];
    while from.read(&mut rest).await.is_ok_and(|read| read > 0) {}
}

impl Shared {
    /// The same with another broker, and other sessions.
    fn with_broker(&self, broker: Arc<Broker>) -> Self {
        let (provider, store) = self.sessions.sources();
        Self {
            sessions: Sessions::new(broker.clone(), provider, store, None),
            broker,
            direct: self.direct.clone(),
            patience: self.patience,
            seal: super::Seal::new(),
            not_begun: self.not_begun.clone(),
        }
    }
}
