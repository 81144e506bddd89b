//! What both wires do, once: observations that can be ended by an id, calls that wait for
//! capacity and for an answer, cells that are closed after their last answer, the limits a
//! client may ask for, and how output is cut. A wire encodes and decodes.

mod calls;
mod cells;
mod fit;
mod limits;
mod observations;
mod output;

pub(crate) use calls::{PendingCalls, at_once_or_wanted};
pub(crate) use cells::Cells;
pub(crate) use fit::Encoding;
pub(crate) use limits::session_limits;
pub(crate) use observations::{Observations, Over, Tokens};
pub(crate) use output::{Budget, TruncatedBy};
