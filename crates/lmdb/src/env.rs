//! The environment: opened once and grown behind a gate, or adopted from the application and left as it is. The only
//! unsafe code of the project is here.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use heed::{CompactionOption, EnvFlags, EnvOpenOptions, RoTxn};
use replikv_blocking::{create_directory, sync_directory};
use replikv_core::StoreError;

use crate::adopt::{AnyEnv, on_env};
use crate::databases::{self, OWN_DATABASES};
use crate::table::Tables;
use crate::{LmdbOptions, LmdbSync};

/// An open environment with its databases.
#[derive(Debug)]
pub(crate) struct Environment {
    env: AnyEnv,
    tables: Arc<Tables>,
    /// The size of the map; `None` once it is lost. Held shared by every transaction, exclusively while it is resized.
    gate: RwLock<Option<usize>>,
    /// `None` if the map is the application's.
    max_map_size: Option<usize>,
    /// Whether a commit is on stable storage by itself.
    commits_are_synced: bool,
    /// Other processes may read the environment; only one may be its replikv store. `None` for one that only reads.
    lock: Option<File>,
}

/// What is kept beyond the largest map, for write sets that only delete.
const RESERVE: usize = 16 << 20;
/// LMDB's name for the file that holds everything.
const DATA: &str = "data.mdb";
/// Where a new environment is made.
const ASIDE: &str = "replikv.new";
/// Maps are multiples of this; a multiple of every page size.
const GRAIN: usize = 1 << 20;

