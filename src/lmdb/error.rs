//! Why something was not recorded.

use replikv_core::StoreError;
use replikv_lmdb::{ScribeError, heed};
use replikv_node::WriteError;

/// Why something was not recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecorderError {
    /// The database is no table of the store: nothing was written. Name it with
    /// [`LmdbOptions::table`](crate::LmdbOptions::table), or write to it through
    /// [`txn_mut`](crate::lmdb::Recorder::txn_mut) if it is not to be replicated.
    #[error("{database} is no table of the store: what is written to it would reach no slave")]
    NoTable {
        /// The database, as far as heed tells what it is.
        database: String,
    },
    /// The key or the value was refused, and nothing was written: the transaction goes on as it was. For other errors of
    /// the store, abort it.
    #[error(transparent)]
    Store(StoreError),
    /// LMDB or a codec failed. Unless it was the codec, abort the transaction.
    #[error("the database failed")]
    Heed(#[from] heed::Error),
    /// The master does not take it: it was shut down, or another master has taken over the store. Abort the transaction.
    #[error(transparent)]
    Master(WriteError),
}

impl From<ScribeError> for RecorderError {
    fn from(error: ScribeError) -> Self {
        match error {
            ScribeError::NoTable { database } => Self::NoTable { database },
            ScribeError::Store(error) => Self::Store(error),
            ScribeError::Heed(error) => Self::Heed(error),
            other => Self::Store(StoreError::backend(other)),
        }
    }
}

impl From<StoreError> for RecorderError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<WriteError> for RecorderError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Store(error) => Self::Store(error),
            error => Self::Master(error),
        }
    }
}
