//! The store.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use replikv_blocking::{Threaded, ThreadedOptions};
use replikv_core::{
    Durability, KeyRange, Keyspace, Page, ReplicaStore, ScanOptions, StoreError, StoreLimits, WriteSet,
};

use crate::blocking::Blocking;

/// The settings of a [`SledStore`]. Each has a default.
#[derive(Debug, Clone)]
pub struct SledOptions {
    pub(crate) cache_bytes: u64,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self { cache_bytes: 256 << 20 }
    }
}

impl SledOptions {
    /// How much memory sled's page cache takes, in bytes. Default: 256 MiB.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }
}

/// A sled 0.34 database as a [`ReplicaStore`].
///
/// The whole store is one tree, whose keys begin with `d`, `l` or `m`. Write sets are applied one after the other on one
/// thread, and never more than a few wait. Each is on stable storage on return, whatever `Durability` asks for: sled's
/// flush is followed by a sync of its files, since a flush alone does not reach the disk on Linux, and what is flushed
/// and not synced can come to the disk in parts.
#[derive(Debug)]
pub struct SledStore {
    threaded: Threaded<Blocking>,
    path: PathBuf,
}

impl SledStore {
    /// Opens the database in the directory `path`, and creates it if it is not there. A database that was closed a
    /// moment ago is waited for.
    ///
    /// # Errors
    /// `Busy` if this or another process has it open; `Corrupt` if it is damaged, also where sled itself panics.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(path, SledOptions::default())
    }

    /// As [`open`](Self::open), with settings.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, options: SledOptions) -> Result<Self, StoreError> {
        let path = path.as_ref().to_path_buf();
        let directory = path.clone();
        let options_for_threads = ThreadedOptions { queue: 16, ..ThreadedOptions::default() };
        let threaded = Threaded::open("sled", options_for_threads, move || Blocking::open(&directory, &options))?;
        Ok(Self { threaded, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[async_trait]
impl ReplicaStore for SledStore {
    async fn apply(&self, writes: WriteSet, durability: Durability) -> Result<(), StoreError> {
        self.threaded.apply(writes, durability).await
    }

    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.threaded.get(keyspace, key).await
    }

    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        self.threaded.scan(keyspace, range, options).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.threaded.sync().await
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        self.threaded.reopen().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.threaded.close().await
    }

    fn limits(&self) -> StoreLimits {
        self.threaded.limits()
    }
}
