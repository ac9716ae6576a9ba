//! A master and its slaves, over in-process streams.

use std::time::Duration;

use replikv_core::{Batch, KeyRange, Keyspace, ReplicaStore, ReplicaStoreExt, ScanOptions};
use replikv_memory::MemoryStore;
use replikv_node::{Ending, FollowError, Master, MasterConfig, Slave, SlaveConfig, SlaveState, WriteError};
use replikv_proto::{RejectCode, Retention};
use tokio::task::JoinHandle;
use tokio::time::timeout;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Contents = Vec<(bytes::Bytes, bytes::Bytes)>;

async fn master() -> Master<MemoryStore> {
    Master::open(MemoryStore::new(), MasterConfig::default()).await.unwrap()
}

async fn slave(store: &MemoryStore) -> Slave<MemoryStore> {
    Slave::open(store.open_again(), SlaveConfig::new("edge")).await.unwrap()
}

fn connect(master: &Master<MemoryStore>, slave: &Slave<MemoryStore>) -> JoinHandle<Result<Ending, FollowError>> {
    let (here, there) = tokio::io::duplex(64 << 10);
    let (master, slave) = (master.clone(), slave.clone());
    tokio::spawn(async move { master.serve(there).await });
    tokio::spawn(async move { slave.follow(here).await })
}

async fn contents(store: &MemoryStore) -> Contents {
    use futures_util::TryStreamExt;
    store.entries(Keyspace::Data, KeyRange::all(), ScanOptions::default()).try_collect().await.unwrap()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(90), future).await.expect("it does not take that long")
}

#[tokio::test]
async fn what_is_written_arrives_and_goes_on_arriving() -> Result<(), Error> {
    let (master, store) = (master().await, MemoryStore::new());
    master.write(Batch::new().put("a", "1").put("b", "2")).await?;
    let slave = slave(&store).await;
    let following = connect(&master, &slave);
    let token = master.write(Batch::new().put("c", "3").delete("a").delete_range("x"..)).await?;
    soon(slave.wait_applied(token)).await?;
    assert_eq!(contents(&store).await, contents(master.store()).await);
    assert_eq!(slave.get("c").await?.as_deref(), Some(&b"3"[..]));
    soon(slave.wait_caught_up()).await?;
    let status = slave.status();
    assert_eq!((status.state, status.lag.map(|lag| lag.seqs)), (SlaveState::Following, Some(0)));
    master.shutdown().await?;
    assert!(matches!(soon(following).await??, Ending::Goodbye { .. }));
    assert_eq!(slave.status().lag, None, "nobody is there who could tell");
    Ok(())
}

#[tokio::test]
async fn a_slave_goes_on_where_it_was() -> Result<(), Error> {
    let (master, store) = (master().await, MemoryStore::new());
    for round in 0..5u8 {
        let slave = slave(&store).await;
        let following = connect(&master, &slave);
        let mut token = None;
        for n in 0..50u8 {
            token = Some(master.write(Batch::new().put([round, n], [n])).await?);
        }
        soon(slave.wait_applied(token.unwrap())).await?;
        following.abort();
        slave.shutdown().await?;
        master.write(Batch::new().delete_range(KeyRange::prefix([round])).put([round, 200], "kept")).await?;
    }
    let slave = slave(&store).await;
    connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_eq!(contents(&store).await, contents(master.store()).await);
    assert_eq!(slave.status().records, 1, "only what was missed is sent");
    Ok(())
}

#[tokio::test]
async fn data_that_was_there_before_is_copied_while_writes_go_on() -> Result<(), Error> {
    let source = MemoryStore::new();
    let mut writes = replikv_core::WriteSet::builder();
    for n in 0..20_000u32 {
        writes.put(Keyspace::Data, n.to_be_bytes(), [7; 100])?;
    }
    source.apply(writes.build(), replikv_core::Durability::Synced).await?;
    let master = Master::open(source, MasterConfig::default().chunk_bytes(10_000)).await?;
    let store = MemoryStore::new();
    let slave = slave(&store).await;
    connect(&master, &slave);
    let mut token = None;
    for n in 0..400u32 {
        let key = (n * 49).to_be_bytes();
        let from = (n * 50).to_be_bytes();
        let to = (n * 50 + 3).to_be_bytes();
        token = Some(master.write(Batch::new().put(key, n.to_be_bytes()).delete_range(from..to)).await?);
    }
    soon(slave.wait_applied(token.unwrap())).await?;
    assert_eq!(contents(&store).await, contents(master.store()).await);
    Ok(())
}

