//! Stores that take little at once, closures that panic, and stores that break while nobody writes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{self, Error, master, soon, store, until};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use replikv_core::{
    Batch, Durability, KeyRange, Keyspace, Op, Page, ReplicaStore, ReplicaStoreExt, ScanOptions, Seq, StoreError,
    StoreLimits, WriteSet,
};
use replikv_memory::MemoryStore;
use replikv_node::{ChangesError, ChangesFrom, Master, MasterConfig, Slave, SlaveConfig, WriteError};
use replikv_proto::layout::{Checkpoint, Floor, Stored};
use replikv_proto::{Compaction, Retention, SlotKind};
use replikv_testkit::ApplyFault;
use tokio::time::sleep;

/// Takes write sets of so many bytes, likes so many operations, and remembers where the log began after each, and how many
/// changes of the data it held.
#[derive(Debug, Clone)]
struct Small {
    inner: MemoryStore,
    max_batch: usize,
    operations: usize,
    floors: Arc<Mutex<Vec<u64>>>,
    changes: Arc<Mutex<Vec<usize>>>,
}

fn small(inner: &MemoryStore, max_batch: usize) -> Small {
    let (floors, changes) = (Arc::default(), Arc::default());
    Small { inner: inner.open_again(), max_batch, operations: usize::MAX, floors, changes }
}

#[async_trait]
impl ReplicaStore for Small {
    async fn apply(&self, writes: WriteSet, durability: Durability) -> Result<(), StoreError> {
        writes.check(&self.limits())?;
        self.changes.lock().unwrap().push(writes.ops().filter(|(keyspace, _)| *keyspace == Keyspace::Data).count());
        for (_, op) in writes.ops() {
            if let Op::Put { key: Floor::KEY, value } = op {
                self.floors.lock().unwrap().push(Floor::from_bytes(value)?.position.seq.as_u64());
            }
        }
        if self.operations < usize::MAX {
            // Something waits meanwhile.
            sleep(Duration::from_millis(2)).await;
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
        self.inner.reopen().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.inner.close().await
    }

    fn limits(&self) -> StoreLimits {
        StoreLimits { max_batch: self.max_batch, ..self.inner.limits() }
    }

    fn preferred_operations(&self) -> usize {
        self.operations
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_do_not_fit_into_the_store_together_are_committed_apart() -> Result<(), Error> {
    let master = Master::open(small(&MemoryStore::new(), 512 << 10), MasterConfig::default()).await?;
    let writing = (0..40u32).map(|n| {
        let master = master.clone();
        tokio::spawn(async move { master.put(n.to_be_bytes(), vec![7; 100 << 10]).await })
    });
    for written in soon(join_all(writing)).await {
        written??;
    }
    assert_eq!(master.scan(.., ScanOptions::default().max_bytes(usize::MAX)).await?.len(), 40);
    Ok(())
}

#[tokio::test]
async fn groups_of_a_slave_have_no_more_operations_than_its_store_likes() -> Result<(), Error> {
    let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
    let store = Small { operations: 250, ..small(&MemoryStore::new(), 1 << 30) };
    let changes = store.changes.clone();
    let slave = Slave::open(store, SlaveConfig::new("edge")).await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(here).await });
    tokio::spawn(async move { following.follow(there).await });
    soon(slave.wait_applied(master.put("first", "value").await?)).await?;
    changes.lock().unwrap().clear();
    // It stands in the log, and goes on there.
    let mut token = None;
    for batch in 0..40u32 {
        let keys = if batch == 20 { 1_000 } else { 100 };
        let entries = (0..keys).map(|n| (batch * 1_000 + n).to_be_bytes());
        token = Some(master.write(entries.fold(Batch::new(), |batch, key| batch.put(key, "value"))).await?);
    }
    soon(slave.wait_applied(token.ok_or("nothing was written")?)).await?;
    let changes: Vec<usize> = changes.lock().unwrap().iter().copied().filter(|count| *count > 0).collect();
    assert_eq!(changes.iter().sum::<usize>(), 4_900);
    assert_eq!(changes.iter().max(), Some(&1_000), "a batch goes whole: {changes:?}");
    assert!(changes.iter().all(|count| [100, 200, 1_000].contains(count)), "{changes:?}");
    assert!(changes.contains(&200), "what waits goes together: {changes:?}");
    Ok(())
}

#[tokio::test]
async fn a_slave_whose_store_takes_little_catches_up_all_the_same() -> Result<(), Error> {
    let limits = StoreLimits { max_key: 511, max_value: 256 << 10, max_batch: 256 << 10 };
    let master = Master::open(MemoryStore::new(), MasterConfig::default().limits(limits)).await?;
    let slave = Slave::open(small(&MemoryStore::new(), 512 << 10), SlaveConfig::new("edge")).await?;
    let mut token = None;
    for n in 0..60u32 {
        token = Some(master.put(n.to_be_bytes(), vec![7; 200 << 10]).await?);
    }
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(here).await });
    let following = tokio::spawn(async move { following.follow(there).await });
    tokio::select! {
        waited = soon(slave.wait_applied(token.ok_or("nothing was written")?)) => waited?,
        ended = following => return Err(format!("following has ended: {ended:?}").into()),
    }
    Ok(())
}

