//! Workers: one connection and, mostly, one process each.

mod connection;
mod incarnation;
mod supervisor;

pub(crate) use connection::Connection;
pub use connection::ConnectionError;
pub(crate) use incarnation::{Incarnation, Worker};
pub(crate) use supervisor::supervise;