#[tokio::test]
async fn a_write_can_wait_for_slaves() -> Result<(), Error> {
    let (master, store) = (master().await, MemoryStore::new());
    let slave = slave(&store).await;
    connect(&master, &slave);
    let token = master.write(Batch::new().put("a", "1")).replicated(1, Duration::from_secs(20)).await?;
    assert!(slave.status().durable >= token.seq);
    let lonely = master.write(Batch::new().put("b", "1")).replicated(2, Duration::from_millis(50)).await;
    assert!(matches!(lonely, Err(WriteError::NotReplicated { acked: 0..=1, wanted: 2, .. })));
    assert!(master.get("b").await?.is_some(), "the write is committed, and stays");
    Ok(())
}

async fn refused(master: &Master<MemoryStore>, store: &MemoryStore) -> RejectCode {
    let before = contents(store).await;
    let slave = slave(store).await;
    let end = soon(connect(master, &slave)).await.unwrap();
    assert_eq!(contents(store).await, before, "nothing is written");
    match end {
        Err(error @ FollowError::Refused(_)) => {
            assert!(!error.is_retryable());
            let FollowError::Refused(refusal) = error else { unreachable!() };
            refusal.code
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

async fn followed(master: &Master<MemoryStore>) -> MemoryStore {
    let store = MemoryStore::new();
    let slave = slave(&store).await;
    let following = connect(master, &slave);
    soon(slave.wait_caught_up()).await.unwrap();
    following.abort();
    slave.shutdown().await.unwrap();
    store
}

#[tokio::test]
async fn a_foreign_source_is_refused() {
    let (one, two) = (master().await, master().await);
    let store = followed(&one).await;
    assert_eq!(refused(&two, &store).await, RejectCode::ForeignSource);
}

#[tokio::test]
async fn data_without_a_cursor_is_refused() {
    let store = MemoryStore::new();
    store.apply_one(Keyspace::Data, replikv_core::Op::Put { key: b"mine", value: b"1" }).await.unwrap();
    assert_eq!(refused(&master().await, &store).await, RejectCode::DataWithoutCursor);
}

// What a backup is: every keyspace, as it was.
async fn copy_of(store: &MemoryStore) -> MemoryStore {
    use futures_util::TryStreamExt;
    let copy = MemoryStore::new();
    for keyspace in Keyspace::ALL {
        let entries = store.entries(keyspace, KeyRange::all(), ScanOptions::default());
        let entries: Contents = entries.try_collect().await.unwrap();
        for (key, value) in entries {
            copy.apply_one(keyspace, replikv_core::Op::Put { key: &key, value: &value }).await.unwrap();
        }
    }
    copy
}

#[tokio::test]
async fn a_slave_ahead_of_a_restored_master_is_refused_and_so_is_one_that_diverged() -> Result<(), Error> {
    let master = master().await;
    master.put("a", "1").await?;
    let backup = copy_of(master.store()).await;
    master.put("b", "2").await?;
    let store = followed(&master).await;
    let restored = Master::open(backup, MasterConfig::default()).await?;
    assert_eq!(refused(&restored, &store).await, RejectCode::SlaveAhead);
    restored.put("c", "3").await?;
    restored.put("d", "3").await?;
    assert_eq!(refused(&restored, &store).await, RejectCode::Diverged);
    Ok(())
}

#[tokio::test]
async fn a_slave_below_the_trimmed_log_is_compared() -> Result<(), Error> {
    let retention = Retention { max_bytes: 10_000, max_age_ms: None, hold_back_bytes: 0 };
    let config = MasterConfig::default().retention(retention).ring_bytes(1000);
    let master = Master::open(MemoryStore::new(), config).await?;
    let store = followed(&master).await;
    for n in 0..2000u32 {
        master.put(n.to_be_bytes(), [0; 50]).await?;
    }
    soon(async {
        while master.status().floor.seq.as_u64() < 512 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let behind = slave(&store).await;
    connect(&master, &behind);
    soon(behind.wait_caught_up()).await?;
    assert_eq!(contents(&store).await, contents(master.store()).await);
    let fresh = MemoryStore::new();
    let slave = slave(&fresh).await;
    connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_eq!(contents(&fresh).await, contents(master.store()).await);
    Ok(())
}
