//! What a worker reports of its sandbox.

use serde::{Deserialize, Serialize};

/// One layer of a worker's sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLayer {
    /// Its name, for example `seccomp`.
    pub name: String,
    /// Whether it holds.
    pub state: LayerState,
}

/// Whether a layer of the sandbox holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerState {
    /// The layer holds; how, in words.
    Holds(String),
    /// The layer is missing; why, in words.
    Missing(String),
}

impl SandboxLayer {
    /// The layers that are missing, in words; empty where all hold.
    pub fn missing(layers: &[Self]) -> Vec<String> {
        let missing = layers.iter().filter_map(|layer| match &layer.state {
            LayerState::Holds(_) => None,
            LayerState::Missing(why) => Some(format!("{}: {why}", layer.name)),
        });
        missing.collect()
    }
}
