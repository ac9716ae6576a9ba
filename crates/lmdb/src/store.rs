//! The store.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use replikv_blocking::{BlockingStore, Threaded, ThreadedOptions};
use replikv_core::{
    Durability, KeyRange, Keyspace, Op, Page, PageBuilder, ReplicaStore, ScanOptions, StoreError, StoreLimits, WriteSet,
};

use crate::env::Environment;
use crate::write::{Failed, MAX_KEY, apply, bounds, settle};
use crate::{LmdbOptions, LmdbSync};

/// An LMDB environment as a [`ReplicaStore`].
///
/// Write transactions run on one thread, from begin to commit. Point reads run where they are asked for: the data is
/// mapped. Pages are read on a few threads, each in a transaction of its own that ends with the page, so that no long
/// reader makes the file grow. The map grows by itself, while no transaction is open.
#[derive(Debug)]
pub struct LmdbStore {
    threaded: Threaded<Blocking>,
    path: PathBuf,
}

impl LmdbStore {
    /// Opens the environment in the directory `path`, and creates it if it is not there.
    ///
    /// # Errors
    /// `Busy` if this or another process has it open as a store; `Corrupt` if the directory holds something else; and
    /// with the path and the reason if it cannot be read or written.
    pub fn open(path: impl AsRef<Path>, options: LmdbOptions) -> Result<Self, StoreError> {
        let path = path.as_ref().to_path_buf();
        let directory = path.clone();
        let threaded = Threaded::open("lmdb", ThreadedOptions::default(), move || {
            Ok(Blocking::new(Environment::open(&directory, &options)?, options.sync))
        })?;
        Ok(Self { threaded, path })
    }

    /// Opens an environment that is there to read it, also while this store is a master's or a slave's in another
    /// process. Every write is refused. Pages show what is committed, which may be more than is on stable storage yet.
    ///
    /// # Errors
    /// `Busy` if this process has it open; `Corrupt` if the directory holds something else; and with the path and the
    /// reason if it holds no store or cannot be read.
    pub fn open_read_only(path: impl AsRef<Path>, options: LmdbOptions) -> Result<Self, StoreError> {
        let path = path.as_ref().to_path_buf();
        let directory = path.clone();
        let threaded = Threaded::open("lmdb", ThreadedOptions::default(), move || {
            Ok(Blocking::new(Environment::open_read_only(&directory, &options)?, options.sync))
        })?;
        Ok(Self { threaded, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What LMDB could hold is more; this keeps one write set, and the memory for it, within reason.
const LIMITS: StoreLimits = StoreLimits { max_key: MAX_KEY, max_value: 256 << 20, max_batch: 1 << 30 };

/// After so many write sets, readers that died are looked for: cheap beside them, and soon enough for the file not to
/// grow much.
const SWEEP: u32 = 256;

#[derive(Debug)]
struct Blocking {
    environment: Environment,
    sync: LmdbSync,
    /// How many write sets came, those included that failed.
    calls: AtomicU32,
}

impl Blocking {
    fn new(environment: Environment, sync: LmdbSync) -> Self {
        Self { environment, sync, calls: AtomicU32::new(0) }
    }

    // What a transaction frees can be used by the next but one, and a transaction that does not commit is none: without
    // a commit in between, a store that was full could not use what a delete has just freed.
    fn settle(&self) -> Result<(), StoreError> {
        let mut settled = settle(&self.environment);
        if matches!(settled, Err(Failed::MapFull)) && self.environment.grow(true).is_ok() {
            settled = settle(&self.environment);
        }
        let given_back = self.environment.give_back_reserve();
        match settled {
            Err(Failed::Unknown(error)) => Err(error),
            _ => given_back,
        }
    }

    fn force_sync(&self) -> Result<(), StoreError> {
        let _open = self.environment.hold()?;
        if self.environment.is_read_only() {
            return Ok(());
        }
        self.environment
            .env()
            .force_sync()
            .map_err(|error| StoreError::Fatal { reason: format!("a sync failed: {error}") })
    }
}

impl BlockingStore for Blocking {
    fn apply(&self, writes: &WriteSet, durability: Durability) -> Result<(), StoreError> {
        if self.environment.is_read_only() {
            return Err(StoreError::backend("it was opened for reading only"));
        }
        if self.calls.fetch_add(1, Ordering::Relaxed) % SWEEP == SWEEP - 1 {
            self.environment.clear_stale_readers();
        }
        // What only deletes, and keeps books about it, may use the reserve: trimming makes room.
        let makes_room = !writes.ops().any(|(keyspace, op)| keyspace != Keyspace::Meta && matches!(op, Op::Put { .. }));
        let mut settled = false;
        loop {
            match apply(&self.environment, writes) {
                Ok(()) => break,
                Err(Failed::MapFull) => match self.environment.grow(makes_room) {
                    Err(StoreError::StoreFull { .. }) if !settled => {
                        self.settle()?;
                        settled = true;
                    }
                    grown => grown?,
                },
                Err(Failed::MapResized) => self.environment.adopt_size()?,
                Err(Failed::Unchanged(error) | Failed::Unknown(error)) => return Err(error),
            }
        }
        // Where that fails, the next call says so: this write set is applied.
        if makes_room && let Err(error) = self.environment.give_back_reserve() {
            tracing::error!(target: "replikv::store", %error, "the reserve could not be given back");
        }
        match (self.sync, durability) {
            (LmdbSync::Full, _) | (_, Durability::Buffered) => Ok(()),
            _ => self.force_sync(),
        }
    }

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.environment.read(|txn| {
            let value = self.environment.database(keyspace).get(txn, key).map_err(read_failed)?;
            Ok(value.map(Bytes::copy_from_slice))
        })
    }

    fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        let mut page = PageBuilder::new(range.clone(), options);
        if range.is_empty() {
            return Ok(page.finish());
        }
        let database = self.environment.database(keyspace);
        let bounds = bounds(&range);
        self.environment.read(|txn| {
            if options.reverse {
                for entry in database.rev_range(txn, &bounds).map_err(read_failed)? {
                    let (key, value) = entry.map_err(read_failed)?;
                    if page.push(key, value).is_full() {
                        break;
                    }
                }
            } else {
                for entry in database.range(txn, &bounds).map_err(read_failed)? {
                    let (key, value) = entry.map_err(read_failed)?;
                    if page.push(key, value).is_full() {
                        break;
                    }
                }
            }
            Ok(page.finish())
        })
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.force_sync()
    }

    fn limits(&self) -> StoreLimits {
        LIMITS
    }

    fn reads_inline(&self) -> bool {
        true
    }
}

fn read_failed(error: heed::Error) -> StoreError {
    match error {
        heed::Error::Mdb(heed::MdbError::Corrupted | heed::MdbError::PageNotFound) => {
            StoreError::Corrupt { what: "a page is damaged".into() }
        }
        error => StoreError::backend(error.to_string()),
    }
}

#[async_trait]
impl ReplicaStore for LmdbStore {
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
