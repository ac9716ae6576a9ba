//! What redb's errors mean.

use std::io;

use replikv_core::StoreError;

/// Of a call that has changed nothing.
pub(crate) fn failed(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Corrupted(what) => StoreError::Corrupt { what },
        redb::Error::PreviousIo => {
            StoreError::Fatal { reason: "redb has met an I/O error, and refuses everything since".into() }
        }
        redb::Error::DatabaseClosed => StoreError::Closed,
        redb::Error::LockPoisoned(_) => StoreError::Fatal { reason: "redb has panicked before".into() },
        error => StoreError::backend(error),
    }
}

/// Of a call that writes. After an I/O error redb refuses everything until it is opened again, and finds then what was
/// committed last.
pub(crate) fn unknown(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => {
            StoreError::backend_unknown(io::Error::new(error.kind(), "the disk is full: make room"))
        }
        error @ redb::Error::Io(_) => StoreError::backend_unknown(error),
        error => failed(error),
    }
}
