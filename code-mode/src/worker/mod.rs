//! The worker: one session's cells, served over any stream.

mod clock;
mod serve;
mod session;

pub(crate) use clock::{Clock, Due};
pub(crate) use session::Session;

pub use serve::{ServeError, WorkerEnvironment, in_process, refuse, serve};
