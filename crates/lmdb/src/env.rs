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
    /// The size of the map; `None` once it is lost. Held shared by every transaction, exclusively while it is resized.
    gate: RwLock<Option<usize>>,
    max_map_size: usize,
    /// Other processes may read the environment; only one may be its replikv store. `None` for one that only reads.
    lock: Option<File>,
}

/// What is kept beyond the largest map, for write sets that only delete.
const RESERVE: usize = 16 << 20;
/// Maps are multiples of this; a multiple of every page size.
const GRAIN: usize = 1 << 20;

impl Environment {
    pub(crate) fn open(path: &Path, options: &LmdbOptions) -> Result<Self, StoreError> {
        std::fs::create_dir_all(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => StoreError::backend(format!("{} is no directory", path.display())),
            _ => at(path, "cannot be created", &error),
        })?;
        let lock = lock(path)?;
        let env = Self::map(path, options, grain(options.map_size), EnvFlags::empty())?;
        env.clear_stale_readers().map_err(|error| broken(&error))?;
        let databases = databases(&env, path, &options.databases)?;
        Ok(Self::new(env, databases, options, Some(lock)))
    }

    pub(crate) fn open_read_only(path: &Path, options: &LmdbOptions) -> Result<Self, StoreError> {
        let env = Self::map(path, options, grain(options.map_size), EnvFlags::READ_ONLY)?;
        let [Some(data), Some(log), Some(meta)] = existing_databases(&env, &options.databases)? else {
            return Err(StoreError::backend(format!("{} holds no store", path.display())));
        };
        Ok(Self::new(env, [data, log, meta], options, None))
    }

    fn new(env: Env<WithoutTls>, databases: [Database; 3], options: &LmdbOptions, lock: Option<File>) -> Self {
        // A file that is larger than it was asked to be is mapped as a whole.
        let size = env.info().map_size;
        let max_map_size = grain(options.max_map_size).max(grain(options.map_size));
        Self { env, databases, gate: RwLock::new(Some(size)), max_map_size, lock }
    }

    #[allow(unsafe_code, reason = "LMDB maps a file; heed asks its caller to vouch for that")]
    fn map(path: &Path, options: &LmdbOptions, map_size: usize, mode: EnvFlags) -> Result<Env<WithoutTls>, StoreError> {
        let flags = match options.sync {
            LmdbSync::Full => mode,
            LmdbSync::NoMetaSync => mode | EnvFlags::NO_META_SYNC,
            LmdbSync::DangerouslyNone => mode | EnvFlags::NO_SYNC,
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
    ///
    /// # Errors
    /// `Fatal` if there is no map any more.
    pub(crate) fn hold(&self) -> Result<RwLockReadGuard<'_, Option<usize>>, StoreError> {
        // Nothing under this lock can panic half way.
        let size = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        if size.is_some() { Ok(size) } else { Err(lost()) }
    }

    pub(crate) fn env(&self) -> &Env<WithoutTls> {
        &self.env
    }

    /// True if it was opened for reading only.
    pub(crate) fn is_read_only(&self) -> bool {
        self.lock.is_none()
    }

    /// Reads in one transaction, with the map held where it is.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&RoTxn<'_, WithoutTls>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut cleared = false;
        loop {
            let open = self.hold()?;
            match self.env.read_txn() {
                Ok(txn) => return read(&txn),
                Err(heed::Error::Mdb(heed::MdbError::MapResized)) => {
                    drop(open);
                    self.adopt_size()?;
                }
                Err(heed::Error::Mdb(heed::MdbError::ReadersFull)) if !cleared => {
                    self.clear_stale_readers();
                    cleared = true;
                }
                Err(heed::Error::Mdb(heed::MdbError::ReadersFull)) => {
                    return Err(StoreError::Transient {
                        reason: "all reader slots are taken; raise max_readers".into(),
                    });
                }
                Err(error) => return Err(broken(&error)),
            }
        }
    }

    /// Forgets readers of other processes that died while they read: the pages that they saw could not be used again.
    pub(crate) fn clear_stale_readers(&self) {
        match self.env.clear_stale_readers() {
            Ok(0) => {}
            Ok(cleared) => tracing::warn!(target: "replikv::store", cleared, "readers had died while they read"),
            Err(error) => tracing::warn!(target: "replikv::store", %error, "stale readers could not be cleared"),
        }
    }

    /// Makes the map larger. `reserve`: also with what is kept for deletes.
    ///
    /// # Errors
    /// `StoreFull` if it is as large as it may be; `Fatal` if it could not be mapped again.
    pub(crate) fn grow(&self, reserve: bool) -> Result<(), StoreError> {
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let size = gate.ok_or_else(lost)?;
        let cap = if reserve { self.max_map_size.saturating_add(RESERVE) } else { self.max_map_size };
        let wanted = size.saturating_mul(2).min(cap);
        if wanted <= size {
            let needed = self.max_map_size.saturating_mul(2);
            let hint =
                format!("its map has {size} bytes and may not grow; raise max_map_size, to {needed} for example");
            return Err(StoreError::StoreFull { hint });
        }
        self.resize(&mut gate, wanted)?;
        tracing::info!(target: "replikv::store", from = size, to = wanted, "the map has grown");
        Ok(())
    }

    /// Takes back what [`grow`](Self::grow) gave of the reserve: what puts could use is no reserve.
    pub(crate) fn give_back_reserve(&self) -> Result<(), StoreError> {
        if self.hold()?.is_some_and(|size| size <= self.max_map_size) {
            return Ok(());
        }
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        // LMDB keeps what is in use.
        self.resize(&mut gate, self.max_map_size)
    }

    /// Takes over the size that another process gave to the environment.
    pub(crate) fn adopt_size(&self) -> Result<(), StoreError> {
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.resize(&mut gate, 0)
    }

    #[allow(unsafe_code, reason = "resizing is sound only without a transaction, which the gate ensures")]
    fn resize(&self, gate: &mut Option<usize>, wanted: usize) -> Result<(), StoreError> {
        // LMDB would map nothing, and every later access would be to nowhere.
        let size = gate.take().ok_or_else(lost)?;
        // SAFETY: every transaction of this process is begun and ended under the shared side of the gate, whose
        // exclusive side is held by whoever can lend its content here: none is open.
        let resized = unsafe { self.env.resize(wanted) };
        resized.map_err(|error| StoreError::Fatal {
            reason: format!("the map of {size} bytes could not be made anew with {wanted}: {error}"),
        })?;
        *gate = Some(self.env.info().map_size);
        Ok(())
    }
}

