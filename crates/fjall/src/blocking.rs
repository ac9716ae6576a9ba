//! fjall behind the synchronous contract.
//!
//! All operations of a batch have one sequence number, and there is no range delete, so write sets are resolved first.
//! `Keyspace::get` and `Keyspace::range` see batches that are half applied; what is read here is read from a snapshot.

use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use bytes::Bytes;
use fjall::{AbstractTree, Database, PersistMode, Readable, Snapshot};
use replikv_blocking::BlockingStore;
use replikv_core::{
    Durability, KeyRange, Keyspace, Op, Page, PageBuilder, ScanOptions, StoreError, StoreLimits, StoreStats, WriteSet,
};

use crate::FjallOptions;
use crate::error::{failed, unknown};
use crate::files::{self, Opened};

/// fjall's own for keys. Larger values work in fjall, and cost more than they are worth.
const LIMITS: StoreLimits = StoreLimits { max_key: u16::MAX as usize, max_value: 256 << 20, max_batch: 256 << 20 };

/// So many memtables that wait to become tables, or tables of the newest level, are waited for before a write. Where there
/// are a few more, fjall waits for its threads in the middle of a write, also when they are gone. A write set adds at most
/// two memtables, and those become tables of the newest level.
const MEMTABLES: usize = 2;
const TABLES: usize = 24;
const PAUSE: Duration = Duration::from_millis(1);
/// After so many write sets the size of the data's tables is looked at again.
const SIZED_EVERY: u32 = 64;

/// An open database.
pub(crate) struct Blocking {
    database: Database,
    data: fjall::Keyspace,
    log: fjall::Keyspace,
    meta: fjall::Keyspace,
    /// No key of the log lies before it. Tombstones do, one for each record that was trimmed, until they are compacted.
    log_start: Mutex<Bytes>,
    /// What the tables of the data take, as of the last time that somebody looked: fjall may hold back who asks while it syncs.
    table_bytes: AtomicU64,
    applied: AtomicU32,
}

impl std::fmt::Debug for Blocking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocking").field("log_start", &self.log_start).finish_non_exhaustive()
    }
}

impl Blocking {
    pub(crate) fn open(path: &Path, options: &FjallOptions) -> Result<Self, StoreError> {
        let Opened { database, data, log, meta } = files::open(path, options)?;
        let table_bytes = AtomicU64::new(data.disk_space());
        Ok(Self { database, data, log, meta, log_start: Mutex::default(), table_bytes, applied: AtomicU32::new(0) })
    }

    fn keyspace(&self, keyspace: Keyspace) -> &fjall::Keyspace {
        match keyspace {
            Keyspace::Data => &self.data,
            Keyspace::Log => &self.log,
            Keyspace::Meta => &self.meta,
        }
    }

    fn keys(&self, snapshot: &Snapshot, keyspace: Keyspace, range: &KeyRange) -> Result<Vec<Bytes>, StoreError> {
        let mut range = range.clone();
        if keyspace == Keyspace::Log {
            let start = self.log_start.lock().unwrap_or_else(PoisonError::into_inner).clone();
            range = KeyRange::new(start.max(range.start().clone()), range.end().cloned());
        }
        let Some(bounds) = bounds(&range) else { return Ok(Vec::new()) };
        let entries = snapshot.range::<&[u8], _>(self.keyspace(keyspace), bounds);
        entries.map(|entry| Ok(Bytes::copy_from_slice(&entry.key().map_err(failed)?))).collect()
    }

    fn note_log_start(&self, writes: &WriteSet) {
        let mut known = self.log_start.lock().unwrap_or_else(PoisonError::into_inner);
        for (keyspace, op) in writes.ops() {
            match op {
                _ if keyspace != Keyspace::Log => {}
                Op::DeleteRange { start, end: Some(end) } if start <= &known[..] && end > &known[..] => {
                    *known = Bytes::copy_from_slice(end);
                }
                Op::Put { key, .. } if key < &known[..] => *known = Bytes::copy_from_slice(key),
                _ => {}
            }
        }
    }

    fn wait_for_room(&self) -> Result<(), StoreError> {
        let is_behind = |keyspace: &fjall::Keyspace| {
            keyspace.tree.sealed_memtable_count() >= MEMTABLES || keyspace.tree.l0_run_count() >= TABLES
        };
        while [&self.data, &self.log, &self.meta].into_iter().any(is_behind) {
            // Says whether its threads have failed.
            self.database.persist(PersistMode::Buffer).map_err(failed)?;
            sleep(PAUSE);
        }
        Ok(())
    }
}

type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

