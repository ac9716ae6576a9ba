//! Stores that are looked at after every write set: what a slave holds must be what its master held.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use replikv_core::{
    Durability, KeyRange, Keyspace, LinkId, Page, Position, ReplicaStore, ReplicaStoreExt, ScanOptions, Seq,
    StoreError, StoreLimits, StoreStats, WriteSet,
};
use replikv_memory::MemoryStore;
use replikv_proto::layout::{Head, Stored};
use replikv_testkit::FaultStore;
use tokio::time::sleep;

/// What the master held after each of its records, and what was found wrong.
#[derive(Debug, Clone, Default)]
pub(crate) struct History(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    states: HashMap<Position, u64>,
    wrong: Vec<String>,
    write_sets: u64,
    in_the_middle: u64,
}

impl History {
    pub(crate) fn blame(&self, words: String) {
        self.0.lock().unwrap().wrong.push(words);
    }

    pub(crate) fn wrong(&self) -> Option<String> {
        self.0.lock().unwrap().wrong.first().cloned()
    }

    /// How many write sets came to slaves, and how many of these in the middle of a copy or a comparison.
    pub(crate) fn counted(&self) -> (u64, u64) {
        let known = self.0.lock().unwrap();
        (known.write_sets, known.in_the_middle)
    }
}

pub(crate) fn hash(what: impl Hash) -> u64 {
    // Without keys: the same in every process.
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// The store of one node. It takes its time, so that processes die in the middle of it.
#[derive(Debug)]
pub(crate) struct Watched {
    store: FaultStore<MemoryStore>,
    history: History,
    name: String,
    rng: Mutex<fastrand::Rng>,
}

impl Watched {
    pub(crate) fn new(store: FaultStore<MemoryStore>, history: History, name: String, seed: u64) -> Self {
        Self { store, history, name, rng: Mutex::new(fastrand::Rng::with_seed(seed)) }
    }

    async fn take_time(&self) {
        let micros = self.rng.lock().unwrap().u64(0..4_000);
        sleep(Duration::from_micros(micros)).await;
    }

    // Nothing is waited for between the write set and this: nobody comes in between.
    async fn look(&self, before: Option<Seq>) -> Result<(), StoreError> {
        let contents = contents(&self.store).await?;
        let print = hash(&contents);
        if let Some(head) = self.store.get(Keyspace::Meta, Head::KEY).await? {
            let at = Head::from_bytes(&head)?.position;
            self.history.0.lock().unwrap().states.insert(at, print);
            return Ok(());
        }
        let Some(cursor) = self.store.cursor(&LinkId::default()).await? else { return Ok(()) };
        let at = cursor.position;
        let mut known = self.history.0.lock().unwrap();
        known.write_sets += 1;
        if before.is_some_and(|before| at.seq < before) {
            known.wrong.push(format!("{}: the cursor went from {before:?} back to {at}", self.name));
        }
        if !cursor.is_consistent() {
            known.in_the_middle += 1;
            return Ok(());
        }
        let held =
            if at.seq == Seq::ZERO { Some(hash(Vec::<(Bytes, Bytes)>::new())) } else { known.states.get(&at).copied() };
        if held != Some(print) {
            known.wrong.push(format!("{}: its data is not what its master held at {at}", self.name));
        }
        Ok(())
    }
}

pub(crate) async fn contents(store: &impl ReplicaStore) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
    store.entries(Keyspace::Data, KeyRange::all(), ScanOptions::default()).try_collect().await
}

#[async_trait]
impl ReplicaStore for Watched {
    async fn apply(&self, writes: WriteSet, durability: Durability) -> Result<(), StoreError> {
        self.take_time().await;
        let before = self.store.cursor(&LinkId::default()).await?.map(|cursor| cursor.position.seq);
        self.store.apply(writes, durability).await?;
        self.look(before).await?;
        self.take_time().await;
        Ok(())
    }

    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store.get(keyspace, key).await
    }

    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        let page = self.store.scan(keyspace, range, options).await;
        self.take_time().await;
        page
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.take_time().await;
        self.store.sync().await
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        self.store.reopen().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.store.close().await
    }

    fn limits(&self) -> StoreLimits {
        self.store.limits()
    }

    fn stats(&self) -> StoreStats {
        self.store.stats()
    }
}
