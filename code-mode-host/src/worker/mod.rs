//! Workers: one connection and, mostly, one process each.

mod census;
mod connection;
mod incarnation;
mod supervisor;

pub use census::WorkerStats;
pub(crate) use census::{Census, Counted};
pub(crate) use connection::Connection;
pub use connection::ConnectionError;
pub(crate) use incarnation::{Incarnation, Worker};
pub(crate) use supervisor::supervise;
