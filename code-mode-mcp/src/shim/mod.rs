//! The process that a client starts, where all clients of a user share one gateway.
//!
//! `code-mode mcp` over standard input and output is a *shim*: it finds the gateway of its
//! configuration, or starts it, and relays the messages of one client. The gateway (`server/socket.rs`)
//! has the servers and the sessions, and ends a while after its last client.
//!
//! | where | what |
//! | --- | --- |
//! | `place.rs` | which gateway: the name of its socket is a digest of all that it depends on |
//! | `greeting.rs` | the first line of each side of a connection |
//! | `start.rs` | a connection to the gateway, which is started where it does not run |
//! | `relay.rs` | a client's messages, over as many gateways as it takes |
//! | `messages.rs` | what the relay knows of the messages that passed |

pub(crate) mod greeting;
mod messages;
mod place;
mod relay;
mod start;

pub use greeting::{ClientStatus, GatewayStatus, ServerStatus};
pub use place::{GatewayName, Place, PlaceError};
pub use relay::relay;
pub(crate) use start::bound_log;
pub use start::{
    ConnectError, Connection, FindError, GatewayProgram, Gateways, HeldName, NameNow,
    answer_approvals, ask_approvals, ask_status, ask_to_stop, hold_name,
};
