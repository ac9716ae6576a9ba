//! [`MemoryStore`]: an ordered map in memory as a replikv store.
//!
//! For tests, for caches that are rebuilt at each start, and as the model that other stores are compared with.

use std::collections::{BTreeMap, btree_map};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};
use replikv_core::{
    Durability, KeyRange, Keyspace, Op, Page, PageBuilder, ReplicaStore, ScanOptions, StoreError, StoreLimits,
    StoreStats, WriteSet,
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

/// One keyspace.
#[derive(Debug, Default)]
struct Map {
    entries: BTreeMap<Bytes, Bytes>,
    /// Of keys and values.
    bytes: u64,
}

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
            if map_of(&maps, Keyspace::Meta).entries.get(&required.key) != required.value.as_ref() {
                return Err(StoreError::HeadMoved);
            }
        }
        for (keyspace, op) in writes.ops() {
            maps[index(keyspace)].change(op);
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

impl Map {
    // Keys and values are copied: a value that pinned the buffer it came in would pin its whole batch.
    fn change(&mut self, op: Op<'_>) {
        match op {
            Op::Put { key, value } => {
                let before = self.entries.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                self.bytes += (key.len() + value.len()) as u64;
                if let Some(before) = before {
                    self.bytes -= (key.len() + before.len()) as u64;
                }
            }
            Op::Delete { key } => self.remove(key),
            Op::DeleteRange { start, end } => {
                let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
                // Key by key: splitting the map and joining it again would cost as much as there is above the range.
                let met: Vec<Bytes> = self.within(&range).map(|(key, _)| key.clone()).collect();
                met.iter().for_each(|key| self.remove(key));
            }
        }
    }

    fn within(&self, range: &KeyRange) -> btree_map::Range<'_, Bytes, Bytes> {
        match range.end() {
            // A map panics where the end lies before the start.
            Some(end) => self.entries.range::<Bytes, _>(range.start().min(end)..end),
            None => self.entries.range::<Bytes, _>(range.start()..),
        }
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(value) = self.entries.remove(key) {
            self.bytes -= (key.len() + value.len()) as u64;
        }
    }
}

fn page(map: &Map, range: &KeyRange, options: ScanOptions) -> Page {
    let mut page = PageBuilder::new(range.clone(), options);
    let entries = map.within(range);
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
        Ok(map_of(&*self.read()?, keyspace).entries.get(key).cloned())
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

    fn stats(&self) -> StoreStats {
        let bytes = self.maps.try_read().map(|maps| map_of(&maps, Keyspace::Data).bytes);
        bytes.map_or_else(StoreStats::default, |bytes| StoreStats::default().with_data_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_map_holds_is_counted_to_the_byte() {
        let mut random = fastrand::Rng::with_seed(11);
        let mut map = Map::default();
        for _ in 0..5_000 {
            let (key, end) = (vec![random.u8(b'a'..=b'z'); random.usize(1..4)], [random.u8(b'a'..=b'z')]);
            match random.u8(..8) {
                0 => map.change(Op::DeleteRange { start: &key, end: random.bool().then_some(&end) }),
                1..=2 => map.change(Op::Delete { key: &key }),
                _ => map.change(Op::Put { key: &key, value: &vec![7; random.usize(..9)] }),
            }
            let there = map.entries.iter().map(|(key, value)| (key.len() + value.len()) as u64);
            assert_eq!(map.bytes, there.sum::<u64>());
        }
    }
}
