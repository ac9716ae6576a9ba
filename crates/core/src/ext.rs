//! Conveniences over every store.

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{KeyRange, Keyspace, Op, Page, ReplicaStore, ScanOptions, StoreError, WriteSet};

/// Streams over scans, and shorthands. Implemented for every [`ReplicaStore`].
#[async_trait]
pub trait ReplicaStoreExt: ReplicaStore {
    /// The pages of `range`, one after the other. Each is of its own instant.
    fn pages(
        &self,
        keyspace: Keyspace,
        range: KeyRange,
        options: ScanOptions,
    ) -> BoxStream<'_, Result<Page, StoreError>> {
        let pages = stream::try_unfold(Some(range), move |rest| async move {
            let Some(range) = rest else { return Ok(None) };
            let page = self.scan(keyspace, range, options).await?;
            let rest = page.rest().cloned();
            Ok(Some((page, rest)))
        });
        pages.boxed()
    }

    /// The entries of `range`, read page by page. Keys and values share the buffers of their pages.
    fn entries(
        &self,
        keyspace: Keyspace,
        range: KeyRange,
        options: ScanOptions,
    ) -> BoxStream<'_, Result<(Bytes, Bytes), StoreError>> {
        let pages = self.pages(keyspace, range, options);
        pages.map_ok(|page| stream::iter(page.entries().map(Ok).collect::<Vec<_>>())).try_flatten().boxed()
    }

    /// The first entry of `range`.
    async fn first(&self, keyspace: Keyspace, range: KeyRange) -> Result<Option<(Bytes, Bytes)>, StoreError> {
        let page = self.scan(keyspace, range, ScanOptions::default().max_entries(1)).await?;
        Ok(page.entries().next())
    }

    /// The last entry of `range`.
    async fn last(&self, keyspace: Keyspace, range: KeyRange) -> Result<Option<(Bytes, Bytes)>, StoreError> {
        let page = self.scan(keyspace, range, ScanOptions::default().max_entries(1).reversed()).await?;
        Ok(page.entries().next())
    }

    /// True if `keyspace` holds nothing.
    async fn is_keyspace_empty(&self, keyspace: Keyspace) -> Result<bool, StoreError> {
        Ok(self.first(keyspace, KeyRange::all()).await?.is_none())
    }

    /// Applies one operation, synced.
    async fn apply_one(&self, keyspace: Keyspace, op: Op<'_>) -> Result<(), StoreError> {
        let writes = WriteSet::builder().push(keyspace, op)?.build();
        self.apply(writes, crate::Durability::Synced).await
    }
}

impl<S: ReplicaStore + ?Sized> ReplicaStoreExt for S {}
