//! The store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use replikv_blocking::{Threaded, ThreadedOptions};
use replikv_core::StoreError;

use crate::SledOptions;
use crate::blocking::Blocking;
use crate::database::Adopted;

/// A sled 0.34 database as a [`ReplicaStore`](replikv_core::ReplicaStore).
///
/// What is replikv's own is one tree, whose keys begin with `d`, `l` or `m`; subspaces can be
/// [`tree`](SledOptions::tree)s beside it. Write sets are applied one after the other on one thread, and never more than
/// a few wait. Each is on stable storage on return, whatever `Durability` asks for: sled's flush is followed by a sync of
/// its files, since a flush alone does not reach the disk on Linux, and what is flushed and not synced can come to the
/// disk in parts.
#[derive(Debug)]
pub struct SledStore {
    threaded: Threaded<Blocking>,
    path: PathBuf,
    /// `None` if the store has opened its database itself.
    adopted: Option<Arc<Adopted>>,
}

impl SledStore {
    /// Opens the database in the directory `path`, and creates it if it is not there. A database that was closed a
    /// moment ago is waited for.
    ///
    /// # Errors
    /// `Busy` if this or another process has it open; `Corrupt` if it is damaged, also where sled itself panics.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(path, SledOptions::default())
    }

    /// As [`open`](Self::open), with settings.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, options: SledOptions) -> Result<Self, StoreError> {
        let path = path.as_ref().to_path_buf();
        let directory = path.clone();
        let threaded = Threaded::open("sled", threads(), move || Blocking::open(&directory, &options))?;
        Ok(Self { threaded, path, adopted: None })
    }

    /// Makes a store of a database that the application has open already, and goes on using: its trees, named as
    /// [`tree`](SledOptions::tree)s, are replicated; the others are left alone. What is replikv's own is in a tree
    /// called `replikv`; see [`own_tree`](SledOptions::own_tree).
    ///
    /// What the trees hold already is data like any other: a new master has its slaves copy it. From then on, what is
    /// written to them must go through the master: what the application writes to a tree itself reaches no slave. It
    /// may read as it likes; reads of several keys may see a write set come between them. It must not drop such a tree.
    ///
    /// [`close`](replikv_core::ReplicaStore::close) brings everything to stable storage, and lets go of the database,
    /// which the application goes on having open. After a failed write or sync
    /// [`reopen`](replikv_core::ReplicaStore::reopen) fails as well: memory may then show what the disk does not have,
    /// and only the application can open its database anew.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use replikv_core::Subspace;
    /// use replikv_sled::{SledOptions, SledStore, sled};
    ///
    /// let db = sled::Config::new().temporary(true).open()?;
    /// let users = db.open_tree("users")?;
    /// users.insert("alice", "there before")?;
    /// let options = SledOptions::default().tree(Subspace::raw("u/"), "users");
    /// let store = SledStore::from_db(db, options)?;
    /// // `u/alice` in the store, and on the wire.
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Busy` if the database is a store already; with names and a way out: if subspaces overlap, or a tree cannot be
    /// replicated, or has another use.
    pub fn from_db(database: sled::Db, options: SledOptions) -> Result<Self, StoreError> {
        let adopted = Arc::new(Adopted::new(database)?);
        let path = adopted.path().to_path_buf();
        let held = adopted.clone();
        let threaded = Threaded::open("sled", threads(), move || Blocking::adopt(&held, &options))?;
        Ok(Self { threaded, path, adopted: Some(adopted) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    // First: the last handle of a database flushes as it goes, which the writer's thread has the time for.
    fn release(&self) {
        if let Some(adopted) = &self.adopted {
            adopted.release();
        }
    }
}

// sled itself pushes back on nobody.
fn threads() -> ThreadedOptions {
    ThreadedOptions { queue: 16, ..ThreadedOptions::default() }
}

replikv_blocking::store_on_threads!(SledStore, threaded, before close: release);
