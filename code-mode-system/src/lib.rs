//! What the programs of this workspace need of the operating system.
//!
//! Child processes with everything they start, signals, descriptors, standard streams, and
//! sockets that belong to one user. This crate knows nothing of cells, sessions or wires.

mod children;
mod descriptors;
mod environment;
#[cfg(target_os = "linux")]
mod guard;
mod http_clients;
#[cfg(target_os = "linux")]
mod initial_strings;
mod interrupts;
mod listener;
mod marks;
mod name_lookup;
mod places;
#[cfg(unix)]
mod private_socket;
mod processes;
mod refusals;
mod standard_error;
mod standard_streams;
mod tokens;
mod user_folders;

pub use children::{Children, memory_below};
pub use descriptors::{allow_many, close_inherited_on_exec};
pub use environment::{inherited_environment, inherited_with_network};
#[cfg(target_os = "linux")]
pub use guard::{guard, guard_with};
pub use http_clients::prepare_http_clients;
#[cfg(target_os = "linux")]
pub use initial_strings::InitialStrings;
pub use interrupts::{Interrupt, Interrupts};
pub use listener::{Connection, Incoming, Listener};
pub use name_lookup::prepare_name_lookup;
pub use places::Place;
#[cfg(unix)]
pub use private_socket::{is_own, listen, listen_again};
pub use processes::Processes;
pub use refusals::{Refusals, Refused};
pub use standard_error::{
    HeldStandardError, StandardError, StandardErrorFollower, keep_recent_standard_error,
};
pub use standard_streams::{for_reader, output_closed, standard_streams};
pub use tokens::{TokenFile, TokenFileError};
pub use user_folders::{cache_folder, state_folder};
