//! Long write sets, and a store that takes them in its own way: on the thread that asks, or not at all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};

use async_trait::async_trait;
use replikv_core::{Batch, Page, StoreLimits};
use replikv_memory::MemoryStore;
use tokio::time::timeout;

use super::*;
use crate::{Master, MasterConfig, Slave, SlaveConfig};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Memory; the first long write set finds it odd.
#[derive(Debug)]
struct OddStore {
    inner: MemoryStore,
    odd: Mutex<Option<Odd>>,
    reopened: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Odd {
    /// It keeps the thread of whoever asks until somebody says so.
    Holds(mpsc::Receiver<()>),
    Panics,
}

impl OddStore {
    fn new(odd: Odd) -> Self {
        Self { inner: MemoryStore::new(), odd: Mutex::new(Some(odd)), reopened: Arc::default() }
    }
}

#[async_trait]
impl ReplicaStore for OddStore {
    async fn apply(&self, writes: WriteSet, durability: Durability) -> Result<(), StoreError> {
        let odd = if writes.byte_len() < LARGE { None } else { self.odd.lock().unwrap().take() };
        match odd {
            Some(Odd::Holds(until)) => {
                until.recv_timeout(Duration::from_secs(10)).map_err(StoreError::backend)?;
            }
            Some(Odd::Panics) => panic!("a store that panics"),
            None => {}
        }
        self.inner.apply(writes, durability).await
    }

    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(keyspace, key).await
    }

    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        self.inner.scan(keyspace, range, options).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.inner.sync().await
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        self.reopened.store(true, Ordering::Relaxed);
        self.inner.reopen().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.inner.close().await
    }

    fn limits(&self) -> StoreLimits {
        self.inner.limits()
    }
}

fn writes(len: usize) -> WriteSet {
    let mut writes = WriteSet::builder();
    writes.put(Keyspace::Data, "key", vec![7; len]).unwrap();
    writes.build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_a_long_write_set_goes_on_meanwhile() -> Result<(), Error> {
    let (release, held) = mpsc::channel();
    let store = Arc::new(OddStore::new(Odd::Holds(held)));
    // Both are polled in one task, in this order: only if the first one gives its turn away is the store ever let go.
    let applied = apply_beside(&store, writes(LARGE), Durability::Synced);
    let (applied, released) = tokio::join!(applied, async { release.send(()) });
    released?;
    applied?;
    assert_eq!(store.get(Keyspace::Data, b"key").await?.map(|value| value.len()), Some(LARGE));
    Ok(())
}

#[tokio::test]
async fn a_store_that_panics_in_a_long_write_set_is_reopened_and_the_next_connection_brings_it() -> Result<(), Error> {
    let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
    let store = OddStore::new(Odd::Panics);
    let reopened = store.reopened.clone();
    let slave = Slave::open(store, SlaveConfig::new("edge")).await?;
    let token = master.write(Batch::new().put("long", vec![7; 2 * LARGE]).put("short", "x")).await?;
    let (served, follows) = tokio::io::duplex(64 << 10);
    let ended = async { tokio::join!(master.serve(served), slave.follow(follows)).1 };
    let ended = timeout(Duration::from_secs(20), ended).await?;
    assert!(matches!(&ended, Err(FollowError::Store(error)) if error.outcome() == StoreOutcome::Unknown), "{ended:?}");
    assert!(reopened.load(Ordering::Relaxed), "what it holds is asked anew");

    let (served, follows) = tokio::io::duplex(64 << 10);
    let connected = async { tokio::join!(master.serve(served), slave.follow(follows)) };
    tokio::select! {
        ended = connected => return Err(format!("{ended:?}").into()),
        applied = timeout(Duration::from_secs(20), slave.wait_applied(token)) => applied??,
    };
    assert_eq!(slave.get("long").await?.map(|value| value.len()), Some(2 * LARGE));
    assert_eq!(slave.get("short").await?.as_deref(), Some(&b"x"[..]));
    Ok(())
}
