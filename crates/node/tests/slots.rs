//! Slots: what is kept of the log for those who are away.

use std::time::Duration;

use futures_util::TryStreamExt;
use replikv_core::{KeyRange, Seq};
use replikv_memory::MemoryStore;
use replikv_node::{
    ChangesError, ChangesFrom, Consumer, ConsumerError, Master, MasterConfig, Slave, SlaveConfig, SlotSeen,
};
use replikv_proto::{Retention, SlotKind, SlotState};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Keeps 20 kB of log, and up to `cap` for those who are away. Records of 200 bytes.
fn config(cap: u64) -> MasterConfig {
    let retention = Retention { max_bytes: 20_000, max_age_ms: None, hold_back_bytes: cap };
    MasterConfig::default().retention(retention).ring_bytes(2_000)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it does not take that long")
}

async fn write(master: &Master<MemoryStore>, records: u32) {
    for n in 0..records {
        master.put(n.to_be_bytes(), [7; 100]).await.unwrap();
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    soon(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn slot(master: &Master<MemoryStore>, name: &str) -> Option<SlotSeen> {
    master.status().slots.into_iter().find(|slot| slot.name == name)
}

/// Follows until everything is there, and goes.
async fn visit(master: &Master<MemoryStore>, store: &MemoryStore, config: SlaveConfig) {
    let slave = Slave::open(store.open_again(), config).await.unwrap();
    let (here, there) = tokio::io::duplex(1 << 16);
    let (serving, following) = (master.clone(), slave.clone());
    let serving = tokio::spawn(async move { serving.serve(here).await });
    let following = tokio::spawn(async move { following.follow(there).await });
    soon(slave.wait_caught_up()).await.unwrap();
    slave.shutdown().await.unwrap();
    soon(following).await.unwrap().unwrap();
    drop(soon(serving).await.unwrap());
}

#[tokio::test]
async fn the_log_is_kept_for_a_slave_that_is_away() -> Result<(), Error> {
    let (master, store) = (Master::open(MemoryStore::new(), config(u64::MAX)).await?, MemoryStore::new());
    write(&master, 10).await;
    visit(&master, &store, SlaveConfig::new("edge")).await;
    until(|| slot(&master, "edge").is_some()).await;
    let stood = slot(&master, "edge").ok_or("no slot")?;
    assert_eq!((stood.kind, stood.state, stood.position.seq), (SlotKind::Slave, SlotState::Lagging, Seq::new(11)));
    write(&master, 2_000).await;
    // What nobody waits for may go; what the slave misses may not.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(master.status().floor.seq <= stood.position.seq, "the log was trimmed past the slave");
    assert!(slot(&master, "edge").is_some_and(|slot| slot.holds_log && slot.lag_seqs == 2_000));
    visit(&master, &store, SlaveConfig::new("edge")).await;
    until(|| master.status().floor.seq > stood.position.seq).await;
    Ok(())
}

#[tokio::test]
async fn a_slave_that_holds_back_more_than_the_cap_loses_its_slot() -> Result<(), Error> {
    let (master, store) = (Master::open(MemoryStore::new(), config(60_000)).await?, MemoryStore::new());
    visit(&master, &store, SlaveConfig::new("edge")).await;
    until(|| slot(&master, "edge").is_some()).await;
    write(&master, 2_000).await;
    until(|| slot(&master, "edge").is_some_and(|slot| slot.state == SlotState::Lost)).await;
    until(|| master.status().retained_bytes <= 80_000).await;
    assert!(!slot(&master, "edge").ok_or("no slot")?.holds_log);
    Ok(())
}

#[tokio::test]
async fn whoever_comes_once_leaves_no_slot_and_holds_nothing_back() -> Result<(), Error> {
    let (master, store) = (Master::open(MemoryStore::new(), config(u64::MAX)).await?, MemoryStore::new());
    visit(&master, &store, SlaveConfig::new("once").temporary()).await;
    write(&master, 2_000).await;
    until(|| master.status().floor.seq > Seq::new(1_000)).await;
    assert_eq!(slot(&master, "once"), None);
    Ok(())
}

#[tokio::test]
async fn slots_outlive_their_master_and_can_be_forgotten() -> Result<(), Error> {
    let (store, edge) = (MemoryStore::new(), MemoryStore::new());
    let master = Master::open(store.open_again(), config(u64::MAX)).await?;
    visit(&master, &edge, SlaveConfig::new("edge")).await;
    let consumer = master.consumer("index", ChangesFrom::Now).await?;
    drop(consumer);
    master.shutdown().await?;
    let master = Master::open(store.open_again(), config(u64::MAX)).await?;
    let names: Vec<_> = master.status().slots.into_iter().map(|slot| (slot.kind, slot.name)).collect();
    assert_eq!(names, [(SlotKind::Slave, "edge".into()), (SlotKind::Consumer, "index".into())]);
    assert!(master.forget(SlotKind::Slave, "edge") && !master.forget(SlotKind::Slave, "edge"));
    master.shutdown().await?;
    let master = Master::open(store.open_again(), config(u64::MAX)).await?;
    assert_eq!(slot(&master, "edge"), None);
    assert!(slot(&master, "index").is_some());
    Ok(())
}

async fn keys(consumer: &Consumer<MemoryStore>, count: usize) -> Vec<u32> {
    let mut changes = consumer.changes([]).await.unwrap();
    let mut found = Vec::new();
    while found.len() < count {
        let change = soon(changes.try_next()).await.unwrap().expect("the stream goes on");
        for op in change.ops() {
            let replikv_node::ChangeOp::Put { key, .. } = op else { panic!("only puts") };
            found.push(u32::from_be_bytes(key[..].try_into().unwrap()));
        }
        consumer.ack(change.position()).await.unwrap();
    }
    found
}

#[tokio::test]
async fn a_consumer_goes_on_where_it_was_and_the_log_waits_for_it() -> Result<(), Error> {
    let store = MemoryStore::new();
    let master = Master::open(store.open_again(), config(u64::MAX)).await?;
    let consumer = master.consumer("index", ChangesFrom::Now).await?;
    write(&master, 1_000).await;
    assert_eq!(keys(&consumer, 300).await, (0..300).collect::<Vec<_>>());
    drop(consumer);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    master.shutdown().await?;
    let master = Master::open(store.open_again(), config(u64::MAX)).await?;
    // Its place is its own: where to begin does not matter any more.
    let consumer = master.consumer("index", ChangesFrom::Now).await?;
    assert_eq!(keys(&consumer, 700).await, (300..1_000).collect::<Vec<_>>());
    until(|| master.status().floor.seq > Seq::new(700)).await;
    Ok(())
}

#[tokio::test]
async fn a_consumer_is_open_once() -> Result<(), Error> {
    let master = Master::open(MemoryStore::new(), config(u64::MAX)).await?;
    let consumer = master.consumer("index", ChangesFrom::Now).await?;
    assert!(matches!(master.consumer("index", ChangesFrom::Now).await, Err(ConsumerError::InUse { .. })));
    assert!(matches!(slot(&master, "index"), Some(SlotSeen { state: SlotState::Active, .. })));
    drop(consumer);
    assert!(matches!(slot(&master, "index"), Some(SlotSeen { state: SlotState::Lagging, .. })));
    master.consumer("index", ChangesFrom::Now).await?.forget();
    assert_eq!(slot(&master, "index"), None);
    assert!(matches!(master.consumer("", ChangesFrom::Now).await, Err(ConsumerError::Name(_))));
    Ok(())
}

#[tokio::test]
async fn a_consumer_whose_slot_is_lost_is_told() -> Result<(), Error> {
    let master = Master::open(MemoryStore::new(), config(0)).await?;
    let consumer = master.consumer("index", ChangesFrom::Now).await?;
    write(&master, 2_000).await;
    until(|| slot(&master, "index").is_some_and(|slot| slot.state == SlotState::Lost)).await;
    let lost = consumer.changes([KeyRange::all()]).await;
    assert!(matches!(lost, Err(ChangesError::Trimmed { .. })), "{lost:?}");
    Ok(())
}

#[tokio::test]
async fn there_are_no_more_slots_than_allowed() -> Result<(), Error> {
    let master = Master::open(MemoryStore::new(), config(u64::MAX).max_slots(1)).await?;
    let store = MemoryStore::new();
    let _consumer = master.consumer("index", ChangesFrom::Now).await?;
    assert!(matches!(master.consumer("other", ChangesFrom::Now).await, Err(ConsumerError::TooManySlots)));
    visit(&master, &store, SlaveConfig::new("edge")).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(slot(&master, "edge"), None, "it is served, and nothing is kept for it");
    Ok(())
}

// Slots are made once a second of what was acknowledged since.
#[tokio::test(start_paused = true)]
async fn a_slave_that_is_forgotten_right_after_its_first_acknowledgement_stays_so() -> Result<(), Error> {
    let master = Master::open(MemoryStore::new(), config(u64::MAX)).await?;
    master.put("k", "v").await?;
    let edge = MemoryStore::new();
    for _ in 0..20 {
        visit(&master, &edge, SlaveConfig::new("edge")).await;
        assert!(master.forget(SlotKind::Slave, "edge"));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(master.status().slots.is_empty(), "{:?}", master.status().slots);
    }
    Ok(())
}
