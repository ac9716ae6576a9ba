//! The environment: opened once, grown behind a gate. The only unsafe code of the project is here.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use heed::types::Bytes;
use heed::{CommitOrAbort, Env, EnvFlags, EnvOpenOptions, RoTxn, WithoutTls};
use replikv_core::{Keyspace, StoreError};

use crate::{LmdbOptions, LmdbSync};

pub(crate) type Database = heed::Database<'static, Bytes, Bytes>;

/// An open environment with its three databases.
#[derive(Debug)]
pub(crate) struct Environment {
    env: Env<WithoutTls>,
    databases: [Database; 3],
    /// Held shared by every transaction, exclusively while the map is resized.
    gate: RwLock<usize>,
    max_map_size: usize,
    /// Other processes may read the environment; only one may be its replikv store.
    _lock: File,
}

/// What is kept beyond the largest map, for write sets that only delete.
const RESERVE: usize = 16 << 20;
/// Maps are multiples of this; a multiple of every page size.
const GRAIN: usize = 1 << 20;

impl Environment {
    pub(crate) fn open(path: &Path, options: &LmdbOptions) -> Result<Self, StoreError> {
        std::fs::create_dir_all(path).map_err(|error| at(path, "cannot be created", &error))?;
        let lock = lock(path)?;
        let map_size = grain(options.map_size);
        let env = Self::map(path, options, map_size)?;
        env.clear_stale_readers().map_err(|error| broken(&error))?;
        let databases = databases(&env, &options.data_database)?;
        let max_map_size = grain(options.max_map_size).max(map_size);
        Ok(Self { env, databases, gate: RwLock::new(map_size), max_map_size, _lock: lock })
    }

    #[allow(unsafe_code, reason = "LMDB maps a file; heed asks its caller to vouch for that")]
    fn map(path: &Path, options: &LmdbOptions, map_size: usize) -> Result<Env<WithoutTls>, StoreError> {
        let flags = match options.sync {
            LmdbSync::Full => EnvFlags::empty(),
            LmdbSync::NoMetaSync => EnvFlags::NO_META_SYNC,
            LmdbSync::DangerouslyNone => EnvFlags::NO_SYNC,
        };
        let mut open = EnvOpenOptions::new().read_txn_without_tls();
        open.map_size(map_size).max_readers(options.max_readers).max_dbs(options.max_databases.max(4));
        // SAFETY: these flags change when pages reach the disk, not how the map is used; the environment is on a local
        // file system as documented, LMDB's own locking is on, and nothing but LMDB touches its files.
        let opened = unsafe { open.flags(flags).open(path) };
        opened.map_err(|error| match error {
            heed::Error::EnvAlreadyOpened => busy(path),
            heed::Error::Io(error) => at(path, "cannot be opened", &error),
            heed::Error::Mdb(heed::MdbError::Invalid | heed::MdbError::VersionMismatch | heed::MdbError::Corrupted) => {
                StoreError::Corrupt { what: format!("{} holds no LMDB environment", path.display()) }
            }
            error => broken(&error),
        })
    }

    /// The database of a keyspace.
    pub(crate) fn database(&self, keyspace: Keyspace) -> Database {
        match keyspace {
            Keyspace::Data => self.databases[0],
            Keyspace::Log => self.databases[1],
            Keyspace::Meta => self.databases[2],
        }
    }

    /// Keeps the map where it is, for as long as the guard lives.
    pub(crate) fn hold(&self) -> RwLockReadGuard<'_, usize> {
        // Nothing under this lock can panic half way.
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn env(&self) -> &Env<WithoutTls> {
        &self.env
    }

