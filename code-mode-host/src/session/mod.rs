//! A session: the rules in [`core`], and what carries them out.

mod callbacks;
mod cell;
mod core;
mod driver;
mod ended;
mod handle;
mod inputs;
mod pauses;
mod said;
mod settling;
mod spans;
mod stored;
mod workers;

#[cfg(test)]
mod model;

pub(crate) use core::Settings;
pub(crate) use driver::Shared;
pub(crate) use handle::HostSession;
pub(crate) use said::Said;
