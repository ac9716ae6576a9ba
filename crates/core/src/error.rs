//! Why a store said no, and what the caller can do about it.

use std::error::Error;
use std::sync::Arc;

/// What is known about a write after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The store holds what it held before.
    Unchanged,
    /// The write may be there or not. The store refuses everything until it is reopened; what it holds then is
    /// the truth.
    Unknown,
}

/// The error of every store. Its kinds tell what to do next; [`outcome`](Self::outcome) tells what the store holds.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Keys have at least one byte.
    #[error("the key is empty")]
    KeyEmpty,
    /// Use a shorter key.
    #[error("the key has {len} bytes, the store holds keys of up to {max}")]
    KeyTooLong {
        /// Its length.
        len: usize,
        /// The longest that fits.
        max: usize,
    },
    /// Use another kind of key: the native table that this key belongs to cannot hold it.
    #[error("the key does not fit into table {table}: {reason}")]
    KeyUnfit {
        /// The table, by its native name.
        table: String,
        /// What its keys are like.
        reason: String,
    },
    /// Use a smaller value.
    #[error("the value has {len} bytes, the store holds values of up to {max}")]
    ValueTooLarge {
        /// Its length.
        len: usize,
        /// The largest that fits.
        max: usize,
    },
    /// Split the batch.
    #[error("the batch has {len} bytes, the store takes up to {max} at once")]
    BatchTooLarge {
        /// Its encoded length.
        len: usize,
        /// The largest that fits.
        max: usize,
    },
    /// Make room: the disk or the map is full.
    #[error("the store is full: {hint}")]
    StoreFull {
        /// What to do, with the figure to grow to where it is known.
        hint: String,
    },
    /// Ask the master, or a slave that subscribes to it: this one holds a part of the keys, and cannot tell what the others
    /// are.
    #[error("{what} lies outside of the key ranges that this slave subscribes to")]
    NotSubscribed {
        /// What was asked for.
        what: String,
    },
    /// A precondition of the write set does not hold: somebody else writes to this store.
    #[error("the head of the store has moved: another master writes to it")]
    HeadMoved,
    /// Try again.
    #[error("the store is busy for the moment: {reason}")]
    Transient {
        /// What stood in the way.
        reason: String,
    },
    /// What follows from the write cannot be derived: change the derive, and open the store again.
    #[error("{name} cannot derive from what was written: {reason}")]
    NotDerived {
        /// The derive.
        name: String,
        /// Why.
        reason: String,
    },
    /// What is stored cannot be read. Restore, or copy anew.
    #[error("the store is damaged: {what}")]
    Corrupt {
        /// What was found.
        what: String,
    },
    /// Upgrade the program: a newer one wrote this.
    #[error(
        "the store was written by a newer format: {what} has version {found}, this program reads up to {supported}"
    )]
    NewerFormat {
        /// Which format.
        what: &'static str,
        /// What was found.
        found: u32,
        /// The newest that can be read.
        supported: u32,
    },
    /// Open the store again.
    #[error("the store is closed")]
    Closed,
    /// Close the store elsewhere first.
    #[error("the store is in use: {holder}")]
    Busy {
        /// Who holds it, as far as that is known.
        holder: String,
    },
    /// Reopen the store, and look what it holds: a sync failed, or the writer died in the middle of a write.
    #[error("the store must be reopened: {reason}")]
    Fatal {
        /// What happened.
        reason: String,
    },
    /// Anything else that the backend reports.
    #[error("the store failed")]
    Backend {
        /// What the backend said.
        source: Arc<dyn Error + Send + Sync>,
        /// What is known about the write.
        outcome: Outcome,
    },
}

impl StoreError {
    /// Wraps an error of the backend that left the store as it was.
    pub fn backend(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Backend { source: Arc::from(source.into()), outcome: Outcome::Unchanged }
    }

    /// Wraps an error of the backend after which nobody knows whether the write is there.
    pub fn backend_unknown(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Backend { source: Arc::from(source.into()), outcome: Outcome::Unknown }
    }

    /// What the store holds after this error.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Backend { outcome, .. } => *outcome,
            Self::Fatal { .. } => Outcome::Unknown,
            _ => Outcome::Unchanged,
        }
    }

    /// True if the same call can succeed later without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            // The obstacle goes by itself.
            Self::Transient { .. } => true,
            // Another holder may let go at any moment.
            Self::Busy { .. } => true,
            // Everything else needs another call, more room, another program, or a reopened store.
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_by_itself_is_tried_again() {
        let transient = StoreError::Transient { reason: "locked".into() };
        let busy = StoreError::Busy { holder: "another process".into() };
        assert!(transient.is_retryable() && busy.is_retryable());
        let lasting = [
            StoreError::KeyEmpty,
            StoreError::HeadMoved,
            StoreError::Closed,
            StoreError::StoreFull { hint: "grow it".into() },
            StoreError::Corrupt { what: "a page".into() },
            StoreError::Fatal { reason: "a sync failed".into() },
            StoreError::backend("no"),
            StoreError::backend_unknown("no"),
        ];
        assert!(lasting.iter().all(|error| !error.is_retryable()));
    }

    #[test]
    fn what_a_store_holds_is_known_unless_it_says_otherwise() {
        assert_eq!(StoreError::backend("no").outcome(), Outcome::Unchanged);
        assert_eq!(StoreError::backend_unknown("no").outcome(), Outcome::Unknown);
        assert_eq!(StoreError::Fatal { reason: "a sync failed".into() }.outcome(), Outcome::Unknown);
        assert_eq!(StoreError::Busy { holder: "another process".into() }.outcome(), Outcome::Unchanged);
    }
}
