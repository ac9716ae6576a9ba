//! How following ends, and why waiting fails.

use std::io;

use replikv_core::StoreError;
use replikv_proto::{GoodbyeReason, ProtocolError, Refusal};

use crate::transport::ConnectionError;

/// An orderly end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// This side was shut down.
    Shutdown,
    /// Either side said goodbye, for another reason than that this side was shut down.
    Goodbye {
        /// Why.
        reason: GoodbyeReason,
        /// In words.
        words: String,
    },
    /// The other side has asked, and has gone: it was no slave.
    Answered,
}

/// Why following stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// The transport failed. A new connection goes on where this one stopped.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The master broke the protocol. A new connection may do better.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// Master and slave do not fit; nothing was written. Its `code` says what to do.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The slave's own store failed.
    #[error(transparent)]
    Store(StoreError),
    /// What a resync or a repair takes the place of could not be kept. Nothing of it was overwritten; it is tried again.
    #[error("what the slave would lose cannot be quarantined, and stays")]
    Quarantine {
        /// What the quarantine reported.
        source: io::Error,
    },

    /// Somebody else moves the cursor of this link: two slaves share one store.
    #[error("another process writes to this slave's store")]
    Fenced,
    /// The slave follows another connection already.
    #[error("the slave follows another connection already")]
    AlreadyFollowing,
}

impl FollowError {
    /// True if following again, on a new connection, can succeed without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            // Networks heal, and a connection that broke the protocol is replaced.
            Self::Connection(ConnectionError::Decode(error)) => error.is_retryable(),
            Self::Connection(_) | Self::Protocol(_) => true,
            Self::Refused(refusal) => refusal.retry,
            // The space may come back, and an unknown outcome is settled by reopening.
            Self::Store(StoreError::StoreFull { .. } | StoreError::Fatal { .. } | StoreError::Backend { .. }) => true,
            Self::Store(error) => error.is_retryable(),
            // Space comes back, and so do file systems.
            Self::Quarantine { .. } => true,
            Self::Fenced | Self::AlreadyFollowing => false,
        }
    }
}

impl From<StoreError> for FollowError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::HeadMoved => Self::Fenced,
            error => Self::Store(error),
        }
    }
}

/// Why waiting for a position failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The epoch of the token ended before its record: that write is not part of the history any more.
    #[error("the epoch of that write ended before it")]
    Superseded,
    /// The token speaks of another history.
    #[error("that write was made to another source")]
    ForeignSource,
    /// The slave was shut down.
    #[error("the slave was shut down")]
    Closed,
    /// The reader is on the other side of a connection, which is lost. Wait again.
    #[error("the reader cannot be reached: {reason}")]
    Unreachable {
        /// What stands in the way.
        reason: String,
    },
}
