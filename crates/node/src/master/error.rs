//! Why a write failed, and why serving ended.

use bytes::Bytes;
use replikv_core::{Epoch, LinkId, StoreError, Token};
use replikv_proto::{Answer, ProtocolError, Refusal};

use crate::transport::ConnectionError;

/// Why a write failed. Unless it says otherwise, nothing of the batch is there.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// A condition did not hold: look again, decide again.
    #[error("the batch was not written: {} does not hold what was expected", key.escape_ascii())]
    Conflict {
        /// The key.
        key: Bytes,
    },
    /// The transaction decided against it.
    #[error("the transaction was given up: {reason}")]
    Aborted {
        /// In its words.
        reason: String,
    },
    /// Another master has taken over the store. This one never writes again.
    #[error("another master writes to this store")]
    Fenced,
    /// The history goes on with another master: a slave was promoted. This one never writes again; it can follow the other
    /// one, if its store is opened as a slave that [rejoins](crate::SlaveConfig::rejoin).
    #[error("this master was superseded{}", by.map_or(String::new(), |epoch| format!(" in epoch {}", epoch.number)))]
    Superseded {
        /// The epoch that was met; `None` if this master has handed over.
        by: Option<Epoch>,
    },
    /// The store does not know whether the batch is there. It was opened anew: read, and decide.
    #[error("it is not known whether the batch was written")]
    OutcomeUnknown {
        /// What the store has failed with.
        source: StoreError,
    },
    /// The master was shut down.
    #[error("the master was shut down")]
    Closed,
    /// A recorder is open on this thread: the write would wait for the transaction that it records, and the thread for
    /// itself. Commit or drop the recorder first.
    #[error("a recorder is open on this thread: commit or drop it first")]
    RecorderOpen,
    /// The key belongs to a link of the centre that this master is: only that link's own master writes it.
    #[error("the batch was not written: {} belongs to link {link}", key.escape_ascii())]
    Claimed {
        /// The key, or where a range begins that reaches into what is claimed.
        key: Bytes,
        /// The link.
        link: LinkId,
    },
    /// What follows from the batch cannot be derived: the words are those of the derive.
    #[error("the batch was not written: {name} cannot derive from it: {reason}")]
    NotDerived {
        /// The derive.
        name: String,
        /// Why.
        reason: String,
    },
    /// The key belongs to what a derive derives: nobody else writes it. A range that is deleted must not reach into it.
    #[error("the batch was not written: {} belongs to what {name} derives", key.escape_ascii())]
    Derived {
        /// The key, or where a range begins that reaches into what is derived.
        key: Bytes,
        /// The derive.
        name: String,
    },
    /// The batch is committed and stays, but fewer slaves than wanted have acknowledged it in time.
    #[error("the batch is committed, but {acked} of {wanted} slaves hold it durably")]
    NotReplicated {
        /// The write.
        token: Token,
        /// How many do.
        acked: usize,
        /// How many were asked for.
        wanted: usize,
    },
    /// The store refused it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WriteError {
    /// True if the same write can succeed later without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            // A conflict needs a new decision, an unknown outcome a look, and the others do not pass.
            _ => false,
        }
    }

    pub(super) fn from_answer(answer: Answer) -> Result<replikv_core::Position, Self> {
        Err(match answer {
            Answer::Committed(position) => return Ok(position),
            Answer::Conflict { key } => Self::Conflict { key },
            Answer::Aborted { reason } => Self::Aborted { reason },
            Answer::NotDerived { name, reason } => Self::NotDerived { name, reason },
            Answer::Failed(error) => Self::Store(error),
            Answer::OutcomeUnknown(source) => Self::OutcomeUnknown { source },
            Answer::Fenced => Self::Fenced,
            _ => {
                let source = StoreError::Fatal { reason: "of the write there is no known answer".into() };
                Self::OutcomeUnknown { source }
            }
        })
    }
}

/// Why serving a connection failed. The master itself is well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The transport failed.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The slave broke the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The slave was refused, and told why.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The master's own store failed. No slave hears of it as data.
    #[error(transparent)]
    Store(#[from] StoreError),
}