    pub(crate) fn read_txn(&self) -> Result<RoTxn<'_, WithoutTls>, StoreError> {
        self.env.read_txn().map_err(|error| match error {
            heed::Error::Mdb(heed::MdbError::ReadersFull) => {
                StoreError::Transient { reason: "all reader slots are taken; raise max_readers".into() }
            }
            error => broken(&error),
        })
    }

    /// Makes the map larger. `reserve`: also with what is kept for deletes.
    ///
    /// # Errors
    /// `StoreFull` if it is as large as it may be, or cannot be mapped.
    #[allow(unsafe_code, reason = "resizing is sound only without a transaction, which the gate ensures")]
    pub(crate) fn grow(&self, reserve: bool) -> Result<(), StoreError> {
        let mut size = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let cap = if reserve { self.max_map_size.saturating_add(RESERVE) } else { self.max_map_size };
        let wanted = size.saturating_mul(2).min(cap);
        if wanted <= *size {
            let needed = size.saturating_mul(2);
            let hint =
                format!("its map has {size} bytes and may not grow; raise max_map_size, to {needed} for example");
            return Err(StoreError::StoreFull { hint });
        }
        // SAFETY: every transaction of this process is begun and ended under the shared side of this gate, which is
        // held exclusively here: none is open.
        let resized = unsafe { self.env.resize(wanted) };
        if let Err(error) = resized {
            let hint = format!("its map of {size} bytes cannot grow to {wanted}: {error}");
            return Err(StoreError::StoreFull { hint });
        }
        tracing::info!(target: "replikv::store", from = *size, to = wanted, "the map has grown");
        *size = wanted;
        Ok(())
    }
}

fn databases(env: &Env<WithoutTls>, data: &str) -> Result<[Database; 3], StoreError> {
    refuse_special_order(env, data)?;
    let wtxn = env.write_txn().map_err(|error| broken(&error))?;
    let created = env.create_databases_and_commit(wtxn, |opener, wtxn| {
        let mut create = |name: &str| opener.create_database::<Bytes, Bytes>(wtxn, Some(name));
        let databases = [create(data)?, create("log")?, create("meta")?];
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(databases))
    });
    created.map(CommitOrAbort::unwrap_commit).map_err(|error| broken(&error))
}

// LMDB keeps a named database as an entry of the unnamed one, whose value begins with four bytes of padding and two of
// flags. Reading them there needs no call that could change anything.
fn refuse_special_order(env: &Env<WithoutTls>, data: &str) -> Result<(), StoreError> {
    const KINDS: [(u16, &str); 3] = [(0x02, "reverse keys"), (0x04, "duplicates"), (0x08, "integer keys")];
    let rtxn = env.read_txn().map_err(|error| broken(&error))?;
    let unnamed = env.open_databases_and_commit(rtxn, |opener, rtxn| {
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(opener.open_database::<Bytes, Bytes>(rtxn, None)?))
    });
    let Some(unnamed) = unnamed.map_err(|error| broken(&error))?.unwrap_commit() else { return Ok(()) };
    let rtxn = env.read_txn().map_err(|error| broken(&error))?;
    let record = unnamed.get(&rtxn, data.as_bytes()).map_err(|error| broken(&error))?;
    let Some(&[_, _, _, _, low, high, ..]) = record else { return Ok(()) };
    let flags = u16::from_ne_bytes([low, high]);
    match KINDS.iter().find(|(flag, _)| flags & flag != 0) {
        Some((_, kind)) => {
            Err(StoreError::backend(format!("database {data} has {kind}: only plain byte order can be replicated")))
        }
        None => Ok(()),
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let file = path.join("replikv.lock");
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&file);
    let lock = opened.map_err(|error| at(&file, "cannot be opened", &error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(busy(path)),
        Err(TryLockError::Error(error)) => Err(at(&file, "cannot be locked", &error)),
    }
}

fn busy(path: &Path) -> StoreError {
    StoreError::Busy { holder: format!("{} is open in this or another process", path.display()) }
}

fn at(path: &Path, what: &str, error: &std::io::Error) -> StoreError {
    StoreError::backend(format!("{} {what}: {error}", path.display()))
}

fn broken(error: &heed::Error) -> StoreError {
    StoreError::backend(error.to_string())
}

fn grain(size: usize) -> usize {
    (size / GRAIN).max(1) * GRAIN
}
