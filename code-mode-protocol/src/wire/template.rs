//! What a provider and a template process say to each other.
//!
//! A template has loaded the program and does nothing but make copies of itself, each of which
//! becomes a worker. Both ends are the same program on the same machine; messages are packets of a
//! socket, with descriptors beside them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Limits;

/// The longest message, in bytes.
pub const MAX_PACKET: usize = 64 << 10;

/// The state of a worker's namespaces where it has them.
pub const NAMESPACES_HELD: &str = "held";

/// How a worker runs. Its host has decided that before it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSettings {
    /// It ends where a layer of its sandbox is missing.
    pub require_sandbox: bool,
    /// It does not lock itself in.
    pub no_sandbox: bool,
    /// [`NAMESPACES_HELD`] where it has separate namespaces, else why not; `None` where no host has started it.
    pub namespaces: Option<String>,
    /// It runs JavaScript without compiling it to machine code.
    pub jitless: bool,
    /// It tries what its sandbox forbids when its host asks for it.
    pub probe: bool,
    /// The most that its session's limits may be.
    pub most: Option<Limits>,
}

/// Asks for a worker. Two descriptors come with it: the worker's end of the connection to its host,
/// and its standard error.
#[derive(Debug, Serialize, Deserialize)]
pub struct NewWorker {
    /// How it runs.
    pub settings: WorkerSettings,
    /// What it logs: `RUST_LOG`.
    pub log: Option<String>,
    /// Whether it gets separate namespaces.
    pub in_namespaces: bool,
}

/// From a template.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromTemplate {
    /// The first message.
    Ready {
        /// [`native::VERSION`](super::native::VERSION) of its workers.
        version: u32,
    },
    /// The worker is there. A descriptor of its process comes with the message.
    Made {
        /// What its provider calls the process.
        pid: u32,
    },
    /// The worker could not be made. Where its process has ended again, a descriptor of it comes with
    /// the message.
    Failed(String),
}

/// The bytes of a message. Empty, where it is longer than [`MAX_PACKET`].
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(message, config()).unwrap_or_default()
}

/// The message that these bytes are.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (message, read) = bincode::serde::decode_from_slice(bytes, config()).ok()?;
    (read == bytes.len()).then_some(message)
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_PACKET>()
}
