//! The store.

use std::path::{Path, PathBuf};

use replikv_blocking::{Threaded, ThreadedOptions};
use replikv_core::StoreError;

use crate::FjallOptions;
use crate::blocking::Blocking;

/// A fjall 3 database as a [`ReplicaStore`](replikv_core::ReplicaStore): a directory.
///
/// Write sets are applied one after the other on one thread, each as one batch of fjall's, and never more than a few wait.
/// With `Durability::Synced` the journal is on stable storage on return; with `Durability::Buffered` the operating system has
/// it, so that a kill takes nothing, and power loss the end of what was written. Reads run on a few other threads, each on a
/// snapshot that ends with it.
///
/// After an I/O error, a full disk too, fjall refuses everything until it is opened again: so does the store, until
/// [`reopen`](replikv_core::ReplicaStore::reopen) has succeeded. Masters and slaves do that by themselves.
#[derive(Debug)]
pub struct FjallStore {
    threaded: Threaded<Blocking>,
    path: PathBuf,
}

impl FjallStore {
    /// Opens the database in the directory `path`, and creates it, with the directories above it, if it is not there.
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

replikv_blocking::store_on_threads!(FjallStore, threaded);
