//! A master for synchronous code.

use bytes::Bytes;
use replikv_core::{Batch, ReplicaStore, StoreError, Token};

use super::{Master, WriteError};

/// A [`Master`] whose calls block the thread until they are done. The runtime that the master was opened in must go on
/// running elsewhere.
#[derive(Debug)]
pub struct BlockingMaster<S> {
    master: Master<S>,
}

/// Why a blocking call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockingError {
    /// It was made on a thread of a runtime, where it could wait for itself for ever.
    #[error("a blocking call within an async runtime: use the async handle there")]
    InsideRuntime,
    /// The write failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl<S: ReplicaStore> BlockingMaster<S> {
    pub(super) fn new(master: Master<S>) -> Self {
        Self { master }
    }

    /// As [`Master::write`].
    ///
    /// # Errors
    /// [`BlockingError`].
    pub fn write(&self, batch: Batch) -> Result<Token, BlockingError> {
        Ok(self.wait(async { self.master.write(batch).await })??)
    }

    /// As [`Master::put`].
    ///
    /// # Errors
    /// [`BlockingError`].
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<Token, BlockingError> {
        self.write(Batch::new().put(key, value))
    }

    /// As [`Master::delete`].
    ///
    /// # Errors
    /// [`BlockingError`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<Token, BlockingError> {
        self.write(Batch::new().delete(key))
    }

    /// As [`Master::get`].
    ///
    /// # Errors
    /// [`BlockingError`].
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, BlockingError> {
        Ok(self.wait(self.master.get(key))??)
    }

    fn wait<F: Future>(&self, future: F) -> Result<F::Output, BlockingError> {
        if tokio::runtime::Handle::try_current().is_ok() {
            return Err(BlockingError::InsideRuntime);
        }
        Ok(self.master.inner.runtime.block_on(future))
    }
}
