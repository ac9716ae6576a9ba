//! sled behind the synchronous contract.
//!
//! A batch of sled keeps no order and has no range delete, so write sets are resolved first. An iterator of sled is no
//! snapshot, so pages are taken under a lock that excludes `apply`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use replikv_blocking::BlockingStore;
use replikv_core::{Durability, KeyRange, Keyspace, Page, PageBuilder, ScanOptions, StoreError, StoreLimits, WriteSet};
use sled::transaction::{ConflictableTransactionResult, TransactionError, Transactional, TransactionalTree};
use sled::{Batch, Db, Tree};

use crate::SledOptions;
use crate::database::{self, Adopted, Doubt, Files, Lease, failed, unknown};
use crate::layout;
use crate::trees::Trees;

/// An open database.
#[derive(Debug)]
pub(crate) struct Blocking {
    database: Db,
    trees: Trees,
    files: Files,
    doubt: Arc<Doubt>,
    /// Pages are taken shared, write sets applied exclusively.
    view: RwLock<()>,
    /// `None` for a database that nobody else can have.
    _lease: Option<Lease>,
    /// Whether sled has given up a write half way, and does not know.
    stuck: AtomicBool,
}

/// Larger keys and values work in sled, and cost more than they are worth.
const LIMITS: StoreLimits = StoreLimits { max_key: 1 << 16, max_value: 256 << 20, max_batch: 256 << 20 };

impl Blocking {
    pub(crate) fn open(path: &Path, options: &SledOptions) -> Result<Self, StoreError> {
        let database = database::open(path, options)?;
        let own = layout::choose_own(&database, options, false)?;
        let trees = layout::arrange(&database, &own, options, false, LIMITS)?;
        Ok(Self::new(database, trees, path, Arc::default(), None))
    }

    pub(crate) fn adopt(adopted: &Adopted, options: &SledOptions) -> Result<Self, StoreError> {
        let database = adopted.database()?;
        let own = layout::choose_own(&database, options, true)?;
        let lease = Lease::take(adopted.path(), &own)?;
        let trees = layout::arrange(&database, &own, options, true, LIMITS)?;
        Ok(Self::new(database, trees, adopted.path(), adopted.doubt().clone(), Some(lease)))
    }

    fn new(database: Db, trees: Trees, path: &Path, doubt: Arc<Doubt>, lease: Option<Lease>) -> Self {
        let (files, stuck) = (Files::new(path), AtomicBool::default());
        Self { database, trees, files, doubt, view: RwLock::new(()), _lease: lease, stuck }
    }

    fn keys(&self, keyspace: Keyspace, range: &KeyRange) -> Result<Vec<Bytes>, StoreError> {
        let mut keys = Vec::new();
        for part in self.trees.parts(keyspace, range) {
            part.walk(false, |key, _| {
                keys.push(Bytes::copy_from_slice(key));
                false
            })
            .map_err(failed)?;
        }
        Ok(keys)
    }

    fn write(&self, writes: &WriteSet) -> Result<(), StoreError> {
        // Nothing under this lock keeps anything half done that a panic could leave behind.
        let _excluded = self.view.write().unwrap_or_else(PoisonError::into_inner);
        for required in writes.preconditions() {
            if self.get(Keyspace::Meta, &required.key)? != required.value {
                return Err(StoreError::HeadMoved);
            }
        }
        let resolved = writes.resolve(|keyspace, range| self.keys(keyspace, range))?;
        let mut batches: Vec<Option<Batch>> = Vec::new();
        let mut largest = 0;
        for (keyspace, key, value) in resolved.iter() {
            let place = self.trees.place(keyspace, key);
            if batches.len() <= place.index {
                batches.resize_with(place.index + 1, || None);
            }
            let batch = batches[place.index].get_or_insert_default();
            match value {
                Some(value) => {
                    largest = largest.max(value.len());
                    batch.insert(place.inner(key), value);
                }
                None => batch.remove(place.inner(key)),
            }
        }
        let mut touched: Vec<_> =
            self.trees.all().zip(batches).filter_map(|(tree, batch)| Some((tree, batch?))).collect();
        match touched.len() {
            0 => Ok(()),
            1 => touched.pop().map_or(Ok(()), |(tree, batch)| self.doubt.until_done(|| tree.apply_batch(batch))),
            _ => self.doubt.until_done(|| apply_together(&touched)),
        }
        .map_err(|error| {
            self.stuck.fetch_or(self.database.context.global_error().is_ok(), Ordering::Relaxed);
            unknown(error)
        })?;
        // The end of the log is still in memory, unless the application flushes just now.
        if self.may_be_a_file(largest) { self.doubt.until_done(|| self.files.sync_blobs()) } else { Ok(()) }
    }

    // sled has at least four entries in a segment of the log; larger ones are files. This asks for less, so that keys and
    // headers are counted in.
    fn may_be_a_file(&self, value: usize) -> bool {
        value >= self.database.context.segment_size / 8
    }

