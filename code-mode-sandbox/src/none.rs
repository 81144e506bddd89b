//! Systems without a sandbox for workers yet: macOS, Windows, the BSDs.

use code_mode_protocol::SandboxLayer;

use crate::{Expected, missing};

/// No native probes without a sandbox to test.
pub const PROBES: &[(&str, Expected)] = &[];

pub fn lock_in(_: Option<&str>, _: bool) -> Vec<SandboxLayer> {
    vec![missing(
        "process",
        format!("workers have no sandbox on {}", std::env::consts::OS),
    )]
}

pub fn filter_system_calls() -> SandboxLayer {
    missing(
        "seccomp",
        format!("there is none on {}", std::env::consts::OS),
    )
}

pub fn probe(_: &str) -> Option<String> {
    None
}

pub fn limit_memory(_: u64) {}
