//! The layers on Linux.

mod files;
mod probes;
mod process;
mod seccomp;
pub mod split;
pub mod template;

use code_mode_protocol::SandboxLayer;
use code_mode_protocol::wire::template::NAMESPACES_HELD;

pub use probes::{PROBES, probe};
pub use process::limit_memory;
pub use seccomp::filter_system_calls;

/// Takes away everything outside this process. Called while it has one thread:
/// most of it holds for the calling thread and those it starts.
///
/// `namespaces` is what the provider said of the namespaces it started this process in.
/// With `less_surface` the processor guesses less ahead, which costs speed.
pub fn lock_in(namespaces: Option<&str>, less_surface: bool) -> Vec<SandboxLayer> {
    let in_namespaces = namespaces == Some(NAMESPACES_HELD);
    if less_surface {
        process::no_speculation();
    }
    vec![
        process::first_to_go(),
        process::no_new_privileges(),
        process::not_dumpable(),
        process::descriptors(),
        process::namespaces(namespaces),
        files::empty_root(in_namespaces),
        process::capabilities(),
        process::resource_limits(in_namespaces),
        files::landlock(),
    ]
}