    fn sync_files(&self) -> Result<(), StoreError> {
        self.doubt.until_done(|| self.files.sync(&self.database))
    }
}

// One log serves all trees of a database. As a batch does, a transaction begins there with an entry that says where its
// last change ends: recovery takes all of them, in every tree, or stops before the first.
fn apply_together(touched: &[(&Tree, Batch)]) -> Result<(), sled::Error> {
    let (trees, batches): (Vec<&Tree>, Vec<&Batch>) = touched.iter().map(|(tree, batch)| (*tree, batch)).unzip();
    let apply = |trees: &Vec<TransactionalTree>| -> ConflictableTransactionResult<(), sled::Error> {
        for (tree, batch) in trees.iter().zip(&batches) {
            tree.apply_batch(batch)?;
        }
        Ok(())
    };
    trees[..].transaction(apply).map_err(|error| match error {
        TransactionError::Abort(error) | TransactionError::Storage(error) => error,
    })
}

impl Drop for Blocking {
    fn drop(&mut self) {
        // Where the file of a large value cannot be written, sled goes on counting its writer: the next flush waits for it, and
        // so would the end of the last handle. The database stays locked until the process ends.
        if self.stuck.load(Ordering::Relaxed) {
            std::mem::forget(self.database.clone());
        }
    }
}

impl BlockingStore for Blocking {
    // Synced whatever is asked for: of what sled has written since the last sync, power loss leaves any part, and a store
    // must keep a beginning of it, or nothing.
    fn apply(&self, writes: &WriteSet, _durability: Durability) -> Result<(), StoreError> {
        self.write(writes)?;
        self.sync_files()
    }

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let place = self.trees.place(keyspace, key);
        let value = place.tree.get(place.inner(key)).map_err(failed)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        let mut page = PageBuilder::new(range.clone(), options);
        let mut parts = self.trees.parts(keyspace, &range);
        if options.reverse {
            parts.reverse();
        }
        let _shared = self.view.read().unwrap_or_else(PoisonError::into_inner);
        for part in parts {
            if part.walk(options.reverse, |key, value| page.push(key, value).is_full()).map_err(failed)? {
                break;
            }
        }
        Ok(page.finish())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.sync_files()
    }

    fn limits(&self) -> StoreLimits {
        LIMITS
    }

    // A sync is worth no more.
    fn preferred_write_set(&self) -> usize {
        1 << 20
    }

    // sled keeps in memory what a batch replaces, a page for each operation, and gives little of it back: a million entries
    // of 116 bytes take 3.2 GB in sorted batches of 10,000, and 0.4 GB in batches of 1,000, which are hardly slower.
    fn preferred_operations(&self) -> usize {
        1_000
    }
}

#[cfg(test)]
mod tests {
    use replikv_core::Subspace;

    use super::*;

    fn put(key: &str) -> WriteSet {
        WriteSet::builder().put(Keyspace::Data, key, "value").unwrap().build()
    }

    #[test]
    fn a_large_value_is_on_the_disk_before_the_log_says_so_even_if_that_is_only_buffered() {
        let directory = tempfile::tempdir().unwrap();
        let store = Blocking::open(directory.path(), &SledOptions::default()).unwrap();
        for key in ["one", "two"] {
            let large = WriteSet::builder().put(Keyspace::Data, key, vec![7; 1 << 20]).unwrap().build();
            store.apply(&large, Durability::Buffered).unwrap();
            assert_eq!(store.files.unsynced_blobs(), 0);
        }
    }

    // What reopening a store is, once it was broken: by a panic in a read, for example.
    #[test]
    fn an_adopted_database_is_made_a_store_again_and_read_anew_unless_it_is_in_doubt() {
        let database = sled::Config::new().temporary(true).open().unwrap();
        let users = database.open_tree("users").unwrap();
        let adopted = Adopted::new(database).unwrap();
        let options = SledOptions::default().tree(Subspace::raw("u/"), "users");
        let store = Blocking::adopt(&adopted, &options).unwrap();
        store.apply(&put("u/alice"), Durability::Synced).unwrap();
        store.apply(&put("else"), Durability::Buffered).unwrap();
        drop(store);
        users.insert("bob", "beside us").unwrap();
        let store = Blocking::adopt(&adopted, &options).unwrap();
        for key in [&b"u/alice"[..], b"u/bob", b"else"] {
            assert!(store.get(Keyspace::Data, key).unwrap().is_some());
        }
        drop(store);
        let failed: Result<(), &str> = adopted.doubt().until_done(|| Err("half way"));
        assert!(failed.is_err());
        // What succeeds later takes no doubt away.
        adopted.doubt().until_done(|| Ok::<_, ()>(())).unwrap();
        assert!(matches!(Blocking::adopt(&adopted, &options), Err(StoreError::Fatal { .. })));
    }
}
