//! Why a blocking call failed.

use std::io;

use replikv_core::StoreError;

use crate::{ChangesError, OpenError, VerifyError, WaitError, WriteError};

/// Why a blocking call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockingError {
    /// It was made on a thread of a runtime, where it could wait for itself for ever. Nothing was done.
    #[error("a blocking call within an async runtime: use the async handle there")]
    InsideRuntime,
    /// It needs a runtime, and the async handle was opened outside of one.
    #[error("the node was opened outside of a runtime: open it within one, or with a blocking `open`")]
    NoRuntime,
    /// What was waited for has not happened in time. It still can: wait again.
    #[error("it has not happened in time")]
    TimedOut,
    /// The system gives no threads for a runtime.
    #[error("the runtime cannot be started")]
    Runtime(#[source] io::Error),
    /// The address cannot be listened on.
    #[error("the address cannot be listened on")]
    Listen(#[source] io::Error),
    /// What ran in the background has ended without a result: its runtime was shut down, or it panicked.
    #[error("the background task is gone: {reason}")]
    Gone {
        /// In words.
        reason: String,
    },
    /// The store cannot be opened as a master's or a slave's.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The write failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Waiting makes no sense any more.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// The changes cannot be told.
    #[error(transparent)]
    Changes(#[from] ChangesError),
    /// Verifying could not be finished.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BlockingError {
    /// True if the same call can succeed later without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            // What was waited for may be there by then.
            Self::TimedOut => true,
            Self::Write(error) => error.is_retryable(),
            Self::Store(error) | Self::Changes(ChangesError::Store(error)) => error.is_retryable(),
            // The others tell of where or how the call was made, or of an end.
            _ => false,
        }
    }
}