impl Environment {
    pub(crate) fn open(path: &Path, options: &LmdbOptions) -> Result<Self, StoreError> {
        create_directory(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => StoreError::backend(format!("{} is no directory", path.display())),
            _ => at(path, "cannot be created", &error),
        })?;
        let lock = lock(path)?;
        Self::begin(path, options)?;
        let env = Self::map(path, options, grain(options.map_size), EnvFlags::empty())?;
        on_env!(&env, env => env.clear_stale_readers()).map_err(|error| broken(&error))?;
        let tables = databases::open_or_create(&env, options)?;
        // Whatever was made here: what is synced in a file without a name is lost with it.
        sync_directory(path).map_err(|error| at(path, "cannot be synced", &error))?;
        Ok(Self::new(env, tables, options, Some(lock)))
    }

    // A new environment is made aside, and gets its name when it is on stable storage: LMDB writes the first pages of a
    // file without a sync, and refuses the file for ever if power loss leaves half of them.
    fn begin(path: &Path, options: &LmdbOptions) -> Result<(), StoreError> {
        let (data, aside) = (path.join(DATA), path.join(ASIDE));
        let begun = || -> std::io::Result<()> {
            std::fs::create_dir_all(&aside)?;
            // What is left of an earlier beginning.
            match std::fs::remove_file(aside.join(DATA)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            Self::map(&aside, options, grain(options.map_size), EnvFlags::empty())
                .map(drop)
                .map_err(std::io::Error::other)?;
            File::open(aside.join(DATA))?.sync_all()?;
            std::fs::rename(aside.join(DATA), &data)?;
            std::fs::remove_dir_all(&aside)
        };
        if data.exists() {
            return Ok(());
        }
        begun().map_err(|error| at(path, "cannot be created", &error))
    }

    pub(crate) fn open_read_only(path: &Path, options: &LmdbOptions) -> Result<Self, StoreError> {
        let env = Self::map(path, options, grain(options.map_size), EnvFlags::READ_ONLY)?;
        let tables = databases::open_existing(&env, options)?;
        let tables = tables.ok_or_else(|| StoreError::backend(format!("{} holds no store", path.display())))?;
        Ok(Self::new(env, tables, options, None))
    }

    /// Takes the application's environment, which goes on belonging to it.
    pub(crate) fn adopt(env: AnyEnv, options: &LmdbOptions) -> Result<Self, StoreError> {
        let path = on_env!(&env, env => env.path().to_path_buf());
        let flags = on_env!(&env, env => env.get_flags()).map_err(|error| broken(&error))?;
        let flags = EnvFlags::from_bits_truncate(flags);
        let has = |flag, words: &str| match flags.contains(flag) {
            true => Err(StoreError::backend(format!("{} was opened {words}", path.display()))),
            false => Ok(()),
        };
        has(EnvFlags::READ_ONLY, "for reading only: a store must be able to write")?;
        has(EnvFlags::NO_LOCK, "without LMDB's locks (NO_LOCK): only they keep two writers apart")?;
        let lock = lock(&path)?;
        on_env!(&env, env => env.clear_stale_readers()).map_err(|error| broken(&error))?;
        let tables = Arc::new(databases::open_or_create(&env, options)?);
        let size = on_env!(&env, env => env.info().map_size);
        let lazy = EnvFlags::NO_SYNC | EnvFlags::NO_META_SYNC | EnvFlags::MAP_ASYNC;
        Ok(Self {
            env,
            tables,
            gate: RwLock::new(Some(size)),
            max_map_size: None,
            commits_are_synced: !flags.intersects(lazy),
            lock: Some(lock),
        })
    }

    fn new(env: AnyEnv, tables: Tables, options: &LmdbOptions, lock: Option<File>) -> Self {
        // A file that is larger than it was asked to be is mapped as a whole.
        let size = on_env!(&env, env => env.info().map_size);
        let max_map_size = Some(grain(options.max_map_size).max(grain(options.map_size)));
        let commits_are_synced = options.sync == LmdbSync::Full;
        Self { env, tables: Arc::new(tables), gate: RwLock::new(Some(size)), max_map_size, commits_are_synced, lock }
    }

    #[allow(unsafe_code, reason = "LMDB maps a file; heed asks its caller to vouch for that")]
    fn map(path: &Path, options: &LmdbOptions, map_size: usize, mode: EnvFlags) -> Result<AnyEnv, StoreError> {
        let flags = match options.sync {
            LmdbSync::Full => mode,
            LmdbSync::NoMetaSync => mode | EnvFlags::NO_META_SYNC,
            LmdbSync::DangerouslyNone => mode | EnvFlags::NO_SYNC,
        };
        let tables = u32::try_from(options.tables.len()).unwrap_or(u32::MAX);
        let max_databases = options.max_databases.max(tables.saturating_add(OWN_DATABASES));
        let mut open = EnvOpenOptions::new().read_txn_without_tls();
        open.map_size(map_size).max_readers(options.max_readers).max_dbs(max_databases);
        // SAFETY: these flags change when pages reach the disk, not how the map is used; the environment is on a local
        // file system as documented, LMDB's own locking is on, and nothing but LMDB touches its files.
        let opened = unsafe { open.flags(flags).open(path) };
        opened.map(AnyEnv::WithoutTls).map_err(|error| match error {
            heed::Error::EnvAlreadyOpened => busy(path),
            heed::Error::Io(error) => at(path, "cannot be opened", &error),
            heed::Error::Mdb(heed::MdbError::Invalid | heed::MdbError::VersionMismatch | heed::MdbError::Corrupted) => {
                StoreError::Corrupt { what: format!("{} holds no LMDB environment", path.display()) }
            }
            error => broken(&error),
        })
    }

    pub(crate) fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// True if it is the application's.
    pub(crate) fn is_adopted(&self) -> bool {
        self.max_map_size.is_none()
    }

    /// Whether a commit is on stable storage by itself.
    pub(crate) fn commits_are_synced(&self) -> bool {
        self.commits_are_synced
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

    pub(crate) fn env(&self) -> &AnyEnv {
        &self.env
    }

    /// True if it was opened for reading only.
    pub(crate) fn is_read_only(&self) -> bool {
        self.lock.is_none()
    }

    /// Reads in one transaction, with the map held where it is.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&RoTxn<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut cleared = false;
        loop {
            let open = self.hold()?;
            match self.env.read_txn() {
                Ok(txn) => return read(&txn),
                Err(heed::Error::Mdb(heed::MdbError::MapResized)) => {
                    drop(open);
                    self.adopt_size()?;
                }
                Err(heed::Error::Mdb(heed::MdbError::BadRslot)) => {
                    return Err(StoreError::backend(
                        "this thread has a read transaction open already, and in this environment it can have one: end \
                         it first, or open the environment with read_txn_without_tls",
                    ));
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

    /// Copies what is there at this instant into a new environment.
    pub(crate) fn copy_to(&self, path: &Path) -> Result<(), StoreError> {
        create_directory(path).map_err(|error| at(path, "cannot be created", &error))?;
        let data = path.join(DATA);
        let file = OpenOptions::new().write(true).create_new(true).open(&data);
        let mut file = file.map_err(|error| at(&data, "cannot be created", &error))?;
        loop {
            let open = self.hold()?;
            match on_env!(&self.env, env => env.copy_to_file(&mut file, CompactionOption::Enabled)) {
                Ok(()) => break,
                Err(heed::Error::Mdb(heed::MdbError::MapResized)) => {
                    drop(open);
                    self.adopt_size()?;
                }
                Err(heed::Error::Io(error)) => return Err(at(&data, "cannot be written", &error)),
                Err(error) => return Err(broken(&error)),
            }
        }
        let synced = file.sync_all().and_then(|()| sync_directory(path));
        synced.map_err(|error| at(path, "cannot be synced", &error))
    }

    /// Forgets readers of other processes that died while they read: the pages that they saw could not be used again.
    pub(crate) fn clear_stale_readers(&self) {
        match on_env!(&self.env, env => env.clear_stale_readers()) {
            Ok(0) => {}
            Ok(cleared) => tracing::warn!(target: "replikv::store", cleared, "readers had died while they read"),
            Err(error) => tracing::warn!(target: "replikv::store", %error, "stale readers could not be cleared"),
        }
    }

    /// True if a write set of so many bytes fits behind the last page that is in use; makes the map larger for it. Only
    /// for the one thread that writes: nobody else takes the room meanwhile, if no other process writes.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        // Pages of the tree that are copied, what the list of free pages needs, headers.
        const BESIDE: usize = 16 << 20;
        let wanted = bytes.saturating_add(bytes / 64).saturating_add(BESIDE);
        let stat = self.read(|txn| self.tables.book.stat(txn).map_err(|error| broken(&error)));
        let Ok(page_size) = stat.map(|stat| stat.page_size as usize) else { return false };
        loop {
            let room = {
                let Ok(open) = self.hold() else { return false };
                let used = on_env!(&self.env, env => env.info().last_page_number + 1).saturating_mul(page_size);
                open.map_or(0, |size| size.saturating_sub(used))
            };
            if room >= wanted {
                return true;
            }
            if self.grow(false).is_err() {
                return false;
            }
        }
    }

    /// Makes the map larger. `reserve`: also with what is kept for deletes.
    ///
    /// # Errors
    /// `StoreFull` if it is as large as it may be; `Fatal` if it could not be mapped again.
    pub(crate) fn grow(&self, reserve: bool) -> Result<(), StoreError> {
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let size = gate.ok_or_else(lost)?;
        let Some(max_map_size) = self.max_map_size else {
            let needed = size.saturating_mul(2);
            let hint = format!(
                "the application's map has {size} bytes, and is not resized here: open the environment with a map_size \
                 of {needed}, for example"
            );
            return Err(StoreError::StoreFull { hint });
        };
        let cap = if reserve { max_map_size.saturating_add(RESERVE) } else { max_map_size };
        let wanted = size.saturating_mul(2).min(cap);
        if wanted <= size {
            let needed = max_map_size.saturating_mul(2);
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
        let Some(max_map_size) = self.max_map_size else { return Ok(()) };
        if self.hold()?.is_some_and(|size| size <= max_map_size) {
            return Ok(());
        }
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        // LMDB keeps what is in use.
        self.resize(&mut gate, max_map_size)
    }

    /// Takes over the size that another process gave to the environment.
    pub(crate) fn adopt_size(&self) -> Result<(), StoreError> {
        if self.is_adopted() {
            return Err(StoreError::backend(
                "another process has made the map larger: open the environment with that map_size",
            ));
        }
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.resize(&mut gate, 0)
    }

    #[allow(unsafe_code, reason = "resizing is sound only without a transaction, which the gate ensures")]
    fn resize(&self, gate: &mut Option<usize>, wanted: usize) -> Result<(), StoreError> {
        // LMDB would map nothing, and every later access would be to nowhere.
        let size = gate.take().ok_or_else(lost)?;
        // SAFETY: every transaction of this process is begun and ended under the shared side of the gate, whose
        // exclusive side is held by whoever can lend its content here: none is open.
        let resized = on_env!(&self.env, env => unsafe { env.resize(wanted) });
        resized.map_err(|error| StoreError::Fatal {
            reason: format!("the map of {size} bytes could not be made anew with {wanted}: {error}"),
        })?;
        *gate = Some(on_env!(&self.env, env => env.info().map_size));
        Ok(())
    }
}

fn lost() -> StoreError {
    StoreError::Fatal { reason: "the map was lost when it was resized".into() }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let file = if path.is_dir() {
        path.join("replikv.lock")
    } else {
        // An environment that is a file (NO_SUB_DIR): beside it.
        let mut name = path.as_os_str().to_os_string();
        name.push("-replikv.lock");
        PathBuf::from(name)
    };
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