fn lost() -> StoreError {
    StoreError::Fatal { reason: "the map was lost when it was resized".into() }
}

fn databases(env: &Env<WithoutTls>, path: &Path, names: &[String; 3]) -> Result<[Database; 3], StoreError> {
    let found = existing_databases(env, names)?;
    let [_, log, meta] = names;
    // They are made together. One alone is the application's, and would be written over.
    if found[1].is_some() != found[2].is_some() {
        let (name, option) = if found[1].is_some() { (log, "log_database") } else { (meta, "meta_database") };
        let path = path.display();
        return Err(StoreError::backend(format!("{path} has a database {name} of its own: choose another {option}")));
    }
    let wtxn = env.write_txn().map_err(|error| broken(&error))?;
    let created = env.create_databases_and_commit(wtxn, |opener, wtxn| {
        let mut create = |name: &str| opener.create_database::<Bytes, Bytes>(wtxn, Some(name));
        let [data, log, meta] = names;
        let databases = [create(data)?, create(log)?, create(meta)?];
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(databases))
    });
    created.map(CommitOrAbort::unwrap_commit).map_err(|error| broken(&error))
}

fn existing_databases(env: &Env<WithoutTls>, names: &[String; 3]) -> Result<[Option<Database>; 3], StoreError> {
    let [data, log, meta] = names;
    if data == log || log == meta || meta == data {
        return Err(StoreError::backend(format!("{data}, {log} and {meta} must be three databases")));
    }
    if let Some(name) = names.iter().find(|name| name.is_empty() || name.contains('\0')) {
        return Err(StoreError::backend(format!("{name:?} cannot name a database")));
    }
    for name in names {
        refuse_special_order(env, name)?;
    }
    let rtxn = env.read_txn().map_err(|error| broken(&error))?;
    let opened = env.open_databases_and_commit(rtxn, |opener, rtxn| {
        let mut found = [None; 3];
        for (found, name) in found.iter_mut().zip(names) {
            *found = opener.open_database::<Bytes, Bytes>(rtxn, Some(name))?;
        }
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(found))
    });
    opened.map(CommitOrAbort::unwrap_commit).map_err(|error| broken(&error))
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
