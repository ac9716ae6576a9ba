//! Where a law is tried: a directory, and a way to open the store in it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use replikv_core::{
    Durability, KeyRange, Keyspace, ReplicaStore, ReplicaStoreExt, ScanOptions, StoreError, WriteSet, WriteSetBuilder,
};

/// Opens the store in a directory that is there, and fresh unless the store was in it before.
pub type Open = fn(&Path) -> Result<Arc<dyn ReplicaStore>, StoreError>;

/// One law's store.
#[derive(Debug)]
pub struct Bench {
    dir: tempfile::TempDir,
    open: Open,
    test: &'static str,
}

/// Tries one law. `test` is the full path of the test, so that a law can start it again as a process of its own.
///
/// # Panics
/// If the law does not hold.
pub fn run<F>(open: Open, test: &'static str, law: impl FnOnce(Arc<Bench>) -> F)
where
    F: Future<Output = ()>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let dir = tempfile::Builder::new().prefix("replikv-law-").tempdir().expect("a directory for temporary files");
    let bench = Arc::new(Bench { dir, open, test });
    runtime.expect("a runtime").block_on(law(bench));
}

impl Bench {
    /// The open store. Opened again, what is there is what was there.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub fn open(&self) -> Arc<dyn ReplicaStore> {
        self.try_open().unwrap_or_else(|error| panic!("the store cannot be opened: {error:?}"))
    }

    /// As [`open`](Self::open).
    ///
    /// # Errors
    /// Those of the store.
    pub fn try_open(&self) -> Result<Arc<dyn ReplicaStore>, StoreError> {
        (self.open)(self.dir.path())
    }

    /// Opens the store in another directory.
    pub(crate) fn open_at(&self, dir: &Path) -> Arc<dyn ReplicaStore> {
        (self.open)(dir).unwrap_or_else(|error| panic!("the store cannot be opened: {error:?}"))
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    // `crate::module::test`, without the crate, is what a test binary calls it.
    pub(crate) fn test(&self) -> &'static str {
        self.test.split_once("::").map_or(self.test, |(_, test)| test)
    }
}

/// A seed for a law, printed so that a failure can be repeated.
pub(crate) fn seed() -> fastrand::Rng {
    let seed = std::env::var("REPLIKV_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_240_917);
    println!("reproduce with REPLIKV_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Shorthands that the laws are written in.
pub(crate) trait Shorthand {
    async fn commit(&self, build: impl FnOnce(&mut WriteSetBuilder));
    async fn data(&self, key: impl AsRef<[u8]>) -> Option<Bytes>;
    async fn contents(&self, keyspace: Keyspace) -> Vec<(Bytes, Bytes)>;
    async fn keys(&self, range: KeyRange, options: ScanOptions) -> Vec<Bytes>;
}

impl Shorthand for Arc<dyn ReplicaStore> {
    async fn commit(&self, build: impl FnOnce(&mut WriteSetBuilder)) {
        self.apply(writes(build), Durability::Synced).await.expect("the write set is applied");
    }

    async fn data(&self, key: impl AsRef<[u8]>) -> Option<Bytes> {
        self.get(Keyspace::Data, key.as_ref()).await.expect("the key is read")
    }

    async fn contents(&self, keyspace: Keyspace) -> Vec<(Bytes, Bytes)> {
        self.entries(keyspace, KeyRange::all(), ScanOptions::default()).try_collect().await.expect("the store is read")
    }

    async fn keys(&self, range: KeyRange, options: ScanOptions) -> Vec<Bytes> {
        let entries = self.entries(Keyspace::Data, range, options).map_ok(|(key, _)| key);
        entries.try_collect().await.expect("the store is read")
    }
}

pub(crate) fn writes(build: impl FnOnce(&mut WriteSetBuilder)) -> WriteSet {
    let mut writes = WriteSet::builder();
    build(&mut writes);
    writes.build()
}

pub(crate) trait Put {
    fn data(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> &mut Self;
    fn remove(&mut self, key: impl AsRef<[u8]>) -> &mut Self;
}

impl Put for WriteSetBuilder {
    fn data(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> &mut Self {
        self.put(Keyspace::Data, key, value).expect("the key is not empty")
    }

    fn remove(&mut self, key: impl AsRef<[u8]>) -> &mut Self {
        self.delete(Keyspace::Data, key).expect("the key is not empty")
    }
}

/// A reader that never pauses can starve the writer that it watches, where locks are not fair: so it pauses at times.
pub(crate) async fn breathe(reads: u32) {
    if reads.is_multiple_of(16) {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}
