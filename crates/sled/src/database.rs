//! A database: opened, or taken from the application; and its files, synced.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use bytes::Bytes;
use replikv_core::StoreError;
use sled::Db;

use crate::{SledOptions, names};

/// The lock of a database that was dropped a moment ago goes when its threads have ended.
const OPEN_ATTEMPTS: u32 = 40;
const OPEN_PAUSE: Duration = Duration::from_millis(50);

pub(crate) fn open(path: &Path, options: &SledOptions) -> Result<Db, StoreError> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(options.cache_bytes)
        // Durability is decided write set by write set.
        .flush_every_ms(None);
    let mut attempt = 0;
    loop {
        match names::begin(path).and_then(|is_begun| is_begun.then(|| config.open()).transpose()) {
            Ok(Some(database)) => {
                settle(path)?;
                return Ok(database);
            }
            Err(sled::Error::Io(error)) if !is_locked(&error) => {
                return Err(StoreError::backend(format!("{} cannot be opened: {error}", path.display())));
            }
            Err(error) if !matches!(error, sled::Error::Io(_)) => return Err(failed(error)),
            _ if attempt < OPEN_ATTEMPTS => {
                attempt += 1;
                sleep(OPEN_PAUSE);
            }
            _ => {
                let holder = format!("{} is open in this or another process", path.display());
                return Err(StoreError::Busy { holder });
            }
        }
    }
}

/// Brings the names of a database's files to stable storage.
fn settle(path: &Path) -> Result<(), StoreError> {
    names::settle(path).map_err(|error| StoreError::backend(format!("{} cannot be synced: {error}", path.display())))
}

/// An application's database, for as long as a store is made of it.
#[derive(Debug)]
pub(crate) struct Adopted {
    database: Mutex<Option<Db>>,
    path: PathBuf,
    doubt: Arc<Doubt>,
}

impl Adopted {
    /// # Errors
    /// If its directory is gone.
    pub(crate) fn new(database: Db) -> Result<Self, StoreError> {
        // sled shows this in no other way; the version that is used is part of what this crate promises.
        let path = database.context.get_path();
        let path = path
            .canonicalize()
            .map_err(|error| StoreError::backend(format!("{} cannot be found: {error}", path.display())))?;
        settle(&path)?;
        Ok(Self { database: Mutex::new(Some(database)), path, doubt: Arc::default() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn doubt(&self) -> &Arc<Doubt> {
        &self.doubt
    }

    /// # Errors
    /// `Closed`; `Fatal` if what sled holds in memory may differ from what opening it anew would find.
    pub(crate) fn database(&self) -> Result<Db, StoreError> {
        if self.doubt.is_raised() {
            let reason = "a write or a sync failed, and what the application's database shows may not be what is on the \
                          disk: drop every handle of it, and open it anew";
            return Err(StoreError::Fatal { reason: reason.into() });
        }
        self.database.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(StoreError::Closed)
    }

    /// Lets go of it, as far as no open store has it.
    pub(crate) fn release(&self) {
        drop(self.database.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Raised while a write is on its way, and for ever if it does not arrive: then memory may hold what the disk does not.
#[derive(Debug, Default)]
pub(crate) struct Doubt(AtomicBool);

impl Doubt {
    /// Changes something. A panic leaves as much doubt as an error.
    pub(crate) fn until_done<T, E>(&self, change: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let before = self.0.swap(true, Ordering::AcqRel);
        let result = change();
        if result.is_ok() {
            self.0.store(before, Ordering::Release);
        }
        result
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The right to be the store in this tree of this database: sled itself lets anybody have a tree who has the database.
#[derive(Debug)]
pub(crate) struct Lease(PathBuf, Bytes);

static LEASES: Mutex<BTreeSet<(PathBuf, Bytes)>> = Mutex::new(BTreeSet::new());

impl Lease {
    /// # Errors
    /// `Busy` if there is such a store already.
    pub(crate) fn take(path: &Path, own: &Bytes) -> Result<Self, StoreError> {
        let mut leases = LEASES.lock().unwrap_or_else(PoisonError::into_inner);
        if !leases.insert((path.to_path_buf(), own.clone())) {
            return Err(StoreError::Busy { holder: format!("{} is a store already, in this process", path.display()) });
        }
        Ok(Self(path.to_path_buf(), own.clone()))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = LEASES.lock().unwrap_or_else(PoisonError::into_inner);
        leases.remove(&(std::mem::take(&mut self.0), std::mem::take(&mut self.1)));
    }
}

/// The files of a database.
#[derive(Debug)]
pub(crate) struct Files {
    path: PathBuf,
    /// Files of large values that are on stable storage.
    synced_blobs: Mutex<BTreeSet<OsString>>,
}

impl Files {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), synced_blobs: Mutex::default() }
    }

    // `flush` starts writing pages out on Linux and does not wait for the disk; a sync of the files does.
    pub(crate) fn sync(&self, database: &Db) -> Result<(), StoreError> {
        self.sync_blobs()?;
        database.flush().map_err(unknown)?;
        // What sled has moved meanwhile: before the log that names it.
        self.sync_blobs()?;
        sync_file(&self.path.join("db"))
    }

    /// Syncs the files of large values, each of which is written once.
    ///
    /// They must be there before the log says so: recovery leaves out an entry whose file is missing, and takes the rest of
    /// its batch.
    pub(crate) fn sync_blobs(&self) -> Result<(), StoreError> {
        let blobs = self.path.join("blobs");
        let Ok(entries) = std::fs::read_dir(&blobs) else { return Ok(()) };
        let mut synced = self.synced_blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let present: BTreeSet<OsString> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        let new: Vec<_> = present.difference(&synced).collect();
        for blob in &new {
            sync_file(&blobs.join(blob))?;
        }
        if !new.is_empty() {
            sync_file(&blobs)?;
        }
        *synced = present;
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn unsynced_blobs(&self) -> usize {
        let present: Vec<_> = std::fs::read_dir(self.path.join("blobs")).unwrap().map(Result::unwrap).collect();
        let synced = self.synced_blobs.lock().unwrap();
        assert!(!present.is_empty());
        present.iter().filter(|entry| !synced.contains(&entry.file_name())).count()
    }
}

fn sync_file(path: &Path) -> Result<(), StoreError> {
    match File::open(path).and_then(|file| file.sync_all()) {
        // A large value that was replaced meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::Fatal { reason: format!("{} cannot be synced: {error}", path.display()) }),
        Ok(()) => Ok(()),
    }
}

fn is_locked(error: &std::io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

pub(crate) fn failed(error: sled::Error) -> StoreError {
    match error {
        sled::Error::Corruption { at, .. } => StoreError::Corrupt { what: format!("a page is damaged, at {at:?}") },
        sled::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            StoreError::StoreFull { hint: "no space is left on the disk".into() }
        }
        error => StoreError::backend(error),
    }
}

// Once a batch was handed over, an error does not tell how far it came.
pub(crate) fn unknown(error: sled::Error) -> StoreError {
    match failed(error) {
        StoreError::Backend { source, .. } => StoreError::backend_unknown(source.to_string()),
        error => StoreError::backend_unknown(error),
    }
}
