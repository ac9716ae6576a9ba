//! Reading the user's data, from whatever holds it.

use async_trait::async_trait;
use bytes::Bytes;

use crate::{KeyRange, Keyspace, Page, ReplicaStore, ScanOptions, StoreError};

/// Whatever the user's data can be read from: a store, a master, a slave.
#[async_trait]
pub trait DataReader: Send + Sync {
    /// The value of `key`, or `None`.
    ///
    /// # Errors
    /// As [`ReplicaStore::get`].
    async fn get_data(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// One page of `range`, as it was at one instant.
    ///
    /// # Errors
    /// As [`ReplicaStore::scan`].
    async fn scan_data(&self, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError>;
}

#[async_trait]
impl<S: ReplicaStore> DataReader for S {
    async fn get_data(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.get(Keyspace::Data, key).await
    }

    async fn scan_data(&self, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        self.scan(Keyspace::Data, range, options).await
    }
}
