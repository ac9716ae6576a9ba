//! Why a stream of changes ends early.

use replikv_core::{Position, StoreError};

/// Why a stream of changes cannot begin, or cannot go on. Nothing was left out before it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ChangesError {
    /// What follows the position is no longer in the log. Read the data as it is now, and go on from there.
    #[error("the log begins after record {}: what came before is trimmed", floor.seq)]
    Trimmed {
        /// Where the log begins.
        floor: Position,
    },
    /// The position is not in this history: another batch is there, or the history ends before it.
    #[error("{position} is no point of this history")]
    NotInHistory {
        /// The position that was asked for.
        position: Position,
    },
    /// The position, or the token, speaks of another source.
    #[error("the position belongs to another source")]
    ForeignSource,
    /// This node keeps no log: it tells what it applies from now on, and nothing of before.
    #[error("this slave keeps no log: it tells changes from now on only")]
    LiveOnly,
    /// The consumer was slower than the slave, which keeps nothing for it. Read the data as it is now, and begin again.
    #[error("{groups} groups of changes were applied before they were asked for")]
    Missed {
        /// How many were missed.
        groups: u64,
    },
    /// The consumer was forgotten, and with it where it was.
    #[error("the consumer was forgotten")]
    Forgotten,
    /// This reader tells no changes. Follow the master with a slave, and read its changes.
    #[error("this reader tells no changes: follow the master with a slave, and read its changes")]
    Unsupported,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
