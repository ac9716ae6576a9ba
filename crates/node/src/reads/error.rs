//! Why a read has no answer.

use replikv_core::{Seq, StoreError};
use replikv_proto::ReadFailure;

use crate::WaitError;

/// Why a read has no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The store failed, or refused the key.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was to be in it is not there yet: wait for it, or read elsewhere.
    #[error("the reader is behind: it stands at record {at}")]
    Behind {
        /// Where the reader stands.
        at: Seq,
    },
    /// What was to be in it never will be, or the reader was shut down.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// The reader has as many questions as it may have: try again, or read elsewhere.
    #[error("the reader is busy")]
    Busy,
    /// The answer is longer than is taken: take more, or ask for less.
    #[error("the answer has {len} bytes, at most {max} are taken")]
    TooLarge {
        /// Its length.
        len: u64,
        /// The most.
        max: u64,
    },
    /// There is no connection to the reader: try again, or read elsewhere.
    #[error("the reader cannot be reached: {reason}")]
    Unreachable {
        /// What stands in the way.
        reason: String,
    },
    /// The node does not answer reads.
    #[error("the node answers no reads: {words}")]
    Refused {
        /// In its words.
        words: String,
    },
    /// No reader is close enough behind, or includes what must be in it: wait, widen the bound, or name a fallback.
    #[error("no reader is within the bound: {reasons}")]
    NobodyWithin {
        /// Why each is not, in their order.
        reasons: String,
    },
}

impl ReadError {
    /// True if the same read can succeed later, or on another reader, without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            // Readers catch up, queues drain, connections come back.
            Self::Behind { .. } | Self::Busy | Self::Unreachable { .. } | Self::NobodyWithin { .. } => true,
            Self::Wait(error) => matches!(error, WaitError::Unreachable { .. }),
            Self::TooLarge { .. } | Self::Refused { .. } => false,
        }
    }

    pub(crate) fn from_failure(failure: ReadFailure) -> Self {
        let size = |len| usize::try_from(len).unwrap_or(usize::MAX);
        match failure {
            ReadFailure::KeyEmpty => StoreError::KeyEmpty.into(),
            ReadFailure::KeyTooLong { len, max } => StoreError::KeyTooLong { len: size(len), max: size(max) }.into(),
            ReadFailure::Behind { at } => Self::Behind { at },
            ReadFailure::Superseded => WaitError::Superseded.into(),
            ReadFailure::ForeignSource => WaitError::ForeignSource.into(),
            ReadFailure::Busy => Self::Busy,
            ReadFailure::Closed => WaitError::Closed.into(),
            ReadFailure::TooLarge { len, max } => Self::TooLarge { len, max },
            ReadFailure::Store { words, retry: true } => StoreError::Transient { reason: words }.into(),
            ReadFailure::Store { words, .. } => StoreError::backend(words).into(),
            other => Self::Refused { words: other.to_string() },
        }
    }

    pub(crate) fn to_failure(&self) -> ReadFailure {
        match self {
            Self::Store(StoreError::KeyEmpty) => ReadFailure::KeyEmpty,
            Self::Store(StoreError::KeyTooLong { len, max }) => {
                ReadFailure::KeyTooLong { len: *len as u64, max: *max as u64 }
            }
            Self::Store(StoreError::Closed) | Self::Wait(WaitError::Closed) => ReadFailure::Closed,
            Self::Behind { at } => ReadFailure::Behind { at: *at },
            Self::Wait(WaitError::Superseded) => ReadFailure::Superseded,
            Self::Wait(WaitError::ForeignSource) => ReadFailure::ForeignSource,
            Self::Busy => ReadFailure::Busy,
            Self::TooLarge { len, max } => ReadFailure::TooLarge { len: *len, max: *max },
            error => ReadFailure::Store { words: crate::error_chain(error), retry: error.is_retryable() },
        }
    }
}

/// For those who read through the traits of stores.
impl From<ReadError> for StoreError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => error,
            ReadError::Wait(WaitError::Closed) => Self::Closed,
            error if error.is_retryable() => Self::Transient { reason: error.to_string() },
            error => Self::backend(error),
        }
    }
}

impl From<ReadError> for WaitError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Wait(error) => error,
            ReadError::Store(StoreError::Closed) => Self::Closed,
            error => Self::Unreachable { reason: error.to_string() },
        }
    }
}
