//! How messages get to a server and back.

mod bounded;
mod http;
mod lines;
mod paced;
mod process;
mod sse;

pub(crate) use bounded::{Bounded, answered, json_bytes};
pub(crate) use http::{challenge, streamable_http};
pub(crate) use lines::{Lines, MAX_MESSAGE};
pub(crate) use process::{Era, LastWords, Probed, ServerProcess, probe};
pub(crate) use sse::{connect as connect_sse, without_endless_events};