// `None` if nothing lies within. fjall panics on bounds that are longer than its longest key; no key lies between such a
// bound and its beginning.
fn bounds(range: &KeyRange) -> Option<Bounds<'_>> {
    let start = match range.start().get(..=LIMITS.max_key) {
        Some(start) => Bound::Excluded(&start[..LIMITS.max_key]),
        None => Bound::Included(&range.start()[..]),
    };
    let end = range.end().map_or(Bound::Unbounded, |end| match end.get(..=LIMITS.max_key) {
        Some(end) => Bound::Included(&end[..LIMITS.max_key]),
        None => Bound::Excluded(&end[..]),
    });
    let is_empty = range.is_empty() || matches!((start, end), (Bound::Excluded(a), Bound::Included(b)) if a >= b);
    (!is_empty).then_some((start, end))
}

impl BlockingStore for Blocking {
    // One thread writes, and a lock keeps other processes out: what is checked here still holds at the commit.
    fn apply(&self, writes: &WriteSet, durability: Durability) -> Result<(), StoreError> {
        let snapshot = self.database.snapshot();
        for required in writes.preconditions() {
            let found = snapshot.get(&self.meta, &required.key).map_err(failed)?;
            if found.as_deref() != required.value.as_deref() {
                return Err(StoreError::HeadMoved);
            }
        }
        let resolved = writes.resolve(|keyspace, range| self.keys(&snapshot, keyspace, range))?;
        drop(snapshot);
        let persist = match durability {
            Durability::Buffered => PersistMode::Buffer,
            Durability::Synced => PersistMode::SyncData,
        };
        if resolved.is_empty() {
            return self.database.persist(persist).map_err(unknown);
        }
        self.wait_for_room()?;
        let mut batch = self.database.batch().durability(Some(persist));
        for (keyspace, key, value) in resolved.iter() {
            match value {
                Some(value) => batch.insert(self.keyspace(keyspace), key, value),
                None => batch.remove(self.keyspace(keyspace), key),
            }
        }
        batch.commit().map_err(unknown)?;
        self.note_log_start(writes);
        if self.applied.fetch_add(1, Ordering::Relaxed).is_multiple_of(SIZED_EVERY) {
            self.table_bytes.store(self.data.disk_space(), Ordering::Relaxed);
        }
        Ok(())
    }

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let value = self.database.snapshot().get(self.keyspace(keyspace), key).map_err(failed)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        let mut page = PageBuilder::new(range.clone(), options);
        let Some(bounds) = bounds(&range) else { return Ok(page.finish()) };
        let mut entries = self.database.snapshot().range::<&[u8], _>(self.keyspace(keyspace), bounds);
        while let Some(entry) = if options.reverse { entries.next_back() } else { entries.next() } {
            let (key, value) = entry.into_inner().map_err(failed)?;
            if page.push(&key, &value).is_full() {
                break;
            }
        }
        Ok(page.finish())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.database.persist(PersistMode::SyncData).map_err(failed)
    }

    fn limits(&self) -> StoreLimits {
        LIMITS
    }

    // Memtables are left out: they hold each version of a key. Where there is no table, all is in memory, and counted quickly.
    fn stats(&self) -> StoreStats {
        match self.table_bytes.load(Ordering::Relaxed) {
            0 => StoreStats::default(),
            bytes => StoreStats::default().with_data_bytes(bytes),
        }
    }

    // What is random is sorted in memory whatever its order, and while a batch is written the next is made.
    fn preferred_write_set(&self) -> usize {
        8 << 20
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Blocking {
        Blocking::open(path, &FjallOptions::default().memtable_bytes(256 << 10)).unwrap()
    }

    fn put(number: u32) -> WriteSet {
        let mut writes = WriteSet::builder();
        writes.put(Keyspace::Data, number.to_be_bytes(), vec![7; 40_000]).unwrap();
        writes.put(Keyspace::Log, number.to_be_bytes(), "record").unwrap();
        writes.build()
    }

    fn trim(end: u32) -> WriteSet {
        let mut writes = WriteSet::builder();
        writes.delete_range(Keyspace::Log, &KeyRange::from_bounds(..end.to_be_bytes()));
        writes.build()
    }

    fn records(store: &Blocking) -> usize {
        store.keys(&store.database.snapshot(), Keyspace::Log, &KeyRange::all()).unwrap().len()
    }

    // fjall alone waits for ever once there are four memtables and nobody to write tables.
    #[test]
    fn what_failed_in_the_background_is_fatal_and_nothing_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let store = open(&path);
        store.apply(&put(0), Durability::Synced).unwrap();
        // No table can be made there any more.
        let tables = store.data.path().join("tables");
        std::fs::rename(&tables, path.join("aside")).unwrap();
        let refused =
            (1..200).find_map(|number| Some((number, store.apply(&put(number), Durability::Buffered).err()?)));
        let (refused, error) = refused.unwrap();
        assert!(matches!(&error, StoreError::Fatal { reason } if reason.contains("fjall's has failed")), "{error}");
        assert!(matches!(store.apply(&trim(1), Durability::Buffered), Err(StoreError::Fatal { .. })));
        assert!(matches!(store.sync(), Err(StoreError::Fatal { .. })));
        // As where a thread fails in the middle of a write.
        for number in 0..MEMTABLES as u64 {
            store.data.tree.insert("in memory", "only", u64::from(u32::MAX) + number);
            store.data.rotate_memtable().unwrap();
        }
        assert!(store.data.sealed_memtable_count() >= MEMTABLES);
        assert!(matches!(store.wait_for_room(), Err(StoreError::Fatal { .. })));
        drop(store);
        std::fs::rename(path.join("aside"), &tables).unwrap();
        let store = open(&path);
        for number in 0..200u32 {
            let found = store.get(Keyspace::Data, &number.to_be_bytes()).unwrap();
            assert_eq!(found.is_some(), number < refused, "{number}");
        }
        store.apply(&put(refused), Durability::Synced).unwrap();
    }

    #[test]
    fn the_log_is_looked_for_where_it_begins() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("store"));
        let start = || store.log_start.lock().unwrap().clone();
        for number in 1..=9 {
            store.apply(&put(number), Durability::Buffered).unwrap();
        }
        assert_eq!(&start()[..], b"");
        store.apply(&trim(4), Durability::Buffered).unwrap();
        assert_eq!((&start()[..], records(&store)), (&4u32.to_be_bytes()[..], 6));
        // What is put before it is there, and goes with what is deleted next; in one write set too.
        store.apply(&put(2), Durability::Buffered).unwrap();
        assert_eq!((&start()[..], records(&store)), (&2u32.to_be_bytes()[..], 7));
        store.apply(&trim(6), Durability::Buffered).unwrap();
        assert_eq!((&start()[..], records(&store)), (&6u32.to_be_bytes()[..], 4));
        let mut both = WriteSet::builder();
        both.delete_range(Keyspace::Log, &KeyRange::all());
        both.put(Keyspace::Log, 1u32.to_be_bytes(), "record").unwrap();
        store.apply(&both.build(), Durability::Buffered).unwrap();
        assert_eq!((&start()[..], records(&store)), (&1u32.to_be_bytes()[..], 1));
        // A range that begins after it tells nothing of what is before.
        let mut later = WriteSet::builder();
        later.delete_range(Keyspace::Log, &KeyRange::from_bounds(5u32.to_be_bytes()..9u32.to_be_bytes()));
        store.apply(&later.build(), Durability::Buffered).unwrap();
        assert_eq!((&start()[..], records(&store)), (&1u32.to_be_bytes()[..], 1));
    }

    #[test]
    fn a_key_that_is_written_often_is_not_much_data() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("store"));
        let put = |key: u32, value: u8| {
            let mut writes = WriteSet::builder();
            writes.put(Keyspace::Data, key.to_be_bytes(), vec![value; 40_000]).unwrap();
            store.apply(&writes.build(), Durability::Buffered).unwrap();
        };
        // Less than a memtable takes, and more than is asked about.
        (0..5).for_each(|value| put(1, value));
        assert_eq!(store.stats().data_bytes, None);
        // Tables are compressed: their size is not that of what is in them.
        (0..1_000).for_each(|key| put(key, 7));
        let said = store.stats().data_bytes;
        assert!(said.is_some_and(|bytes| (1_000..40_000_000).contains(&bytes)), "{said:?}");
    }

    #[test]
    fn bounds_are_not_longer_than_keys() {
        let long = |len: usize| vec![b'k'; len];
        let max = LIMITS.max_key;
        let key = long(max);
        let bounds_of = |start: usize, end: usize| {
            let range = KeyRange::new(long(start), Some(long(end).into()));
            bounds(&range).map(|(start, end)| (start.map(<[u8]>::to_vec), end.map(<[u8]>::to_vec)))
        };
        assert_eq!(bounds_of(max, max + 1), Some((Bound::Included(key.clone()), Bound::Included(key.clone()))));
        assert_eq!(bounds_of(1, max), Some((Bound::Included(long(1)), Bound::Excluded(key))));
        assert_eq!(bounds_of(max + 1, max + 2), None);
        assert_eq!(bounds_of(max + 2, max + 1), None);
    }
}
