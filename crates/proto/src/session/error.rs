//! Why a session ends early, split by blame.

use crate::{Reject, RejectCode};

/// The peer broke the protocol. The connection is of no use any more; another one may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The peer sent something that has no place here.
    #[error("the peer misbehaved: {what}")]
    Misbehaved {
        /// What it did.
        what: String,
    },
    /// The peer was not heard of for too long.
    #[error("nothing was heard of the peer for {seconds} seconds")]
    Silent {
        /// For how long.
        seconds: u64,
    },
    /// A record does not continue the history that came before it, or was damaged on the way.
    #[error("a record failed its check: {what}")]
    BadRecord {
        /// What was wrong with it.
        what: String,
    },
}

impl ProtocolError {
    pub(crate) fn misbehaved(what: impl Into<String>) -> Self {
        Self::Misbehaved { what: what.into() }
    }
}

/// A session that cannot be, and why: the answer to a position, not to an accident.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct Refusal {
    /// The kind of refusal.
    pub code: RejectCode,
    /// What it means for whoever operates the slave.
    pub words: String,
    /// Whether the same attempt may succeed later.
    pub retry: bool,
}

impl Refusal {
    /// A refusal that trying again does not help.
    pub fn new(code: RejectCode, words: impl Into<String>) -> Self {
        Self { code, words: words.into(), retry: false }
    }
}

impl From<Reject> for Refusal {
    fn from(reject: Reject) -> Self {
        Self { code: reject.code, words: reject.words, retry: reject.retry }
    }
}

impl From<Refusal> for Reject {
    fn from(refusal: Refusal) -> Self {
        Self { code: refusal.code, words: refusal.words, retry: refusal.retry }
    }
}