#[tokio::test]
async fn a_transaction_that_panics_is_given_up_and_the_master_goes_on() -> Result<(), Error> {
    let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
    let panicked = master.transact(|_, _| panic!("a bug of the application's")).await;
    assert!(matches!(panicked, Err(WriteError::Aborted { .. })), "{panicked:?}");
    master.put("after", "v").await?;
    Ok(())
}

#[tokio::test]
async fn a_step_of_trimming_is_bounded_where_checkpoints_are_far_apart() -> Result<(), Error> {
    let store = MemoryStore::new();
    let before = Master::open(store.open_again(), MasterConfig::default()).await?;
    for chunk in 0..100u32 {
        let writing = (0..100u32).map(|n| before.put((chunk * 100 + n).to_be_bytes(), "v"));
        join_all(writing).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    }
    before.shutdown().await?;
    // As after millions of records: of the old checkpoints one is left.
    let last = Seq::new(9_984);
    let kept = Checkpoint::at(replikv_core::Position { seq: last, ..before.status().published }).key();
    let store = store.open_again();
    for (key, _) in support::entries(&store, Keyspace::Meta).await {
        if key.starts_with(Checkpoint::PREFIX) && key != kept {
            store.apply_one(Keyspace::Meta, Op::Delete { key: &key }).await?;
        }
    }
    let retention = Retention { max_bytes: 1, max_age_ms: None, hold_back_bytes: 0 };
    let small = small(&store, 1 << 30);
    let master = Master::open(small.clone(), MasterConfig::default().retention(retention)).await?;
    until(|| master.status().floor.seq == last).await;
    let mut floors = small.floors.lock().unwrap().clone();
    floors.insert(0, 0);
    assert!(floors.windows(2).all(|pair| pair[1] > pair[0] && pair[1] - pair[0] <= 1024), "{floors:?}");
    assert_eq!(master.status().retained_bytes, log_bytes(&store).await);
    Ok(())
}

async fn log_bytes(store: &MemoryStore) -> u64 {
    support::entries(store, Keyspace::Log).await.iter().map(|(_, record)| record.len() as u64).sum()
}

#[tokio::test]
async fn a_store_that_broke_while_nobody_writes_is_opened_anew() -> Result<(), Error> {
    let store = store();
    let master = master(&store, MasterConfig::default()).await;
    master.put("key", "value").await?;
    let consumer = master.consumer("index", ChangesFrom::Now).await?;
    store.faults().next_apply(ApplyFault::UnknownAndAbsent);
    let position = master.status().published;
    assert!(consumer.ack(position).await.is_err(), "the outcome is unknown");
    soon(async {
        while master.get("key").await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    consumer.ack(position).await?;
    Ok(())
}

#[tokio::test]
async fn a_consumer_that_was_forgotten_is_told_and_skips_nothing() -> Result<(), Error> {
    let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
    let consumer = master.consumer("index", ChangesFrom::Now).await?;
    master.write(Batch::new().put("key", "value")).await?;
    assert!(master.forget(SlotKind::Consumer, "index"));
    assert!(matches!(consumer.changes([]).await, Err(ChangesError::Forgotten)));
    Ok(())
}

// As touches it has many times the bytes, and is in one run or in none.
#[tokio::test(start_paused = true)]
async fn a_batch_that_cannot_be_compacted_at_once_does_not_end_compaction() -> Result<(), Error> {
    let compaction = Compaction { window_bytes: 2_000, window_records: 10 };
    let config = MasterConfig::default().compaction(compaction).ring_bytes(0);
    let kept = small(&MemoryStore::new(), 100 << 10);
    let master = Master::open(kept.clone(), config).await?;
    let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge")).await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    let serving = master.clone();
    tokio::spawn(async move { serving.serve(here).await });
    let following = slave.clone();
    let following = tokio::spawn(async move { following.follow(there).await });
    soon(slave.wait_caught_up()).await?;
    following.abort();
    for round in 0..300u32 {
        master.put((round % 7).to_be_bytes(), round.to_be_bytes()).await?;
    }
    let large = (0..3_000u32).fold(Batch::new(), |batch, n| batch.delete(n.to_be_bytes()));
    let large = master.write(large).await?;
    // Together these are more than fits, and each alone is not.
    for round in 0..600u32 {
        let batch = (0..40).fold(Batch::new(), |batch, n| batch.put((round * 40 + n).to_be_bytes(), "v"));
        master.write(batch).await?;
    }
    sleep(Duration::from_secs(600)).await;
    let status = master.status();
    assert!(status.floor.seq >= large.seq, "the log was cut after it: {:?}", status.floor);
    let compacted = status.compacted.ok_or("nothing is compacted")?;
    assert!(compacted.position.seq.as_u64() > 850, "{compacted:?}");
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, follower) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(here).await });
    tokio::spawn(async move { follower.follow(there).await });
    soon(slave.wait_applied(status.published.seq)).await?;
    soon(slave.wait_caught_up()).await?;
    let all = |store: &MemoryStore| {
        let store = store.open_again();
        async move { support::contents(&store).await }
    };
    assert!(all(&kept.inner).await == all(slave.store()).await, "they differ");
    Ok(())
}
