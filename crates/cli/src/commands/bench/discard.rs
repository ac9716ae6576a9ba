//! A store that keeps where a slave stands, and nothing of what it is given: what a master can feed is measured with it.

use async_trait::async_trait;
use bytes::Bytes;
use replikv::{
    Durability, KeyRange, Keyspace, MemoryStore, Page, ReplicaStore, ScanOptions, StoreError, StoreLimits, WriteSet,
};

#[derive(Debug, Default, Clone)]
pub(super) struct DiscardStore(MemoryStore);

#[async_trait]
impl ReplicaStore for DiscardStore {
    async fn apply(&self, writes: WriteSet, durability: Durability) -> Result<(), StoreError> {
        let mut kept = WriteSet::builder();
        for condition in writes.preconditions() {
            kept.require(condition.key.clone(), condition.value.clone());
        }
        for (keyspace, op) in writes.ops().filter(|(keyspace, _)| *keyspace == Keyspace::Meta) {
            kept.push(keyspace, op)?;
        }
        self.0.apply(kept.build(), durability).await
    }

    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.0.get(keyspace, key).await
    }

    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        self.0.scan(keyspace, range, options).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.0.sync().await
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        self.0.reopen().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.0.close().await
    }

    fn limits(&self) -> StoreLimits {
        self.0.limits()
    }
}
