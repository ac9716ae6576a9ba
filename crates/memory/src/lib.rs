//! [`MemoryStore`]: an ordered map in memory as a replikv store.
//!
//! For tests, for caches that are rebuilt at each start, and as the model that other stores are compared with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};
use replikv_core::{
    Durability, KeyRange, Keyspace, Op, Page, PageBuilder, ReplicaStore, ScanOptions, StoreError, StoreLimits, WriteSet,
};

/// An ordered map in memory.
///
/// A write set is applied under a write lock, and a page is taken under a read lock, so that every page is of one
/// instant. Nothing survives the process; [`Durability::Synced`] promises no more than `Buffered` here.
///
/// Clones are one store: closing one closes all. [`open_again`](Self::open_again) is what opening a path a second time
/// is to a store on disk.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    // A fair lock: readers that come without a pause must not starve the writer.
    maps: Arc<RwLock<Maps>>,
    closed: Arc<AtomicBool>,
}

type Map = BTreeMap<Bytes, Bytes>;
type Maps = [Map; 3];

/// More than a master accepts by default.
const LIMITS: StoreLimits = StoreLimits { max_key: 1 << 16, max_value: 64 << 20, max_batch: 1 << 30 };

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same maps, open, whether this one is closed or not.
    #[must_use]
    pub fn open_again(&self) -> Self {
        Self { maps: self.maps.clone(), closed: Arc::default() }
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Acquire) { Err(StoreError::Closed) } else { Ok(()) }
    }

    fn read(&self) -> Result<RwLockReadGuard<'_, Maps>, StoreError> {
        let maps = self.maps.read();
        self.check_open().map(|()| maps)
    }

    fn apply_now(&self, writes: &WriteSet) -> Result<(), StoreError> {
        writes.check(&LIMITS)?;
        let mut maps = self.maps.write();
        self.check_open()?;
        for required in writes.preconditions() {
            if map_of(&maps, Keyspace::Meta).get(&required.key) != required.value.as_ref() {
                return Err(StoreError::HeadMoved);
            }
        }
        for (keyspace, op) in writes.ops() {
            change(&mut maps[index(keyspace)], op);
        }
        Ok(())
    }
}

fn index(keyspace: Keyspace) -> usize {
    match keyspace {
        Keyspace::Data => 0,
        Keyspace::Log => 1,
        Keyspace::Meta => 2,
    }
}

fn map_of(maps: &[Map; 3], keyspace: Keyspace) -> &Map {
    &maps[index(keyspace)]
}

// Keys and values are copied: a value that pinned the buffer it came in would pin its whole batch.
fn change(map: &mut Map, op: Op<'_>) {
    match op {
        Op::Put { key, value } => drop(map.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))),
        Op::Delete { key } => drop(map.remove(key)),
        Op::DeleteRange { start, end } => {
            let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
            if range.is_empty() {
                return;
            }
            // Key by key: splitting the map and joining it again would cost as much as there is above the range.
            let met: Vec<Bytes> = match range.end() {
                Some(end) => map.range(range.start().clone()..end.clone()).map(|(key, _)| key.clone()).collect(),
                None => map.range(range.start().clone()..).map(|(key, _)| key.clone()).collect(),
            };
            met.iter().for_each(|key| drop(map.remove(key)));
        }
    }
}

fn page(map: &Map, range: &KeyRange, options: ScanOptions) -> Page {
    let mut page = PageBuilder::new(range.clone(), options);
    if range.is_empty() {
        return page.finish();
    }
    let entries = match range.end() {
        Some(end) => map.range(range.start().clone()..end.clone()),
        None => map.range(range.start().clone()..),
    };
    let mut push = |(key, value): (&Bytes, &Bytes)| page.push(key, value).is_full();
    let _ = if options.reverse { entries.rev().any(&mut push) } else { { entries }.any(&mut push) };
    page.finish()
}

fn check_key(key: &[u8]) -> Result<(), StoreError> {
    match key.len() {
        0 => Err(StoreError::KeyEmpty),
        len if len > LIMITS.max_key => Err(StoreError::KeyTooLong { len, max: LIMITS.max_key }),
        _ => Ok(()),
    }
}

#[async_trait]
impl ReplicaStore for MemoryStore {
    async fn apply(&self, writes: WriteSet, _durability: Durability) -> Result<(), StoreError> {
        self.apply_now(&writes.into_joined())
    }

    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        check_key(key)?;
        Ok(map_of(&*self.read()?, keyspace).get(key).cloned())
    }

    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        Ok(page(map_of(&*self.read()?, keyspace), &range, options))
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.read().map(drop)
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        self.check_open()
    }

    async fn close(&self) -> Result<(), StoreError> {
        // Under the lock: what is being applied is applied before.
        let _maps = self.maps.write();
        self.closed.store(true, Ordering::Release);
        Ok(())
    }

    fn limits(&self) -> StoreLimits {
        LIMITS
    }

    /// 8 MiB: a write set costs nothing but its operations, and while one is applied the next is made.
    fn preferred_write_set(&self) -> usize {
        8 << 20
    }
}
