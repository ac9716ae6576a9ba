//! The store.

use std::path::{Path, PathBuf};

use replikv_blocking::{Threaded, ThreadedOptions};
use replikv_core::StoreError;

use crate::RedbOptions;
use crate::blocking::Blocking;

/// A redb 4 database as a [`ReplicaStore`](replikv_core::ReplicaStore): one file.
///
/// Write sets are applied one after the other on one thread, each in a transaction of its own, and never more than a few
/// wait. Each is on stable storage on return, whatever `Durability` asks for. Reads run on a few other threads, each in a
/// read transaction that ends with it.
///
/// After an I/O error, a full disk too, redb refuses everything until it is opened again: so does the store, until
/// [`reopen`](replikv_core::ReplicaStore::reopen) has succeeded. Masters and slaves do that by themselves.
#[derive(Debug)]
pub struct RedbStore {
    threaded: Threaded<Blocking>,
    path: PathBuf,
}

impl RedbStore {
    /// Opens the database in the file `path`, and creates it, with the directories above it, if it is not there.
    ///
    /// # Errors
    /// `Busy` if this or another process has it open; `Corrupt` if it is damaged, or no database of redb's; and with the
    /// path and the reason if it cannot be read or written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(path, RedbOptions::default())
    }

    /// As [`open`](Self::open), with settings.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, options: RedbOptions) -> Result<Self, StoreError> {
        let path = path.as_ref().to_path_buf();
        let file = path.clone();
        let threaded = Threaded::open("redb", ThreadedOptions::default(), move || Blocking::open(&file, &options))?;
        Ok(Self { threaded, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

replikv_blocking::store_on_threads!(RedbStore, threaded);
