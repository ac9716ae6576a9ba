//! What the tests share: stores with faults, masters and slaves on them, connections, waiting.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use replikv_core::{KeyRange, Keyspace, ReplicaStore, ReplicaStoreExt, ScanOptions, Seq, StoreError};
use replikv_memory::MemoryStore;
use replikv_node::{Ending, FollowError, Master, MasterConfig, ServeError, Slave, SlaveConfig, read_log};
use replikv_testkit::FaultStore;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Store = FaultStore<MemoryStore>;
pub(crate) type Contents = Vec<(Bytes, Bytes)>;

pub(crate) fn store() -> Store {
    FaultStore::new(MemoryStore::new())
}

/// A store that held data before it became a master's: its slaves begin with a copy.
pub(crate) async fn store_with(entries: u32) -> Store {
    let inner = MemoryStore::new();
    let mut writes = replikv_core::WriteSet::builder();
    for n in 0..entries {
        writes.put(Keyspace::Data, n.to_be_bytes(), [7; 100]).unwrap();
    }
    inner.apply(writes.build(), replikv_core::Durability::Synced).await.unwrap();
    FaultStore::new(inner)
}

pub(crate) async fn master(store: &Store, config: MasterConfig) -> Master<Store> {
    Master::open(store.clone(), config).await.unwrap()
}

pub(crate) async fn slave(store: &Store, name: &str) -> Slave<Store> {
    Slave::open(store.clone(), SlaveConfig::new(name)).await.unwrap()
}

pub(crate) type Serving = JoinHandle<Result<Ending, ServeError>>;
pub(crate) type Following = JoinHandle<Result<Ending, FollowError>>;

pub(crate) fn serve(master: &Master<Store>, stream: DuplexStream) -> Serving {
    let master = master.clone();
    tokio::spawn(async move { master.serve(stream).await })
}

pub(crate) fn follow(slave: &Slave<Store>, stream: DuplexStream) -> Following {
    let slave = slave.clone();
    tokio::spawn(async move { slave.follow(stream).await })
}

pub(crate) fn connect(master: &Master<Store>, slave: &Slave<Store>) -> (Serving, Following) {
    let (here, there) = tokio::io::duplex(64 << 10);
    (serve(master, there), follow(slave, here))
}

/// A store that has followed `master` up to now.
pub(crate) async fn followed(master: &Master<Store>, name: &str) -> Store {
    let store = store();
    let slave = slave(&store, name).await;
    let (serving, following) = connect(master, &slave);
    soon(slave.wait_caught_up()).await.unwrap();
    following.abort();
    drop(soon(serving).await);
    slave.shutdown().await.unwrap();
    FaultStore::new(store.inner().open_again())
}

/// What a backup is: every keyspace, as it was.
pub(crate) async fn copy_of(store: &impl ReplicaStore) -> Store {
    let inner = MemoryStore::new();
    for keyspace in Keyspace::ALL {
        for (key, value) in entries(store, keyspace).await {
            inner.apply_one(keyspace, replikv_core::Op::Put { key: &key, value: &value }).await.unwrap();
        }
    }
    FaultStore::new(inner)
}

pub(crate) async fn contents(store: &impl ReplicaStore) -> Contents {
    entries(store, Keyspace::Data).await
}

pub(crate) async fn entries(store: &impl ReplicaStore, keyspace: Keyspace) -> Contents {
    store.entries(keyspace, KeyRange::all(), ScanOptions::default()).try_collect().await.unwrap()
}

/// Writes past whoever the store belongs to.
pub(crate) async fn put_raw(
    store: &impl ReplicaStore,
    keyspace: Keyspace,
    key: &[u8],
    value: &[u8],
) -> Result<(), StoreError> {
    let mut writes = replikv_core::WriteSet::builder();
    writes.put(keyspace, key, value)?;
    store.apply(writes.build(), replikv_core::Durability::Synced).await
}

pub(crate) async fn assert_equal(master: &Master<Store>, slave: &Slave<Store>) {
    assert!(contents(master.store()).await == contents(slave.store()).await, "master and slave differ");
}

/// The numbers of the log's records, each of which continues the one before.
pub(crate) async fn chain(store: &impl ReplicaStore) -> Vec<u64> {
    let records = read_log(store, Seq::ZERO, usize::MAX).await.unwrap();
    for pair in records.windows(2) {
        pair[1].header().verify_after(&pair[0].position()).unwrap();
    }
    records.iter().map(|record| record.header().seq.as_u64()).collect()
}

/// Waits for what must happen soon. The limit only turns a hang into a failure.
pub(crate) async fn soon<T>(future: impl IntoFuture<Output = T>) -> T {
    timeout(Duration::from_secs(90), future.into_future()).await.expect("nothing hangs")
}

/// Waits for what nobody announces.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub(crate) fn full() -> StoreError {
    StoreError::StoreFull { hint: "make room".into() }
}

pub(crate) fn transient() -> StoreError {
    StoreError::Transient { reason: "a lock".into() }
}
