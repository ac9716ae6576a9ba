//! The store.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use replikv_blocking::{Threaded, ThreadedOptions};
use replikv_core::{
    Durability, KeyRange, Keyspace, Page, ReplicaStore, ScanOptions, StoreError, StoreLimits, StoreStats, WriteSet,
};

use crate::FjallOptions;
use crate::blocking::Blocking;

/// A fjall 3 database as a [`ReplicaStore`]: one file.
///
/// Write sets are applied one after the other on one thread, each in a transaction of its own, and never more than a few
/// wait. Each is on stable storage on return, whatever `Durability` asks for. Reads run on a few other threads, each in a
/// read transaction that ends with it.
///
/// After an I/O error, a full disk too, fjall refuses everything until it is opened again: so does the store, until
/// [`reopen`](ReplicaStore::reopen) has succeeded. Masters and slaves do that by themselves.
#[derive(Debug)]
pub struct FjallStore {
    threaded: Threaded<Blocking>,
    path: PathBuf,
}

impl FjallStore {
    /// Opens the database in the file `path`, and creates it, with the directories above it, if it is not there.
    ///
    /// # Errors
    /// `Busy` if this or another process has it open; `Corrupt` if it is damaged, or no database of fjall's; and with the
    /// path and the reason if it cannot be read or written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(path, FjallOptions::default())
    }

    /// As [`open`](Self::open), with settings.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, options: FjallOptions) -> Result<Self, StoreError> {
        let path = path.as_ref().to_path_buf();
        let file = path.clone();
        let threaded = Threaded::open("fjall", ThreadedOptions::default(), move || Blocking::open(&file, &options))?;
        Ok(Self { threaded, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[async_trait]
impl ReplicaStore for FjallStore {
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

    fn preferred_write_set(&self) -> usize {
        self.threaded.preferred_write_set()
    }

    fn stats(&self) -> StoreStats {
        self.threaded.stats()
    }
}
