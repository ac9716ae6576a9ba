//! The two ends of a connection, as state machines.
//!
//! Messages, answers of the store and time go in through `handle_*`; what to do comes out of `poll_action`, one action
//! at a time. A session that has nothing to do returns `None` and waits to be told something. Nothing here reads a
//! clock, a socket or a store, so that a simulator can drive the same code that ships.

mod error;
mod master;
mod slave;
#[cfg(test)]
mod tests;

pub use error::{ProtocolError, Refusal};
pub use master::{LogAnswer, MasterAction, MasterSession, MasterSessionConfig, Relay, View};
pub use slave::{SlaveAction, SlaveSession, SlaveSessionConfig, SourceFacts};

/// How the connection's history relates to a position that a slave names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Located {
    /// It is a point of the history, and everything after it can be sent.
    Held {
        /// How many bytes of records were published until there. Where nobody knows, a figure that is too small: a
        /// lag is rather overstated.
        log_bytes: u64,
    },
    /// It is a point of the history; what follows it is no longer in the log.
    Shared,
    /// It is too old to tell, and what follows it is no longer in the log.
    Below,
    /// The history has another record there.
    Mismatch,
    /// It lies after everything that is published.
    Ahead,
}

/// The longest name of a slave, in bytes.
const MAX_NAME_LEN: usize = 128;
/// The most checkpoints that a hello carries.
const MAX_CHECKPOINTS: usize = 64;
/// The most relays between a slave and its master. A circle that nobody has noticed grows until it is longer.
pub const MAX_PATH: usize = 64;
