//! The store.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use replikv_blocking::{BlockingStore, Threaded, ThreadedOptions};
use replikv_core::{
    Durability, KeyRange, Keyspace, Op, OpsPart, Page, PageBuilder, ScanOptions, StoreError, StoreLimits, StoreStats,
    WriteSet,
};

use crate::LmdbOptions;
use crate::adopt::{Adopt, AnyEnv, on_env};
use crate::book::Book;
use crate::entries::Entries;
use crate::env::Environment;
use crate::order::MAX_KEY;
use crate::scribe::Scribe;
use crate::snapshot::Snapshot;
use crate::write::{Failed, apply, settle};

/// An LMDB environment as a [`ReplicaStore`](replikv_core::ReplicaStore).
///
/// Write transactions run on one thread, from begin to commit. Point reads run where they are asked for: the data is
/// mapped. Pages are read on a few threads, each in a transaction of its own that ends with the page, so that no long
/// reader makes the file grow. The map grows by itself, while no transaction is open.
///
/// An environment of the application's ([`from_env`](Self::from_env)) is used as it is: it is never resized, its
/// flags say what a commit means, and where its readers belong to threads (heed's `WithTls`), point reads run on the
/// store's own threads.
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
            Ok(Blocking::new(Environment::open(&directory, &options)?))
        })?;
        Ok(Self { threaded, path })
    }

    /// Makes a store of an environment that the application has open already, and goes on using: its databases, named
    /// as [`table`](LmdbOptions::table)s, are replicated; the others are left alone.
    ///
    /// Of `options`, `data_database` and the tables count; the rest was decided when the environment was opened. A commit
    /// is as durable as the environment's flags say; `Durability::Synced` brings it to stable storage where they say
    /// less. The map is never resized: when it is full, `StoreFull` names the size to open it with. While the store is
    /// open, the application must not resize it either.
    ///
    /// What the application writes to a table in transactions of its own must go through a recorder, or reaches no
    /// slave; [`stats`](replikv_core::ReplicaStore::stats) counts transactions that did not. It may read as it likes.
    ///
    /// [`close`](replikv_core::ReplicaStore::close) lets go of the environment and leaves it open. In an environment
    /// whose readers belong to threads, LMDB wants the application's threads that have read to be gone, or to stay,
    /// while the last handle of the environment is dropped: join them first, and close the store, or drop its last
    /// handle, before your own.
    ///
    /// Must not be called on a thread that has a write transaction open.
    ///
    /// # Errors
    /// `Busy` if the environment is a store already, here or in another process. With names and a way out: if a database
    /// cannot be replicated, tables overlap, or `max_dbs` is too small.
    pub fn from_env(env: impl Adopt, options: LmdbOptions) -> Result<Self, StoreError> {
        let env = env.into_any();
        let path = on_env!(&env, env => env.path().to_path_buf());
        let threaded = Threaded::open("lmdb", ThreadedOptions::default(), move || {
            Ok(Blocking::new(Environment::adopt(AnyEnv::clone(&env), &options)?))
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
            Ok(Blocking::new(Environment::open_read_only(&directory, &options)?))
        })?;
        Ok(Self { threaded, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the whole environment, as it is at one instant, into a new one in the directory `path`: which is made, and
    /// must hold none. Everything comes along, tables and databases of the application too; free pages do not. What is
    /// open for reading only, beside the process that writes, can be copied as well.
    ///
    /// Blocks, for as long as it takes to read and write the data. Meanwhile LMDB can free no page. The copy is on stable
    /// storage on return. It is the same store twice: mark it (`replikv::mark_backup`), before anybody opens it.
    ///
    /// # Errors
    /// `Closed`; with the path and the reason, if it holds an environment or cannot be written.
    pub fn copy_to(&self, path: impl AsRef<Path>) -> Result<(), StoreError> {
        self.threaded.with_store(|store| store.environment.copy_to(path.as_ref()))
    }

    /// Calls `read` with the store as it is at this instant: values are read in place, and the application's own typed
    /// databases show the same instant through [`Snapshot::txn`].
    ///
    /// Runs on the caller's thread. Keep it short: while it runs, LMDB can free no page, the map cannot grow, and writers
    /// that need a larger map wait. A write whose future was dropped may or may not be seen.
    ///
    /// # Errors
    /// `Closed`; and, in an environment whose readers belong to threads, if this thread has a read transaction open.
    pub fn read<T>(&self, read: impl FnOnce(&Snapshot<'_>) -> T) -> Result<T, StoreError> {
        self.threaded.with_store(|store| {
            let environment = &store.environment;
            environment.read(|txn| Ok(read(&Snapshot::new(txn, environment.tables()))))
        })
    }

    /// For recorders: writes to the tables in a transaction of the application's. Applications use
    /// `replikv::lmdb::LmdbMaster` instead, which also puts the record into the log.
    ///
    /// `limits` are those of the master.
    ///
    /// # Errors
    /// `Closed`, and if the environment is not the application's: nobody else can have a transaction in it.
    pub fn scribe(&self, limits: StoreLimits) -> Result<Scribe, StoreError> {
        self.threaded.with_store(|store| {
            let environment = &store.environment;
            if !environment.is_adopted() {
                return Err(StoreError::backend(
                    "the store has opened its environment itself: open it in the application, and use from_env",
                ));
            }
            let env = environment.env().clone();
            Ok(Scribe::new(env, environment.tables().clone(), limits, environment.commits_are_synced()))
        })
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
    /// As last seen, for when it cannot be read.
    seen: Mutex<StoreStats>,
    /// How many write sets came, those included that failed.
    calls: AtomicU32,
}

impl Blocking {
    fn new(environment: Environment) -> Self {
        Self { environment, seen: Mutex::default(), calls: AtomicU32::new(0) }
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
        on_env!(self.environment.env(), env => env.force_sync())
            .map_err(|error| StoreError::Fatal { reason: format!("a sync failed: {error}") })
    }
}

impl BlockingStore for Blocking {
    fn apply(&self, writes: &WriteSet, durability: Durability) -> Result<(), StoreError> {
        self.apply_owned(writes.clone(), durability)
    }

    fn apply_owned(&self, writes: WriteSet, durability: Durability) -> Result<(), StoreError> {
        if self.environment.is_read_only() {
            return Err(StoreError::backend("it was opened for reading only"));
        }
        if self.calls.fetch_add(1, Ordering::Relaxed) % SWEEP == SWEEP - 1 {
            self.environment.clear_stale_readers();
        }
        // What only deletes, and keeps books about it, may use the reserve: trimming makes room.
        let makes_room = makes_room(&writes);
        // What frees its buffers while they are copied cannot be applied again: only where the map surely has room for it.
        let once = !writes.is_joined() && writes.is_alone() && self.environment.has_room(writes.byte_len());
        let mut kept = Some(writes);
        let mut settled = false;
        loop {
            let attempt = if once { kept.take() } else { kept.clone() };
            let Some(attempt) = attempt else {
                let reason = "the map was made larger while a large value was written: it must be sent again".into();
                return Err(StoreError::Transient { reason });
            };
            match apply(&self.environment, attempt) {
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
        if durability == Durability::Buffered || self.environment.commits_are_synced() {
            return Ok(());
        }
        self.force_sync()
    }

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.environment.read(|txn| {
            let value = self.environment.tables().table(keyspace, key).get(txn, key)?;
            Ok(value.map(Bytes::copy_from_slice))
        })
    }

    fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        let mut page = PageBuilder::new(range.clone(), options);
        self.environment.read(|txn| {
            for entry in Entries::new(self.environment.tables(), txn, keyspace, &range, options.reverse) {
                let (key, value) = entry?;
                if page.push(&key, value).is_full() {
                    break;
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

    fn stats(&self) -> StoreStats {
        let tables = self.environment.tables();
        let look = || {
            self.environment.read(|txn| {
                let foreign = Book::read(tables.book, txn)?.map(|book| book.foreign_at(txn.id()));
                Ok((foreign, tables.data_bytes(txn).ok()))
            })
        };
        let read = match self.reads_inline() {
            true => look(),
            false => elsewhere(look),
        };
        // What was seen last must do where nothing can be read now.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok((foreign, data_bytes)) = read {
            seen.foreign_commits = foreign;
            seen.data_bytes = data_bytes;
        }
        *seen
    }

    fn reads_inline(&self) -> bool {
        // A thread has one reader at a time there, and the caller's may be open.
        !self.environment.env().has_tls()
    }
}

/// On a thread that is gone when this returns: a reader that belonged to the caller's thread would be there as long as
/// that, and LMDB touches it when the thread ends, even if the environment is just being closed.
fn elsewhere<T: Send>(read: impl FnOnce() -> Result<T, StoreError> + Send) -> Result<T, StoreError> {
    let joined = thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, read).map_err(StoreError::backend)?;
        thread.join().map_err(|_| StoreError::backend("the thread that read has panicked"))
    });
    joined?
}

fn makes_room(writes: &WriteSet) -> bool {
    let puts = |part: OpsPart<'_>| match part {
        OpsPart::Put(_) => true,
        OpsPart::Ops(mut ops) => ops.any(|op| matches!(op, Op::Put { .. })),
    };
    !writes.chunks().iter().any(|chunk| chunk.keyspace != Keyspace::Meta && chunk.ops.parts().any(puts))
}

replikv_blocking::store_on_threads!(LmdbStore, threaded);
