//! A session: the rules in [`core`], and what carries them out.

mod callbacks;
mod cell;
mod core;
mod driver;
mod durable;
mod ended;
mod handle;
mod held;
#[cfg(feature = "check-inputs")]
mod inputs;
#[cfg(not(feature = "check-inputs"))]
#[path = "inputs_off.rs"]
mod inputs;
mod messages;
mod number;
mod observers;
mod order;
mod parking;
mod pauses;
mod replay;
mod settling;
mod spans;
mod stored;
mod workers;

#[cfg(test)]
mod durable_model;
#[cfg(test)]
mod model;

pub(crate) use core::Settings;
pub(crate) use driver::{Opening, Shared};
pub use handle::Session;
pub(crate) use inputs::Inputs;
#[cfg(feature = "check-inputs")]
pub use inputs::input_fits;
pub(crate) use messages::Received;
