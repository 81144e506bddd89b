//! Workers: one connection and, mostly, one process each.

mod connection;
mod handle;
mod metrics;
mod supervisor;

pub(crate) use connection::Connection;
pub use connection::ConnectionError;
pub(crate) use handle::{Worker, WorkerHandle};
pub use metrics::WorkerStats;
pub(crate) use metrics::{Counted, WorkerMetrics};
pub(crate) use supervisor::supervise;
