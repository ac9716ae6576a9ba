//! What fjall's errors mean.

use std::io;

use fjall::{Error, LsmError};
use replikv_core::StoreError;

const POISONED: &str =
    "a write, a sync or a thread of fjall's has failed, and fjall takes no more until it is opened again";

/// Of a call that has changed nothing.
pub(crate) fn failed(error: Error) -> StoreError {
    match error {
        Error::Poisoned => StoreError::Fatal { reason: POISONED.into() },
        Error::Io(error) | Error::Storage(LsmError::Io(error)) => StoreError::backend(error),
        Error::InvalidVersion(_) => StoreError::backend("it was written by another version of fjall: this is fjall 3"),
        Error::JournalRecovery(_)
        | Error::Storage(_)
        | Error::Decompress(_)
        | Error::InvalidTrailer
        | Error::InvalidTag(_)
        | Error::Unrecoverable => StoreError::Corrupt { what: error.to_string() },
        error => StoreError::backend(error),
    }
}

/// Of a call that writes. fjall takes nothing more after it; what of the write is in the journal is seen when it is opened
/// again.
pub(crate) fn unknown(error: Error) -> StoreError {
    match error {
        Error::Io(error) | Error::Storage(LsmError::Io(error)) if error.kind() == io::ErrorKind::StorageFull => {
            StoreError::backend_unknown(io::Error::new(error.kind(), "the disk is full: make room"))
        }
        Error::Poisoned => failed(Error::Poisoned),
        error => StoreError::backend_unknown(error),
    }
}
