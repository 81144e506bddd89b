//! The wires, and what both need.
//!
//! This module is the project's own: it promises nothing to an agent core, and
//! changes without notice. An agent core programs against the types at the crate's
//! root.

pub mod frame;
pub mod native;
pub mod outbound;
pub mod reader;
pub mod stdio;
pub mod template;
pub mod watch;

mod bounded;
mod json_frame;
mod texts;

pub use bounded::Bounded;
pub use texts::Texts;
